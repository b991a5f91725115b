"""What an add puts into a root, and what it leaves alone there: planted with what hurts."""

import os
import tarfile
from pathlib import Path

import pytest

from obuilder.errors import BadImage, CopyError
from obuilder.oci.additions import add
from obuilder.system.picking import NOTHING, Selection, pick
from obuilder.values import IdMap

IDS = IdMap(first=0, count=65536) if os.geteuid() == 0 else IdMap(first=os.getuid(), count=1)


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A source, a root, and what is in neither."""
    found = (tmp_path / "source", tmp_path / "root", tmp_path / "outside")
    for place in found:
        place.mkdir()
    return found


def put(
    root: Path, source: Path, *src: str, to: str, owner: tuple[int, int] = (0, 0),
    permissions: str = "", link: bool = False, unpack: bool = False,
) -> None:  # fmt: skip
    selection = NOTHING
    if src:
        selection = pick(str(source), src, exclude=(), ignored=None, parents=False, stats=None)
    place(root, selection, source, to, owner, permissions, link=link, unpack=unpack)


def place(
    root: Path, found: Selection, source: Path, to: str, owner: tuple[int, int], permissions: str,
    *, link: bool, unpack: bool,
) -> None:  # fmt: skip
    add(
        str(root), found, str(source), to=to.rstrip("/") or "/", into=to.endswith("/"),
        owner=owner, permissions=permissions, link=link, unpack=unpack, idmap=IDS,
    )  # fmt: skip


def test_what_is_added_is_placed_as_copy_does_and_nothing_leads_out(
    places: tuple[Path, Path, Path],
) -> None:
    source, root, outside = places
    (source / "dir/sub").mkdir(parents=True)
    for name, mode in (("dir/file", 0o640), ("dir/sub/file", 0o4755), ("one", 0o600)):
        (source / name).write_text(name)
        (source / name).chmod(mode)
    (source / "dir/sub").chmod(0o2711)
    (source / "dir/link").symlink_to("/../../gone")
    for name in ("there", "there/sub"):
        (root / name).mkdir(0o700)
    (root / "out").symlink_to(f"../../..{outside}")
    (root / "way").symlink_to("/there")
    (root / "dangling").symlink_to("/nowhere/yet")
    (root / "there/file").symlink_to("/one-more")
    put(root, source, "dir", to="/way", owner=(7, 8))
    put(root, source, "one", to="/way")
    put(root, source, "one", to="/dangling", permissions="755")
    put(root, source, "one", to="/new/place/", permissions="u=rwX,go=rX")
    put(root, source, "one", "dir", to="/out/")
    put(root, source, "one", to="/way/sub/file", link=True)
    assert list(outside.iterdir()) == []
    modes = {
        "there": 0o40700, "there/sub": 0o42711, "there/file": 0o100640, "there/one": 0o100600,
        "there/sub/file": 0o104755, "nowhere/yet": 0o100755, "new/place/one": 0o100644,
        "there/link": 0o120777, "way": 0o40755,
    }  # fmt: skip
    assert {name: (root / name).lstat().st_mode for name in modes} == modes
    assert not os.path.lexists(root / "one-more"), "a symlink in a file's place is replaced"
    assert (root / "there/file").lstat().st_uid == IDS.to_disk(7)


def test_what_is_in_the_way_is_an_error(places: tuple[Path, Path, Path]) -> None:
    source, root, _ = places
    (source / "dir").mkdir()
    (source / "one").touch()
    (root / "file").touch()
    with pytest.raises(CopyError, match="no directory is there"):
        put(root, source, "dir", to="/file")
    with pytest.raises(CopyError, match="in the way"):
        put(root, source, "one", to="/file/")


def test_a_directory_alone_is_made_for_its_owner(places: tuple[Path, Path, Path]) -> None:
    source, root, _ = places
    put(root, source, to="/made/deep/", owner=(7, 8))
    assert (root / "made/deep").stat().st_uid == IDS.to_disk(7)


def test_archives_are_taken_apart_where_that_is_asked_for(
    places: tuple[Path, Path, Path],
) -> None:
    source, root, _ = places
    (source / "text").write_text("text")
    with tarfile.open(source / "good.tgz", "w:gz") as tar:
        tar.add(source / "text", arcname="in/text")
    put(root, source, "good.tgz", "text", to="/a/", unpack=True)
    put(root, source, "good.tgz", "text", to="/b/")
    assert sorted(os.listdir(root / "a")) == ["in", "text"]
    assert sorted(os.listdir(root / "b")) == ["good.tgz", "text"]


@pytest.mark.parametrize("name", ["../../escaped", "way/escaped"])
def test_no_archive_leads_out(places: tuple[Path, Path, Path], name: str) -> None:
    source, root, outside = places
    (source / "text").write_text("text")
    with tarfile.open(source / "bad.tar", "w") as tar:
        link = tarfile.TarInfo("way")
        link.type, link.linkname = tarfile.SYMTYPE, f"../../../../..{outside}"
        tar.addfile(link)
        tar.add(source / "text", arcname=name)
    try:
        put(root, source, "bad.tar", to="/b/", unpack=True)
    except (BadImage, CopyError):
        pass
    assert list(outside.iterdir()) == []
    assert not (outside.parent / "escaped").exists()
