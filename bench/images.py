"""What images cost: `scripts/bench images`, as root, on a machine at rest.

The image is a Debian with a compiler, in four layers. Each is done to the end, into an empty store or
a new file or registry, by obuilder, by skopeo with umoci, by buildah and by docker where they are
installed: pulled from a registry on the loopback and unpacked; imported from archives; and, for a
root whose layer nobody packed before, written to archives and pushed. Whole programs are timed, the
medians of rounds that take turns; a ratio is obuilder's figure over the other's. Then the most memory
that obuilder took in any of it, and for one layer of a gigabyte.
"""

import json
import os
import shutil
import signal
import statistics
import subprocess  # noqa: TID251 # the programs compared with are started by hand
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from steps import PYTHON

from obuilder.system.files import remove_tree
from obuilder.system.namespaces import enter
from obuilder.testing.engines import engine_command, forget_engine

ROUNDS = 3
PARTS = ("usr/lib/x86_64-linux-gnu", "usr/lib", "usr", "")
"""What is in each layer; but the first, without what layers before it have."""
LARGE = 1 << 30
PEAK = (
    "import resource, subprocess, sys; status = subprocess.run(sys.argv[1:]).returncode; "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(status)"
)
"""A process counts as as large as who forked it: a small one starts it."""


def run(*argv: str, **variables: str) -> str:
    """What a program prints. OSError, with what it said."""
    environment = {**os.environ, **variables}
    done = subprocess.run(argv, check=False, input=b"", capture_output=True, env=environment)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise OSError(f"{argv[0]} ended with {done.returncode}: {said[-500:]}")
    return done.stdout.decode()


# --- what is there ------------------------------------------------------------------------------------


class Image:
    """An image in a layout, as archives, and its root."""

    def __init__(self, place: str, base: str) -> None:
        self.root = os.path.join(place, "root")
        os.mkdir(self.root)
        run("tar", "-C", self.root, "-xf", base)
        self.layout, self.name = f"{place}/layout", f"oci:{place}/layout:app"
        run("umoci", "init", "--layout", self.layout)
        run("umoci", "new", "--image", f"{self.layout}:app")
        for number, part in enumerate(PARTS):
            self._layer(os.path.join(place, f"part{number}"), part)
        self.oci_archive = f"oci-archive:{place}/app.oci"
        self.docker_archive = f"docker-archive:{place}/app.docker"
        copy(self.name, f"{self.oci_archive}:app")
        copy(self.name, f"{self.docker_archive}:app:latest")
        remove_tree(self.root)
        os.mkdir(self.root)
        run("tar", "-C", self.root, "-xf", base)

    def _layer(self, part: str, name: str) -> None:
        """Move what is at `name` in the root into a layer."""
        os.makedirs(os.path.join(part, os.path.dirname(name)))
        if name:
            os.rename(os.path.join(self.root, name), os.path.join(part, name))
        else:
            os.rmdir(part)
            os.rename(self.root, part)
        run("umoci", "insert", "--image", f"{self.layout}:app", part, "/")
        remove_tree(part)

    def __str__(self) -> str:
        """Its shape, for people."""
        files = size = 0
        for folder, _, names in os.walk(self.root):
            for name in names:
                status = os.lstat(os.path.join(folder, name))
                files, size = files + 1, size + status.st_size
        packed = os.path.getsize(self.oci_archive.partition(":")[2])
        return f"{size >> 20} MB in {files} files, {packed >> 20} MB as {len(PARTS)} packed layers"


def copy(source: str, target: str) -> None:
    """Copy an image with skopeo."""
    insecure = ["--src-tls-verify=false", "--dest-tls-verify=false"]
    run("skopeo", "--insecure-policy", "copy", "-q", *insecure, source, target)


@contextmanager
def registry(place: str) -> Iterator[str]:
    """An empty registry: its HOST:PORT."""
    with tempfile.TemporaryDirectory(dir=place) as directory:
        config, log = f"{directory}/config.json", f"{directory}/log"
        storage = {"filesystem": {"rootdirectory": f"{directory}/data"}}
        said = {"version": 0.1, "log": {"formatter": "json"}, "storage": storage}
        Path(config).write_text(json.dumps({**said, "http": {"addr": "127.0.0.1:0"}}))
        with open(log, "wb") as file:
            command = ["setpriv", "--pdeathsig", "KILL", "docker-registry", "serve", config]
            process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            while not (found := Path(log).read_text().partition("listening on ")[2]):
                if process.poll() is not None:
                    raise OSError(f"no registry: {Path(log).read_text()}")
                time.sleep(0.02)
            yield found.partition('"')[0]
        finally:
            process.kill()
            process.wait()


# --- who does it ---------------------------------------------------------------------------------------


class Peer(ABC):
    """A program. `ready` is told the root that is written and pushed later."""

    name: str

    @abstractmethod
    def ready(self, root: str) -> None:
        """Take a root in, as an image without packed layers."""

    @abstractmethod
    def take(self, source: str) -> None:
        """Take an image in, to its last file: docker://…, oci-archive:… or docker-archive:…."""

    @abstractmethod
    def forget(self) -> None:
        """Drop what was taken in."""

    @abstractmethod
    def give(self, target: str) -> None:
        """Bring the image of the root there: the same forms."""

    def close(self) -> None:  # noqa: B027 - most have nothing to end
        """End what runs."""


class Ours(Peer):
    """obuilder, the whole program."""

    name = "obuilder"

    def __init__(self, place: str) -> None:
        self._place, self.peak = os.path.join(place, "ours"), dict[str, int]()
        os.mkdir(self._place)
        # An installed program has its byte code; a checkout may have none.
        self._variables = {"PYTHONPYCACHEPREFIX": os.path.join(place, "bytecode")}
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

    def run(self, store: str, what: str, *arguments: str) -> str:
        """What it prints; the most memory that it had is noted."""
        program = (PYTHON, "-m", "obuilder", *arguments)
        said = {**self._variables, "OBUILDER_STORE": f"overlayfs:{self._place}/{store}"}
        *lines, peak = run(PYTHON, "-S", "-c", PEAK, *program, **said).splitlines()
        self.peak[what] = max(self.peak.get(what, 0), int(peak) << 10)
        return "\n".join(lines)

    def ready(self, root: str) -> None:
        """See `Peer`."""
        self.run("root", "rootfs", "image", "import", "root", f"rootfs:{root}")
        Path(f"{self._place}/obuilder.spec").write_text("((from root))")
        self._key = self.run("root", "build", "build", "-q", self._place).strip()

    def take(self, source: str) -> None:
        """See `Peer`."""
        self.run(
            "taken",
            source.partition(":")[0],
            "image",
            "import",
            "app",
            source.removeprefix("docker://"),
        )

    def forget(self) -> None:
        """See `Peer`."""
        remove_tree(f"{self._place}/taken")

    def give(self, target: str) -> None:
        """See `Peer`."""
        self.run("root", target.partition(":")[0], "export", "-q", self._key, target)


class Umoci(Peer):
    """skopeo to bring images, umoci to unpack and pack them."""

    name = "skopeo + umoci"

    def __init__(self, place: str) -> None:
        self._place, self._layout = f"{place}/umoci", f"{place}/umoci/layout"
        os.mkdir(self._place)

    def ready(self, root: str) -> None:
        """See `Peer`."""
        self._root = root

    def take(self, source: str) -> None:
        """See `Peer`."""
        copy(source, f"oci:{self._layout}:app")
        run("umoci", "raw", "unpack", "--image", f"{self._layout}:app", f"{self._place}/root")

    def forget(self) -> None:
        """See `Peer`."""
        for name in os.listdir(self._place):
            remove_tree(os.path.join(self._place, name))

    def give(self, target: str) -> None:
        """See `Peer`."""
        run("umoci", "init", "--layout", self._layout)
        run("umoci", "new", "--image", f"{self._layout}:app")
        run("umoci", "insert", "--image", f"{self._layout}:app", self._root, "/")
        copy(f"oci:{self._layout}:app", target)


class Buildah(Peer):
    """buildah, with a storage of its own."""

    name = "buildah"

    def __init__(self, place: str) -> None:
        self._storage, self._own = f"{place}/buildah", f"{place}/buildah-root"

    def _run(self, storage: str, *words: str) -> str:
        places = f"--root={storage}/root", f"--runroot={storage}/run"
        return run("buildah", *places, "--storage-driver=overlay", *words).strip()

    def ready(self, root: str) -> None:
        """See `Peer`."""
        box = self._run(self._own, "from", "scratch")
        self._run(self._own, "add", "-q", box, root, "/")
        self._run(self._own, "commit", "-q", box, "app")

    def take(self, source: str) -> None:
        """See `Peer`."""
        self._run(self._storage, "pull", "-q", "--tls-verify=false", source)

    def forget(self) -> None:
        """See `Peer`."""
        self._run(self._storage, "rmi", "-a", "-f")
        remove_tree(self._storage)

    def give(self, target: str) -> None:
        """See `Peer`."""
        self._run(self._own, "push", "-q", "--tls-verify=false", "app", target)

    def close(self) -> None:
        """See `Peer`."""
        self._run(self._own, "rmi", "-a", "-f")
        for storage in (self._own, self._storage):
            if os.path.ismount(f"{storage}/root/overlay"):
                run("umount", f"{storage}/root/overlay")


class Docker(Peer):
    """docker, by an engine of its own."""

    name = "docker"

    def __init__(self, place: str) -> None:
        self._client = shutil.which("docker", path=f"/usr/bin:{os.environ['PATH']}") or "docker"
        self._place, self._directory = place, f"{place}/docker"
        os.mkdir(self._directory)
        command = engine_command("docker", self._directory)
        self._engine = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not os.path.exists(f"{self._directory}/engine.sock"):
            if self._engine.poll() is not None:
                raise OSError("no engine can be started")
            time.sleep(0.02)

    def _run(self, *words: str) -> str:
        return run(self._client, *words, DOCKER_HOST=f"unix://{self._directory}/engine.sock")

    def ready(self, root: str) -> None:
        """See `Peer`."""
        archive = f"{self._place}/root.tar"
        run("tar", "-C", root, "-cf", archive, ".")
        self._run("import", archive, "root")
        os.unlink(archive)

    def take(self, source: str) -> None:
        """See `Peer`."""
        kind, _, path = source.partition(":")
        if kind == "docker":
            self._run("pull", "-q", path.removeprefix("//"))
        else:
            self._run("load", "-q", "-i", path)

    def forget(self) -> None:
        """See `Peer`."""
        for name in self._run("images", "--format={{.Repository}}:{{.Tag}}").split():
            if not name.startswith("root:"):
                self._run("rmi", "-f", name)

    def give(self, target: str) -> None:
        """See `Peer`."""
        kind, _, path = target.partition(":")
        if kind == "docker":
            name = path.removeprefix("//")
            self._run("tag", "root", name)
            self._run("push", "-q", name)
        else:
            self._run("save", "-o", path.partition(":")[0], "root")

    def close(self) -> None:
        """See `Peer`."""
        with open(f"/proc/{self._engine.pid}/task/{self._engine.pid}/children") as file:
            for child in file.read().split():
                os.kill(int(child), signal.SIGKILL)
        self._engine.wait(30)
        forget_engine(self._directory)


PEERS: dict[type[Peer], str] = {Umoci: "umoci", Buildah: "buildah", Docker: "dockerd"}
OCI, DOCKER = "oci-archive", "docker-archive"
TAGS = {OCI: "app", DOCKER: "app:latest"}
UNABLE = {("docker", OCI)}
"""Who knows nothing of what: Debian's docker reads and writes its own archives only."""


# --- measuring ----------------------------------------------------------------------------------------


def peers(place: str, opened: ExitStack) -> list[Peer]:
    """Those that are installed and work here; the others are told."""
    found = list[Peer]()
    for kind, program in PEERS.items():
        if shutil.which(program) is None:
            print(f"{kind.name}: is not installed")
            continue
        try:
            peer = kind(place)
        except OSError as error:
            print(f"{kind.name}: does not work here: {error}")
            continue
        opened.callback(peer.close)
        found.append(peer)
    return found


def measure(title: str, kind: str, tried: list[Peer], do: Callable[[Peer], float]) -> None:
    """Print what each took, in turns."""
    able = [peer for peer in tried if (peer.name, kind) not in UNABLE]
    spent: dict[str, list[float]] = {peer.name: [] for peer in able}
    for _ in range(ROUNDS):
        for peer in able:
            spent[peer.name].append(do(peer))
            peer.forget()
    ours = spent.pop("obuilder")
    print(f"{title:32} obuilder {statistics.median(ours):6.1f} s")
    for name, theirs in spent.items():
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        print(f"  {name:38} {statistics.median(theirs):6.1f} s   ratio {ratio:.2f}", flush=True)


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    os.sync()  # what was written before is not part of it
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def large(ours: Ours, place: str) -> None:
    """One layer of a gigabyte, out and in again."""
    root = os.path.join(place, "large")
    os.mkdir(root)
    with open(f"{root}/large", "wb") as file:
        file.writelines(os.urandom(1 << 19) + bytes(1 << 19) for _ in range(LARGE >> 20))
    ours.peak.clear()
    ours.ready(root)
    with registry(place) as host:
        ours.give(f"docker://{host}/large")
        ours.take(f"docker://{host}/large")
    ours.give(f"{OCI}:{place}/large.oci")
    ours.forget()
    ours.take(f"{OCI}:{place}/large.oci")


def peaks(ours: Ours) -> str:
    """The most memory, by what it did."""
    return ", ".join(f"{what} {peak >> 20} MB" for what, peak in sorted(ours.peak.items()))


def main() -> None:
    enter()
    base = run("scripts/debian-base").strip()
    with tempfile.TemporaryDirectory(prefix="obuilder-bench.", dir="/var/tmp") as place:
        os.chmod(place, 0o711)
        with ExitStack() as opened:
            image, ours = Image(place, base), Ours(place)
            print(f"The image: {image}", flush=True)
            tried: list[Peer] = [ours, *peers(place, opened)]
            for peer in tried:
                peer.ready(image.root)

            def take(source: str) -> Callable[[Peer], float]:
                return lambda peer: timed(lambda: peer.take(source))

            def give(kind: str) -> Callable[[Peer], float]:
                def one(peer: Peer) -> float:
                    with tempfile.TemporaryDirectory(dir=place) as folder:
                        return timed(lambda: peer.give(f"{kind}:{folder}/out:{TAGS[kind]}"))

                return one

            def push(peer: Peer) -> float:
                with registry(place) as host:
                    return timed(lambda: peer.give(f"docker://{host}/root:latest"))

            with registry(place) as host:
                copy(image.name, f"docker://{host}/app:latest")
                measure("pull and unpack", "docker", tried, take(f"docker://{host}/app:latest"))
            measure("import an OCI archive", OCI, tried, take(image.oci_archive))
            measure("import a docker archive", DOCKER, tried, take(image.docker_archive))
            measure("export to an OCI archive", OCI, tried, give(OCI))
            measure("export to a docker archive", DOCKER, tried, give(DOCKER))
            measure("push", "docker", tried, push)
            print(f"memory at most: {peaks(ours)}")
            large(ours, place)
            print(f"memory at most, one layer of {LARGE >> 20} MB: {peaks(ours)}")


if __name__ == "__main__":
    main()
