"""The stores on real file systems: the machine's own, a tmpfs, btrfs on a loop image, zfs-fuse."""

# ruff: noqa: ASYNC221, ASYNC222, PT012 - a victim to kill, which is waited for at once

import os
import signal
import sys
from contextlib import suppress

import pytest

import places
from obuilder.backends.registry import STORES, load
from obuilder.errors import StoreFull
from obuilder.system.namespaces import enter
from obuilder.system.sessions import alive, dead_sessions, open_session, remove_session
from obuilder.testing.fakes import fake_idmap
from obuilder.testing.store_suite import StoreSuite, add, key, names, read


@pytest.fixture
def anyio_backend():
    return "asyncio"


class _Suite(StoreSuite):
    target = STORES["overlayfs"].target
    idmap = staticmethod(enter)

    @pytest.fixture
    async def opened(self, place):
        stores, sessions = [], []

        async def again():
            kind, idmap = load(self.target), self.idmap()
            path = os.path.join(place, "store")
            kind.prepare(path)
            sessions.append(open_session(path))
            stores.append(await kind.open(path, idmap, session=sessions[-1].name))
            return stores[-1]

        yield again
        for store in reversed(stores):
            await store.close()
        for session in sessions:
            session.close()

    @pytest.mark.anyio
    async def test_a_killed_process_loses_its_draft_only(self, opened):
        store = await opened()
        await add(store, 1, None, {"a": "1"})
        ours, theirs = os.pipe()
        idmap = f"{self.idmap.__module__}:{self.idmap.__name__}"
        argv = [sys.executable, "-c", _VICTIM, self.target, idmap, store.directory]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        pid = os.posix_spawn(
            sys.executable, argv, environ, file_actions=[(os.POSIX_SPAWN_DUP2, theirs, 1)]
        )
        os.close(theirs)
        try:
            assert os.read(ours, 5) == b"ready"
            drafts = os.path.join(store.directory, "drafts")
            await store.recover()
            assert len(os.listdir(drafts)) == 1
        finally:
            os.close(ours)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        await store.recover()
        assert os.listdir(drafts) == []
        assert sorted(await store.keys()) == [key(1), key(2)]
        async with store.view(key(2)) as root:
            assert await read(store, root, "a") == "1"
            assert await read(store, root, "b") == "2"
            assert await names(store, root) == ["a", "b"]


_VICTIM = """
import sys, time, anyio
from obuilder.backends.registry import load
from obuilder.system.sessions import open_session
from obuilder.testing.store_suite import add, key, write
async def main():
    _, target, idmap, directory = sys.argv
    session = open_session(directory)
    store = await load(target).open(directory, load(idmap)(), session=session.name)
    await add(store, 2, 1, {"b": "2"})
    async with store.begin(key(3), base=key(2)) as draft:
        await write(store, draft.root, "c", "3")
        print("ready", flush=True)
        time.sleep(60)
anyio.run(main)
"""


@pytest.mark.needs("overlay")
class TestOverlay(_Suite):
    hints = 37

    @pytest.fixture
    def place(self):
        with places.scratch() as path:
            yield path

    @pytest.mark.anyio
    async def test_an_image_is_not_linked_again_with_every_squash(self, opened):
        store = await opened()
        for number in range(40):
            await add(store, number, number - 1 if number else None, {f"f{number}": "x"})
        chain = store._chain("results", key(39))
        assert len(chain) < 12
        counts = [
            os.stat(store.path("layers", layer, name)).st_nlink
            for layer, _ in chain
            for name in os.listdir(store.path("layers", layer))
        ]
        assert len(counts) == 40
        assert counts[0] == 1
        assert 2 in counts

    @pytest.mark.anyio
    async def test_what_only_deleted_results_had_is_freed(self, opened):
        store = await opened()
        layers = os.path.join(store.directory, "layers")
        await add(store, 0, None, {"image": "x"})
        await add(store, 1, 0, {"big": "x" * 1_000_000, "kept": "x" * 100_000})
        await add(store, 2, 1, {"more": "x"})
        await add(store, 3, 2, {"big": None, "more": None})
        image = store._chain("results", key(0))
        async with store.begin(key(4), base=key(2)):
            for number in (1, 2):
                await store.delete(key(number))
            await store.compact(key(3))
            assert len(os.listdir(layers)) == 4  # the draft stands on them
        await store.compact(key(3))
        chain = store._chain("results", key(3))
        assert (len(chain), chain[:1]) == (2, image)
        assert len(os.listdir(layers)) == 2
        assert os.listdir(os.path.join(store.directory, "drafts")) == []
        assert 100_000 <= await store.size(key(3)) < 200_000
        await add(store, 5, 3, {})
        await store.compact(key(5))  # nothing there is its own
        assert store._chain("results", key(5))[:2] == chain

    @pytest.mark.anyio
    async def test_layers_go_when_no_result_needs_them(self, opened):
        store = await opened()
        layers = os.path.join(store.directory, "layers")
        for number in range(300):
            await add(store, number, number - 1 if number else None, {f"f{number}": "x"})
        assert len(store._chain("results", key(299))) < 40
        for number in range(299):
            await store.delete(key(number))
        assert len(os.listdir(layers)) == len(store._chain("results", key(299)))
        async with store.view(key(299)) as root:
            assert len(await names(store, root)) == 300
        await store.delete(key(299))
        assert os.listdir(layers) == []


@pytest.mark.needs("overlay", "tmpfs")
class TestOverlayOnTmpfs(_Suite):
    hints = 37

    @pytest.fixture
    def place(self):
        with places.tmpfs("256m") as path:
            yield path

    @pytest.mark.anyio
    async def test_a_full_disk_is_told_and_leaves_nothing(self, opened):
        store = await opened()
        await add(store, 1, None, {"a": "1"})
        free = (await store.usage()).free
        filler = os.path.join(store.directory, "filler")
        with pytest.raises(StoreFull):
            async with store.begin(key(2), base=key(1)) as draft:
                with open(filler, "wb") as file, suppress(OSError):
                    while True:
                        file.write(bytes(1 << 20))
                await draft.commit(bytes(1 << 20))
        os.unlink(filler)
        assert await store.keys() == [key(1)]
        assert len(os.listdir(os.path.join(store.directory, "layers"))) == 1
        assert os.listdir(os.path.join(store.directory, "drafts")) == []
        assert abs((await store.usage()).free - free) < 1 << 20

    @pytest.mark.anyio
    async def test_kernels_without_the_new_mount_options(self, opened):
        store = await opened()
        store._modern = False
        for number in range(30):
            await add(store, number, number - 1 if number else None, {f"f{number}": "x"})
        async with store.view(key(29)) as root:
            assert len(await names(store, root)) == 30


@pytest.mark.needs("btrfs")
class TestBtrfs(_Suite):
    target = STORES["btrfs"].target

    @pytest.fixture
    def place(self):
        with places.loop("btrfs") as path:
            yield path


@pytest.mark.needs("docker")
class TestDocker(_Suite):
    target = STORES["docker"].target
    steps = 40

    @pytest.fixture
    def engine(self, docker_engine):
        return docker_engine

    @pytest.fixture
    def place(self, engine, monkeypatch):
        monkeypatch.setenv("DOCKER_HOST", engine.host)
        monkeypatch.setattr(load(self.target), "deepest", 9)
        with places.scratch() as path:
            yield path


@pytest.mark.needs("podman")
class TestPodman(TestDocker):
    steps = 12

    @pytest.fixture
    def engine(self, podman_engine):
        return podman_engine


class _Trees(_Suite):
    steps = 100  # five trees, and as many copies where there are no overlays

    @pytest.fixture
    def place(self):
        with places.scratch() as path:
            yield path


@pytest.mark.needs("xfs", "overlay")
class TestXfs(_Trees):
    target = STORES["xfs"].target

    @pytest.fixture
    def place(self):
        with places.loop("xfs") as path:
            yield path


@pytest.mark.needs("xfs", "btrfs")
class TestXfsOnBtrfs(TestXfs):
    @pytest.fixture
    def place(self):
        with places.loop("btrfs") as path:
            yield path


@pytest.mark.needs("overlay")
class TestRsyncCopy(_Trees):
    target = STORES["rsync+copy"].target


@pytest.mark.needs("overlay")
class TestRsyncHardlink(_Trees):
    target = STORES["rsync+hardlink"].target


@pytest.mark.needs("overlay")
class TestRsyncHardlinkUnsafe(_Trees):
    target = STORES["rsync+hardlink_unsafe"].target


@pytest.mark.needs("namespaces")
class TestCopy(_Trees):
    target = STORES["copy"].target


class _InMemory:
    @pytest.fixture
    def place(self):
        with places.tmpfs("256m") as path:
            yield path


@pytest.mark.needs("overlay", "tmpfs")
class TestRsyncCopyOnTmpfs(_InMemory, TestRsyncCopy):
    pass


@pytest.mark.needs("overlay", "tmpfs")
class TestRsyncHardlinkOnTmpfs(_InMemory, TestRsyncHardlink):
    pass


@pytest.mark.needs("overlay", "tmpfs")
class TestRsyncHardlinkUnsafeOnTmpfs(_InMemory, TestRsyncHardlinkUnsafe):
    pass


@pytest.mark.needs("namespaces", "tmpfs")
class TestCopyOnTmpfs(_InMemory, TestCopy):
    pass


@pytest.mark.needs("overlay")
class TestRsyncHardlinkWithoutOverlays(_Trees):
    target = STORES["rsync+hardlink"].target

    @pytest.fixture
    def place(self):
        with places.without_overlays() as path:
            yield path


@pytest.mark.needs("zfs")
class TestZfs(_Suite):
    target = STORES["zfs"].target
    steps = 150

    @pytest.fixture
    def place(self):
        with places.zfs() as path:
            yield path


class TestFake(_Suite):
    target = "obuilder.testing.fakes:FakeStore"
    idmap = staticmethod(fake_idmap)

    @pytest.fixture
    def place(self):
        with places.memory() as path:
            yield path


def test_a_session_lives_until_it_is_closed(tmp_path):
    session = open_session(tmp_path)
    assert alive(tmp_path, session.name)
    assert dead_sessions(tmp_path) == []
    remove_session(tmp_path, session.name)
    assert alive(tmp_path, session.name)
    session.close()
    assert not alive(tmp_path, session.name)


def test_a_session_ends_with_its_process(tmp_path):
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            open_session(tmp_path)
        os._exit(0)
    os.waitpid(pid, 0)
    (name,) = os.listdir(os.path.join(tmp_path, "sessions"))
    assert dead_sessions(tmp_path) == [name]
    remove_session(tmp_path, name)
    assert os.listdir(os.path.join(tmp_path, "sessions")) == []
