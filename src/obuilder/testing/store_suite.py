"""What every store has to do, tried on the real thing.

Derive a class whose name starts with Test from `StoreSuite` and give it a fixture `opened`, which
makes an `Opener` for an empty store; each call opens the same store anew.
"""

import io
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import ClassVar

import pytest

from obuilder.backends.protocols import Root, Store
from obuilder.errors import SnapshotMissing, StoreBusy, StoreError
from obuilder.oci.archive import Upper, write_changes
from obuilder.oci.members import Manner
from obuilder.values import ROOT, IdMap, Key, UnixUser

Opener = Callable[[], Awaitable[Store]]


def key(number: int) -> Key:
    """A key to test with."""
    return Key(f"{number:064x}")


async def write(store: Store, root: Root, name: str, text: str) -> None:
    """Write a file in a draft's root."""
    async with store.files(root, write=True) as path:
        _put(os.path.join(path, name), text)


async def read(store: Store, root: Root, name: str) -> str:
    """Read a file in a root."""
    async with store.files(root) as path:
        with open(os.path.join(path, name), encoding="utf-8") as file:
            return file.read()


async def names(store: Store, root: Root) -> list[str]:
    """What is at the top of a root."""
    async with store.files(root) as path:
        return sorted(os.listdir(path))


async def add(store: Store, number: int, base: int | None, files: dict[str, str | None]) -> None:
    """Publish a result: `base` with these files written, or (None) removed."""
    async with store.begin(key(number), base=None if base is None else key(base)) as draft:
        async with store.files(draft.root, write=True) as path:
            for name, text in files.items():
                if text is None:
                    os.unlink(os.path.join(path, name))
                else:
                    _put(os.path.join(path, name), text)
        await draft.commit(b"meta of %d" % number)


@pytest.mark.anyio
class StoreSuite:
    """The tests."""

    steps: ClassVar[int] = 600
    """How many results are made one from the other: well over what any store keeps apart."""
    hints: ClassVar[int] = 0
    """Of 40 steps in a row, for how many the store has to know what they touched."""

    async def test_what_is_published_is_found_with_its_meta(self, opened: Opener) -> None:
        """By the same and by another opening of the store; who looks at it can't change it."""
        store = await opened()
        assert not await store.contains(key(1))
        await add(store, 1, None, {"a": "1"})
        for seen in (store, await opened()):
            assert await seen.contains(key(1))
            assert await seen.keys() == [key(1)]
            assert await seen.meta(key(1)) == b"meta of 1"
            async with seen.view(key(1)) as root:
                assert await read(seen, root, "a") == "1"
                async with seen.files(root) as path:
                    with _refused(store, OSError, match=r"[Rr]ead-only"):
                        _put(os.path.join(path, "b"), "")
            async with seen.view(key(1)) as root:
                assert await names(seen, root) == ["a"]

    async def test_an_empty_root_belongs_to_root_inside(self, opened: Opener) -> None:
        """Mode 0755, the id map's id of 0; kept through the next step."""
        store = await opened()
        async with store.begin(key(1), base=None) as draft:
            await draft.commit(b"")
        async with (
            store.begin(key(2), base=key(1)) as draft,
            store.files(draft.root) as path,
        ):
            found = os.stat(path)
            assert (found.st_mode & 0o7777, found.st_uid) == (0o755, store.idmap.to_disk(0))
            assert os.listdir(path) == []

    async def test_a_draft_that_is_not_published_leaves_nothing(self, opened: Opener) -> None:
        """Nor does one whose body raised."""
        store = await opened()
        async with store.begin(key(1), base=None) as draft:
            await write(store, draft.root, "a", "")
        with pytest.raises(RuntimeError):
            async with store.begin(key(1), base=None) as draft, store.files(draft.root, write=True):
                raise RuntimeError
        assert await store.keys() == []
        assert os.listdir(os.path.join(store.directory, "drafts")) == []

    async def test_a_missing_base_is_said_so(self, opened: Opener) -> None:
        """SnapshotMissing from each way to ask."""
        store = await opened()
        with pytest.raises(SnapshotMissing):
            async with store.begin(key(2), base=key(1)):
                pass
        with pytest.raises(SnapshotMissing):
            async with store.view(key(1)):
                pass
        with pytest.raises(SnapshotMissing):
            await store.meta(key(1))
        await store.delete(key(1))

    async def test_a_draft_can_be_published_under_another_key(self, opened: Opener) -> None:
        """As is done with what is kept of a failed step."""
        store = await opened()
        async with store.begin(key(1), base=None) as draft:
            await draft.commit(b"failed", key=key(9))
        assert await store.keys() == [key(9)]

    async def test_the_first_to_publish_stays(self, opened: Opener) -> None:
        """The second is dropped without an error."""
        store, other = await opened(), await opened()
        async with store.begin(key(1), base=None) as late:
            await write(store, late.root, "a", "late")
            await add(other, 1, None, {"a": "early"})
            await late.commit(b"late")
        async with store.view(key(1)) as root:
            assert await read(store, root, "a") == "early"
        assert await store.meta(key(1)) == b"meta of 1"

    async def test_a_base_never_changes(self, opened: Opener) -> None:
        """Two made from it don't see each other."""
        store = await opened()
        await add(store, 1, None, {"a": "1", "b": "1"})
        await add(store, 2, 1, {"a": "2", "b": None})
        await add(store, 3, 1, {"c": "3"})
        for number, expected in ((1, "ab"), (2, "a"), (3, "abc")):
            async with store.view(key(number)) as root:
                assert await names(store, root) == list(expected)
        async with store.view(key(1)) as root:
            assert await read(store, root, "a") == "1"

    async def test_who_still_can_write_is_refused(self, opened: Opener) -> None:
        """StoreBusy while a writable descriptor is open; nothing is published.

        Where the kernel does not help, what is written through it is not seen in the result.
        """
        store = await opened()
        with _refused(store, StoreBusy):
            async with store.begin(key(1), base=None) as draft:
                async with store.files(draft.root, write=True) as path:
                    file = open(os.path.join(path, "a"), "w", encoding="utf-8")  # noqa: SIM115
                with file:
                    await draft.commit(b"")
                    file.write("late")
        assert await store.keys() == ([] if store.guarded else [key(1)])
        for number in await store.keys():
            async with store.view(number) as root:
                assert await read(store, root, "a") == ""

    async def test_deleting_a_base_leaves_what_was_made_from_it(self, opened: Opener) -> None:
        """Published or still being made."""
        store = await opened()
        await add(store, 1, None, {"a": "1"})
        await add(store, 2, 1, {"b": "2"})
        async with store.begin(key(3), base=key(2)) as draft, store.view(key(2)) as view:
            await store.delete(key(1))
            await store.delete(key(2))
            assert await read(store, draft.root, "a") == "1"
            assert await read(store, view, "b") == "2"
            await draft.commit(b"")
        assert await store.keys() == [key(3)]
        async with store.view(key(3)) as root:
            assert await read(store, root, "a") == "1"
            assert await read(store, root, "b") == "2"

    async def test_what_is_compacted_shows_the_same(self, opened: Opener) -> None:
        """Also to a draft that was begun before, and what is made of that."""
        store = await opened()
        await add(store, 0, None, {"a": "0", "b": "0"})
        await add(store, 1, 0, {"c": "1", "d": "1"})
        await add(store, 2, 1, {"a": None, "c": "2"})
        await add(store, 3, 2, {"d": None, "e": "3"})
        await store.delete(key(1))
        async with store.begin(key(4), base=key(2)) as draft:
            await write(store, draft.root, "f", "4")
            await store.delete(key(2))
            await store.compact(key(3))
            await draft.commit(b"{}")
        for number in (3, 3, 0, 9):
            await store.compact(key(number))
        await store.delete(key(0))
        await store.compact(key(4))
        await add(store, 5, 3, {"a": "5"})
        for number, shown in ((3, "bce"), (4, "bcdf"), (5, "abce")):
            async with store.view(key(number)) as root:
                assert await names(store, root) == list(shown)
                assert await read(store, root, "c") == "2"

    async def test_devices_do_not_work_in_a_draft(self, opened: Opener) -> None:
        """Even one that the image brought, where the kernel helps."""
        store = await opened()
        if not store.guarded:
            return
        async with (
            store.begin(key(1), base=None) as draft,
            store.files(draft.root, write=True) as path,
        ):
            try:
                os.mknod(f"{path}/null", 0o20666, os.makedev(1, 3))
            except PermissionError:
                return  # an ordinary user can't even make one
            with pytest.raises(PermissionError):
                os.close(os.open(f"{path}/null", os.O_RDONLY))

    async def test_a_part_of_a_root_can_be_looked_at(self, opened: Opener) -> None:
        """What is asked for is there, and what leads to it; what is not there is not."""
        store = await opened()
        async with store.begin(key(1), base=None) as draft:
            async with store.files(draft.root, write=True) as path:
                os.makedirs(os.path.join(path, "d/deep/er"))
                os.symlink("d/deep", os.path.join(path, "link"))
                _put(os.path.join(path, "d/deep/f"), "1")
            await draft.commit(b"")
        async with store.view(key(1)) as root:
            async with store.files(root, only=("d/deep", "./gone/x", "/link/f")) as path:
                assert sorted(os.listdir(os.path.join(path, "d/deep"))) == ["er", "f"]
                assert os.readlink(os.path.join(path, "link")) == "d/deep"
                assert not os.path.exists(os.path.join(path, "gone"))
            async with store.files(root, only=("d/deep/f", ".")) as path:
                assert sorted(os.listdir(path)) == ["d", "link"]

    async def test_a_volume_belongs_to_who_mounts_it(self, opened: Opener) -> None:
        """Its top does, at each use anew; what is in it stays as it was."""
        store = await opened()
        for number, user in ((1, UnixUser(1000, 100)), (2, UnixUser(7, 7))):
            base = key(number - 1) if number > 1 else None
            async with store.volume(key(number), base=base, owner=user) as draft:
                async with store.files(draft.root) as path:
                    found = os.stat(path)
                    assert found.st_uid == store.idmap.to_disk(user.uid)
                    assert found.st_mode & 0o7777 == (0o755 if number == 1 else 0o1770)
                async with store.files(draft.root, write=True) as path:
                    _put(os.path.join(path, f"f{number}"), "1")
                    os.chmod(path, 0o1770)
                    _given(path, store.idmap)
                await draft.commit(b"volume")
        await store.delete(key(1))
        async with store.view(key(2)) as root, store.files(root) as path:
            assert sorted(os.listdir(path)) == ["f1", "f2"]
            owners = {os.stat(os.path.join(path, name)).st_uid for name in ("f1", "f2")}
            assert owners == {store.idmap.to_disk(0)}
        assert await store.meta(key(2)) == b"volume"
        assert await store.keys() == [key(2)]

    async def test_what_is_shared_is_one_for_all(self, opened: Opener) -> None:
        """Whoever opened the store; until it is removed."""
        store, other = await opened(), await opened()
        await write(store, await store.shared("a" * 64, ROOT), "f", "1")
        root = await other.shared("a" * 64, ROOT)
        assert await read(other, root, "f") == "1"
        await other.recover()
        await store.remove_shared("a" * 64)
        await store.remove_shared("a" * 64)
        assert await names(store, await store.shared("a" * 64, ROOT)) == []

    async def test_drafts_of_the_living_survive_recovery(self, opened: Opener) -> None:
        """Recovery by another opening does not touch them, nor foreign files."""
        store, other = await opened(), await opened()
        foreign = os.path.join(store.directory, "drafts", "notes.txt")
        with open(foreign, "w", encoding="utf-8"):
            pass
        async with store.begin(key(1), base=None) as draft:
            await other.recover()
            await write(store, draft.root, "a", "1")
            await draft.commit(b"")
        assert await other.contains(key(1))
        assert os.path.exists(foreign)

    async def test_a_store_keeps_its_id_map(self, opened: Opener) -> None:
        """Opening with another one is an error, not a mess."""
        store = await opened()
        path = os.path.join(store.directory, "store.json")
        with open(path, encoding="utf-8") as file:
            text = file.read()
        with open(path, "w", encoding="utf-8") as file:
            file.write(text.replace('"count":', '"count":1'))
        with pytest.raises(StoreError, match="idmap"):
            await opened()

    async def test_space_is_told(self, opened: Opener) -> None:
        """Of the file system and of a result."""
        store = await opened()
        await add(store, 1, None, {"a": "x" * 100_000})
        usage = await store.usage()
        assert 0 < usage.free <= usage.total
        await store.sync()
        assert await store.size(key(1)) >= 100_000

    async def test_steps_on_steps_show_what_a_plain_directory_shows(self, opened: Opener) -> None:
        """Many of them, with files and directories coming, going and changing kind."""
        store = await opened()
        model = dict[str, str]()
        looked_at = {self.steps - 3, self.steps - 2, self.steps - 1, *range(0, self.steps, 97)}
        for number in range(self.steps):
            async with store.begin(key(number), base=key(number - 1) if number else None) as draft:
                async with store.files(draft.root, write=True) as path:
                    _change(path, number)
                    _given(path, store.idmap)
                    if number in looked_at:
                        model = _listing(path)
                await draft.commit(b"")
            if number in looked_at:
                async with store.view(key(number)) as root, store.files(root) as path:
                    assert _listing(path) == model
            if number >= 20:
                await store.delete(key(number - 20))
        assert model["last"].endswith(f" {self.steps - 1}")

    async def test_where_changes_may_be_is_where_they_are(self, opened: Opener) -> None:
        """A layer that is found by what the store knows is the one found without."""
        store, found = await opened(), 0
        for number in range(40 if self.hints else 4):
            base = key(number - 1) if number else None
            async with store.begin(key(number), base=base) as draft:
                async with store.files(draft.root, write=True) as path:
                    _change(path, number)
                    _given(path, store.idmap)
                await draft.commit(b"")
            if base is None:
                continue
            async with (
                store.view(key(number)) as root, store.files(root) as new,
                store.view(base) as root, store.files(root) as old,
            ):  # fmt: skip
                upper = store.touched(key(number), base=base)
                if upper is not None:
                    found += 1
                    layers = [_layer(old, new, store.idmap, hint) for hint in (upper, None)]
                    assert layers[0] == layers[1]
        assert found >= self.hints


def _layer(old: str, new: str, idmap: IdMap, upper: Upper | None) -> bytes:
    out = io.BytesIO()
    write_changes(old, new, out, Manner(idmap), upper=upper)
    return out.getvalue()


def _refused(
    store: Store, error: type[Exception], *, match: str | None = None
) -> AbstractContextManager[object]:
    return pytest.raises(error, match=match) if store.guarded else nullcontext()


def _change(root: str, number: int) -> None:
    slot = os.path.join(root, f"slot{number % 5}")
    phase = number // 5 % 4
    if phase == 0:  # a directory, with some content
        os.makedirs(os.path.join(slot, "deep"), exist_ok=True)
        _put(os.path.join(slot, "deep", f"n{number}"), str(number))
    elif phase == 1:  # replaced by a fresh one: what was in the old one is hidden
        old = os.path.join(slot, "deep", f"n{number - 5}")
        os.rename(old, os.path.join(root, f"kept{number % 5}"))
        os.rmdir(os.path.join(slot, "deep"))
        os.rmdir(slot)
        os.makedirs(os.path.join(slot, "deep"))
        os.chmod(slot, 0o750)
        _put(os.path.join(slot, f"fresh{number}"), str(number))
    elif phase == 2:  # a link where the directory was
        os.unlink(os.path.join(slot, f"fresh{number - 5}"))
        os.rmdir(os.path.join(slot, "deep"))
        os.rmdir(slot)
        os.symlink(f"/somewhere/{number}", slot)
    else:
        os.unlink(slot)
    _put(os.path.join(root, "last"), str(number))


def _given(root: str, idmap: IdMap) -> None:
    """Give what is new to root inside: it has to be somebody's whom steps know."""
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            if os.lstat(path).st_uid == os.geteuid() and not idmap.single:
                os.lchown(path, idmap.to_disk(0), idmap.to_disk(0))


def _put(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _listing(root: str) -> dict[str, str]:
    """Every path with its mode, owner and content."""
    found = dict[str, str]()
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            content = ""
            if os.path.islink(path):
                content = os.readlink(path)
            elif name in files:
                with suppress(OSError), open(path, encoding="utf-8") as file:
                    content = file.read()
            place = os.path.relpath(path, root)
            found[place] = f"{status.st_mode:o} {status.st_uid} {status.st_mtime_ns} {content}"
    return found
