"""The program as its users run it."""

import json
import os
import re
import subprocess  # the program under test is a process
import sys
import time

import pytest

from program import Program, finish, heard, running, until

pytestmark = pytest.mark.needs("root", "overlay")


def test_a_build_is_made_once_and_replayed_after(program: Program) -> None:
    program.spec(
        "(workdir /w)", '(run (shell "echo hello; pwd > where"))', '(run (shell "cat where"))'
    )
    first = program.ok("build")
    assert "hello\n" in first
    assert "/w\n" in first
    assert first.count("---> saved as") == 3
    second = program.ok("build")
    assert second.count("from cache") == 3
    assert "saved as" not in second
    assert second.splitlines()[-1] == first.splitlines()[-1]
    assert re.fullmatch(r'Got: "[0-9a-f]{64}"', second.splitlines()[-1])


def test_a_failing_step_says_what_happened_and_can_be_entered(program: Program) -> None:
    program.spec('(run (shell "echo partial > /made; echo oops; exit 3"))')
    failed = program.run("build")
    assert failed.status == 1
    assert "oops" in failed.out
    assert "exited with status 3" in failed.err
    key = re.search(r"obuilder shell ([0-9a-f]+)", failed.err)
    assert key is not None
    found = program.ok("shell", key[1], "cat", "/made")
    assert found == "partial\n"
    assert program.ok("log", key[1]) == "oops\n"
    program.ok("clean")
    assert os.listdir(os.path.join(program.store, "logs")) == []


def test_a_shell_has_the_streams_of_who_enters(program: Program) -> None:
    program.spec('(run (shell "true"))')
    key = program.ok("build").split('"')[-2]
    words = ("shell", key[:12], "--", "sh", "-c")
    both = (*words, "echo said >&2; cat; exit 5")
    given, out, err = (os.path.join(program.temporary, name) for name in ("in", "out", "err"))
    content = os.urandom(3 << 20)
    with open(given, "wb") as file:
        file.write(content)
    null = os.stat(os.devnull)
    with open(given, "rb") as stdin, open(out, "wb") as stdout, open(err, "wb") as stderr:
        entered = program.start(*both, stdin=stdin, stdout=stdout, stderr=stderr)
        assert entered.wait(60) == 5
    with open(out, "rb") as stdout, open(err, "rb") as stderr:
        assert stdout.read() == content
        assert stderr.read() == b"said\n"
    assert {os.stat(path).st_uid for path in (given, out, err)} == {os.getuid()}, "given away"
    entered = program.start(*both, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert entered.wait(60) == 5
    assert os.stat(os.devnull)[:6] == null[:6]
    endless = program.start(*words, "yes")
    heard(endless, b"y")
    assert endless.stdout is not None
    endless.stdout.close()  # as `head` does
    assert finish(endless, timeout=60).status == 141


def test_explain_names_the_input_that_changed(program: Program) -> None:
    program.spec("(env A 1)", '(run (shell "echo $A"))')
    program.ok("build")
    assert "nothing differs" in program.ok("explain")
    program.spec("(env A 2)", '(run (shell "echo $A"))')
    assert "the variable A changed from '1' to '2'" in program.ok("explain")


def test_stages_copies_caches_and_secrets(program: Program) -> None:
    program.file("input", b"from context\n")
    program.file("token", b"hunter2secret")
    dev = '(build dev ((from micro) (shell /bin/sh -c) (copy (src input) (dst /in/)) (run (shell "cat /in/input > /out"))))'
    program.spec(
        "(copy (from (build dev)) (src /out) (dst /result))",
        '(run (cache (c (target /cache))) (secrets (tok)) (shell "cat /result; cat /run/secrets/tok; stat -c %a /run/secrets/tok; date > /cache/stamp"))',
        '(run (cache (c (target /cache))) (shell "test -s /cache/stamp && echo kept"))',
        before=dev,
    )
    out = program.ok("build", "--secret", "tok:token")
    assert "from context\n" in out
    assert "hunter2" not in out
    assert "400\n" in out
    assert "kept\n" in out
    for folder, _, names in os.walk(program.store):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb") as file:
                    assert b"hunter2secret" not in file.read(), path


def test_steps_are_isolated(program: Program) -> None:
    program.spec(
        '(run (shell "ip -o link | wc -l"))',
        '(run (shell "mknod /x b 7 0 2>/dev/null && echo made || echo refused"))',
        "(user (uid 1000) (gid 1000))",
        '(run (shell "id -u; touch /etc/x 2>/dev/null || echo denied"))',
    )
    out = program.ok("build")
    assert "1\n" in out
    assert "refused" in out
    assert "1000\ndenied\n" in out


def test_interrupting_ends_the_step_and_keeps_nothing(program: Program) -> None:
    program.spec('(run (shell "echo started; sleep 7357"))')
    process = program.start("build")
    heard(process, b"started")
    began = time.monotonic()
    process.send_signal(2)
    assert finish(process, timeout=20).status == 130
    assert time.monotonic() - began < 3
    assert running("sleep", "7357") == []
    assert [r["kind"] for r in json.loads(program.ok("ls", "--json"))] == ["layer"]


def test_killing_the_builder_leaves_nothing_that_the_next_one_minds(program: Program) -> None:
    program.spec('(run (shell "echo > /half; echo started; sleep 7358; echo > /whole"))')
    process = program.start("build")
    heard(process, b"started")
    process.kill()
    finish(process, timeout=20)
    until(lambda: running("sleep", "7358") == [], "the step ends with its builder")
    program.spec('(run (shell "echo > /half; echo started; sleep 0; echo > /whole"))')
    program.ok("build")
    assert os.listdir(os.path.join(program.store, "drafts")) == []
    with open("/proc/mounts") as mounts:
        assert program.store not in mounts.read()


def test_eight_processes_share_one_store_and_make_each_step_once(program: Program) -> None:
    program.spec('(run (shell "sleep 0.5; cat /proc/sys/kernel/random/uuid"))')
    processes = [program.start("build") for _ in range(8)]
    ended = [finish(process) for process in processes]
    assert [done.status for done in ended] == [0] * 8, ended
    uuids = {re.search(r"[0-9a-f]{8}-[0-9a-f-]{27}", done.out)[0] for done in ended}
    assert len(uuids) == 1


def test_a_log_can_be_read_and_results_listed_exported_and_deleted(program: Program) -> None:
    program.spec('(run (shell "echo hi > /hello; echo logged"))')
    key = program.ok("build", "--progress=quiet").strip()
    assert program.ok("log", key[:12]) == "logged\n"
    assert json.loads(program.ok("show", "--json", key[:12]))["key"] == key
    target = os.path.join(program.context, "out")
    program.ok("export", key[:12], f"directory:{target}")
    with open(os.path.join(target, "hello")) as file:
        assert file.read() == "hi\n"
    assert os.stat(os.path.join(target, "hello")).st_uid == 0
    program.ok("export", key[:12], f"tar:{target}.tar")
    names = subprocess.run(["tar", "tf", f"{target}.tar"], capture_output=True, check=True).stdout
    assert b"hello" in names
    assert "deleted 1" in program.ok("delete", key[:12])
    assert "saved as" in program.ok("build")
    assert "deleted" in program.ok("clean")
    assert json.loads(program.ok("ls", "--json")) == []


def test_the_copied_files_decide_what_is_cached(program: Program) -> None:
    path = program.file("input", b"one")
    program.spec("(copy (src input) (dst /input))", '(run (shell "cat /input"))')
    program.ok("build")
    assert "saved" not in program.ok("build")
    os.chmod(path, 0o755)
    assert "saved" in program.ok("build")
    program.file("input", b"two")
    assert "two" in program.ok("build")


def test_a_fully_cached_build_imports_no_event_loop_and_no_screen(program: Program) -> None:
    program.spec(*(f'(run (shell "echo {n} > /f{n}"))' for n in range(50)))
    program.ok("build")
    code = (
        "import sys; from obuilder.cli.main import run; status = run(['build', '--progress=quiet']);"
        "bad = {'anyio', 'asyncio', 'rich', 'httpx', 'httpx2', 'click'} & set(sys.modules);"
        "sys.exit(f'imported: {bad}' if bad else status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=program.context,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **program.variables},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (["bild"], 2), (["build", "--no-such"], 2), (["build", "-f", "missing"], 2),
        (["build", "--store=nosuch:/x"], 2), (["build", "--store=btrfs:relative"], 2),
        (["build", "--secret", "x"], 2), (["log", "abc"], 2), ([], 2), (["--help"], 0),
        (["build", "--help"], 0), (["check", "missing"], 2), (["completion", "bash"], 0),
    ],
)  # fmt: skip
def test_wrong_command_lines_get_one_message(
    program: Program, args: list[str], status: int
) -> None:
    program.spec()
    done = program.run(*args)
    assert done.status == status, done
    assert bool(done.err) == (status != 0 and args != [])


def test_bytes_that_are_no_text_are_told_or_kept(program: Program) -> None:
    name = os.fsdecode(b"\xff name")
    program.file(name, b"content\n")
    stage = f'(build "{name}" ((from micro) (shell /bin/sh -c) (run (shell "echo > /out"))))'
    program.spec(
        f'(copy (src "{name}") (dst /in/))', f'(workdir "/{name}")',
        f'(copy (from (build "{name}")) (src /out) (dst .))', before=stage,
    )  # fmt: skip
    program.ok("build", "--progress=json")
    assert "\\xff name" in program.ok("ls")
    assert "nothing differs" in program.ok("explain")
    key = program.ok("build", "--progress=quiet").strip()
    assert "content\n" in program.ok("shell", key, "--", "sh", "-c", "cat /in/*")
    program.spec(f'(run (shell "echo {name}"))')
    done = program.run("build")
    assert done.status == 2
    assert "UTF-8 only" in done.err


def test_the_healthcheck_runs_a_step(program: Program) -> None:
    assert "Healthcheck passed" in program.ok("healthcheck")
