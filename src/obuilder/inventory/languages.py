"""Packages of pip and npm: each lies in a directory of its own, anywhere in a root.

All of the root is walked, by descriptors and without following symlinks.
"""

import os
from collections.abc import Callable, Iterator

import msgspec
from msgspec import Struct

from obuilder.inventory.model import Package
from obuilder.inventory.reading import Unreadable, open_at, paragraphs

_DEEP = 200
"""Directories in directories that are looked into; each holds a descriptor."""
_MOST_METADATA, _MOST_JSON = 4 << 20, 4 << 20
_NOT_FILES = frozenset({"proc", "sys", "dev"})
"""What is at the top of a root for a kernel alone."""
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_METADATA = frozenset(
    {"Name", "Version", "License-Expression", "License", "Author", "Author-email", "Maintainer"}
)
_LONGEST_LICENSE = 200
"""Some write the whole text of the license in its place."""

Note = Callable[[str, str], None]
"""Takes a path and why it could not be read."""


class _Json(Struct):
    """What is wanted of a package.json, in whatever form: people write these."""

    name: object = None
    version: object = None
    license: object = None
    author: object = None


def walk(top: int, note: Note) -> Iterator[Package]:
    """The packages of both kinds below the directory `top`."""
    stack: list[tuple[int, str, list[str]]] = []
    try:
        yield from _enter(os.dup(top), "", stack, note)
        while stack:
            fd, path, pending = stack[-1]
            if not pending:
                os.close(stack.pop()[0])
                continue
            name = pending.pop()
            below = f"{path}{name}/"
            if len(stack) > _DEEP:
                note(below, "directories are nested too deeply")
                continue
            try:
                inner = os.open(name, _FLAGS, dir_fd=fd)
            except OSError as error:
                note(below, error.strerror or str(error))
                continue
            yield from _enter(inner, below, stack, note)
    finally:
        for fd, _, _ in stack:
            os.close(fd)


def _enter(
    fd: int, path: str, stack: list[tuple[int, str, list[str]]], note: Note
) -> Iterator[Package]:
    """Look at what is in a directory; the directories in it are pending then, in order."""
    pending: list[str] = []
    stack.append((fd, path, pending))
    eggs: list[str] = []
    try:
        with os.scandir(fd) as items:
            for item in items:
                if item.is_dir(follow_symlinks=False):
                    if path or item.name not in _NOT_FILES:
                        pending.append(item.name)
                elif item.name.endswith(".egg-info"):
                    eggs.append(item.name)
    except OSError as error:
        note(path, error.strerror or str(error))
    pending.sort(key=os.fsencode, reverse=True)
    for name in sorted(eggs, key=os.fsencode):
        yield from _python(fd, name, path, note)
    name = path.rstrip("/").rpartition("/")[2]
    if name.endswith(".dist-info"):
        yield from _python(fd, "METADATA", path, note)
    elif name.endswith(".egg-info"):
        yield from _python(fd, "PKG-INFO", path, note)
    elif _is_module(path):
        yield from _javascript(fd, path, note)


def _is_module(path: str) -> bool:
    parts = path.rstrip("/").split("/")
    scoped = len(parts) > 2 and parts[-2].startswith("@")
    return len(parts) > 1 and parts[-3 if scoped else -2] == "node_modules"


def _python(at: int, name: str, path: str, note: Note) -> Iterator[Package]:
    try:
        file = open_at(name, at)
        if file is None:
            return
        with file:
            said = next(paragraphs(file, _METADATA, most=_MOST_METADATA), {})
    except Unreadable as error:
        note(path + name, str(error))
        return
    found, version = said.get("Name"), said.get("Version")
    if found and version:
        license_ = said.get("License-Expression") or said.get("License", "")
        author = said.get("Author") or said.get("Author-email") or said.get("Maintainer", "")
        yield Package(
            "pypi", found, version, place=path + name, supplier=author,
            license=license_ if len(license_) <= _LONGEST_LICENSE else "",
        )  # fmt: skip


def _javascript(at: int, path: str, note: Note) -> Iterator[Package]:
    place = f"{path}package.json"
    try:
        file = open_at("package.json", at)
        if file is None:
            return
        with file:
            data = file.read(_MOST_JSON + 1)
        if len(data) > _MOST_JSON:
            raise Unreadable(f"it has more than {_MOST_JSON >> 20} MB")
        said = msgspec.json.decode(data, type=_Json)
    except (Unreadable, msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        note(place, str(error))
        return
    if isinstance(said.name, str) and isinstance(said.version, str) and said.name and said.version:
        license_ = _named(said.license, "type")
        yield Package(
            "npm", said.name, said.version, place=place, supplier=_named(said.author, "name"),
            license=license_ if len(license_) <= _LONGEST_LICENSE else "",
        )  # fmt: skip


def _named(value: object, key: str) -> str:
    """A word, or what an object has of it."""
    if isinstance(value, dict):
        value = value.get(key)
    return value if isinstance(value, str) else ""
