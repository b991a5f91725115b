"""Files that are there whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from obuilder.system.replacing import replacing


@pytest.fixture(params=["nameless", "named"])
def folder(request, tmp_path, monkeypatch) -> Path:
    """Where files without a name can be, and where they can't."""
    if request.param == "named":
        plain = os.open

        def refuse(path, flags, *rest, **more):
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "not here")
            return plain(path, flags, *rest, **more)

        monkeypatch.setattr(os, "open", refuse)
    return tmp_path


def write(path: Path, data: bytes, **more) -> None:
    with replacing(str(path), **more) as file:
        file.write(data)


def test_it_is_new_or_in_place_of_another(folder):
    write(folder / "file", b"one")
    (folder / "target").write_text("kept")
    (folder / "link").symlink_to("target")
    for name in ("file", "link"):
        write(folder / name, b"two", mode=0o640)
        assert (folder / name).read_bytes() == b"two"
        assert not (folder / name).is_symlink()
        assert (folder / name).stat().st_mode & 0o777 == 0o640
    assert (folder / "target").read_text() == "kept"
    assert len(list(folder.iterdir())) == 3


def test_what_fails_leaves_what_was_there(folder):
    write(folder / "file", b"one")

    def fail() -> None:
        with replacing(str(folder / "file")) as file:
            file.write(b"two")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("file", b"one")]
    (folder / "directory").mkdir()
    with pytest.raises(OSError):
        write(folder / "directory", b"two")
    with pytest.raises(FileNotFoundError):
        write(folder / "none/file", b"two")
    assert len(list(folder.iterdir())) == 2


def test_until_then_it_has_no_name(tmp_path):
    with replacing(str(tmp_path / "file")) as file:
        file.write(b"one")
        assert list(tmp_path.iterdir()) == []
    assert (tmp_path / "file").read_bytes() == b"one"
