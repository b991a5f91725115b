"""What a copy does to a root that has been made to hurt it: right, or refused in words."""

import os
import socket
import time

import pytest

from places import each, each_place
from program import Program, shell

pytestmark = pytest.mark.needs("overlay", "crun")

TREE = "find / -xdev -path /proc -prune -o -path /sys -prune -o -path /dev -prune -o -print | sort"


def copy(*src: str, dst: str, more: str = "") -> str:
    return f'(copy (src {" ".join(src)}) (dst "{dst}") {more})'


@each_place
def test_directories_that_are_there_stay_as_they_are(program: Program) -> None:
    program.file("tool", b"#!/bin/sh\necho used\n")
    os.chmod(f"{program.context}/tool", 0o755)
    look = "stat -c '%n %a %u:%g %Y %F' /usr /usr/bin /bin /tmp /root /var /var/run /run; /bin/tool"
    prepare = (
        "rm /usr/bin/env && cp /bin/busybox /usr/bin/ && cd /usr/bin && "
        "for name in sh stat ln chmod touch cat; do ln -s busybox $name; done && "
        "/usr/bin/busybox rm -r /bin && /usr/bin/ln -s usr/bin /bin && "
        "ln -sfn /run /var/run && chmod 1777 /tmp && touch -d @1000000000 /tmp /root /usr/bin /run"
    )
    program.spec(
        shell(prepare),
        "(user (uid 1000) (gid 1000))",
        copy("tool", dst="/bin/"), copy("tool", dst="/tmp/x/"), copy("tool", dst="/var/run/x/"),
        copy("tool", dst="/root/"), "(user (uid 0) (gid 0))", shell(look),
        shell("stat -c '%n %a %u:%g' /tmp/x /tmp/x/tool /run/x /run/x/tool /usr/bin/tool"),
    )  # fmt: skip
    out = program.ok("build")
    assert "/bin 777 0:0" in out
    assert "symbolic link" in out
    assert "/tmp 1777 0:0" in out
    assert "/root 700 0:0" in out
    assert "/usr/bin 755 0:0" in out
    assert "/var/run 777 0:0" in out
    assert "used\n" in out
    for line in (
        "/tmp/x 755 ",
        "/tmp/x/tool 755 1000:1000",
        "/run/x/tool 755 1000:1000",
        "/usr/bin/tool 755 1000:1000",
    ):
        assert line in out, line


def test_symlinks_that_a_step_planted_lead_nowhere_outside(program: Program) -> None:
    program.file("f", b"copied")
    outside = os.path.join(program.temporary, "outside")
    os.mkdir(outside)
    os.chmod(outside, 0o777)
    plant = (
        f"ln -s {outside} /abs; ln -s ../../../../..{outside} /up; mkdir /in; ln -s /in /inside; "
        "ln -s loop /loop; ln -s /missing /dangling; ln -s /etc/passwd /file; ln -s / /root-again"
    )
    for place, good in (
        ("/abs/f", True), ("/up/f", True), ("/inside/f", True), ("/inside/deep/er/f", True),
        ("/loop/f", False), ("/dangling/f", False), ("/file/f", False), ("/root-again/root-again/g", True),
        ("/loop", True), ("/dangling", True), ("/file", True),
    ):  # fmt: skip
        program.spec(
            shell(f"{plant}; mkdir -p {outside}"), copy("f", dst=place), shell(f"cat {place}")
        )
        done = program.run("build")
        if good:
            assert done.status == 0, (place, done)
            assert "copied" in done.out
        else:
            assert done.status == 4, (place, done)
            assert "can't copy to" in done.err
    assert os.listdir(outside) == []


def test_nothing_above_the_root_or_the_context(program: Program) -> None:
    program.file("f", b"x")
    program.spec(copy("f", dst="/../../../up"), copy("f", dst="../a/../../b"), shell("ls /up /b"))
    assert program.ok("build").count("/up") >= 1
    for source in ("../f", "a/../../f"):
        program.spec(copy(source, dst="/x"))
        done = program.run("build")
        assert done.status == 2
        assert "can't use .. in source paths" in done.err
    os.symlink("/etc", f"{program.context}/link")
    program.spec(copy("link/passwd", dst="/x"))
    assert "goes through a symlink" in program.run("build").err
    program.spec(copy("link", dst="/x"), shell("readlink /x"))
    assert "/etc\n" in program.ok("build")


def test_names_of_any_bytes_and_all_kinds_of_files(program: Program) -> None:
    names = [
        b"new\nline",
        b"\xff\xfe",
        b"x" * 255,
        b" ",
        b"-rf",
        b"\x1b[31m",
        b"a\\b",
        "日本".encode(),
        b'"',
        b"*",
        b"'",
    ]
    tree = os.fsencode(program.context) + b"/tree"
    os.mkdir(tree)
    for name in names:
        with open(tree + b"/" + name, "wb") as file:
            file.write(name)
    os.mkdir(tree + b"/empty")
    os.link(tree + b"/-rf", tree + b"/linked")
    os.symlink(b"\xffnowhere", tree + b"/dangling")
    with open(tree + b"/sparse", "wb") as file:
        file.truncate(1 << 30)
    os.chmod(tree + b"/*", 0o4755)
    program.spec(
        copy("tree", dst="/t"),
        shell(
            "cd /t && stat -c '%h' ./-rf linked && stat -c '%a' '*' && du -m sparse && readlink dangling && ls | wc -l"
        ),
    )
    key = program.ok("build", "-q").strip()
    log = os.fsencode(program.ok("log", key))
    assert log.startswith(b"2\n2\n755\n0\tsparse\n\xffnowhere\n"), log
    target = os.path.join(program.temporary, "out")
    program.ok("export", key, f"directory:{target}")
    for name in names:
        with open(os.fsencode(target) + b"/t/" + name, "rb") as file:
            assert file.read() == name


def test_names_of_any_bytes_from_another_stage(program: Program) -> None:
    make = "cd /; printf x > $(printf '\\377'); printf y > 'new\nline'"
    before = f"(build dev ((from micro) (shell /bin/sh -c) {shell(make)}))"
    sources = '(copy (from (build dev)) (src "\\xff" "new\\nline") (dst /got/))'
    for _ in range(2):
        program.spec(sources, shell("cat /got/*"), before=before)
        assert program.ok("log", program.ok("build", "-q").strip()) == "yx"


@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
def test_what_is_no_file_is_refused_by_name(program: Program, kind: str) -> None:
    os.mkdir(f"{program.context}/d")
    path = f"{program.context}/d/odd"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
    else:
        os.mknod(path, 0o20666, os.makedev(1, 3))
    for source in ("d", "d/odd"):
        program.spec(copy(source, dst="/x"))
        done = program.run("build")
        assert done.status == 4
        assert f"can't copy 'd/odd': it is a {kind}" in done.err
    program.spec(copy("d", dst="/x", more="(exclude odd)"), shell("ls -a /x"))
    program.ok("build")


def test_into_nothing_at_all(program: Program) -> None:
    program.file("f", b"x")
    program.spec(copy("f", dst="/deep/er/f"), base="scratch")
    target = os.path.join(program.temporary, "out")
    program.ok("build", "-o", f"directory:{target}")
    with open(f"{target}/deep/er/f", "rb") as file:
        assert file.read() == b"x"


@each("overlayfs-on-tmpfs")  # to make and remove as many elsewhere takes longer than all else
def test_a_hundred_thousand_files(program: Program) -> None:
    for folder in range(100):
        os.makedirs(f"{program.context}/many/{folder}")
        for number in range(1000):
            with open(f"{program.context}/many/{folder}/{number}", "wb") as file:
                file.write(b"%d" % number)
    program.spec(copy("many", dst="/many"), shell("find /many -type f | wc -l; cat /many/99/999"))
    began = time.monotonic()
    out, memory = program.measured("build")
    print(f"{time.monotonic() - began:.1f} s, {memory >> 10} MiB")
    assert "100000\n999" in out
    assert memory < 300 << 10
