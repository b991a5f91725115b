"""Files of the context that change while they are copied: an error, and never a wrong result."""

import os
import random
import threading
from collections.abc import Callable
from typing import Self

import anyio
import pytest

from obuilder import Builder, Spec, errors, events, parse
from places import Opened, each_kind
from program import Program

pytestmark = [pytest.mark.needs("root", "overlay", "crun"), pytest.mark.anyio]


def copy(*sources: str) -> Spec:
    text = f"((from scratch) (copy (src {' '.join(sources)}) (dst /in/)))"
    return parse(text.encode(), file="a test").spec


def _tree(root: str) -> dict[str, object]:
    """What a copy is known by: names, kinds, executable bits, content."""
    found = dict[str, object]()
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            place = os.path.relpath(path, root)
            if os.path.islink(path):
                found[place] = os.readlink(path)
            elif name in files:
                with open(path, "rb") as file:
                    found[place] = (file.read(), os.stat(path).st_mode & 0o100)
            else:
                found[place] = None
    return found


def _put(root: str, tree: dict[str, object]) -> None:
    for place, what in tree.items():
        path = os.path.join(root, place)
        match what:
            case None:
                os.mkdir(path)
            case str():
                os.symlink(what, path)
            case (bytes() as data, int() as executable):
                with open(path, "wb") as file:
                    file.write(data)
                os.chmod(path, 0o644 | executable)


class Writer(threading.Thread):
    """Changes the files of a context in every way there is, until it is told to end."""

    def __init__(self, root: str, seed: int) -> None:
        super().__init__()
        self._root, self._chance = root, random.Random(seed)
        self.pause = 0.008  # seconds at most between two changes
        self._over = threading.Event()

    def __enter__(self) -> Self:
        for _ in range(30):
            self._change()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(self._chance.uniform(0, self.pause)):
            self._change()

    def _change(self) -> None:
        name, new = (os.path.join(self._root, word) for word in ("file", "new"))
        data = self._chance.randbytes(1) * self._chance.choice([0, 100, 100, 70_000])
        match self._chance.choice(["write", "append", "replace", "link", "folder", "mode"]):
            case "write":
                with open(name, "wb") as file:
                    file.write(data)
                    file.flush()
                    file.write(data)
            case "append":
                with open(name, "ab") as file:
                    file.write(b"more")
            case "replace":
                with open(new, "wb") as file:
                    file.write(data)
                os.replace(new, name)
            case "link":
                os.symlink(self._chance.choice(["/etc/passwd", "file"]), new)
                os.replace(new, os.path.join(self._root, "link"))
            case "folder":
                path = os.path.join(self._root, "folder")
                if os.path.islink(path):
                    os.unlink(path)
                    os.mkdir(path)
                    with open(os.path.join(path, "inside"), "wb") as file:
                        file.write(data)
                elif os.path.isdir(path):
                    os.unlink(os.path.join(path, "inside"))
                    os.rmdir(path)
                    os.symlink("/etc", path)
                else:
                    os.symlink("/etc", path)
            case "mode":
                if os.path.exists(name):
                    os.chmod(name, self._chance.choice([0o644, 0o755]))


@each_kind
async def test_a_hundred_copies_while_a_thread_writes(
    place: Opened, program: Program, seed: int
) -> None:
    results, refused = dict[str, dict[str, object]](), 0
    async with Builder.open(program.settings) as builder:
        changing, quiet = (os.path.join(program.context, name) for name in ("changing", "quiet"))
        os.mkdir(changing)
        with Writer(changing, seed) as writer:
            for number in range(100 if place.rarely == 1 else 25):
                try:
                    result = await builder.build(copy("."), changing)
                except errors.CopyError as error:
                    refused += 1
                    assert "changed" in error.message or "can't read" in error.message
                    if number > 10 * len(
                        results
                    ):  # a copy takes longer here than what it copies lasts
                        writer.pause *= 1.5
                    continue
                async with builder.files(result.key) as path:
                    tree = _tree(os.path.join(path, "in"))
                assert results.setdefault(result.key, tree) == tree
        for number, (key, tree) in enumerate(results.items()):
            os.mkdir(f"{quiet}{number}")
            _put(f"{quiet}{number}", tree)
            again = await builder.build(copy("."), f"{quiet}{number}")
            assert (again.key, again.ran) == (key, 0), "a result under the key of other files"
        kept = {record.key for record in builder.records() if record.kind == "copy"}
        assert kept == set(results)
    print(f"{len(results)} results, {refused} refused")
    assert results
    assert refused


CHANGES: dict[str, Callable[[str], None]] = {
    "grown": lambda path: _write(path, b"content and more"),
    "cut": lambda path: _write(path, b"con"),
    "another": lambda path: _write(path, b"CONTENT"),
    "gone": os.unlink,
    "a link": lambda path: _instead(path, lambda: os.symlink("/etc/passwd", path)),
    "a folder": lambda path: _instead(path, lambda: os.mkdir(path)),
    "a fifo": lambda path: _instead(path, lambda: os.mkfifo(path)),
    "a way through a link": lambda path: _through_link(os.path.dirname(path)),
    "no way": lambda path: os.rename(os.path.dirname(path), os.path.dirname(path) + "-moved"),
}


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def _instead(path: str, make: Callable[[], None]) -> None:
    os.unlink(path)
    make()


def _through_link(folder: str) -> None:
    os.rename(folder, folder + "-real")
    os.symlink(folder + "-real", folder)


@pytest.mark.parametrize("link", [False, True], ids=["file", "symlink"])
@pytest.mark.parametrize("change", CHANGES)
async def test_what_changes_after_it_was_hashed(program: Program, change: str, link: bool) -> None:
    folder = os.path.join(program.context, "folder")
    path = os.path.join(folder, "file")
    os.mkdir(folder)
    if link:
        os.symlink("content", path)
    else:
        _write(path, b"content")

    def sink(event: events.Event) -> None:
        if isinstance(event, events.BuildStarted):
            if link and change in ("grown", "cut", "another"):
                _instead(path, lambda: os.symlink(f"{change}", path))
            else:
                CHANGES[change](path)

    async with Builder.open(program.settings) as builder:
        with pytest.raises(errors.CopyError, match=r"'folder/file' changed while it was copied"):
            await builder.build(copy("folder"), program.context, sink=sink)
        assert [record.kind for record in builder.records()] == ["layer"]


async def test_a_file_that_grows_all_the_time(program: Program) -> None:
    path, over = os.path.join(program.context, "log"), threading.Event()
    _write(path, bytes(20 << 20))

    def grow() -> None:
        with open(path, "ab", buffering=0) as file:
            while not over.wait(0.001):
                file.write(b"a line\n")

    async with Builder.open(program.settings) as builder:
        thread = threading.Thread(target=grow)
        thread.start()
        try:
            for _ in range(5):
                with pytest.raises(errors.CopyError, match="changed while it was"):
                    await builder.build(copy("log"), program.context)
        finally:
            over.set()
            await anyio.to_thread.run_sync(thread.join)
        assert (await builder.build(copy("log"), program.context)).ran > 0


async def test_what_is_no_part_of_the_key_may_change(program: Program) -> None:
    path = os.path.join(program.context, "file")
    _write(path, b"content")

    def sink(event: events.Event) -> None:
        if isinstance(event, events.BuildStarted):
            os.chmod(path, 0o755)
            os.utime(path)
            _write(os.path.join(program.context, "new"), b"")

    async with Builder.open(program.settings) as builder:
        first = await builder.build(copy("file"), program.context, sink=sink)
        async with builder.files(first.key) as root:
            assert _tree(f"{root}/in") == {"file": (b"content", 0)}
        second = await builder.build(copy("file"), program.context)
        assert second.key != first.key
