"""What a step costs: `scripts/bench steps`, as root, on a machine at rest.

Each round builds 10 trivial steps that were never built, with obuilder and with whatever else is
installed: crun and runc by hand on the very bundle that obuilder gives them, buildah, and docker.
Then builds of 50 steps are replayed from cache, beside a bare Python. Medians of rounds that take
turns, side by side; a ratio is obuilder's figure over the other's.
"""

import os
import resource
import shutil
import signal
import statistics
import subprocess  # noqa: TID251 # the programs compared with are started by hand
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack

from obuilder.oci.bpf import compiled
from obuilder.oci.runtime_config import Box, runtime_config
from obuilder.oci.seccomp import filter_for
from obuilder.system.linux import machine
from obuilder.system.namespaces import enter
from obuilder.testing.engines import docker_command, forget_docker
from obuilder.values import Policy, UnixUser

STEPS, CACHED, ROUNDS = 10, 50, 9
PYTHON = sys.executable

BUILD = """
import sys, time
import anyio
from obuilder import Builder, Settings
from obuilder.spec.model import Run, Shell, Spec

store, mark, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
spec = Spec(base="micro", ops=(Shell(("/bin/sh", "-c")),
            *(Run(f": {mark} {number}") for number in range(steps))))

async def main():
    async with Builder.open(Settings(store=f"overlayfs:{store}")) as builder:
        await builder.build(Spec(base="micro"), "/")
        began = time.perf_counter()
        result = await builder.build(spec, "/")
        print((time.perf_counter() - began) / result.ran * 1000)

anyio.run(main)
"""


def timed(argv: list[str], env: dict[str, str] | None = None) -> float:
    """Milliseconds that a program takes. CalledProcessError, with what it said."""
    began = time.perf_counter()
    subprocess.run(argv, check=True, env=env, input=b"", capture_output=True)
    return (time.perf_counter() - began) * 1000


class Ours:
    """obuilder: steps through its Python API, replays through its program."""

    def __init__(self, place: str) -> None:
        self.store, self.context = os.path.join(place, "store"), os.path.join(place, "context")
        os.mkdir(self.context)
        # An installed program has its byte code; a checkout may have none.
        self.env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        self.env |= {"PYTHONPYCACHEPREFIX": os.path.join(place, "bytecode")}
        self.env |= {"OBUILDER_STORE": f"overlayfs:{self.store}"}
        steps = "\n".join(f'(run (shell ": step {number}"))' for number in range(CACHED))
        with open(os.path.join(self.context, "obuilder.spec"), "w", encoding="utf-8") as file:
            file.write(f"((from micro) (shell /bin/sh -c)\n{steps})\n")
        self.replay()  # the first one builds

    def step(self, mark: str) -> float:
        argv = [PYTHON, "-c", BUILD, self.store, mark, str(STEPS)]
        done = subprocess.run(argv, check=True, env=self.env, stdout=subprocess.PIPE)
        return float(done.stdout)

    def replay(self) -> float:
        # As the installed `obuilder` does.
        program = "import sys; from obuilder.cli.main import main; sys.exit(main())"
        return timed([PYTHON, "-c", program, "build", self.context], self.env)


class Runtime:
    """An OCI runtime by hand, on a bundle like those that obuilder makes."""

    def __init__(self, name: str, place: str) -> None:
        self.name = f"{name} by hand"
        self._runtime, self._place = name, os.path.join(place, name)
        self._count = 0
        root, idmap = os.path.join(self._place, "root"), enter()
        for folder in ("bin", "proc", "dev", "sys", "etc"):
            os.makedirs(os.path.join(root, folder))
        shutil.copy("/bin/busybox", os.path.join(root, "bin", "sh"))
        hosts = os.path.join(self._place, "hosts")
        for path in (hosts, os.path.join(root, "etc", "hosts")):
            with open(path, "w", encoding="utf-8"):
                pass
        for folder, folders, files in os.walk(root):
            for entry in (*folders, *files, "."):
                os.lchown(os.path.join(folder, entry), idmap.to_disk(0), idmap.to_disk(0))
        seccomp = filter_for(machine(), nested_userns=True, fast_sync=True)
        bpf = compiled(seccomp, folder=place, temporary=f"{place}/bpf") if name == "crun" else None
        box = Box(
            root=root, argv=("/bin/sh", "-c", ":"), cwd="/", user=UnixUser(0, 0),
            env=(("PATH", "/bin"),), hostname="builder", idmap=idmap, policy=Policy(),
            host_network=False, terminal=None, init=shutil.which("tini-static") or "/bin/tini",
            hosts=hosts, resolv_conf=None, ca_bundle=None, binds=(),
            open_files=resource.getrlimit(resource.RLIMIT_NOFILE), seccomp=seccomp,
            seccomp_bpf=bpf,
        )  # fmt: skip
        with open(os.path.join(self._place, "config.json"), "wb") as file:
            file.write(runtime_config(box))

    def prepare(self) -> None:
        """Try it. CalledProcessError if it does not work here."""
        self.step("probe")

    def step(self, mark: str) -> float:
        options = ["--cgroup-manager=disabled"] if self._runtime == "crun" else []
        spent = []
        for number in range(STEPS):
            name = f"bench-{os.getpid()}-{mark}-{number}"
            spent.append(timed([self._runtime, *options, "run", "-b", self._place, name]))
        return statistics.mean(spent)

    def replay(self) -> float | None:
        return None

    def close(self) -> None:
        """Nothing is left."""


class Dockerfiles(ABC):
    """A program that builds Dockerfiles: the time per step is that of 11 steps less that of 1."""

    def __init__(self, name: str, place: str) -> None:
        self.name = name
        self.context = os.path.join(place, f"{name} context")
        os.makedirs(os.path.join(self.context, "bin"))
        shutil.copy("/bin/busybox", os.path.join(self.context, "bin", "sh"))
        self._cached = self._file("replay", CACHED)

    def prepare(self) -> None:
        """Build the base and what is replayed. CalledProcessError if it does not work here."""
        self.build("FROM scratch\nCOPY bin/sh /bin/sh\n", "bench-base")
        self.build(self._cached, "bench-replay")

    @abstractmethod
    def _command(self, tag: str) -> list[str]:
        """The command line that builds a context, but for the context."""

    @abstractmethod
    def close(self) -> None:
        """Remove what was built."""

    def _file(self, mark: str, steps: int) -> str:
        runs = "".join(f"RUN : {mark} {number}\n" for number in range(steps))
        return f"FROM bench-base\n{runs}"

    def build(self, text: str, tag: str) -> float:
        """Milliseconds that a build of that Dockerfile takes."""
        with open(os.path.join(self.context, "Dockerfile"), "w", encoding="utf-8") as file:
            file.write(text)
        return timed([*self._command(tag), self.context])

    def step(self, mark: str) -> float:
        one = self.build(self._file(f"{mark} one", 1), "bench-one")
        return (self.build(self._file(f"{mark} all", STEPS + 1), "bench-all") - one) / STEPS

    def replay(self) -> float | None:
        return self.build(self._cached, "bench-replay")


class Buildah(Dockerfiles):
    """buildah, with a storage of its own."""

    def __init__(self, name: str, place: str) -> None:
        self._storage = os.path.join(place, name)
        self._runtime = shutil.which(name.partition("+")[2]) or "runc"
        self._program = [
            "buildah", f"--root={self._storage}/root", f"--runroot={self._storage}/run",
            "--storage-driver=overlay",
        ]  # fmt: skip
        super().__init__(name, place)

    def _command(self, tag: str) -> list[str]:
        # Its own defaults are higher than a machine may allow.
        limits = [
            f"--ulimit={name}={soft}:{hard}"
            for name, kind in (
                ("memlock", resource.RLIMIT_MEMLOCK),
                ("nofile", resource.RLIMIT_NOFILE),
            )
            for soft, hard in [resource.getrlimit(kind)]
        ]
        return [
            *self._program, "bud", "--layers", "--isolation=oci", f"--runtime={self._runtime}",
            "--network=none", *limits, "-q", "-t", tag,
        ]  # fmt: skip

    def close(self) -> None:
        subprocess.run([*self._program, "rmi", "-a", "-f"], check=False, capture_output=True)
        with open("/proc/self/mounts", encoding="utf-8") as table:
            mounted = [line.split()[1] for line in table]
        for path in reversed([path for path in mounted if path.startswith(self._storage)]):
            subprocess.run(["umount", path], check=False)


class Docker(Dockerfiles):
    """docker, by an engine of its own and that engine's BuildKit."""

    def __init__(self, name: str, place: str) -> None:
        # A newer client may lack the plug-in that it builds with: the engine's own package has both.
        self._client = shutil.which("docker", path=f"/usr/bin:{os.environ['PATH']}") or "docker"
        self._directory = os.path.join(place, name)
        os.mkdir(self._directory)
        self._engine = subprocess.Popen(
            docker_command(self._directory), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._host = f"unix://{self._directory}/docker.sock"
        super().__init__(name, place)

    def prepare(self) -> None:
        """Wait for the engine, then as all."""
        for _ in range(300):
            if (
                subprocess.run(
                    [*self._words(), "info"], check=False, capture_output=True
                ).returncode
                == 0
            ):
                break
            time.sleep(0.1)
        super().prepare()

    def _words(self) -> list[str]:
        return ["env", f"DOCKER_HOST={self._host}", "DOCKER_BUILDKIT=1", self._client]

    def _command(self, tag: str) -> list[str]:
        return [*self._words(), "build", "--network=none", "-q", "-t", tag]

    def close(self) -> None:
        with open(f"/proc/{self._engine.pid}/task/{self._engine.pid}/children") as file:
            for child in file.read().split():
                os.kill(int(child), signal.SIGKILL)
        self._engine.wait(30)
        forget_docker(self._directory)


Peer = Runtime | Dockerfiles
PEERS: dict[str, Callable[[str, str], Peer]] = {
    "crun": Runtime, "runc": Runtime, "buildah+crun": Buildah, "buildah+runc": Buildah,
    "docker+dockerd": Docker,
}  # fmt: skip


def peers(place: str, opened: ExitStack) -> list[Peer]:
    """Those that are installed and work here; the others are told."""
    found = []
    for name, kind in PEERS.items():
        if missing := [program for program in name.split("+") if shutil.which(program) is None]:
            print(f"{name}: {missing[0]} is not installed")
            continue
        try:
            peer = kind(name, place)
            opened.callback(peer.close)
            peer.prepare()
        except (subprocess.CalledProcessError, OSError) as error:
            said = getattr(error, "stderr", b"") or str(error).encode()
            print(f"{name}: does not work here: {said.decode(errors='replace').strip()[-200:]}")
        else:
            found.append(peer)
    return found


def show(title: str, ours: list[float], others: dict[str, list[float]]) -> None:
    mine = statistics.median(ours)
    print(f"{title:32} {mine:8.1f} ms")
    for name, spent in others.items():
        ratios = [a / b for a, b in zip(ours, spent, strict=True)]
        median, ratio = statistics.median(spent), statistics.median(ratios)
        print(f"  {name:30} {median:8.1f} ms   ratio {ratio:.2f}")


def main() -> None:
    enter()  # crun wants a mount namespace without the hybrid cgroups that some machines have
    with tempfile.TemporaryDirectory(prefix="obuilder-bench.", dir="/var/tmp") as place:
        os.chmod(place, 0o711)  # steps run as users who must get to the store
        with ExitStack() as opened:
            ours, others = Ours(place), peers(place, opened)
            steps, by_peer = [], {peer.name: [] for peer in others}
            for number in range(ROUNDS):
                steps.append(ours.step(f"round {number}"))
                for peer in others:
                    by_peer[peer.name].append(peer.step(f"round{number}"))
            show("a step, not cached: obuilder", steps, by_peer)
            replays, beside = [], {"python3 -c pass": []}
            for _ in range(ROUNDS):
                replays.append(ours.replay())
                beside["python3 -c pass"].append(timed([PYTHON, "-c", "pass"]))
                for peer in others:
                    if (spent := peer.replay()) is not None:
                        beside.setdefault(peer.name, []).append(spent)
            show(f"{CACHED} steps, all cached: obuilder", replays, beside)


if __name__ == "__main__":
    main()
