"""What clients type and write, from the client to a worker's real store and back.

Two pools with a worker each: what the first builds it sends to a registry, which the second asks. All of
them find the cluster by their config files.
"""

import io
import json
import os
import re
import signal
import subprocess  # what it is given
import tarfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import msgspec
import pytest

import clusters
import registries
from obuilder import events
from obuilder.cluster.client import Client
from obuilder.cluster.credentials import load_credentials, save_credentials
from obuilder.cluster.messages import Custom
from obuilder.engine.settings import Images
from obuilder.errors import StepFailed
from obuilder.oci.platforms import host_platform
from obuilder.spec.decode import parse
from obuilder.values import Limits
from program import STREAMS, Done, Process, finish, start, until
from repositories import serving

pytestmark = [
    pytest.mark.needs("root", "overlay", "crun", "registry", "skopeo"), pytest.mark.xdist_group("submit"),
]  # fmt: skip
A, B = clusters.POOL, "pool-b"
SPEC = """((from micro)
 (copy (src many) (dst /many))
 (run (shell "ls /many | wc -l; mkdir /out; echo made > /out/a")))
"""
KIND = """from obuilder.cluster.jobs import Call
from obuilder.spec.decode import parse


async def size(call: Call) -> bytes:
    spec = parse(b'((from micro) (run (shell "echo built")))', file="x").spec
    result = await call.builder.build(spec, call.directory or "/", sink=call.sink)
    return call.payload + result.key.encode()
"""


class World:
    """The pools, and who types with which config file in which directory."""

    def __init__(self, place: Path, stack: ExitStack) -> None:
        self.place, self._stack = place, stack
        self.cluster = stack.enter_context(contextmanager(clusters.module_cluster)())
        self.registry = stack.enter_context(registries.running())
        self.served = stack.enter_context(serving(str(_made(place / "served"))))
        self._configure("client", f"{self.cluster.directory}/client.json")
        context = _made(place / "context")
        _made(context / "many")
        for number in range(40):
            (context / "many" / str(number)).write_text(f"{number}\n")
        (context / "obuilder.spec").write_text(SPEC)
        self.context = context
        kinds = _made(place / "kinds")
        (kinds / "kinds.py").write_text(KIND)
        about = _made(kinds / "kinds-1.dist-info")
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: kinds\nVersion: 1\n")
        (about / "entry_points.txt").write_text("[obuilder.jobs]\nsize = kinds:size\n")

    def _configure(self, name: str, credentials: str) -> str:
        path = f"{self.place}/{name}.toml"
        Path(path).write_text(f"cluster = {json.dumps(credentials)}\n")
        return path

    def worker(self, name: str, pool: str, *options: str) -> None:
        """A worker, until the world ends."""
        path = f"{self.place}/{name}.json"
        save_credentials(anyio.run(self.cluster.worker, name, pool), path)
        log = self._stack.enter_context(open(f"{path}.log", "wb"))
        src = Path(__file__).parents[2] / "src"
        process = start(
            "worker", "--store", f"overlayfs:{self.place}/{name}", "--capacity", "3", *options,
            cwd=self.place, streams={"stderr": log}, OBUILDER_CONFIG=self._configure(name, path),
            PYTHONPATH=f"{src}:{self.place}/kinds",
        )  # fmt: skip
        self._stack.callback(_stop, process)
        until(lambda: "takes jobs" in Path(f"{path}.log").read_text(), name, seconds=60)

    def run(self, *words: str, status: int = 0, stdin: object = subprocess.DEVNULL) -> Done:
        """Type something that ends so, as a client."""
        streams = {**STREAMS, "stdin": stdin}
        done = finish(
            start(
                *words,
                cwd=self.context,
                streams=streams,
                OBUILDER_CONFIG=f"{self.place}/client.toml",
            )
        )
        assert done.status == status, (words, done)
        return done

    def newest(self) -> dict[str, object]:
        """What is known of the job that was submitted last."""
        found: dict[str, object] = json.loads(self.run("job", "show", "--json").out)
        return found


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def _stop(process: Process) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with ExitStack() as stack:
        made = World(tmp_path_factory.mktemp("submit"), stack)
        anyio.run(made.cluster.pool, B)
        cache = f"docker://{made.registry.host}/cache"
        made.worker("wa", A, "--cache-to", cache, "--allow-push", f"{made.registry.host}/team/*")
        made.worker("wb", B, "--cache-from", cache)
        yield made


def test_what_one_worker_built_the_others_fetch_and_only_what_is_missing_is_sent(world) -> None:
    files = _made(world.context / "shared")
    for number in range(40):  # as nobody has sent them before
        (files / str(number)).write_text(f"{number} of these\n")
    (world.context / "shared.spec").write_text(SPEC.replace("src many", "src shared"))
    what = ("-f", "shared.spec")
    first = world.run("submit", *what, "--on", A, "--hint", "shared")
    assert "sent 40 of 40 files" in first.err
    assert "40\n" in first.out
    assert re.search(r"nothing fetched, 2 layers .* sent", first.out)
    made = world.newest()["outcome"]
    assert made["ran"] == 2
    # The other worker has never seen it, and runs nothing.
    other = world.run("submit", *what, "--on", B, "-o", "out", "--artifact", "/out")
    assert "sent" not in other.err
    assert "2 steps found" in other.out
    outcome = world.newest()["outcome"]
    assert (outcome["ran"], outcome["result"]) == (0, made["result"])
    assert (world.context / "out" / "out" / "a").read_text() == "made\n"
    (files / "7").write_text("other\n")
    changed = world.run("submit", *what, "--on", f"{A},{B}", "-o", "both")
    assert "sent 1 of 40 files" in changed.err
    assert f"[{A}] Building on wa\n" in changed.out
    assert f"[{B}] Building on wb\n" in changed.out
    for pool in (A, B):
        assert (world.context / "both" / pool / "many" / "7").read_text() == "other\n"
    assert "not an empty directory" in world.run("submit", "--on", A, "-o", "both", status=2).err
    with open(world.context / "shared.spec") as spec:
        detached = ("submit", "--on", B, "--detach", "--artifact", "/out", "-f", "-")
        id_ = world.run(*detached, stdin=spec).out.strip()
    piped = world.run("job", "wait", "-o", "-", id_[-10:]).out
    with tarfile.open(fileobj=io.BytesIO(piped.encode("utf-8", "surrogateescape"))) as archive:
        assert archive.getnames() == ["out", "out/a"]


def test_what_build_says_holds_on_a_worker(world) -> None:
    (world.context / "slow.spec").write_text('((from micro) (run (shell "sleep 30")))')
    slow = ("build", "--on", B, "-f", "slow.spec")
    assert "its time limit" in world.run(*slow, "--timeout", "0.5", status=1).err
    late = world.run("submit", *slow[1:], "--job-timeout", "0.5", status=1)
    assert "the job took longer than 0.5 s" in late.err
    (world.context / "Dockerfile").write_text(
        "FROM micro\nARG WORD=none\nRUN ls /sys/class/net; echo $WORD > /word\n"
    )
    told = world.run(
        "build", "--on", B, "-f", "Dockerfile", "--network", "none", "--build-arg", "WORD=told",
        "-o", "tar:word.tar", "--pull", "never",
    )  # fmt: skip
    assert "\nlo\n---> " in told.out
    with tarfile.open(world.context / "word.tar") as archive:
        assert archive.extractfile("word").read() == b"told\n"
    # A spec that is longer than a message, and one that is no text.
    large = "; " + "x" * 1_500_000 + "\n"
    (world.context / "large.spec").write_text(
        f'((from micro) (run (shell "echo {"y" * 100_000}")))'
    )
    assert "y" * 100_000 in world.run("submit", "--on", B, "-f", "large.spec").out
    (world.context / "Largefile").write_text(f"# {large}FROM micro\nRUN echo large\n")
    assert "\nlarge\n" in world.run("submit", "--on", B, "-f", "Largefile", "--dockerfile").out
    (world.context / "odd.spec").write_bytes(
        b'((from micro) (copy (src many/1) (dst "/odd\xff")) (run (shell "cat /odd*")))'
    )
    assert "\n1\n" in world.run("submit", "--on", B, "-f", "odd.spec").out
    (world.context / "secret").write_bytes(b"s" * 2_000_000)
    huge = world.run("submit", "--on", B, "--secret", "id:secret", status=2)
    assert "a pool takes" in huge.err


def test_commits_are_named_by_refs_and_merged(world) -> None:
    served = world.served
    spec = '((from micro) (copy (src .) (dst /all)) (run (shell "cd /all; ls; ls lib")))'
    served.commit("sub", inner="inner\n")
    served.commit("r", **{"obuilder.spec": spec, "main": "1\n"})
    served.git("r", "submodule", "add", "-q", served.url("sub"), "lib")
    base = served.commit("r")
    served.git("r", "checkout", "-q", "-b", "feature")
    feature = served.commit("r", feature="2\n")
    served.git("r", "checkout", "-q", "--detach", base)
    asked = served.commit("r", asked="3\n")
    served.git("r", "update-ref", "refs/pull/7/head", asked)
    served.git("r", "checkout", "-q", "main")
    url = served.url("r")
    merged = world.run("submit", "--on", B, "--git", f"{url}#main", "feature", "pull/7/head")
    assert "\nasked\nfeature\nlib\nmain\nobuilder.spec\ninner\n" in merged.out
    job = world.newest()["job"]
    assert job["context"]["commits"] == [base, feature, asked]
    # The same commits once more, whatever has become of the branch.
    served.git("r", "branch", "-D", "feature")
    again = world.run("job", "rerun")
    assert "all commits are here already" in again.out
    (world.context / "own.spec").write_text("((from micro) (copy (src inner) (dst /x)))")
    own = ("submit", "--on", B, "-f", "own.spec", "--git")
    world.run(*own, f"{url}#:lib")
    assert "no directory none" in world.run(*own, f"{url}#:none", status=5).err
    assert "no branch or tag 'gone'" in world.run(*own, f"{url}#gone", status=5).err
    assert "--build-context" in world.run(*own, url, "--build-context", "a=.", status=2).err


def test_images_are_pushed_by_the_worker_where_it_may(world) -> None:
    host = world.registry.host
    pushed = world.run(
        "build", "--on", A, "-o", f"docker://{host}/team/app:1", "--squash", "--annotation", "who=we"
    )  # fmt: skip
    digest = pushed.err.partition(f"pushed {host}/team/app:1@")[2].strip()
    kind = "application/vnd.oci.image.manifest.v1+json"
    _, headers, data = world.registry.request("GET", "team/app/manifests/1", Accept=kind)
    assert headers["Docker-Content-Digest"] == digest
    manifest = json.loads(data)
    assert manifest["annotations"]["who"] == "we"
    world.run("build", "--on", A, "-o", "docker-archive:app.tar:ours/app:2", "--squash")
    loaded = subprocess.run(
        ["skopeo", "inspect", f"docker-archive:{world.context}/app.tar:ours/app:2"],
        capture_output=True, check=True,
    )  # fmt: skip
    assert len(json.loads(loaded.stdout)["Layers"]) == len(manifest["layers"])
    refused = world.run("submit", "--on", A, "--push", f"{host}/other/app:1", status=6)
    assert "may not push" in refused.err
    both = world.run("submit", "--on", f"{A},{B}", "--push", f"{host}/team/app:1", status=2)
    assert "several pools would push one name" in both.err


def test_secrets_lie_nowhere_as_they_are(world) -> None:
    secret = "hunter2-" + os.urandom(8).hex()
    (world.context / "token").write_text(secret)
    (world.context / "token.spec").write_text(
        '((from micro) (run (secrets (id (target /t))) (shell "cat /t; wc -c < /t")))'
    )
    told = world.run(
        "submit", "--on", A, "-f", "token.spec", "--secret", "id:token", "--title", "plain-to-see"
    )
    assert "***" in told.out
    assert f"{len(secret)}\n" in told.out
    kept = b"".join(
        path.read_bytes() for path in Path(world.cluster.directory).rglob("*") if path.is_file()
    )
    assert b"plain-to-see" in kept
    assert secret.encode() not in kept


def test_the_exit_status_of_several_is_the_worst(world) -> None:
    (world.context / "bad.spec").write_text('((from micro) (run (shell "exit 3")))')
    bad = world.run("submit", "--on", f"{A},{B}", "-f", "bad.spec", status=1)
    assert f"{A}: the command exited with status 3" in bad.err
    failed = json.loads(world.run("job", "ls", "--json", "-n", "1").out)[0]["id"]
    (world.context / "slow.spec").write_text('((from micro) (run (shell "sleep 30")))')
    slow = world.run("submit", "--on", B, "-f", "slow.spec", "--detach").out.strip()
    world.run("job", "cancel", slow)
    world.run("job", "wait", failed, slow, status=130)
    assert "nothing comes back" in world.run("job", "wait", failed, "-o", "x", status=2).err
    assert world.run("job", "rerun", failed, "-q", status=1).out == ""


def test_a_worker_of_another_platform_is_refused(world) -> None:
    async def stranger() -> object:
        await world.cluster.pool("riscv", platform="linux/riscv64")
        return await world.cluster.worker("other", "riscv")

    save_credentials(anyio.run(stranger), f"{world.place}/other.json")
    store = f"overlayfs:{world.place}/other"
    refused = finish(
        start("worker", "--cluster", f"{world.place}/other.json", "--store", store, cwd=world.place)
    )
    assert refused.status == 2
    assert f"is for linux/riscv64, and this machine is {host_platform()}" in refused.err


def test_python_builds_on_a_pool_as_here(world) -> None:
    text = b'((from micro) (copy (src many/1) (dst /x)) (run (shell "cat /x; echo built >&2")))'
    spec = parse(text, file="x").spec
    bad = parse(b'((from micro) (run (shell "exit 4")))', file="x").spec
    (world.context / "python.spec").write_bytes(text)
    local = world.run(
        "build", "-f", "python.spec", "--store", f"overlayfs:{world.place}/local", "--progress", "json"
    )  # fmt: skip
    here = [json.loads(line)["event"] for line in local.out.splitlines()[1:]]

    async def there() -> None:
        credentials = load_credentials(world.cluster.directory)
        async with Client.open(credentials) as client:
            seen: list[events.Event] = []
            result = await client.build(
                spec, str(world.context), pool=B, sink=seen.append, name="python.spec",
                images=Images(pull="never"), limits=Limits(pids=100),
            )  # fmt: skip
            assert json.loads(local.out.splitlines()[-1])["result"] == result.key
            kinds = [str(msgspec.to_builtins(event)["event"]) for event in seen]
            assert _same(kinds) == _same(here)
            said = [event.data for event in seen if isinstance(event, events.Output)]
            assert b"".join(said) == b"1\nbuilt\n"
            async with client.stream(spec, str(world.context), pool=B) as stream:
                last = [event async for event in stream][-1]
            assert isinstance(last, events.BuildDone)
            assert (last.result, last.ran) == (result.key, 0)
            with pytest.raises(StepFailed, match="status 4"):
                await client.build(bad, str(world.context), pool=B)
            # A kind of job that somebody has installed.
            ref = await client.submit(Custom(kind="size", payload=b"key "), B)
            outcome = await client.result(ref)
            assert outcome.value.startswith(b"key ")
            assert len(outcome.value) == 68

    anyio.run(there)


def _same(kinds: list[str]) -> list[str]:
    """Kinds of events, but for those that depend on the machine, and on the moment."""
    found = [kind.replace("step-cached", "step-done") for kind in kinds]
    return [kind for kind in found if kind not in ("note", "cache-moved", "output")]
