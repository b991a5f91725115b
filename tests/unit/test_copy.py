"""scan and copy_in on real directories, planted with what hurts."""

import os
import socket
import stat
import time
from pathlib import Path

import pytest

import places
from obuilder.errors import CopyError
from obuilder.spec.ignore import IgnoreFile
from obuilder.system.copying import copy_in
from obuilder.system.files import copy_data, copy_tree, remove_tree
from obuilder.system.tree import Manifest, scan
from obuilder.values import IdMap

IDS = IdMap(first=0, count=65536) if os.geteuid() == 0 else IdMap(first=os.getuid(), count=1)


def look(root, *src, into=False, exclude=(), ignored=None, stats=None):
    return scan(str(root), src, into=into, dst="/d", exclude=exclude, ignored=ignored, stats=stats)


def put(root, manifest: Manifest, source, to, owner=(0, 0)):
    copy_in(str(root), manifest, str(source), to=to, owner=owner, idmap=IDS)


@pytest.fixture
def context(tmp_path):
    path = tmp_path / "context"
    path.mkdir()
    return path


@pytest.fixture
def root(tmp_path):
    path = tmp_path / "root"
    (path / "usr/bin").mkdir(parents=True)
    (path / "bin").symlink_to("usr/bin")
    return path


def test_symlinked_ancestors_stay(context, root):
    (context / "tool").write_text("x")
    (root / "usr/bin").chmod(0o1777)
    put(root, look(context, "tool", into=True), context, "/bin", owner=(1000, 1000))
    assert (root / "bin").is_symlink()
    assert (root / "usr/bin/tool").read_text() == "x"
    status = (root / "usr/bin").stat()
    assert stat.S_IMODE(status.st_mode) == 0o1777
    assert status.st_uid == os.getuid()


def test_planted_symlinks_do_not_lead_out(context, root, tmp_path):
    (context / "f").write_text("new")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_text("old")
    (root / "abs").symlink_to(outside)
    (root / "up").symlink_to("../outside")
    (root / "f").symlink_to(outside / "f")
    for to in ("/abs/f", "/up/f"):
        with pytest.raises(CopyError):
            put(root, look(context, "f"), context, to)
    put(root, look(context, "f"), context, "/f")
    assert not (root / "f").is_symlink()
    assert (outside / "f").read_text() == "old"


def test_conflicts(context, root):
    (context / "f").write_text("")
    (context / "d").mkdir()
    (root / "file").write_text("")
    with pytest.raises(CopyError, match="a directory is there"):
        put(root, look(context, "f"), context, "/usr")
    with pytest.raises(CopyError, match="in the way"):
        put(root, look(context, "d"), context, "/file")


@pytest.mark.parametrize("source", ["../x", "a/../b", ".."])
def test_dotdot_is_refused(context, source):
    with pytest.raises(CopyError, match=r"\.\."):
        look(context, source)


def test_what_can_not_be_copied(context):
    (context / "f").write_text("")
    (context / "s").symlink_to(".")
    (context / "dir").mkdir()
    os.mkfifo(context / "dir/fifo")
    with pytest.raises(CopyError, match="not found"):
        look(context, "missing")
    with pytest.raises(CopyError, match="not a directory"):
        look(context, "f/x")
    with pytest.raises(CopyError, match="through a symlink"):
        look(context, "s/f")
    with pytest.raises(CopyError, match="fifo"):
        look(context, ".")
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(str(context / "sock"))
        with pytest.raises(CopyError, match="socket"):
            look(context, "sock")
    finally:
        sock.close()


def test_odd_names_modes_links_and_times(context, root):
    names = ["a\nb", os.fsdecode(b"\xff\xfe"), "-rf", "\x1b[31m", "x" * 255, " "]
    for name in names:
        (context / name).write_text(name, errors="surrogateescape")
        os.utime(context / name, ns=(0, -1_000_000_000))
    os.link(context / " ", context / "hard")
    (context / "dangling").symlink_to("/no/where")
    (context / "run").write_text("")
    (context / "run").chmod(0o4710)
    manifest = look(context, ".")
    assert [e.path for e in manifest.entries] == sorted(
        (e.path for e in manifest.entries), key=os.fsencode
    )
    put(root, manifest, context, "/deep/er")
    made = root / "deep/er"
    assert sorted(os.listdir(made)) == sorted(os.listdir(context))
    for name in names:
        assert (made / name).lstat().st_mtime_ns == -1_000_000_000
    assert (made / "hard").stat().st_ino == (made / " ").stat().st_ino
    assert os.readlink(made / "dangling") == "/no/where"
    assert stat.S_IMODE((made / "run").stat().st_mode) == 0o755
    assert look(made, ".").digest == manifest.digest


def test_a_change_between_scan_and_copy_is_caught(context, root):
    for after in (b"evil", b"longer than before", b""):
        (context / "f").write_bytes(b"good")
        manifest = look(context, "f")
        (context / "f").write_bytes(after)
        with pytest.raises(CopyError, match="changed"):
            put(root, manifest, context, "/f")
        assert not (root / "f").exists()


def test_exclude_and_ignore(context):
    for path in ("a/x", "a/b/x", "keep"):
        (context / path).parent.mkdir(parents=True, exist_ok=True)
        (context / path).write_text("")
    paths = [e.path for e in look(context, ".", into=True, exclude=("x",)).entries]
    assert paths == ["a", "a/b", "keep"]
    paths = [e.path for e in look(context, ".", into=True, ignored=IgnoreFile.parse("a")).entries]
    assert paths == ["keep"]
    assert [e.path for e in look(context, "a", into=True).entries] == ["a", "a/b", "a/b/x", "a/x"]


def test_only_settled_files_are_remembered(context):
    class Stats(dict):
        def get(self, path, signature):
            return dict.get(self, (path, signature))

        def put(self, path, signature, digest):
            self[path, signature] = digest

    (context / "f").write_text("")
    stats = Stats()
    look(context, "f", stats=stats)
    assert not stats


def test_sparse_stays_sparse(context, root):
    with open(context / "s", "wb") as file:
        file.truncate(64 << 20)
        file.seek(10 << 20)
        file.write(b"x")
    put(root, look(context, "s"), context, "/s")
    status = (root / "s").stat()
    assert status.st_size == 64 << 20
    assert status.st_blocks * 512 < 4 << 20


@pytest.mark.needs("root")  # to pass a closed directory
def test_trees_are_copied_and_removed(tmp_path):
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d/f").write_text("x")
    os.link(tree / "d/f", tree / "g")
    (tree / "link").symlink_to(tmp_path)
    (tree / "d").chmod(0)
    copy_tree(str(tree), str(tmp_path / "copy"))
    assert (tmp_path / "copy/g").stat().st_nlink == 2
    remove_tree(str(tree))
    remove_tree(str(tree))
    assert sorted(os.listdir(tmp_path)) == ["copy"]


@pytest.mark.parametrize(
    ("patterns", "copied"),
    [
        ("a", ["z"]),
        ("a\n!a/b/keep", ["a", "a/b", "a/b/keep", "z"]),
        ("a\n!a/b", ["a", "a/b", "a/b/drop", "a/b/keep", "z"]),
        ("**\n!z", ["z"]),
        ("*\n!a\na/b/drop", ["a", "a/b", "a/b/keep", "a/c"]),
        ("a/**/keep", ["a", "a/b", "a/b/drop", "a/c", "z"]),
        ("# a\n\n  z  \n!nothing", ["a", "a/b", "a/b/drop", "a/b/keep", "a/c"]),
    ],
)
def test_what_is_ignored_can_be_taken_back(context, patterns, copied):
    (context / "a/b").mkdir(parents=True)
    for name in ("a/b/keep", "a/b/drop", "a/c", "z"):
        (context / name).write_text(name)
    found = look(context, ".", into=True, ignored=IgnoreFile.parse(patterns))
    assert [entry.path for entry in found.entries] == copied


@pytest.mark.parametrize(
    ("pattern", "ignored", "kept"),
    [
        ("*.o", ["x.o", "x.o/y"], ["a/x.o", "x.oo"]),
        ("**/*.o", ["x.o", "a/x.o", "a/b/x.o"], ["xo"]),
        ("a/**", ["a/x", "a/b/c"], ["a"]),
        ("**", ["a", "a/b"], []),
        ("**a", ["a", "b/a", "ba"], ["ab"]),
        ("a**b", ["ab", "a/x/b", "ax/b"], ["axb"]),
        ("/a/./b/../c//", ["a/c", "a/c/d"], ["a/b", "c"]),
        ("../a", [], ["a"]),
        ("[ab]?", ["ax", "b1"], ["cx", "a/", "a"]),
        ("[^ab]", ["c"], ["a", "/"]),
        ("[!a]", ["!", "a"], ["c"]),
        ("[\\]]", ["]"], ["a"]),
        (r"\*x", ["*x"], ["ax"]),
        (" # a ", ["# a"], []),
        ("\ufeffa", ["a"], []),
        ("a.b", ["a.b"], ["axb"]),
        ("a|b", ["a|b"], ["a", "b"]),
        ("[a||b&&c]", ["a", "|", "&"], ["d"]),
    ],
)
def test_patterns_mean_what_they_mean_to_docker(pattern, ignored, kept):
    found = IgnoreFile.parse(f"{pattern}\n")
    assert [path for path in [*ignored, *kept] if found.matches(path)] == ignored


@pytest.mark.parametrize("pattern", ["a[", "[]", "x\n[a-"])
def test_what_is_no_pattern_is_told_with_its_line(pattern):
    with pytest.raises(ValueError, match=r"line \d: .* is no pattern"):
        IgnoreFile.parse(pattern)


def test_what_is_ignored_can_not_be_named(context):
    (context / "d").mkdir()
    (context / "d/f").write_text("")
    for patterns in ("d", "d\n!other"):
        for source in ("d", "d/f"):
            with pytest.raises(CopyError, match="is left out by"):
                look(context, source, into=True, ignored=IgnoreFile.parse(patterns))
    found = look(context, "d", into=True, ignored=IgnoreFile.parse("d\n!d/f"))
    assert [entry.path for entry in found.entries] == ["d", "d/f"]
    found = look(context, "d/f", ignored=IgnoreFile.parse("d\n!d/f"))
    assert [entry.path for entry in found.entries] == [""]


def test_many_patterns_take_little_time():
    found = IgnoreFile.parse("\n".join(f"**/name{n}*/x\n!keep{n}" for n in range(50)))
    began = time.process_time()
    for number in range(5_000):
        found.matches(f"some/directory/deep/down/file{number}")
    assert time.process_time() - began < 5


@pytest.mark.parametrize("far", [False, True], ids=["one file system", "two"])
@pytest.mark.parametrize(
    "pieces",
    [(), (0,), (3,), (0, 3, 7), (0, 1, 2, 3, 4, 5, 6, 7)],
    ids=["a hole", "the start", "in the middle", "with holes", "no hole"],
)
def test_data_is_copied_with_its_holes(tmp_path, pieces, far):
    size, piece = (8 << 20) + 5, 1 << 20
    with places.memory() as memory:
        source, target = tmp_path / "source", (Path(memory) if far else tmp_path) / "target"
        with open(source, "wb") as file:
            file.truncate(size)
            for number in pieces:
                file.seek(number * piece)
                file.write(os.urandom(piece))
        with open(source, "rb") as one, open(target, "wb") as other:
            copy_data(one.fileno(), other.fileno(), size)
        assert target.read_bytes() == source.read_bytes()
        assert target.stat().st_blocks * 512 <= (len(pieces) << 20) + (1 << 16)
        with open(source, "rb") as one, open(target, "wb") as other:
            copy_data(one.fileno(), other.fileno(), piece + 1)
        assert target.read_bytes() == source.read_bytes()[: piece + 1]
