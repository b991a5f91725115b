"""What the verbs offer beyond the plain build, through the program."""

import json
import os
import shutil
import subprocess  # tools to look with
import tarfile

import pytest

from program import Program, shell

pytestmark = pytest.mark.needs("overlay", "crun")

UUID = "cat /proc/sys/kernel/random/uuid"


def test_without_the_cache_every_step_runs_again(program: Program) -> None:
    program.spec(shell(UUID), shell("echo second"))
    first = program.ok("build")
    assert program.ok("build").count("from cache") == 3
    again = program.ok("build", "--no-cache")
    assert again.count("saved as") == 2
    assert again.splitlines()[-1] == first.splitlines()[-1]  # the same key, made anew
    assert program.ok("log", _key(program, "second")) == "second\n"
    uuids = {line for text in (first, again) for line in text.splitlines() if line.count("-") == 4}
    assert len(uuids) == 2


def _key(program: Program, word: str) -> str:
    records = json.loads(program.ok("ls", "--json"))
    return next(record["key"] for record in records if word in record["heading"])


def test_a_nested_build_can_be_the_target(program: Program) -> None:
    inner = f"(build inner ((from micro) (shell /bin/sh -c) {shell('echo inner > /i')}))"
    outer = f"(build outer ({inner} (from micro) (shell /bin/sh -c) (copy (from (build inner)) (src /i) (dst /o)) {shell('cat /o')}))"
    program.spec(shell("exit 9"), before=outer)
    assert "inner\n" in program.ok("build", "--target", "outer")
    assert "inner > /i" in program.ok("build", "--target=outer/inner")
    done = program.run("build", "--target", "nobody")
    assert done.status == 2
    assert "it has: outer" in done.err


def test_a_build_can_write_its_result_out(program: Program, tmp_path) -> None:
    program.spec(shell("echo content > /made"))
    program.ok("build", "-o", f"directory:{tmp_path}/out")
    assert (tmp_path / "out/made").read_text() == "content\n"
    program.ok("build", "-o", f"tar:{tmp_path}/out.tar", "-q")
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert tar.extractfile("made").read() == b"content\n"
    done = program.run("build", "-o", "nonsense:x")
    assert done.status == 2
    assert "directory:DIR" in done.err
    process = program.start("build", "-o", "-")
    with process, tarfile.open(fileobj=process.stdout, mode="r|") as tar:
        assert "made" in tar.getnames()
        process.stdout.read()  # what fills the last record up
    assert process.returncode == 0


def test_quiet_and_verbose(program: Program) -> None:
    program.spec(shell("echo loud"))
    done = program.run("build", "-q")
    assert (len(done.out.strip()), done.err) == (64, "")
    assert program.run("build", "--verbosity=quiet").out == done.out
    program.spec(shell("echo louder"))
    loud = program.run("build", "-v")
    assert "sandbox: " in loud.err
    assert "1 steps from cache, 1 run" in loud.err


def test_pruning_keeps_as_many_bytes_as_it_is_told(program: Program) -> None:
    program.spec(*(shell(f"head -c {1 << 20} /dev/urandom > /f{number}") for number in range(4)))
    program.ok("build")
    sizes = json.loads(program.ok("du", "--json"))
    assert sizes["total"] == sum(sizes["results"].values()) > 4 << 20
    would = program.ok("prune", "--keep-bytes=3m", "--dry-run")
    assert program.ok("prune", "--keep-bytes=3m").splitlines()[:-1] == would.splitlines()[:-1]
    assert json.loads(program.ok("du", "--json"))["total"] <= 3 << 20
    assert "MiB" in program.ok("du")
    assert program.ok("prune", "--keep-bytes=1t") == "deleted 0\n"


def test_a_failed_step_that_kept_only_its_log_takes_no_space(program: Program) -> None:
    program.spec(shell("exit 3"))
    assert program.run("build", "--no-keep-failed").status == 1
    sizes = json.loads(program.ok("du", "--json"))["results"]
    assert sorted(size > 0 for size in sizes.values()) == [False, True]
    assert program.ok("prune", "--keep-bytes=1k").splitlines()[-1] == "deleted 2"


def test_a_result_is_shown_to_people_and_to_programs(program: Program) -> None:
    program.spec("(env A 1)", shell("echo shown"))
    key = program.ok("build", "-q").strip()
    text = program.ok("show", key[:10])
    assert f"key      {key}\n" in text
    assert "log      6 B\n" in text
    assert json.loads(program.ok("show", "--json", key))["kind"] == "run"


def test_explain_tells_specs_of_one_directory_apart(program: Program) -> None:
    for name, value in (("one.spec", "1"), ("two.spec", "2")):
        program.spec(f"(env A {value})", shell("echo $A"), name=name)
        program.ok("build", "-f", name)
    for name in ("one.spec", "two.spec"):
        assert "nothing differs" in program.ok("explain", "-f", name)
    program.spec("(env A 3)", shell("echo $A"), name="one.spec")
    assert "the variable A changed from '1' to '3'" in program.ok("explain", "-f", "one.spec")
    program.spec("(env A 2)", shell("echo $A"), name="one.spec")
    program.ok("build", "-f", "one.spec")  # all cached: still the last build
    program.spec("(env A 4)", shell("echo $A"), name="one.spec")
    assert "changed from '2' to '4'" in program.ok("explain", "-f", "one.spec")


def test_the_healthcheck_for_machines(program: Program) -> None:
    said = json.loads(program.ok("healthcheck", "--json"))
    found = {row["check"]: row for row in said["findings"]}
    checks = ["store", "sandbox", "identity", "step", "isolation", "limits", "space"]
    assert list(found) == checks
    assert found["isolation"]["status"] == found["step"]["status"] == "ok"
    assert "crun" in found["sandbox"]["detail"]
    assert "crun" not in json.dumps(
        json.loads(program.ok("healthcheck", "--json", "--runtime=runc"))["findings"][1]
    )


def test_settings_tell_where_they_come_from(program: Program, tmp_path) -> None:
    (tmp_path / "c.toml").write_text("memory = 5000000\npids = 7\n")
    program.variables |= {"OBUILDER_CONFIG": str(tmp_path / "c.toml"), "OBUILDER_PIDS": "9"}
    rows = json.loads(program.ok("config", "--json", "--cpus=2"))
    assert rows["memory"] == {"value": 5000000, "source": str(tmp_path / "c.toml")}
    assert rows["pids"] == {"value": 9, "source": "environment"}
    assert rows["cpus"] == {"value": 2.0, "source": "options"}
    assert rows["fast_sync"] == {"value": True, "source": "default"}
    assert "memory             5000000" in program.ok("config")


@pytest.mark.parametrize(
    "arguments", [["du", "--memory=1g"], ["delete", "x", "--cpus=1"], ["ls", "--pids", "3"]]
)
def test_a_verb_takes_no_options_that_mean_nothing_to_it(program: Program, arguments) -> None:
    done = program.run(*arguments)
    assert done.status == 2
    assert "unrecognized arguments" in done.err


@pytest.mark.parametrize(
    "option", ["--pids=0", "--pids=x", "--memory=-1", "--memory=1x", "--timeout=0", "--parallel=0", "--cpus=none", "--log=0"]
)  # fmt: skip
def test_limits_that_are_none_are_refused(program: Program, option: str) -> None:
    program.spec()
    done = program.run("build", option)
    assert done.status == 2
    assert done.err.startswith(f"error: argument {option.partition('=')[0]}")


def test_stores_that_are_none(program: Program, tmp_path) -> None:
    program.spec(shell("true"))
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", "/proc/store"):
        done = program.run("build", f"--store=overlayfs:{place}")
        assert done.status in (3, 4)
        assert done.err.startswith("error: ")
        assert str(place) in done.err


def test_a_spec_from_standard_input(program: Program) -> None:
    text = f"((from micro) (shell /bin/sh -c) {shell('echo piped')})"
    done = subprocess.run(
        ["sh", "-c", 'printf "%s" "$SPEC" | "$PYTHON" -m obuilder build -f -'],
        cwd=program.context, capture_output=True, text=True, check=True,
        env={**os.environ, **program.variables, "SPEC": text, "PYTHON": shutil.which("python")},
    )  # fmt: skip
    assert "piped\n" in done.stdout


def test_explain_names_files_the_build_before_and_what_is_lost(program: Program) -> None:
    for name in ("kept", "edited", "removed"):
        program.file(name, b"1")
    program.spec("(copy (src .) (dst /c/) (exclude obuilder.spec))", shell("ls /c"))
    program.ok("build")
    program.file("edited", b"2")
    os.unlink(f"{program.context}/removed")
    for number in range(7):
        program.file(f"added{number}", b"")
    why = program.ok("explain").splitlines()
    copy = "/: (copy (src .) (dst /c/) (exclude obuilder.spec)): "
    assert why == [
        copy + "edited: changed",
        copy + "added0, added1, added2, added3, added4 and 2 more files: new",
        copy + "removed: gone",
    ]
    program.ok("build")
    after = program.ok("explain").splitlines()
    assert after[0] == "nothing differs from the last build"
    assert [line.strip() for line in after[2:]] == why
    program.ok("delete", _key(program, "ls /c"))
    assert program.ok("explain") == (
        '/: (run (shell "ls /c")): as before, but it has no result: it failed, or was deleted\n'
    )
    program.spec("(user (uid 7) (gid 8))", shell("exit 3"))
    assert program.run("build").status == 1
    assert "exit 3" in program.ok("explain")
    program.spec("(user (uid 7) (gid 9))", shell("exit 3"))
    assert "the user changed from '7:8' to '7:9'" in program.ok("explain")


def test_lists_logs_and_sizes(program: Program) -> None:
    left = f"(build left ((from micro) (shell /bin/sh -c) {shell('echo of the left > /l')}))"
    program.spec(
        "(copy (from (build left)) (src /l) (dst /l))", "(env A 1)",
        '(run (cache (downloads (target /d))) (shell "printf one; touch /d/x"))', shell("echo two; exit 5"),
        before=left,
    )  # fmt: skip
    assert program.run("build", "--no-keep-failed").status == 1
    kinds = [line.split()[3] for line in program.ok("ls").splitlines()]
    assert kinds == ["failed", "run", "copy", "run", "layer"]
    assert "[left] /: (run" in program.ok("ls")
    failed = program.ok("ls", "--kind=failed", "-q").strip()
    assert len(failed) == 64
    assert program.ok("log") == program.ok("log", failed) == "two\n"
    whole = program.ok("log", "--all").splitlines()
    assert whole[0] == "(from micro)"
    assert whole[-3:] == ["one", '/: (run (shell "echo two; exit 5"))', "two"]
    assert program.ok("log", program.ok("ls", "--kind=copy", "-q").strip()) == ""
    assert "volume  downloads" in program.ok("du")
    assert "0 B" in program.ok("du")  # of the failed step only the log was kept
    volume = json.loads(program.ok("cache", "ls", "--json"))
    assert [row["name"] for row in volume] == ["downloads"]
    program.ok("image", "import", "mine", "micro")
    assert set(json.loads(program.ok("image", "ls", "--json"))) == {"mine"}
    program.ok("image", "rm", "mine")
    assert program.ok("image", "ls") == ""
    program.ok("prune", "--keep-bytes=1")
    assert program.ok("ls") == ""
    assert "no command has been run" in program.run("log").err


def test_help_is_for_every_verb_and_tells_nothing_twice(program: Program) -> None:
    assert program.ok("help") == program.ok("--help")
    assert program.ok("help", "image", "import") == program.ok("image", "import", "--help")
    text = program.ok("build", "--help")
    assert "None" not in text
    assert "[]" not in text
    assert program.ok("config", "--js", "--mem=1g") == program.ok("config", "--json", "--memory=1g")
    assert "could be check or cp or clean" in program.run("c").err
    assert "options after it" in program.run("--store=x", "build").err
    done = program.run("build", "--no-c")
    assert "--no-cache" in done.err
    assert "--no-ca-bundle" in done.err
    program.spec(shell("exit 1"))
    assert "to run" in program.ok("build", "--dry-run")
    done = program.run("build", "nowhere")
    assert done.err.startswith("error: there is no directory nowhere\n")
