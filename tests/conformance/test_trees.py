"""Stores of whole trees: what is kept of a tree, what trees share, and what there is without overlays."""

import os
import stat
from contextlib import asynccontextmanager, suppress

import anyio
import pytest

import places
from obuilder.backends.registry import store_class
from obuilder.errors import BackendUnavailable, StoreError, StoreFull
from obuilder.system.files import remove_tree
from obuilder.system.namespaces import enter
from obuilder.system.sessions import open_session
from obuilder.testing.store_suite import add, key

KINDS = ("xfs", "rsync+copy", "rsync+hardlink", "rsync+hardlink_unsafe", "copy")
STEPS = 40

pytestmark = [pytest.mark.anyio, pytest.mark.needs("root", "overlay", "xfs", "tmpfs")]


@asynccontextmanager
async def opened(kind, place, *, overlays=True):
    path = os.path.join(place, "store")
    os.makedirs(path, exist_ok=True)
    session = open_session(path)
    store = await store_class(kind).open(path, enter(), session=session.name)
    store._stacking = store._stacking and overlays
    try:
        yield store
    finally:
        await store.close()
        session.close()


@pytest.fixture(scope="module")
def xfs():
    with places.loop("xfs", 2 << 30) as path:
        yield path


@pytest.fixture
def place(kind, xfs):
    """A directory on XFS for the store that needs it, one in memory for the others."""
    with places.scratch(xfs) if kind == "xfs" else places.memory() as path:
        yield path


def directory(root):
    return root.path


def write(root, name, text):
    with open(os.path.join(root.path, name), "w", encoding="utf-8") as file:
        file.write(text)


def read(root, name):
    with open(os.path.join(root.path, name), encoding="utf-8") as file:
        return file.read()


each_kind = pytest.mark.parametrize("kind", KINDS)
each_way = pytest.mark.parametrize("overlays", [True, False], ids=["overlays", "none"])


def everything(root):
    """A tree with all that a tree can have."""
    path = os.fsencode(root)
    for name in (
        b"plain",
        b"d/-rf",
        b"d/a\nb",
        b"d/\xff\xfe",
        b"d/" + b"n" * 255,
        b"secret",
        b"su",
    ):
        os.makedirs(os.path.dirname(os.path.join(path, name)), exist_ok=True)
        with open(os.path.join(path, name), "wb") as file:
            file.write(name * 100)
    os.link(path + b"/plain", path + b"/d/other name")
    os.symlink(b"/nowhere/\xff", path + b"/dangling")
    os.mkfifo(path + b"/d/fifo", 0o640)
    with open(path + b"/sparse", "wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"in the middle")
    os.makedirs(path + b"/d/empty/er")
    os.chmod(path + b"/d/empty", 0o1777)
    os.chmod(path + b"/su", 0o4755)
    os.setxattr(path + b"/plain", "user.note", b"\0value")
    os.setxattr(path + b"/d/empty", "user.note", b"of a directory")
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(path + b"/su", "security.capability", capability)
    os.chown(path + b"/secret", enter().to_disk(1000), enter().to_disk(50))
    os.chmod(path + b"/secret", 0)
    os.chown(path + b"/dangling", enter().to_disk(7), -1, follow_symlinks=False)
    os.utime(path + b"/dangling", ns=(1, 123456789), follow_symlinks=False)
    os.utime(path + b"/secret", ns=(-(10**9), 1234567890123456789))
    os.utime(path + b"/d/empty", ns=(0, 987654321987654321))


def listing(root):
    """Every path with all that belongs to it, and which paths are one file."""
    found, inodes = {}, {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in (*folders, *files, b"."):
            path = os.path.normpath(os.path.join(folder, name))
            place, status = os.path.relpath(path, os.fsencode(root)), os.lstat(path)
            content = b""
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
                inodes.setdefault((status.st_dev, status.st_ino), set()).add(place)
            names = os.listxattr(path, follow_symlinks=False)
            extra = (
                {n: os.getxattr(path, n) for n in names} if not stat.S_ISLNK(status.st_mode) else {}
            )
            found[place] = (
                status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_rdev,
                status.st_blocks < 2048, content, extra,
            )  # fmt: skip
    return found, {frozenset(names) for names in inodes.values()}


@each_way
@each_kind
async def test_trees_are_kept_whole(kind, place, overlays):
    async with opened(kind, place, overlays=overlays) as store:
        async with store.begin(key(0), base=None) as draft:
            everything(directory(draft.root))
            wanted = listing(directory(draft.root))
            await draft.commit(b"")
        for number in range(1, STEPS if overlays else 3):
            async with store.begin(key(number), base=key(number - 1)) as draft:
                root = directory(draft.root)
                if number == 1:
                    assert listing(root) == wanted
                os.utime(root, ns=(0, number))
                if number == 2:
                    os.rename(os.path.join(root, "plain"), os.path.join(root, "moved"))
                    os.unlink(os.path.join(root, "secret"))
                if number == 5:  # all of it goes, and comes anew
                    remove_tree(os.path.join(root, "d"))
                    os.mkdir(os.path.join(root, "d"))
                    write(draft.root, "d/plain", "another")
                wanted = listing(root)
                await draft.commit(b"")
            async with store.view(key(number)) as view:
                assert listing(directory(view)) == wanted
        chains = [len(store._chain("results", key(n))) for n in await store_numbers(store)]
        assert max(chains) == (16 if store._stacking else 1)


async def store_numbers(store):
    return [int(name, 16) for name in await store.keys()]


def inode(store, number, name):
    """The file as it is in the store, where its result is a tree."""
    ((layer, _),) = store._chain("results", key(number))
    return os.lstat(store.path("layers", layer, name)).st_ino


@pytest.mark.parametrize(("kind", "shared"), [(kind, "copy" not in kind) for kind in KINDS[:4]])
async def test_the_tree_after_sixteen_steps_shares_what_it_should(kind, place, shared):
    async with opened(kind, place) as store:
        await add(store, 0, None, {"same": "0", "changed": "0"})
        for number in range(1, 17):
            await add(store, number, number - 1, {"changed": str(number)})
        assert len(store._chain("results", key(15))) == 16
        assert len(store._chain("results", key(16))) == 1
        assert (inode(store, 0, "same") == inode(store, 16, "same")) == shared
        assert inode(store, 0, "changed") != inode(store, 16, "changed")
        for number in range(16):
            await store.delete(key(number))
        assert len(os.listdir(store.path("layers"))) == 1
        async with store.view(key(16)) as view:
            assert read(view, "same") + read(view, "changed") == "016"
        assert await store.size(key(16)) < 16384


@pytest.mark.parametrize("kind", ["rsync+hardlink", "rsync+hardlink_unsafe"])
async def test_without_overlays_files_are_found_to_be_alike(kind, place):
    async with opened(kind, place, overlays=False) as store:
        names = ("left", "again", "forged", "moded", "one", "two")
        async with store.begin(key(1), base=None) as draft:
            for name in names:
                write(draft.root, name, "base")
                os.utime(os.path.join(directory(draft.root), name), ns=(0, 10**18))
            await draft.commit(b"")
        async with store.begin(key(2), base=key(1)) as draft:
            root = directory(draft.root)
            for name, text in (("again", "base"), ("forged", "BASE")):
                path = os.path.join(root, name)
                os.unlink(path)
                write(draft.root, name, text)
                os.utime(path, ns=(0, 10**18))
            os.chmod(os.path.join(root, "moded"), 0o600)
            os.unlink(os.path.join(root, "two"))
            os.link(os.path.join(root, "one"), os.path.join(root, "two"))
            await draft.commit(b"")
        same = {name for name in names if inode(store, 1, name) == inode(store, 2, name)}
        unsafe = kind.endswith("unsafe")
        assert same - {"one", "two"} == {"left", "again", *(["forged"] if unsafe else [])}
        async with store.view(key(2)) as view:
            assert read(view, "forged") == ("base" if unsafe else "BASE")
        assert inode(store, 2, "one") == inode(store, 2, "two")
        assert len(same & {"one", "two"}) == 1  # the one file is one of the two that were


@pytest.mark.parametrize("kind", ["xfs"])
async def test_without_overlays_blocks_are_shared(place):
    async with opened("xfs", place, overlays=False) as store:
        async with store.begin(key(1), base=None) as draft:
            with open(os.path.join(directory(draft.root), "big"), "wb") as file:
                file.write(os.urandom(64 << 20))
            await draft.commit(b"")
        await store.sync()
        before = await store.usage()
        for number in range(2, 6):
            await add(store, number, number - 1, {"small": "x"})
        await store.sync()
        assert before.free - (await store.usage()).free < 8 << 20


@pytest.mark.parametrize("kind", ["rsync+hardlink", "rsync+copy", "xfs"])
async def test_a_store_can_be_used_where_there_are_no_overlays_any_more(kind, place):
    async with opened(kind, place) as store:
        await add(store, 0, None, {"a": "0", "b": "0"})
        await add(store, 1, 0, {"a": None, "c": "1"})
        await add(store, 2, 1, {"b": "2"})
    async with opened(kind, place, overlays=False) as store:
        async with store.view(key(2)) as view:
            assert sorted(os.listdir(directory(view))) == ["b", "c"]
            assert read(view, "b") + read(view, "c") == "21"
            with pytest.raises(OSError, match="Read-only"):
                write(view, "b", "")
        await add(store, 3, 2, {"d": "3"})
        assert len(store._chain("results", key(3))) == 1
    async with opened(kind, place) as store:
        await add(store, 4, 3, {"b": None})
        async with store.view(key(4)) as view:
            assert sorted(os.listdir(directory(view))) == ["c", "d"]


async def test_where_blocks_can_not_be_shared_it_is_said():
    with places.tmpfs() as place, pytest.raises(BackendUnavailable, match="share blocks") as told:
        async with opened("xfs", place):
            pass
    assert "rsync+hardlink" in told.value.hint


@pytest.mark.parametrize(
    ("kind", "overlays"),
    [("rsync+copy", True), ("rsync+copy", False), ("rsync+hardlink", False)],
)
async def test_a_full_disk_is_told_and_leaves_nothing(kind, overlays):
    with places.tmpfs("64m") as place:
        async with opened(kind, place, overlays=overlays) as store:
            big = "x" * (20 << 20)
            await add(store, 0, None, {"big": big, "small": "0"})
            for number in range(1, 16 if overlays else 1):
                await add(store, number, number - 1, {"small": str(number)})
            last = 15 if overlays else 0
            layers, filler = os.listdir(store.path("layers")), store.path("filler")
            with open(filler, "wb") as file, suppress(OSError):
                while (await store.usage()).free > 6 << 20:
                    file.write(bytes(1 << 20))
            free = (await store.usage()).free
            with pytest.raises(StoreFull):
                # A draft that is a copy, or else a tree after fifteen steps.
                await add(store, 16, last, {"small": "x" * (2 << 20)})
            assert os.listdir(store.path("drafts")) == []
            assert sorted(os.listdir(store.path("layers"))) == sorted(layers)
            assert abs((await store.usage()).free - free) < 1 << 20
            os.unlink(filler)
            await add(store, 16, last, {"small": "16"})
            async with store.view(key(16)) as view:
                assert read(view, "small") + read(view, "big") == "16" + big


async def test_a_copy_that_is_cancelled_ends_at_once_and_leaves_nothing():
    with places.memory() as place:
        async with opened("copy", place) as store:
            async with store.begin(key(1), base=None) as draft:
                for number in range(20_000):
                    write(draft.root, str(number), "")
                with anyio.move_on_after(0.1) as scope:
                    await draft.commit(b"")
                assert scope.cancelled_caught
            assert os.listdir(store.path("drafts")) == []
            assert await store.keys() == []


@each_way
async def test_a_tree_too_deep_to_be_copied(overlays):
    with places.memory() as place:
        async with opened("rsync+hardlink", place, overlays=overlays) as store:
            async with store.begin(key(0), base=None) as draft:
                at = os.open(directory(draft.root), os.O_RDONLY)
                for _ in range(1200):
                    os.mkdir("d", dir_fd=at)
                    inner = os.open("d", os.O_RDONLY, dir_fd=at)
                    os.close(at)
                    at = inner
                os.close(at)
                if not overlays:
                    with pytest.raises(StoreError, match="too deeply"):
                        await draft.commit(b"")
                    return
                await draft.commit(b"")
            for number in range(1, 20):
                await add(store, number, number - 1, {"small": str(number)})
            async with store.view(key(19)) as view:
                assert read(view, "small") == "19"
