"""What a copy would copy: a manifest of files, and the scan that makes it."""

from typing import Literal

from msgspec import Struct

Kind = Literal["file", "dir", "symlink", "hardlink"]


class Entry(Struct, frozen=True):
    """One name of a copy.

    `path` is relative to the destination ("" is the destination itself), `source` relative to the
    root it comes from; both in Python's file-system text. `executable` for files only. `digest`
    is the SHA-256 of a file's content in hexadecimal; `target` a symlink's text, or the `path` of
    the entry that a hard link shares its content with.
    """

    path: str
    source: str
    kind: Kind
    executable: bool = False
    size: int = 0
    digest: str = ""
    target: str = ""


class Manifest(Struct, frozen=True):
    """All entries, parents before children, in the order of their paths' bytes.

    `digest` is the SHA-256 of what is copied (path, kind, executable bit, content, link target);
    where the files come from is not in it.
    """

    entries: tuple[Entry, ...]
    digest: str
