"""What a copy of 10,000 files costs: `scripts/bench copies`, as root, on a machine at rest.

A build copies a directory of 50 MB: all files new; nothing changed since; one file changed. Whole
programs are timed, beside `cp -a` of the same directory, and buildah and docker where they are
installed. Medians of rounds that take turns; a ratio is obuilder's figure over the other's.
"""

import os
import shutil
import tempfile
import time
from contextlib import ExitStack

from steps import PYTHON, Dockerfiles, peers, show, timed

from obuilder.system.namespaces import enter

FOLDERS, FILES, SIZE, ROUNDS = 100, 100, 5_000, 3
CASES = ("all files new", "nothing changed", "one file changed")
SETTLED = 2.1
"""Seconds after which a file's time tells that it did not change."""

SPEC = "((from micro) (shell /bin/sh -c) (copy (src files) (dst /files)))"
DOCKERFILE = "FROM bench-base\nCOPY files /files\n"


def fill(folder: str, mark: int) -> None:
    """Write all files anew."""
    for number in range(FOLDERS):
        os.makedirs(f"{folder}/{number}", exist_ok=True)
        for name in range(FILES):
            with open(f"{folder}/{number}/{name}", "wb") as file:
                file.write(b"%d %d %d\n" % (mark, number, name) + os.urandom(SIZE))


class Ours:
    """obuilder, the whole program."""

    name = "obuilder"

    def __init__(self, place: str) -> None:
        self.context = os.path.join(place, "context")
        os.mkdir(self.context)
        with open(f"{self.context}/obuilder.spec", "w", encoding="utf-8") as file:
            file.write(SPEC)
        self._env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        self._env |= {"PYTHONPYCACHEPREFIX": os.path.join(place, "bytecode")}
        self._env |= {"OBUILDER_STORE": f"overlayfs:{place}/store"}

    def copy(self) -> float:
        return timed([PYTHON, "-m", "obuilder", "build", "-q", self.context], self._env)


class Cp:
    """`cp -a`, which knows nothing of what it copied before."""

    name = "cp -a"

    def __init__(self, place: str) -> None:
        self.context, self._target = os.path.join(place, "cp"), os.path.join(place, "copied")
        os.mkdir(self.context)

    def copy(self) -> float:
        spent = timed(["cp", "-a", f"{self.context}/files", self._target])
        shutil.rmtree(self._target)
        return spent


class Other:
    """A program that builds Dockerfiles."""

    def __init__(self, builder: Dockerfiles) -> None:
        self.name, self.context, self._builder = builder.name, builder.context, builder

    def copy(self) -> float:
        return self._builder.build(DOCKERFILE, "bench-copy")


def main() -> None:
    enter()
    with tempfile.TemporaryDirectory(prefix="obuilder-bench.", dir="/var/tmp") as place:
        os.chmod(place, 0o711)  # steps run as users who must get to the store
        with ExitStack() as opened:
            others = [Other(p) for p in peers(place, opened) if isinstance(p, Dockerfiles)]
            tried: list[Ours | Cp | Other] = [Ours(place), Cp(place), *others]
            spent = {case: {one.name: [] for one in tried} for case in CASES}
            for round_ in range(ROUNDS):
                for one in tried:
                    fill(f"{one.context}/files", round_)
                time.sleep(SETTLED)
                for one in tried:
                    spent[CASES[0]][one.name].append(one.copy())
                for one in tried:
                    spent[CASES[1]][one.name].append(one.copy())
                for one in tried:
                    with open(f"{one.context}/files/50/50", "ab") as file:
                        file.write(b"changed")
                    spent[CASES[2]][one.name].append(one.copy())
            for case, times in spent.items():
                show(f"{case}: obuilder", times.pop("obuilder"), times)


if __name__ == "__main__":
    main()
