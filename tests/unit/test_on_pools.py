"""What a job takes along of what the command line says: all of it, or it is refused."""

import argparse
import inspect

import anyio
import pytest

from obuilder.cli import build, submit
from obuilder.cli.options import credentials_of, parser_for
from obuilder.cli.remote import asked_of
from obuilder.cluster.client import Client
from obuilder.cluster.credentials import Authority, save_credentials
from obuilder.cluster.messages import GitContext
from obuilder.engine.builder import Builder
from obuilder.errors import UsageError

HERE = {  # heeded by the client itself, or seen in the job's wishes and context
    "--file", "--build-context", "--build-arg", "--network", "--secret", "--target", "--output",
    "--progress", "--color", "--verbose", "--quiet", "--verbosity", "--cluster", "--on", "--urgent",
    "--hint", "--title", "--slots", "--job-memory", "--job-cpus", "--job-timeout", "--attempts",
    "--locked",
}  # fmt: skip
VALUES = {
    "--platform": "linux/riscv64", "--annotation": "a=b", "--memory": "1g", "--cpus": "2",
    "--pids": "9", "--timeout": "9", "--log": "9k", "--pull": "never", "--compression": "zstd",
}  # fmt: skip


@pytest.fixture
def where(tmp_path, monkeypatch):
    (tmp_path / "obuilder.spec").write_text("((from micro))")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OBUILDER_CONFIG", "")
    return tmp_path


def _options() -> list[argparse.Action]:
    actions = parser_for("build", build)._actions
    return [action for action in actions if action.option_strings and action.dest != "help"]


def _given(action: argparse.Action) -> list[str]:
    name = max(action.option_strings, key=len)
    if action.nargs == 0:
        return [name]
    value = str(action.choices[-1]) if action.choices else "1"
    return [name, VALUES.get(name, value)]


@pytest.mark.parametrize("action", _options(), ids=lambda action: action.option_strings[-1])
def test_every_option_of_build_goes_along_or_is_refused(where, action) -> None:
    parser = parser_for("build", build)
    words = _given(action)
    if HERE & set(action.option_strings):
        return
    plain = ["--on", "p", "-o", "docker://h/x"]
    args = parser.parse_args([*plain, *words])
    before = asked_of(submit.order_of(parser.parse_args(plain)))
    if action.dest in build._ANYWHERE:
        assert asked_of(submit.order_of(args)) != before
    else:
        with pytest.raises(UsageError, match="can't go with --on"):
            build.run(args)


@pytest.mark.parametrize("name", build._OF_JOBS)
def test_what_only_a_job_can_heed_is_refused_here(where, name) -> None:
    option = f"--{name.replace('_', '-')}"
    words = [option] if name == "urgent" else [option, "1"]
    with pytest.raises(UsageError, match=f"{option} is for builds on pools"):
        build.run(parser_for("build", build).parse_args(words))


def test_what_is_only_for_commits_or_images_is_refused_without(where) -> None:
    parser = parser_for("submit", submit)
    for words in (["--include-git"], ["--no-submodules"], ["--context-file", "x"]):
        with pytest.raises(UsageError, match="is for --git"):
            submit.run(parser.parse_args(words))
    with pytest.raises(UsageError, match="none is made"):
        asked_of(submit.order_of(parser.parse_args(["--squash"])))
    with pytest.raises(UsageError, match="for Dockerfiles"):
        submit.order_of(parser.parse_args(["--build-arg", "A=b"]))


def test_commits_are_of_a_url_with_a_ref_or_of_those_behind_it(where) -> None:
    parser = parser_for("submit", submit)
    one, two = "1" * 40, "2" * 40
    for words, commits, directory in (
        ([f"https://h/r#{one}"], (one,), ""),
        (["https://h/r", one, two], (one, two), ""),
        ([f"https://h/r#{one}:a/b/", two], (one, two), "a/b"),
        (["https://h/r#:a", two], (two,), "a"),
    ):
        args = parser.parse_args(["--git", *words])

        async def sent(args=args):
            return await submit.git_order(args).send(None, None)

        assert anyio.run(sent) == GitContext(
            url="https://h/r", commits=commits, directory=directory
        )


@pytest.mark.parametrize("name", ["build", "stream"])
def test_python_has_the_same_words_for_both(name) -> None:
    here = inspect.signature(getattr(Builder, name)).parameters
    there = inspect.signature(getattr(Client, name)).parameters
    for word, parameter in here.items():
        assert there[word].kind == parameter.kind
    assert set(there) - set(here) <= {"pool", "wishes"}


def test_the_cluster_is_named_by_option_variable_or_config_file(where, monkeypatch) -> None:
    authority = Authority(master=b"m" * 32, urls=("nats://h:1",))
    made = {}
    for name in ("one", "two", "three"):
        made[name] = authority.client(name)
        (where / name).mkdir()
        save_credentials(made[name], str(where / name / "client.json"))
    config = where / "config.toml"
    config.write_text(f'cluster = "{where}/one"\n')
    monkeypatch.setenv("OBUILDER_CONFIG", str(config))

    def found(*words: str) -> str:
        args = parser_for("submit", submit).parse_args(words)
        return credentials_of(args, "client").name

    assert found() == "one"
    monkeypatch.setenv("OBUILDER_CLUSTER", f"{where}/two/client.json")
    assert found() == "two"
    assert found("--cluster", str(where / "three")) == "three"
