"""One path at which every user has a directory of their own: a real file system, really mounted."""

import os
import subprocess  # the redirect is a program
import sys
from collections.abc import Iterator
from typing import NamedTuple
from zipfile import ZipFile

import pytest

from places import scratch
from program import REPO, until
from redirected import Redirected, redirected

pytestmark = pytest.mark.needs("root", "fuse")

ONE, TWO = 60_001, 60_002

MAKEFILE = """
all: lib$(NAME).so $(NAME)
lib$(NAME).so: answer.c
\tgcc -shared -fPIC -o $@ $<
$(NAME): main.c lib$(NAME).so
\tgcc -I. -L. -Wl,-rpath,$(PREFIX)/lib -o $@ main.c -l$(NAME)
install: all
\tinstall -D $(NAME) $(PREFIX)/bin/$(NAME)
\tinstall -D lib$(NAME).so $(PREFIX)/lib/lib$(NAME).so
\tinstall -D -m 644 answer.h $(PREFIX)/include/answer.h
\tln -sf $(NAME) $(PREFIX)/bin/tool
"""

MAIN = r"""
#include <answer.h>
#include <stdio.h>
#include <unistd.h>
int main(int count, char **words) {
  if (count > 1) sleep(1);
  printf("%d\n", answer());
  return 0;
}
"""


class Package(NamedTuple):
    """What one user installs: a program with a library in C, and one in Python."""

    name: str
    number: int

    def make(self) -> str:
        """A script that builds and installs it below $PREFIX, in a source tree that is there too."""
        return f"""set -e
        mkdir -p $PREFIX/src/{self.name} && cd $PREFIX/src/{self.name}
        echo 'int answer(void);' > answer.h
        echo 'int answer(void) {{ return {self.number}; }}' > answer.c
        cat > main.c <<'EOF'\n{MAIN}\nEOF
        cat > Makefile <<'EOF'\n{MAKEFILE}\nEOF
        make -s -j2 NAME={self.name} PREFIX=$PREFIX install
        """

    def wheel(self, folder: str) -> str:
        """The path of a wheel of it, with a module `shared` that all such packages have."""
        path, info = f"{folder}/{self.name}-1.0-py3-none-any.whl", f"{self.name}-1.0.dist-info"
        files = {
            f"{self.name}_module.py": f"number = {self.number}",
            "shared.py": f"def main(): print('python', {self.number})",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {self.name}\nVersion: 1.0\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/entry_points.txt": f"[console_scripts]\npy-{self.name} = shared:main\n",
        }
        record = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
        with ZipFile(path, "w") as archive:
            for name, text in {**files, f"{info}/RECORD": record}.items():
                archive.writestr(name, text)
        os.chmod(path, 0o644)
        return path


PACKAGES = {ONE: Package("medlar", 41), TWO: Package("quince", 42)}


@pytest.fixture
def redirect() -> Iterator[Redirected]:
    with scratch() as place, redirected(place) as found:
        found.own(ONE)
        found.own(TWO)
        yield found


def listing(folder: str) -> list[str]:
    """The paths of all that is below a directory, from there."""
    return sorted(
        os.path.relpath(os.path.join(place, name), folder)
        for place, folders, names in os.walk(folder)
        for name in (*folders, *names)
    )


def machine() -> dict[str, list[str]]:
    """What the machine's own prefix has where packages put things."""
    places = [f"/usr/local{name}" for name in ("", "/bin", "/include", "/lib", "/src")]
    return {place: sorted(os.listdir(place)) for place in places if os.path.isdir(place)}


def pip() -> str:
    """The pip that a Python brings along for environments: a file that can be run as it is."""
    find = """if True:
        import ensurepip, glob, os
        folders = (os.path.dirname(ensurepip.__file__) + "/_bundled", "/usr/share/python-wheels")
        print(*(path for folder in folders for path in glob.glob(folder + "/pip-*.whl")))
        """
    said = subprocess.run(["/usr/bin/python3", "-c", find], stdout=subprocess.PIPE, check=True)
    return said.stdout.decode().split()[0] + "/pip"


def at_once(redirect: Redirected, scripts: dict[int, str]) -> dict[int, str]:
    """What the users' scripts said, which ran at one time and succeeded."""
    started = {user: redirect.start_as(user, script) for user, script in scripts.items()}
    said = {}
    for user, process in started.items():
        said[user], _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    return said


@pytest.mark.needs("gcc", "system-python")
def test_two_users_install_different_packages_into_usr_local_at_once() -> None:
    before = machine()
    with scratch() as place, redirected(place, "/usr/local") as redirect:
        owns = {user: redirect.own(user) for user in PACKAGES}
        at_once(redirect, {user: package.make() for user, package in PACKAGES.items()})
        # Both run at once the program that both know by one name; pages of the one are not the other's.
        said = at_once(redirect, dict.fromkeys(PACKAGES, "tool slowly; tool; which tool"))
        for user, package in PACKAGES.items():
            assert said[user] == f"{package.number}\n{package.number}\n/usr/local/bin/tool\n"
        # gcc finds what was installed there where it always looks, and so does Python.
        compiles = """set -e; cd $PREFIX/src; cp */main.c mine.c; gcc -o mine mine.c -l{name}
        LD_LIBRARY_PATH=$PREFIX/lib ./mine"""
        said = at_once(
            redirect,
            {user: compiles.format(name=package.name) for user, package in PACKAGES.items()},
        )
        assert said == {user: f"{package.number}\n" for user, package in PACKAGES.items()}
        installs = """set -e; /usr/bin/python3 -m venv --without-pip $PREFIX
        python3 {pip} install -q --no-index --no-deps --no-cache-dir --disable-pip-version-check {wheel}
        py-{name}; python3 -c 'import shared; shared.main()'; basename $PREFIX/lib/python3*/site-packages/*.dist-info"""
        said = at_once(
            redirect,
            {
                user: installs.format(pip=pip(), wheel=package.wheel(place), name=package.name)
                for user, package in PACKAGES.items()
            },
        )
        for user, package in PACKAGES.items():
            line = f"python {package.number}\n"
            assert said[user] == f"{line}{line}{package.name}-1.0.dist-info\n"
        # Each has its own, and nothing of the other's; who has no link has the machine's.
        seen = {user: listing(own) for user, own in owns.items()}
        for user, package in PACKAGES.items():
            (other,) = (other for other in PACKAGES.values() if other is not package)
            assert f"bin/{package.name}" in seen[user]
            assert f"bin/py-{package.name}" in seen[user]
            assert not [path for path in seen[user] if other.name in path]
            assert {os.lstat(os.path.join(owns[user], path)).st_uid for path in seen[user]} == {
                user
            }
            assert redirect.run_as(user, "cd $PREFIX && find . | sort") == "".join(
                f"{path}\n" for path in sorted([".", *(f"./{path}" for path in seen[user])])
            )
        names = redirect.run_as(0, "ls -A $PREFIX").splitlines()
        assert sorted(names) == sorted(os.listdir("/usr/local"))
    assert machine() == before


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


def test_rights_are_those_of_the_process_that_asks(redirect: Redirected) -> None:
    path = os.path.join(redirect.own(ONE), "file")
    with open(path, "w", encoding="ascii") as file:
        file.write("the group's\n")
    os.chown(path, 0, TWO)
    os.chmod(path, 0o040)
    for _ in range(2):
        assert redirect.run_as(ONE, "cat file", groups=f"5,{TWO}") == "the group's\n"
        assert "denied" in redirect.run_as(ONE, "cat file || true")


def test_users_need_not_be_allowed_to_pass_what_is_above_their_directory(
    redirect: Redirected,
) -> None:
    closed = f"{redirect.own(TWO)}/closed"
    os.makedirs(f"{closed}/own")
    os.chown(f"{closed}/own", ONE, ONE)
    os.chmod(closed, 0o700)
    os.unlink(f"{redirect.links}/{ONE}")
    os.symlink(f"{closed}/own", f"{redirect.links}/{ONE}")
    redirect.run_as(ONE, "echo seen > file")
    before = redirect.open_files()
    assert redirect.run_as(ONE, "for _ in 1 2 3 4 5 6; do cat file; done") == "seen\n" * 6
    until(lambda: redirect.open_files() <= before, "no more files are open")


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
