"""One path at which every user has a directory of their own: a real file system, really mounted."""

import os
import subprocess  # the redirect is a program
import sys
from collections.abc import Iterator

import pytest

from places import scratch
from program import REPO, until
from redirected import Redirected, redirected

pytestmark = pytest.mark.needs("root", "fuse")

ONE, TWO = 60_001, 60_002

PACKAGE = """
set -e
mkdir -p $PREFIX/src/package && cd $PREFIX/src/package
echo 'int answer(void);' > answer.h
echo 'int answer(void) { return NUMBER; }' > answer.c
cat > main.c <<'EOF'
#include <answer.h>
#include <stdio.h>
#include <unistd.h>
int main(int count, char **words) {
  if (count > 1) sleep(1);
  printf("%d\\n", answer());
  return 0;
}
EOF
cat > Makefile <<'EOF'
all: libanswer.so tool
libanswer.so: answer.c
\tgcc -shared -fPIC -DNUMBER=$(NUMBER) -o $@ $<
tool: main.c libanswer.so
\tgcc -I. -L. -Wl,-rpath,$(PREFIX)/lib -o $@ main.c -lanswer
install: all
\tinstall -D tool $(PREFIX)/bin/tool
\tinstall -D libanswer.so $(PREFIX)/lib/libanswer.so
\tinstall -D -m 644 answer.h $(PREFIX)/include/answer.h
EOF
make -s -j2 NUMBER=$NUMBER install
"""


@pytest.fixture
def redirect() -> Iterator[Redirected]:
    with scratch() as place, redirected(place) as found:
        found.own(ONE)
        found.own(TWO)
        yield found


@pytest.mark.needs("gcc")
def test_two_users_install_different_packages_at_once(redirect: Redirected) -> None:
    numbers = {ONE: 41, TWO: 42}
    builds = [
        redirect.start_as(user, f"NUMBER={number}\n{PACKAGE}") for user, number in numbers.items()
    ]
    for build in builds:
        said, _ = build.communicate(timeout=120)
        assert build.returncode == 0, said
    # Both run at once the program that both know by one name; pages of the one are not the other's.
    tools = [redirect.start_as(user, "tool slowly; tool; which tool") for user in numbers]
    for tool, number in zip(tools, numbers.values(), strict=True):
        said, _ = tool.communicate(timeout=60)
        assert said == f"{number}\n{number}\n{redirect.path}/bin/tool\n"
    for user in numbers:
        own = redirect.own(user)
        assert sorted(os.listdir(own)) == ["bin", "include", "lib", "src"]
        assert os.stat(os.path.join(own, "bin/tool")).st_uid == user
    assert os.listdir(redirect.path) == ["machine"], "who has no link sees what was there"


def test_nothing_of_another_is_seen_or_changed(redirect: Redirected) -> None:
    redirect.run_as(ONE, "umask 077; echo secret > file; mkdir deep; echo x > deep/file")
    assert redirect.run_as(TWO, "ls -A") == ""
    said = redirect.run_as(
        TWO, "cat file deep/file; echo mine > file; rm -rf deep; cat file || true"
    )
    assert said.splitlines()[-1] == "mine"
    assert "secret" not in said
    assert (
        redirect.run_as(ONE, "cat file deep/file; stat -c '%u %a' file")
        == f"secret\nx\n{ONE} 600\n"
    )
    assert redirect.run_as(TWO, "cat file; stat -c %u file . ") == f"mine\n{TWO}\n{TWO}\n"


def test_attributes_and_directories_are_right_while_users_take_turns(redirect: Redirected) -> None:
    script = """
    for i in $(seq 60); do
      mkdir -p same/sub && cd same/sub && [ "$(/bin/pwd -P)" = $PREFIX/same/sub ] || exit 1
      echo $ME > file; [ "$(cat file)" = $ME ] || exit 2
      [ "$(stat -c %u .. file | sort -u)" = $ME ] || exit 3
      cd $PREFIX; mv same other; [ "$(cat other/sub/file)" = $ME ] || exit 4; rm -r other
    done
    """
    turns = [redirect.start_as(user, f"ME={user}\n{script}") for user in (ONE, TWO)]
    for turn in turns:
        said, _ = turn.communicate(timeout=60)
        assert turn.returncode == 0, said


CALLS = r"""
import ctypes, errno, fcntl, mmap, os, stat, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def show(name, value): print(name, value)
def fails(call, *arguments, **names):
    try: call(*arguments, **names)
    except OSError as error: return errno.errorcode[error.errno]
    return "works"
def facts(path):
    s = os.lstat(path)
    return oct(s.st_mode), s.st_uid, s.st_gid, s.st_nlink, s.st_size if not stat.S_ISDIR(s.st_mode) else None
os.umask(0o027)
fd = os.open("a", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
os.write(fd, b"hello world"); os.fsync(fd); show("created", facts("a"))
show("exclusive", fails(os.open, "a", os.O_CREAT | os.O_EXCL | os.O_RDWR))
os.ftruncate(fd, 5); show("short", os.pread(fd, 99, 0)); os.truncate("a", 3); show("shorter", facts("a"))
os.lseek(fd, 1 << 20, 0); os.write(fd, b"end"); show("sparse", (os.fstat(fd).st_size, os.lseek(fd, 0, os.SEEK_END)))
show("data", os.pread(fd, 3, 1 << 20))
os.link("a", "b"); show("linked", (facts("b"), os.stat("a").st_ino == os.stat("b").st_ino))
os.symlink("../nowhere", "s"); show("symlink", (os.readlink("s"), facts("s")[0]))
os.chmod("a", 0o4751); show("mode", facts("b")); show("owner", fails(os.chown, "a", 0, 0)); os.chown("a", os.getuid(), os.getgid())
os.utime("a", ns=(1_000_000_007, 2_000_000_009)); s = os.stat("b"); show("times", (s.st_atime_ns, s.st_mtime_ns))
os.utime("a"); show("now", abs(os.stat("a").st_mtime - time.time()) < 5)
os.setxattr("a", "user.k", b"v\0w"); show("xattr", (os.listxattr("b"), os.getxattr("b", "user.k")))
show("xattr-flags", fails(os.setxattr, "a", "user.k", b"", os.XATTR_CREATE)); os.removexattr("a", "user.k"); show("xattr-gone", (os.listxattr("a"), fails(os.getxattr, "a", "user.k")))
os.mkdir("d"); os.mkdir("d/e", 0o700); show("dirs", (facts("d"), facts("d/e")))
os.rename("a", "d/e/a"); show("moved", (sorted(os.listdir("d/e")), facts("b")[3]))
show("not-empty", fails(os.rmdir, "d")); show("busy", fails(os.rename, "d", "d/e/x"))
with open("t", "w") as f: f.write("target")
os.rename("t", "b"); show("replaced", (open("b").read(), os.stat("d/e/a").st_nlink))
with open("x", "w") as f: f.write("X")
r = libc.renameat2(-100, b"x", -100, b"b", 2); show("swapped", (r, open("x").read(), open("b").read()))
r = libc.renameat2(-100, b"x", -100, b"b", 1); show("kept", (r, errno.errorcode[ctypes.get_errno()]))
os.chdir("d/e"); os.rename("../../d", "../../moved"); show("cwd", os.getcwd().rpartition("/moved")[1:]); os.chdir("../..")
show("inside", sorted(os.listdir("moved/e")))
os.unlink("moved/e/a"); show("unlinked", (os.fstat(fd).st_nlink, os.pread(fd, 3, 1 << 20))); os.ftruncate(fd, 2); os.fchmod(fd, 0o600); show("still", (os.fstat(fd).st_size, oct(os.fstat(fd).st_mode))); os.close(fd)
with open("m", "wb") as f: f.write(b"\0" * 8192)
fd = os.open("m", os.O_RDWR); m = mmap.mmap(fd, 8192); m[4096:4100] = b"MMAP"; m.flush(); m.close(); show("mapped", os.pread(fd, 4, 4096)); os.close(fd)
for _ in range(3):
    with open("log", "a") as f: f.write("line\n")
show("appended", open("log").read())
f, g = open("log", "r+"), open("log", "r+"); fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB); show("flock", fails(fcntl.flock, g, fcntl.LOCK_EX | fcntl.LOCK_NB)); f.close(); fcntl.flock(g, fcntl.LOCK_EX | fcntl.LOCK_NB)
fcntl.lockf(g, fcntl.LOCK_EX | fcntl.LOCK_NB, 3); pid = os.fork()
if pid == 0: os._exit(fails(fcntl.lockf, open("log", "r+"), fcntl.LOCK_EX | fcntl.LOCK_NB, 3) != "EAGAIN")
show("posix-lock", os.waitpid(pid, 0)[1])
os.mkfifo("p"); show("fifo", facts("p")[0]); show("device", fails(os.mknod, "n", stat.S_IFCHR | 0o600, os.makedev(1, 3)))
os.mkdir("many")
for i in range(3000): open(f"many/file-{i:05}", "w").close()
names = os.listdir("many"); show("many", (len(names), len(set(names)), min(names), max(names)))
os.chmod("many", 0o500); show("closed", (fails(open, "many/new", "w"), fails(os.unlink, "many/file-00000"))); os.chmod("many", 0o300); show("unreadable", fails(os.listdir, "many")); os.chmod("many", 0o700)
os.chmod("m", 0o400); show("read-only", (fails(open, "m", "r+"), os.access("m", os.W_OK), os.access("m", os.R_OK)))
odd = b"odd \xff\n\x1b name"; os.close(os.open(odd, os.O_CREAT | os.O_WRONLY)); show("odd", odd in os.listdir(b".")); show("long", fails(os.stat, "n" * 256))
deep = "/".join(["deep" * 10] * 50); os.makedirs(deep); open(deep + "/f", "w").close(); show("deep", os.path.exists(deep + "/f"))
a, b = os.open("big", os.O_CREAT | os.O_RDWR), os.open("copy", os.O_CREAT | os.O_RDWR); os.write(a, b"q" * 300000); show("copied", (os.copy_file_range(a, b, 300000, 0), os.fstat(b).st_size)); os.posix_fallocate(a, 0, 400000); show("allocated", os.fstat(a).st_size)
v = os.statvfs("."); show("space", v.f_blocks > 0 and v.f_namemax == 255)
os.close(os.open(".", os.O_RDONLY | os.O_DIRECTORY)); d = os.open(".", os.O_RDONLY); os.fsync(d); os.close(d)
show("gone", fails(os.stat, "never")); show("not-a-dir", fails(os.listdir, "m")); show("nofollow", fails(os.open, "s", os.O_RDONLY | os.O_NOFOLLOW))
"""


def test_every_call_answers_as_on_the_file_system_below(redirect: Redirected) -> None:
    said = {}
    for name, user in (("native", TWO), ("redirected", ONE)):
        place = redirect.own(user) if name == "native" else redirect.path
        script = f"/usr/bin/python3 - <<'EOF'\n{CALLS}\nEOF"
        lines = redirect.run_as(user, script, cwd=place).replace(str(user), "USER").splitlines()
        said[name] = lines
    assert said["native"] == said["redirected"]
    assert len(said["native"]) > 45


def test_a_link_that_changes_shows_other_files_at_once(redirect: Redirected) -> None:
    redirect.run_as(ONE, "echo first > file")
    other = os.path.join(os.path.dirname(redirect.path), "other")
    os.mkdir(other)
    os.chown(other, ONE, ONE)
    new = os.path.join(redirect.links, "new")
    os.symlink(other, new)
    os.rename(new, os.path.join(redirect.links, str(ONE)))
    assert redirect.run_as(ONE, "ls -A; echo second > file; cat file") == "second\n"
    os.unlink(os.path.join(redirect.links, str(ONE)))
    assert redirect.run_as(ONE, "ls -A") == "machine\n"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ((), 2, "usage: python -m obuilder.redirect LINKS MOUNTPOINT"),
        (("/nowhere/links", "/nowhere/else"), 3, "/nowhere/"),
    ],
)
def test_what_can_not_be_shown_is_told(words: tuple[str, ...], status: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "obuilder.redirect", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(REPO / "src"), *sys.path]))},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_it_is_gone_with_whoever_started_it() -> None:
    with scratch() as place:
        found = Redirected(place)
        server = found.start()
        assert os.path.ismount(found.path)
        found.stop()
        assert server.returncode == 0
        until(lambda: not os.path.ismount(found.path), "the mount is gone")
        assert os.listdir(found.path) == ["machine"]
