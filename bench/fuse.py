"""What the redirect costs: `scripts/bench fuse`, as root, on a machine at rest.

Each kind of work is done by one user through the redirect and by another in a directory of the same
file system, one after the other, and the other one first the next time. Times are medians; a ratio is
the median of the pairs', the redirect's time over the native one.
"""

import os
import statistics
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "tests"))

from redirected import Redirected, redirected

THROUGH, NATIVE, ROUNDS = 60_001, 60_002, 5

FILES = """
/usr/bin/python3 - <<'EOF'
import os
for i in range(40):
    os.makedirs(f"tree/{i}")
    for j in range(50):
        with open(f"tree/{i}/{j}", "w") as file: file.write("x" * 2000)
EOF
"""
SOURCES = """
mkdir c && cd c
for i in $(seq 30); do echo "#include <stdio.h>
int f$i(int x) { printf(\\"%d\\", x); return x + $i; }" > $i.c; done
echo "int main(void) { return 0; }" > main.c
objects=$(for i in $(seq 30); do printf '%s ' $i.o; done)
printf 'prog: %s main.o\\n\\tgcc -o $@ $^\\n' "$objects" > Makefile
"""
# What is there before the first round, what is timed, and what puts things back after each.
WORK = {
    "compile 31 C files and link": (SOURCES, "make -s -C c -j2", "rm -f c/*.o c/prog"),
    "make 2000 files in 40 directories": ("", FILES, "rm -rf tree"),
    "look at 2000 files (find -ls)": (FILES, "find tree -ls > /dev/null", "true"),
    "read 2000 files (grep -r)": (FILES, "grep -r y tree; true", "true"),
    "remove 2000 files": (FILES, "rm -rf tree", FILES),
    "write 200 MB": ("", "dd if=/dev/zero of=big bs=1M count=200 status=none", "rm big"),
    "read 200 MB": (
        "dd if=/dev/zero of=big bs=1M count=200 status=none",
        "cat big > /dev/null",
        "true",
    ),
    "start 200 programs": ("cp /bin/true ./true", "for i in $(seq 200); do ./true; done", "true"),
}


def timed(redirect: Redirected, user: int, cwd: str, script: str) -> float:
    """Milliseconds that a user's script takes."""
    began = time.perf_counter()
    redirect.run_as(user, script, cwd=cwd)
    return (time.perf_counter() - began) * 1000


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="obuilder-bench.", dir="/var/tmp") as place:
        os.chmod(place, 0o755)
        with redirected(place) as redirect:
            places = {THROUGH: redirect.path, NATIVE: redirect.own(NATIVE)}
            redirect.own(THROUGH)
            print(f"{'':36} {'native':>9} {'redirect':>9}   ratio")
            for name, (before, work, after) in WORK.items():
                spent: dict[int, list[float]] = {user: [] for user in places}
                for user, cwd in places.items():
                    redirect.run_as(user, f"rm -rf *\n{before}", cwd=cwd)
                for number in range(ROUNDS):
                    for user in (NATIVE, THROUGH) if number % 2 else (THROUGH, NATIVE):
                        spent[user].append(timed(redirect, user, places[user], work))
                        redirect.run_as(user, after, cwd=places[user])
                native, through = (statistics.median(spent[user]) for user in (NATIVE, THROUGH))
                pairs = zip(spent[THROUGH], spent[NATIVE], strict=True)
                ratio = statistics.median(mine / theirs for mine, theirs in pairs)
                print(f"{name:36} {native:6.0f} ms {through:6.0f} ms   {ratio:5.2f}")


if __name__ == "__main__":
    main()
