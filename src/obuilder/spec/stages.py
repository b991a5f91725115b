"""Stages: a spec and the builds nested in it, what their names stand for, and which are needed.

A build sees those that stand before it in its list, and what the spec around sees there; of two of
one name the nearer, and the later, hides the other.
"""

from bisect import bisect_left

from obuilder.errors import UsageError
from obuilder.spec.model import Add, Built, Copy, Run, Spec
from obuilder.values import OpPath


class Stage:
    """A spec at its place; the whole spec is the stage of the path (), and has no name."""

    def __init__(self, spec: Spec, path: OpPath, name: str, around: "Stage | None") -> None:
        self.spec, self.path, self.name = spec, path, name
        self._around = around
        self._places: dict[str, list[int]] | None = None
        self._found: dict[int, Stage] = {}

    def find(self, name: str, *, before: int | None = None) -> "Stage":
        """The build that `name` stands for in this stage's ops. LookupError.

        `before`: for the nested build of that number.
        """
        end = len(self.spec.children) if before is None else before
        places = self._by_name().get(name, [])
        at = bisect_left(places, end) - 1
        if at >= 0:
            return self.child(places[at])
        if self._around is None:
            raise LookupError(name)
        return self._around.find(name, before=self.path[-1])

    def _by_name(self) -> dict[str, list[int]]:
        if self._places is None:
            self._places = {}
            for index, (name, _) in enumerate(self.spec.children):
                self._places.setdefault(name, []).append(index)
        return self._places

    def child(self, index: int) -> "Stage":
        """The nested build of that number."""
        stage = self._found.get(index)
        if stage is None:
            name, spec = self.spec.children[index]
            stage = self._found[index] = Stage(spec, (*self.path, index), name, self)
        return stage

    def sources(self) -> "list[Stage]":
        """The stages that this one begins from, copies from and looks into."""
        base = self.spec.base
        names = [base.name] if isinstance(base, Built) else []
        for op in self.spec.ops:
            if isinstance(op, Copy | Add) and op.build is not None:
                names.append(op.build)
            elif isinstance(op, Run):
                names.extend(bind.build for bind in op.binds)
        return [self.find(name) for name in names]


def whole(spec: Spec) -> Stage:
    """The stage that is the spec itself."""
    return Stage(spec, (), "", None)


def alone(spec: Spec, *names: str) -> Spec:
    """A nested build as a spec of its own, with the builds it sees; `names` lead to it.

    LookupError if there is none. Of two of one name the later is meant.
    """
    seen: list[tuple[str, Spec]] = []
    for name in names:
        places = [index for index, (child, _) in enumerate(spec.children) if child == name]
        if not places:
            raise LookupError(name)
        seen.extend(spec.children[: places[-1]])
        spec = spec.children[places[-1]][1]
    return Spec(base=spec.base, ops=spec.ops, children=(*seen, *spec.children))


def target(spec: Spec, name: str) -> Spec:
    """The nested build that is asked for by its name, or by names with slashes between. UsageError."""
    for names in ([name], name.split("/")):
        try:
            return alone(spec, *names)
        except LookupError:
            continue
    known = ", ".join(name for name, _ in spec.children)
    raise UsageError(
        f"the spec has no build called {name!r}",
        hint=f"it has: {known}" if known else "it has no nested builds",
    )


def needed(spec: Spec) -> list[Stage]:
    """The stages that the spec's result needs, each after those it copies from; itself the last."""
    order: list[Stage] = []
    entered: set[OpPath] = set()
    ahead: list[tuple[Stage, bool]] = [(whole(spec), False)]
    while ahead:
        stage, ready = ahead.pop()
        if ready:
            order.append(stage)
        elif stage.path not in entered:
            entered.add(stage.path)
            ahead.append((stage, True))
            ahead.extend((source, False) for source in reversed(stage.sources()))
    return order


def bases(spec: Spec) -> list[str]:
    """The base images of a spec and of all builds nested in it, each once."""
    found: dict[str, None] = {}
    ahead = [spec]
    while ahead:
        one = ahead.pop()
        if isinstance(one.base, str):
            found.setdefault(one.base)
        ahead.extend(child for _, child in reversed(one.children))
    return list(found)
