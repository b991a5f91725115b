"""What a step costs on each store, in time and on disk: `scripts/bench stores`, as root, at rest.

Each store gets a base of its own, small and then large, and trivial steps one on the other: the median
of 3 batches of 16, so that what is done at every sixteenth only is in each, and what the base and the
first 10 take on disk. Beside each store that OBuilder has as well, in turns with it on the same file
system, stand the very commands that OBuilder runs for a step, with runc between them; and what OBuilder
itself, which is not installed here, was measured to take elsewhere. The ratios say how much faster
obuilder is. btrfs and XFS are made on loop devices and the pool of ZFS in a file; all else is on the
file system of /var/tmp. Arguments name the stores to measure.
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
from functools import partial
from typing import NamedTuple

from obuilder.backends.registry import STORES
from obuilder.system import linux
from obuilder.system.namespaces import enter
from obuilder.testing.zfs_pool import zfs_pool

STEPS, BATCHES, BATCH = 10, 3, 16
PYTHON = sys.executable

BUILD = """
import sys, time
import anyio
from obuilder import Builder, Settings
from obuilder.spec.model import Run, Shell, Spec

store, base, first, steps = *sys.argv[1:3], *map(int, sys.argv[3:])
def spec(count):
    return Spec(base="bench", ops=(Shell(("/bin/sh", "-c")), *(Run(f": {n}") for n in range(count))))

async def main():
    async with Builder.open(Settings(store=store)) as builder:
        if not first:
            await builder.import_image("bench", base)  # else each build would look at all its files
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


SIZES = (Size("small", 450, 6 << 20), Size("large", 31_000, 750 << 20))


def make_base(top: str, size: Size) -> str:
    """The same tree each time: sixty percent of it in few files, the rest in many of any length, as
    in an installed Debian. Its shape, for people.
    """
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
    links = size.files // 15
    for number in range(links):
        os.symlink(f"../f{number}", os.path.join(chance.choice(folders), f"l{number}"))
    return (
        f"{size.total >> 20} MB in {size.files + 1} files ({large} of {lengths[0] >> 10} kB, the others "
        f"{statistics.median(lengths) / 1000:.1f} kB in the middle), {len(folders)} directories, "
        f"{links} symlinks"
    )


def run(*argv: str) -> str:
    """What a program prints. CalledProcessError."""
    done = subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return done.stdout.decode()


# --- where, and what OBuilder does there ------------------------------------------------------------


class Spot(NamedTuple):
    """A place for a store: a directory there, what PLACE is in --store, and bytes in use."""

    path: str
    place: str
    used: Callable[[], float]


def in_use(path: str) -> float:
    """Of a file system that is there for the store alone."""
    run("sync", "-f", path)
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


@contextmanager
def loop(kind: str, place: str) -> Iterator[Spot]:
    """A file system of that kind on a loop device; in this process's own mount namespace."""
    image, mounted = os.path.join(place, "image"), os.path.join(place, "mounted")
    with open(image, "wb") as file:
        file.truncate(24 << 30)
    os.mkdir(mounted)
    try:
        run(f"mkfs.{kind}", "-q", image)
        run("mount", "-o", "loop", image, mounted)
        try:
            yield Spot(mounted, f"{mounted}/store", lambda: in_use(mounted))
        finally:
            linux.unmount(mounted)
    finally:
        os.unlink(image)
        os.rmdir(mounted)


@contextmanager
def memory(place: str) -> Iterator[Spot]:
    """A tmpfs."""
    mounted = os.path.join(place, "mounted")
    os.mkdir(mounted)
    linux.mount("bench", mounted, "tmpfs", 0, "size=8g,mode=755")
    try:
        yield Spot(mounted, f"{mounted}/store", lambda: in_use(mounted))
    finally:
        linux.unmount(mounted)
        os.rmdir(mounted)


@contextmanager
def pool(place: str) -> Iterator[Spot]:
    """A ZFS pool."""
    with zfs_pool(place, 8 << 30) as mounted:
        name = os.path.basename(mounted)

        def used() -> float:
            run("sync")
            kinds = "usedbydataset,usedbysnapshots"  # and not what is only reserved
            said = run("zfs", "get", "-rHpo", "value", kinds, name).split()
            return sum(float(size) for size in said if size != "-")

        yield Spot(mounted, mounted, used)


@contextmanager
def here(place: str) -> Iterator[Spot]:
    """A directory of the file system there is."""
    path = os.path.join(place, "here")
    os.mkdir(path)
    try:
        yield Spot(path, f"{path}/store", lambda: float(run("du", "-sB1", path).split()[0]))
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
    """A row: a kind of store, where it is measured, and which of OBuilder's stores it stands beside.

    `quoted` is what OBuilder took for a step on a base of 2 MB and one of 754 MB, in milliseconds, on
    another day. The lower figure where there is a range; one range stands for all modes of rsync.
    """

    store: str
    where: Callable[[str], AbstractContextManager[Spot]]
    theirs: str = ""
    quoted: tuple[int | None, int | None] = (None, None)
    batch: int = BATCH


KINDS = {
    "overlayfs on ext4": Kind("overlayfs", here, "overlayfs", (61, 139)),
    "overlayfs on tmpfs": Kind("overlayfs", memory, "overlayfs", (None, 47)),
    "btrfs": Kind("btrfs", partial(loop, "btrfs"), "btrfs", (68, 89)),
    "zfs": Kind("zfs", pool),
    "xfs": Kind("xfs", partial(loop, "xfs"), "xfs", (69, 803)),
    "rsync+copy": Kind("rsync+copy", here, "rsync+copy", (106, 6900)),
    "rsync+hardlink": Kind("rsync+hardlink", here, "rsync+hardlink", (187, 6900)),
    "rsync+hardlink_unsafe": Kind(
        "rsync+hardlink_unsafe", here, "rsync+hardlink_unsafe", (None, 6900)
    ),
    "copy": Kind("copy", here, batch=1),  # each step costs the same, and that is a lot
}


# --- measuring ----------------------------------------------------------------------------------------


class Figures(NamedTuple):
    """Milliseconds a step, and bytes that the base and ten steps take."""

    step: float
    disk: float

    def __str__(self) -> str:
        return f"{self.step:9.1f} ms {self.disk / 1e6:7.0f} MB"


def measure(kind: Kind, base: str, place: str) -> tuple[Figures, Figures | None]:
    """Our figures, and those of OBuilder's commands."""
    with kind.where(place) as spot:
        build = [PYTHON, "-c", BUILD, f"{kind.store}:{spot.place}", f"rootfs:{base}"]
        empty = spot.used()
        run(*build, "0", str(STEPS))
        ours, disk = list[float](), spot.used() - empty
        before = spot.used()
        theirs = Theirs(spot.path, kind.theirs, base) if kind.theirs else None
        others, their_disk = list[float](), spot.used() - before
        for batch in range(BATCHES):
            first = STEPS + batch * kind.batch
            ours.append(float(run(*build, str(first), str(kind.batch))))
            if theirs is not None:
                before = spot.used()
                others.append(theirs.step())
                their_disk += (spot.used() - before) * STEPS / BATCHES
        figures = Figures(statistics.median(ours), disk)
        return figures, Figures(statistics.median(others), their_disk) if others else None


def beside(ours: Figures, theirs: Figures | None, quoted: int | None) -> str:
    """The columns of OBuilder."""
    by_hand = "" if theirs is None else f"{theirs} {theirs.step / ours.step:6.1f}x"
    said = "" if quoted is None else f"{quoted:8} ms {quoted / ours.step:6.1f}x"
    return f"{by_hand:31} {said}"


def main() -> None:
    chosen = [name for name in KINDS if not sys.argv[1:] or name in sys.argv[1:]]
    for store in STORES.keys() - {kind.store for kind in KINDS.values()}:
        print(f"{store}: is not measured here")
    enter()  # what is mounted here is gone with this process
    with tempfile.TemporaryDirectory(prefix="obuilder-bench.", dir="/var/tmp") as place:
        os.chmod(place, 0o711)  # steps run as users who must get to the store
        for number, size in enumerate(SIZES):
            base = os.path.join(place, "base")
            print(f"The {size.name} base: {make_base(base, size)}")
            heads = f"{'obuilder':>23} {'by the commands of OBuilder':>31} {'OBuilder, quoted':>19}"
            print(f"  {'':22} {heads}")
            for name in chosen:
                try:
                    ours, theirs = measure(KINDS[name], base, place)
                except subprocess.CalledProcessError as error:
                    said = error.stderr.decode(errors="replace").strip()
                    print(f"  {name:22} does not work here: {said[-200:]}")
                    continue
                quoted = KINDS[name].quoted[number]
                print(f"  {name:22} {ours} {beside(ours, theirs, quoted)}".rstrip(), flush=True)
            shutil.rmtree(base)


if __name__ == "__main__":
    main()
