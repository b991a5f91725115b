"""What a step costs on each store, in time and on disk: `scripts/bench stores`, as root.

Each store gets a base of its own, small and then large, and trivial steps one on the other: the mean of
30, so that what is done at every sixteenth only is in it, and what the base and the first 10 take on
disk. Beside each store that OBuilder has as well, in turns with it on the same file system, stand the
very commands that OBuilder runs for a step, with runc between them. A ratio says how much faster
obuilder is. btrfs and XFS are made on loop devices; all else is on the file system of /var/tmp.
Arguments name the stores to measure.
"""

import json
import os
import random
import shutil
import statistics
import subprocess  # noqa: TID251 # the programs compared with are started by hand
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from obuilder.backends.registry import STORES
from obuilder.system import linux
from obuilder.system.namespaces import enter

STEPS, BATCHES = 10, 3
PYTHON = sys.executable

BUILD = """
import sys, time
import anyio
from obuilder import Builder, Settings
from obuilder.spec.model import Run, Shell, Spec

store, base, first, steps = *sys.argv[1:3], *map(int, sys.argv[3:])
def spec(count):
    return Spec(base=base, ops=(Shell(("/bin/sh", "-c")), *(Run(f": {n}") for n in range(count))))

async def main():
    async with Builder.open(Settings(store=store)) as builder:
        await builder.build(spec(first), "/")
        began = time.perf_counter()
        result = await builder.build(spec(first + steps), "/")
        assert result.ran == steps, result
        print((time.perf_counter() - began) / steps * 1000)

anyio.run(main)
"""


class Size(NamedTuple):
    """A base: so many files, so many bytes, a few of them large."""

    name: str
    files: int
    total: int


SIZES = (Size("6 MB, 450 files", 450, 6 << 20), Size("750 MB, 13.8 k files", 13_800, 750 << 20))


def make_base(top: str, size: Size) -> None:
    """The same tree each time: sixty percent of it in few files, the rest in many of any length."""
    chance, folders = random.Random(1), [top]
    block = chance.randbytes(1 << 20)
    large = max(1, size.files // 230)
    weights = [chance.paretovariate(1.1) for _ in range(size.files - large)]
    lengths = [size.total * 6 // 10 // large] * large
    lengths += [int(size.total * 0.4 * weight / sum(weights)) for weight in weights]
    os.makedirs(os.path.join(top, "bin"))
    shutil.copy("/bin/busybox", os.path.join(top, "bin", "sh"))
    for number in range(size.files // 10):
        folders.append(os.path.join(chance.choice(folders[-200:]), f"d{number}"))
        os.mkdir(folders[-1])
    for number, length in enumerate(lengths):
        with open(os.path.join(chance.choice(folders), f"f{number}"), "wb") as file:
            for rest in range(length, 0, -(1 << 19)):
                start = chance.randrange(1 << 19)
                file.write(block[start : start + min(rest, 1 << 19)])
    for number in range(size.files // 15):
        os.symlink(f"../f{number}", os.path.join(chance.choice(folders), f"l{number}"))


def run(*argv: str) -> str:
    """What a program prints. CalledProcessError."""
    done = subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return done.stdout.decode()


# --- where, and what OBuilder does there ------------------------------------------------------------


@contextmanager
def loop(kind: str, place: str) -> Iterator[str]:
    """A file system of that kind on a loop device; in this process's own mount namespace."""
    image, mounted = os.path.join(place, "image"), os.path.join(place, "mounted")
    with open(image, "wb") as file:
        file.truncate(24 << 30)
    os.mkdir(mounted)
    try:
        run(f"mkfs.{kind}", "-q", image)
        run("mount", "-o", "loop", image, mounted)
        try:
            yield mounted
        finally:
            linux.unmount(mounted)
    finally:
        os.unlink(image)
        os.rmdir(mounted)


@contextmanager
def here(place: str) -> Iterator[str]:
    """A directory of the file system there is."""
    path = os.path.join(place, "here")
    os.mkdir(path)
    try:
        yield path
    finally:
        run("rm", "-rf", path)


class Theirs:
    """Steps as OBuilder makes them: a clone, runc, and what makes the clone a result."""

    def __init__(self, place: str, kind: str, base: str) -> None:
        self._place, self._kind, self._count = os.path.join(place, "theirs"), kind, 0
        for name in ("result", "result-tmp", "bundle", "work", "merged"):
            os.makedirs(os.path.join(self._place, name))
        first = self._path("result", 0)
        if kind == "btrfs":
            run("btrfs", "subvolume", "create", first)
        run("cp", "-aT", base, first)
        run("runc", "spec", "--bundle", os.path.join(self._place, "bundle"))

    def _path(self, kind: str, number: int) -> str:
        return os.path.join(self._place, kind, str(number))

    def step(self) -> float:
        """Milliseconds that one takes."""
        base, self._count = self._path("result", self._count), self._count + 1
        scratch, result = self._path("result-tmp", self._count), self._path("result", self._count)
        began = time.perf_counter()
        getattr(self, f"_{self._kind.replace('+', '_')}")(base, scratch, result)
        return (time.perf_counter() - began) * 1000

    def _trivial(self, root: str) -> None:
        path = os.path.join(self._place, "bundle", "config.json")
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        config["root"] = {"path": root, "readonly": False}
        config["process"] |= {"terminal": False, "args": ["/bin/sh", "-c", f": {self._count}"]}
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file)
        run("runc", "run", "--bundle", os.path.dirname(path), f"bench-{os.getpid()}")

    def _rsync_copy(self, base: str, scratch: str, result: str) -> None:
        run("rsync", "-aHq", f"{base}/", scratch)
        self._trivial(scratch)
        run("mv", scratch, result)

    def _rsync_hardlink(self, base: str, scratch: str, result: str, *, safe: bool = True) -> None:
        run("rsync", "-aHq", f"{base}/", scratch)
        self._trivial(scratch)
        how = ("--checksum",) if safe else ()
        run("rsync", "-aHq", *how, f"--link-dest={base}", f"{scratch}/", result)
        run("rm", "-r", scratch)

    def _rsync_hardlink_unsafe(self, base: str, scratch: str, result: str) -> None:
        self._rsync_hardlink(base, scratch, result, safe=False)

    def _xfs(self, base: str, scratch: str, result: str) -> None:
        run("cp", "-pRduT", "--reflink=always", base, scratch)
        self._trivial(scratch)
        run("mv", scratch, result)

    def _btrfs(self, base: str, scratch: str, result: str) -> None:
        run("btrfs", "subvolume", "snapshot", base, scratch)
        self._trivial(scratch)
        run("btrfs", "subvolume", "snapshot", "-r", scratch, result)
        run("btrfs", "subvolume", "delete", scratch)

    def _overlayfs(self, base: str, scratch: str, result: str) -> None:
        del base
        lower = ":".join(self._path("result", number) for number in range(self._count - 1, -1, -1))
        work, merged = self._path("work", self._count), self._path("merged", self._count)
        run("mkdir", scratch, work, merged)
        options = f"lowerdir={lower},upperdir={scratch},workdir={work}"
        run("mount", "-t", "overlay", "overlay", merged, "-o", options)
        self._trivial(merged)
        run("umount", merged)
        run("mv", scratch, result)
        run("rm", "-rf", work, merged)


class Kind(NamedTuple):
    """Where a kind of store is measured, and whether OBuilder has it."""

    where: Callable[[str], AbstractContextManager[str]]
    theirs: bool = True


KINDS = {
    "overlayfs": Kind(here),
    "btrfs": Kind(lambda place: loop("btrfs", place)),
    "xfs": Kind(lambda place: loop("xfs", place)),
    "rsync+copy": Kind(here),
    "rsync+hardlink": Kind(here),
    "rsync+hardlink_unsafe": Kind(here),
    "copy": Kind(here, theirs=False),
}


# --- measuring ----------------------------------------------------------------------------------------


class Figures(NamedTuple):
    """Milliseconds a step, and megabytes that the base and ten steps take."""

    step: float
    disk: float

    def __str__(self) -> str:
        return f"{self.step:9.1f} ms {self.disk:8.0f} MB"


def taken(path: str, *, alone: bool) -> float:
    """Megabytes on disk; of a whole file system where the path has one to itself."""
    run("sync", "-f", path)
    if not alone:
        return int(run("du", "-sB1", path).split()[0]) / 1e6
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize / 1e6


def measure(kind: str, base: str, place: str) -> tuple[Figures, Figures | None]:
    """Our figures and OBuilder's."""
    chosen = KINDS[kind]
    with chosen.where(place) as path:

        def used() -> float:
            return taken(path, alone=chosen.where is not here)

        build = [PYTHON, "-c", BUILD, f"{kind}:{path}/store", f"rootfs:{base}"]
        empty = used()
        run(*build, "0", str(STEPS))
        disk, theirs = used() - empty, None
        ours, others, their_disk = list[float](), list[float](), 0.0
        if chosen.theirs:
            theirs, before = Theirs(path, kind, base), disk + empty
            their_disk = used() - before
        for batch in range(1, BATCHES + 1):
            ours.append(float(run(*build, str(batch * STEPS), str(STEPS))))
            if theirs is not None:
                before = used()
                others.append(theirs.step())
                their_disk += (used() - before) * STEPS / BATCHES
        figures = Figures(statistics.mean(ours), disk)
        return figures, Figures(statistics.mean(others), their_disk) if others else None


def main() -> None:
    chosen = [kind for kind in KINDS if not sys.argv[1:] or kind in sys.argv[1:]]
    for kind in STORES:
        if kind not in KINDS:
            print(f"{kind}: is not measured here")
    enter()  # what is mounted here is gone with this process
    with tempfile.TemporaryDirectory(prefix="obuilder-bench.", dir="/var/tmp") as place:
        os.chmod(place, 0o711)  # steps run as users who must get to the store
        for size in SIZES:
            base = os.path.join(place, "base")
            make_base(base, size)
            print(f"{size.name:24} {'obuilder':>24} {'as OBuilder does it':>24} {'faster':>8}")
            for kind in chosen:
                try:
                    ours, theirs = measure(kind, base, place)
                except subprocess.CalledProcessError as error:
                    said = error.stderr.decode(errors="replace").strip()
                    print(f"  {kind:22} does not work here: {said[-200:]}")
                    continue
                beside = "" if theirs is None else f"{theirs} {theirs.step / ours.step:7.1f}x"
                print(f"  {kind:22} {ours} {beside}", flush=True)
            shutil.rmtree(base)


if __name__ == "__main__":
    main()
