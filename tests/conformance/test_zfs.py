"""What is ZFS's own about its store: which datasets there are, and what is left of a kill."""

# ruff: noqa: ASYNC221, PT012 - programs that are waited for at once

import os
import random
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

import places
from obuilder.backends.registry import parse_store
from obuilder.backends.stores import zfs_mounts
from obuilder.backends.stores.zfs import ZfsStore
from obuilder.errors import BackendUnavailable, StoreFull
from obuilder.system.namespaces import enter
from obuilder.system.sessions import open_session
from obuilder.testing.store_suite import add, key

pytestmark = [pytest.mark.needs("zfs"), pytest.mark.anyio]


@pytest.fixture
def place(size):
    """The directory of a pool."""
    with places.zfs(size) as mounted:
        yield mounted


@pytest.fixture
def size():
    return 1 << 30


@pytest.fixture
async def opened(place):
    """Opens a store on the pool; at the end all are closed."""
    with ExitStack() as sessions:
        stores = []

        async def again(name="store"):
            _, path = parse_store(f"zfs:{place}/{name}")
            ZfsStore.prepare(path)
            session = open_session(path)
            sessions.callback(session.close)
            stores.append(await ZfsStore.open(path, enter(), session=session.name))
            return stores[-1]

        yield again
        for store in stores:
            await store.close()


def directory(root):
    return root.path


def write(root, name, text):
    Path(root.path, name).write_text(text)


def read(root, name):
    return Path(root.path, name).read_text()


def zfs(*words):
    return subprocess.run(["zfs", *words], check=True, capture_output=True, text=True).stdout


def listed(store, kind):
    """The datasets, or snapshots, of a store."""
    parent = store._zfs.parent
    names = zfs("list", "-H", "-r", "-t", kind, "-o", "name", parent).split()
    return [name.removeprefix(f"{parent}/") for name in names if name != parent]


def leftovers(store):
    """What nobody needs."""
    heads = os.listdir(store.path("heads"))
    needed = {snapshot.partition("@")[0] for snapshot in listed(store, "snapshot")}
    return {
        "drafts": os.listdir(store.path("drafts")),
        "heads": [head for head in heads if not store._is_result(head)],
        "datasets": [name for name in listed(store, "filesystem") if name not in needed],
    }


NOTHING = {"drafts": [], "heads": [], "datasets": []}


async def content(store, number):
    async with store.view(key(number)) as root:
        return {name: read(root, name) for name in os.listdir(directory(root))}


async def test_what_is_built_on_end_is_one_dataset(opened):
    store = await opened()
    await add(store, 0, None, {"f0": "0"})
    for number in range(1, 120):
        await add(store, number, number - 1, {f"f{number}": str(number)})
    assert len(listed(store, "filesystem")) == 1
    assert len(listed(store, "snapshot")) == 120
    assert await content(store, 119) == {f"f{n}": str(n) for n in range(120)}
    assert await content(store, 60) == {f"f{n}": str(n) for n in range(61)}


async def test_two_drafts_of_one_base_do_not_see_each_other(opened):
    store, other = await opened(), await opened()
    await add(store, 1, None, {"a": "1"})
    async with (
        store.begin(key(2), base=key(1)) as first,
        other.begin(key(3), base=key(1)) as second,
    ):
        write(first.root, "a", "2")
        write(second.root, "a", "3")
        await second.commit(b"")
        await first.commit(b"")
    assert [await content(store, n) for n in (1, 2, 3)] == [{"a": "1"}, {"a": "2"}, {"a": "3"}]


async def test_what_a_failed_step_wrote_is_gone_for_the_next(opened):
    store = await opened()
    await add(store, 1, None, {"a": "1"})
    async with store.begin(key(2), base=key(1)) as draft:
        write(draft.root, "a", "spoilt")
        write(draft.root, "b", "spoilt")
    async with store.begin(key(2), base=key(1)) as draft:
        assert os.listdir(directory(draft.root)) == ["a"]
        assert read(draft.root, "a") == "1"
        await draft.commit(b"")
    assert len(listed(store, "filesystem")) == 1


async def test_who_kept_a_directory_does_not_come_into_the_next_step(opened, monkeypatch):
    monkeypatch.setattr(zfs_mounts, "_PATIENCE", 0.2)
    store = await opened()
    async with store.begin(key(9), base=None):  # the step of who keeps it
        async with store.begin(key(1), base=None) as draft:
            kept = os.open(directory(draft.root), os.O_RDONLY)
            await draft.commit(b"")
        async with store.begin(key(2), base=key(1)) as draft:
            with pytest.raises(OSError, match=r"[Rr]ead-only"):
                os.open("evil", os.O_WRONLY | os.O_CREAT, dir_fd=kept)
            assert os.listdir(directory(draft.root)) == []
            await draft.commit(b"")
        os.close(kept)


async def test_there_are_never_more_than_two_snapshots_to_a_result(opened):
    store, chance = await opened(), random.Random(1)
    model = {0: {"f0": "0"}}
    await add(store, 0, None, model[0])
    for number in range(1, 40):
        base = chance.choice([*model, max(model)])
        files = {f"f{number % 7}": str(number)}
        await add(store, number, base, files)
        model[number] = {**model[base], **files}
        while len(model) > 1 and chance.random() < 0.45:
            gone = chance.choice([*model])
            await store.delete(key(gone))
            del model[gone]
        assert len(listed(store, "snapshot")) <= 2 * len(model)
        assert leftovers(store) == NOTHING
    for number, files in model.items():
        assert await content(store, number) == files
        await store.delete(key(number))
    assert listed(store, "filesystem,snapshot") == []


async def test_foreign_datasets_are_left_alone(opened):
    store = await opened()
    parent = store._zfs.parent
    zfs("create", f"{parent}/mine")
    zfs("snapshot", f"{parent}/mine@yesterday")
    await add(store, 1, None, {"a": "1"})
    ours = next(name for name in listed(store, "filesystem") if name != "mine")
    zfs("snapshot", f"{parent}/{ours}@daily")
    await add(store, 2, 1, {"a": "2"})
    await store.delete(key(2))
    store._swept()
    assert await content(store, 1) == {"a": "1"}
    await store.delete(key(1))
    found = listed(store, "filesystem,snapshot")
    assert sorted(found) == sorted([ours, f"{ours}@daily", "mine", "mine@yesterday"])
    zfs("destroy", f"{parent}/{ours}@daily")


@pytest.mark.parametrize("size", [256 << 20])
async def test_a_full_pool_is_told_and_can_be_emptied(opened):
    store = await opened()
    await add(store, 0, None, {"a": "0"})
    with pytest.raises(StoreFull):
        for number in range(1, 100):  # a step fills it, and what is kept of steps
            async with store.begin(key(number), base=key(number - 1)) as draft:
                path = os.path.join(directory(draft.root), f"f{number}")
                with open(path, "wb", 0) as file, suppress(OSError):
                    file.writelines(os.urandom(1 << 20) for _ in range(40))
                await draft.commit(bytes(1 << 26) if number > 4 else b"")
    assert leftovers(store) == NOTHING
    assert len(listed(store, "filesystem")) == 1
    found = sorted(await store.keys())
    assert found == [key(number) for number in range(5)]
    with pytest.raises(StoreFull):
        async with store.begin(key(9), base=key(0)) as draft:  # a clone of its own
            path = os.path.join(directory(draft.root), "big")
            with open(path, "wb", 0) as file, suppress(OSError):
                while True:
                    file.write(os.urandom(1 << 20))
            await draft.commit(bytes(1 << 26))
    for number in found:
        await store.delete(number)
    assert listed(store, "filesystem,snapshot") == []


async def test_what_somebody_holds_is_removed_by_a_later_recovery(opened, monkeypatch):
    monkeypatch.setattr(zfs_mounts, "_PATIENCE", 0.2)
    store = await opened()
    await add(store, 1, None, {"a": "1"})
    async with store.view(key(1)) as root, store.begin(key(2), base=None) as draft:
        held = os.open(directory(draft.root), os.O_RDONLY)
        await draft.commit(b"")  # its clean-up has nothing to do with the draft's success
        assert read(root, "a") == "1"
    await store.delete(key(2))
    assert listed(store, "filesystem")[1:] != []
    os.close(held)
    later = await opened()
    os.unlink(os.path.join(store.directory, "sessions", store.session))
    await later.recover()
    assert leftovers(later) == NOTHING
    assert len(listed(later, "filesystem")) == 1


async def test_a_pool_that_is_not_there_is_said_so(opened):
    await opened()
    with pytest.raises(BackendUnavailable, match="no ZFS pool"):
        ZfsStore.prepare("/nowhere/state")


# --- kills ---------------------------------------------------------------------------------------

_VICTIM = """
import os, sys, anyio
from obuilder.backends.stores import zfs_command
from obuilder.backends.stores.zfs import ZfsStore
from obuilder.system.namespaces import enter
from obuilder.system.sessions import open_session
from obuilder.testing.store_suite import add, key

count, at = 0, int(sys.argv[2])

def after(work):
    def counted(*words):
        global count
        said = work(*words)
        if count and words[:2] not in (("zfs", "list"), ("zfs", "get")):
            count += 1
            if count > at:
                os.kill(os.getpid(), 9)
        return said
    return counted

os.rename, zfs_command.said = after(os.rename), after(zfs_command.said)

async def main():
    global count
    idmap, directory = enter(), sys.argv[1]
    session = open_session(directory)
    store = await ZfsStore.open(directory, idmap, session=session.name)
    await add(store, 1, None, {"a": "1"})
    await add(store, 2, 1, {"b": "2"})
    count = 1
    await add(store, 3, 2, {"c": "3"})
    await add(store, 4, 2, {"c": "4"})
    async with store.begin(key(5), base=key(3)) as draft:
        open(os.path.join(draft.root.path, "a"), "w").close()
    for number in (3, 2, 1):
        await store.delete(key(number))
    print(count)

anyio.run(main)
"""

MADE = {
    1: {"a": "1"},
    2: {"a": "1", "b": "2"},
    3: {"a": "1", "b": "2", "c": "3"},
    4: {"a": "1", "b": "2", "c": "4"},
}


async def test_a_kill_at_any_point_leaves_whole_results_and_nothing_else(opened, seed):
    """After every rename and every command, until there are no more; every third, if not all."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    store = await opened()
    step = 1 if os.environ.get("OBUILDER_TEST_WHOLE") else 3
    for at in range(1 + seed % step, 100, step):
        argv = [sys.executable, "-c", _VICTIM, store.directory, str(at)]
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode in {0, -signal.SIGKILL}, done.stderr
        await store.recover()
        assert leftovers(store) == NOTHING, at
        found = [int(name, 16) for name in await store.keys()]
        for number in found:
            assert await content(store, number) == MADE[number], at
        await add(store, 9, max(found), {"d": "9"})
        for number in found:
            await store.delete(key(number))
        assert await content(store, 9) == {**MADE[max(found)], "d": "9"}, at
        await store.delete(key(9))
        assert listed(store, "filesystem,snapshot") == [], at
        if done.returncode == 0:
            break
    assert int(done.stdout) > 25
