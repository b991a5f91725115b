"""Random builds, and a model that knows what their results and their logs must be.

A build is a way down a small tree of steps, so that builds share their beginnings. A step that
runs says a uuid first: whoever was shown another one was shown another run.
"""

import random
import re
from collections.abc import Iterable
from typing import NamedTuple

from program import Program, cached, shell

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_BEGIN = "u=$(cat /proc/sys/kernel/random/uuid); echo run $u; "
_SHOW = "for f in $(ls /d); do echo $f is $(cat /d/$f); done"

FILES = {"c0": "zero", "c1": "one", "c2": "two"}
"""The context's."""

MODES = {"grow": "append", "count": "locked", "first": "private", "all": "shared"}
"""The volumes. Every run leaves a mark in the first, and in one of the others at most."""


class Step(NamedTuple):
    """One step: what it says in the spec, and what it does to the files of /d."""

    name: str
    kind: str
    word: str
    volume: str | None = None

    def text(self, depth: int) -> str:
        """As ops of a spec."""
        file = f"/d/{self.name}"
        if self.kind == "copy":
            return f"(copy (src {self.word}) (dst /d/))"
        if self.kind == "stage":
            return f"(copy (from (build {self.name})) (src /out) (dst {file}))"
        before, change = (
            "",
            {
                "write": f"echo {self.word} > {file}",
                "more": f"for f in $(ls /d); do echo {self.word} >> /d/$f; done",
                "remove": f"rm -f /d/c0 /d/{self.word}",
                "env": f"echo $E > {file}",
                "user": f"id -u > {file}",
                "fail": f"{_SHOW}; exit 3",
            }[self.kind],
        )
        if self.kind == "env":
            before = f"(env E {self.word})"
        elif self.kind == "user":
            before = "(user (uid 1000) (gid 1000))"
        after = "(user (uid 0) (gid 0))" if self.kind == "user" else ""
        # Volumes are in no key: the name makes steps differ that differ in nothing else.
        keep = f": {self.name}; {_grown(self.volume)}; {change}; echo $u > /ids/{depth}; {_SHOW}"
        return before + _run(keep, self.volume) + after

    def change(self, files: dict[str, str]) -> None:
        """What it does to the files of /d, with their content's words."""
        if self.kind == "copy":
            files[self.word] = FILES[self.word]
        elif self.kind == "more":
            for name in files:
                files[name] += f" {self.word}"
        elif self.kind == "remove":
            files.pop("c0", None)
            files.pop(self.word, None)
        elif self.kind == "user":
            files[self.name] = "1000"
        elif self.kind != "fail":
            files[self.name] = self.word


def _grown(volume: str | None) -> str:
    """The part of a step's command that leaves its mark in the volumes."""
    mark = "echo $u > /v/grow/$u"
    if volume == "count":
        mark += "; n=$(cat /v/count/n 2>/dev/null); echo $((n + 1)) > /v/count/n"
    if volume in ("count", "first"):
        mark += f"; echo $u >> /v/{volume}/list"
    if volume == "all":
        mark += "; echo $u > /v/all/$u; echo $u >> /v/all/list"
    return mark


def _run(command: str, volume: str | None) -> str:
    names = ["grow", volume] if volume else ["grow"]
    return cached(_BEGIN + command, **{name: MODES[name] for name in names})


class Build(NamedTuple):
    """A way down the tree."""

    steps: tuple[Step, ...]

    @property
    def fails(self) -> bool:
        """Whether a step of it does."""
        return any(step.kind == "fail" for step in self.steps)

    def write(self, program: Program, name: str) -> None:
        """Write it as a spec."""
        stages = "".join(
            f"(build {step.name} ((from micro) (shell /bin/sh -c)"
            f"{_run(f'{_grown(None)}; echo {step.word} > /out', None)}))"
            for step in self.steps
            if step.kind == "stage"
        )
        ops = [step.text(depth) for depth, step in enumerate(self.steps)]
        start = shell("mkdir -m 1777 /d /ids")
        program.spec(start, *ops, before=stages, name=name)

    def files(self, depth: int) -> dict[str, str]:
        """What /d has after the step at `depth`."""
        files: dict[str, str] = {}
        for step in self.steps[: depth + 1]:
            step.change(files)
        return files

    def log(self, depth: int, uuid: str) -> str:
        """What the step at `depth` says, being the run called `uuid`."""
        if self.steps[depth].kind in ("copy", "stage"):
            return ""
        shown = "".join(f"{name} is {text}\n" for name, text in sorted(self.files(depth).items()))
        return f"run {uuid}\n{shown}"


def uuids(text: str) -> list[str]:
    """The runs that a log shows."""
    return re.findall(f"^run ({_UUID})$", text, re.MULTILINE)


def marks(text: str) -> list[str]:
    """All the uuids in a text."""
    return re.findall(_UUID, text)


WIDTHS = (2, 2, 3, 2, 3)
"""How many different steps there are at each place of a build."""


def builds(seed: int, count: int) -> list[Build]:
    """Builds of five steps each, of a tree that the seed decides."""
    chance = random.Random(seed)
    levels = [
        [_step(chance, depth, at) for at in range(width)] for depth, width in enumerate(WIDTHS)
    ]
    # Every seed has these, so that every volume is used by several.
    levels[0] = [Step("s00", "write", "w00", "count"), Step("s01", "env", "w01", "all")]
    levels[1][0] = Step("s10", "more", "w10", "first")
    levels[-1].append(Step("bad", "fail", "", chance.choice([None, "count"])))
    weights = [[1] * width for width in WIDTHS[:-1]] + [[4, 4, 4, 1]]
    return [
        Build(
            tuple(
                chance.choices(level, weight)[0]
                for level, weight in zip(levels, weights, strict=True)
            )
        )
        for _ in range(count)
    ]


def _step(chance: random.Random, depth: int, at: int) -> Step:
    name, word = f"s{depth}{at}", f"w{depth}{at}"
    volume = chance.choice([None, "count", "first", "all"])
    match chance.choice(["write", "write", "more", "remove", "env", "user", "copy", "stage"]):
        case "copy":
            word = chance.choice(sorted(FILES))
            return Step(f"copy-{word}", "copy", word)
        case "remove":
            return Step(name, "remove", f"s{max(depth - 1, 0)}{at % 2}", volume)
        case "user" | "stage" as kind:
            return Step(name, kind, word)
        case kind:
            return Step(name, kind, word, volume)


def prefixes(made: Iterable[Build]) -> set[tuple[Step, ...]]:
    """Every different beginning: one result each."""
    return {build.steps[: depth + 1] for build in made for depth in range(len(build.steps))}
