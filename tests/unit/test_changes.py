"""A layer of what changed: unpacked over the old root, it gives the new one."""

import io
import os
import random
import shutil
import stat

import pytest

from obuilder.errors import CopyError
from obuilder.oci.archive import write_changes, write_tar
from obuilder.oci.layers import unpack
from obuilder.oci.members import Manner
from obuilder.values import IdMap

SAME = IdMap(first=0, count=1 << 31) if os.geteuid() == 0 else IdMap(first=os.geteuid(), count=1)


def listing(root):
    """All that can be told of a tree; hard links by the names that share them."""
    found, links = {}, {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            content = b""
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path).encode()
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
                links.setdefault(status.st_ino, set()).add(os.path.relpath(path, root))
            found[os.path.relpath(path, root)] = (
                status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content,
            )  # fmt: skip
    return found, sorted(sorted(names) for names in links.values() if len(names) > 1)


def change(old, new):
    out = io.BytesIO()
    write_changes(str(old), str(new), out, Manner(SAME, exact=True))
    return out.getvalue()


def applied(layer, old, target):
    shutil.copytree(old, target, symlinks=True)
    for folder, folders, files in os.walk(old):  # copytree breaks hard links
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            place = os.path.join(target, os.path.relpath(path, old))
            status = os.lstat(path)
            os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
    unpack(io.BytesIO(layer), str(target), SAME, lambda _: None)
    return target


@pytest.fixture
def trees(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "deep").mkdir()
    for name in ("same", "gone", "edited", "moded", "deep/inner", "becomes-dir"):
        (tmp_path / "old" / name).write_text(f"content of {name}")
    (tmp_path / "old" / "link").symlink_to("same")
    (tmp_path / "old" / "dir-gone" / "below").mkdir(parents=True)
    (tmp_path / "old" / "becomes-file").mkdir()
    (tmp_path / "old" / "becomes-file" / "x").write_text("x")
    os.system(f"cp -a {tmp_path}/old {tmp_path}/new")
    return tmp_path / "old", tmp_path / "new"


def test_every_kind_of_change_is_carried(trees, tmp_path):
    old, new = trees
    (new / "gone").unlink()
    (new / "edited").write_text("other")
    (new / "moded").chmod(0o4711)
    (new / "deep" / "added").write_text("new")
    (new / "link").unlink()
    (new / "link").symlink_to("elsewhere")
    shutil.rmtree(new / "dir-gone")
    shutil.rmtree(new / "becomes-file")
    (new / "becomes-file").write_text("a file")
    (new / "becomes-dir").unlink()
    (new / "becomes-dir").mkdir()
    os.mkfifo(new / "fifo", 0o640)
    os.link(new / "same", new / "aaa")  # sorts before what it is linked to
    assert listing(applied(change(old, new), old, tmp_path / "made")) == listing(new)


def test_nothing_is_carried_where_nothing_changed(trees):
    old, new = trees
    empty = io.BytesIO()
    write_tar(str(new / "dir-gone" / "below"), empty, Manner(SAME))
    assert change(old, new) == empty.getvalue()


def test_a_change_that_hides_behind_its_time_is_seen(trees, tmp_path):
    old, new = trees
    before = os.stat(new / "edited")
    (new / "edited").write_text("CONTENT of edited")
    os.utime(new / "edited", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert listing(applied(change(old, new), old, tmp_path / "made")) == listing(new)


def test_a_name_that_means_a_removed_file_is_refused(trees):
    old, new = trees
    (new / ".wh.x").write_text("")
    with pytest.raises(CopyError, match="removed file"):
        change(old, new)


@pytest.mark.parametrize("seed", range(30))
def test_random_changes(seed, trees, tmp_path):
    old, new = trees
    dice = random.Random(seed)
    for _ in range(40):
        folders = [path for path, _, _ in os.walk(new)]
        place = os.path.join(dice.choice(folders), dice.choice("abcdef"))
        if os.path.lexists(place):
            if os.path.isdir(place) and not os.path.islink(place):
                shutil.rmtree(place)
            else:
                os.unlink(place)
        kind = dice.randrange(5)
        if kind == 0:
            os.mkdir(place)
        elif kind == 1:
            os.symlink(str(dice.random()), place)
        elif kind == 2:
            with open(place, "w") as file:
                file.write(str(dice.random()))
        elif kind == 3:
            files = [os.path.join(f, n) for f, _, names in os.walk(new) for n in names]
            os.link(dice.choice(files), place, follow_symlinks=False)
    assert listing(applied(change(old, new), old, tmp_path / "made")) == listing(new)
