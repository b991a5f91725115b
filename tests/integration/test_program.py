"""The program as its users run it."""

import json
import os
import re
import subprocess  # the program under test is a process
import sys
import tempfile
import time
from collections.abc import Iterator

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root for the machine's mounts")]


class Bench:
    """A store, a context and a way to run the program."""

    def __init__(self, path: str) -> None:
        self.store, self.context = os.path.join(path, "store"), os.path.join(path, "context")
        os.chmod(path, 0o755)
        os.mkdir(self.context)
        self.env = {
            **os.environ,
            "OBUILDER_STORE": f"overlayfs:{self.store}",
            "PYTHONPATH": os.path.join(ROOT, "src"),
        }

    def spec(self, *ops: str, before: str = "") -> None:
        text = f"({before}(from micro) (shell /bin/sh -c)\n " + "\n ".join(ops) + ")\n"
        with open(os.path.join(self.context, "obuilder.spec"), "w") as file:
            file.write(text)

    def start(self, *args: str, **options: object) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-m", "obuilder", *args], cwd=self.context, env=self.env,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
        )  # fmt: skip

    def run(self, *args: str) -> "subprocess.CompletedProcess[bytes]":
        process = self.start(*args)
        out, err = process.communicate(timeout=120)
        assert b"Traceback" not in err, err.decode()
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def ok(self, *args: str) -> str:
        done = self.run(*args)
        assert done.returncode == 0, (done.stdout + done.stderr).decode()
        return done.stdout.decode()


@pytest.fixture
def bench() -> "Iterator[Bench]":
    # Not pytest's own folder: steps run under ids that are nobody here, and nobody may enter it.
    with tempfile.TemporaryDirectory(prefix="obuilder-cli-") as path:
        yield Bench(path)


def test_a_build_is_made_once_and_replayed_after(bench: Bench) -> None:
    bench.spec(
        "(workdir /w)", '(run (shell "echo hello; pwd > where"))', '(run (shell "cat where"))'
    )
    first = bench.ok("build")
    assert "hello\n" in first
    assert "/w\n" in first
    assert first.count("---> saved as") == 3
    second = bench.ok("build")
    assert second.count("from cache") == 3
    assert "saved as" not in second
    assert second.splitlines()[-1] == first.splitlines()[-1]
    assert re.fullmatch(r'Got: "[0-9a-f]{64}"', second.splitlines()[-1])


def test_a_failing_step_says_what_happened_and_can_be_entered(bench: Bench) -> None:
    bench.spec('(run (shell "echo partial > /made; echo oops; exit 3"))')
    failed = bench.run("build")
    assert failed.returncode == 1
    assert b"oops" in failed.stdout
    assert b"exited with status 3" in failed.stderr
    key = re.search(rb"obuilder shell ([0-9a-f]+)", failed.stderr)
    assert key is not None
    found = bench.ok("shell", key[1].decode(), "cat", "/made")
    assert found == "partial\n"
    assert bench.ok("log", key[1].decode()) == "oops\n"
    bench.ok("clean")
    assert os.listdir(os.path.join(bench.store, "logs")) == []


def test_explain_names_the_input_that_changed(bench: Bench) -> None:
    bench.spec("(env A 1)", '(run (shell "echo $A"))')
    bench.ok("build")
    assert "nothing differs" in bench.ok("explain")
    bench.spec("(env A 2)", '(run (shell "echo $A"))')
    assert "the variable A changed from '1' to '2'" in bench.ok("explain")


def test_stages_copies_caches_and_secrets(bench: Bench) -> None:
    with open(os.path.join(bench.context, "input"), "w") as file:
        file.write("from context\n")
    with open(os.path.join(bench.context, "token"), "w") as file:
        file.write("hunter2secret")
    dev = '(build dev ((from micro) (shell /bin/sh -c) (copy (src input) (dst /in/)) (run (shell "cat /in/input > /out"))))'
    bench.spec(
        "(copy (from (build dev)) (src /out) (dst /result))",
        '(run (cache (c (target /cache))) (secrets (tok)) (shell "cat /result; cat /run/secrets/tok; stat -c %a /run/secrets/tok; date > /cache/stamp"))',
        '(run (cache (c (target /cache))) (shell "test -s /cache/stamp && echo kept"))',
        before=dev,
    )
    out = bench.ok("build", "--secret", "tok:token")
    assert "from context\n" in out
    assert "hunter2" not in out
    assert "400\n" in out
    assert "kept\n" in out
    for folder, _, names in os.walk(bench.store):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb") as file:
                    assert b"hunter2secret" not in file.read(), path


def test_steps_are_isolated(bench: Bench) -> None:
    bench.spec(
        '(run (shell "ip -o link | wc -l"))',
        '(run (shell "mknod /x b 7 0 2>/dev/null && echo made || echo refused"))',
        "(user (uid 1000) (gid 1000))",
        '(run (shell "id -u; touch /etc/x 2>/dev/null || echo denied"))',
    )
    out = bench.ok("build")
    assert "1\n" in out
    assert "refused" in out
    assert "1000\ndenied\n" in out


def test_interrupting_ends_the_step_and_keeps_nothing(bench: Bench) -> None:
    bench.spec('(run (shell "echo started; sleep 7357"))')
    process = bench.start("build", start_new_session=True)
    assert process.stdout is not None
    while b"started\n" not in (line := process.stdout.readline()):
        assert line
    began = time.monotonic()
    process.send_signal(2)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert time.monotonic() - began < 3
    assert "sleep 7357" not in _processes()
    assert [r["kind"] for r in json.loads(bench.ok("ls", "--json"))] == ["layer"]


def test_killing_the_builder_leaves_nothing_that_the_next_one_minds(bench: Bench) -> None:
    bench.spec('(run (shell "echo > /half; echo started; sleep 7358; echo > /whole"))')
    process = bench.start("build")
    assert process.stdout is not None
    while b"started\n" not in (line := process.stdout.readline()):
        assert line
    process.kill()
    process.communicate(timeout=20)
    deadline = time.monotonic() + 5
    while "sleep 7358" in _processes():
        assert time.monotonic() < deadline, "the step outlived its builder"
        time.sleep(0.1)
    bench.spec('(run (shell "echo > /half; echo started; sleep 0; echo > /whole"))')
    bench.ok("build")
    assert os.listdir(os.path.join(bench.store, "drafts")) == []
    with open("/proc/mounts") as mounts:
        assert bench.store not in mounts.read()


def test_eight_processes_share_one_store_and_make_each_step_once(bench: Bench) -> None:
    bench.spec('(run (shell "sleep 0.5; cat /proc/sys/kernel/random/uuid"))')
    processes = [bench.start("build") for _ in range(8)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, outputs
    uuids = {re.search(rb"[0-9a-f]{8}-[0-9a-f-]{27}", out)[0] for out, _ in outputs}  # type: ignore[index]
    assert len(uuids) == 1


def test_a_log_can_be_read_and_results_listed_exported_and_deleted(bench: Bench) -> None:
    bench.spec('(run (shell "echo hi > /hello; echo logged"))')
    key = bench.ok("build", "--progress=quiet").strip()
    assert bench.ok("log", key[:12]) == "logged\n"
    assert json.loads(bench.ok("show", key[:12]))["key"] == key
    target = os.path.join(bench.context, "out")
    bench.ok("export", key[:12], f"directory:{target}")
    with open(os.path.join(target, "hello")) as file:
        assert file.read() == "hi\n"
    assert os.stat(os.path.join(target, "hello")).st_uid == 0
    bench.ok("export", key[:12], f"tar:{target}.tar")
    names = subprocess.run(["tar", "tf", f"{target}.tar"], capture_output=True, check=True).stdout
    assert b"hello" in names
    assert "deleted 1" in bench.ok("delete", key[:12])
    assert "saved as" in bench.ok("build")
    assert "deleted" in bench.ok("clean")
    assert json.loads(bench.ok("ls", "--json")) == []


def test_the_copied_files_decide_what_is_cached(bench: Bench) -> None:
    path = os.path.join(bench.context, "input")
    with open(path, "w") as file:
        file.write("one")
    bench.spec("(copy (src input) (dst /input))", '(run (shell "cat /input"))')
    bench.ok("build")
    assert "saved" not in bench.ok("build")
    os.chmod(path, 0o755)
    assert "saved" in bench.ok("build")
    with open(path, "w") as file:
        file.write("two")
    assert "two" in bench.ok("build")


def test_a_fully_cached_build_imports_no_event_loop_and_no_screen(bench: Bench) -> None:
    bench.spec(*(f'(run (shell "echo {n} > /f{n}"))' for n in range(3)))
    bench.ok("build")
    code = (
        "import sys; from obuilder.cli.main import run; status = run(['build', '--progress=quiet']);"
        "bad = {'anyio', 'asyncio', 'rich', 'httpx', 'httpx2', 'click'} & set(sys.modules);"
        "sys.exit(f'imported: {bad}' if bad else status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=bench.context,
        env=bench.env,
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
def test_wrong_command_lines_get_one_message(bench: Bench, args: list[str], status: int) -> None:
    bench.spec()
    done = bench.run(*args)
    assert done.returncode == status, done
    assert bool(done.stderr) == (status != 0 and args != [])


def test_the_healthcheck_runs_a_step(bench: Bench) -> None:
    assert "Healthcheck passed" in bench.ok("healthcheck")


def _processes() -> str:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    found.append(file.read().replace(b"\0", b" ").decode("utf-8", "replace"))
            except OSError:
                continue
    return "\n".join(found)
