"""What a build was made from, as far as it goes beyond the result's key: noted with the result, so that
its provenance can be told at any time. No value of a secret is here, nor a password of a URL.
"""

import re
from typing import Literal

from msgspec import Struct

from obuilder.plan.model import AddAction, CopyAction, LayerAction, Plan, RunAction, Step
from obuilder.spec.model import Spec
from obuilder.values import Key, shown

_PASSWORD = re.compile(r"(?<=://)[^/\s:@\"']+:[^/\s@\"']+@")


class Source(Struct, frozen=True):
    """The text that a spec was read from, and what it was told besides. `name` is the file's own."""

    frontend: Literal["spec", "dockerfile"]
    name: str
    text: str
    arguments: tuple[tuple[str, str], ...] = ()
    target: str = ""


class Material(Struct, frozen=True):
    """A base image, a file of the web or a repository: its name, and what that stood for."""

    name: str
    digest: str
    platform: str


class Copied(Struct, frozen=True):
    """Files of the context: the SHA-256 of their manifest."""

    sources: tuple[str, ...]
    destination: str
    digest: str


class Origin(Struct, frozen=True):
    """What went into one stage's result, the ids of secrets, agents and caches among it."""

    source: Source
    materials: tuple[Material, ...]
    copied: tuple[Copied, ...]
    secrets: tuple[str, ...]
    agents: tuple[str, ...]
    caches: tuple[str, ...]
    networks: tuple[str, ...]


def source_of(spec: Spec, said: Source | None) -> Source:
    """The source as it is kept: of a spec that was no text, what it is written as."""
    if said is None:
        from obuilder.spec.encode import print_spec

        said = Source("spec", "", print_spec(spec))
    return Source(
        said.frontend, shown(said.name), _open(said.text),
        tuple((shown(name), _open(value)) for name, value in said.arguments), shown(said.target),
    )  # fmt: skip


def origin_of(plan: Plan, last: Key, source: Source) -> Origin:
    """What the result of the step `last` of a plan was made from, in the plan's order."""
    steps = _needed(plan, last)
    materials: dict[Material, None] = {}
    copied: dict[Copied, None] = {}
    ids: dict[str, dict[str, None]] = {"secret": {}, "agent": {}, "cache": {}, "network": {}}
    for step in steps:
        action = step.action
        if isinstance(action, LayerAction):
            base = action.base
            if base.name != "scratch":
                materials[Material(_open(base.name), base.digest, str(base.platform))] = None
        elif isinstance(action, CopyAction | AddAction):
            if action.stage is None and action.manifest:
                names = tuple(map(shown, action.src))
                copied[Copied(names, shown(action.dst), action.manifest)] = None
        elif isinstance(action, RunAction):
            for kind, found in (
                ("secret", (secret.id for secret in action.secrets)),
                ("agent", (agent.id for agent in action.ssh)),
                ("cache", (cache.id for cache in action.caches)),
                ("network", action.network),
            ):
                ids[kind].update((shown(name), None) for name in found)
    secrets, agents, caches, networks = (tuple(sorted(found)) for found in ids.values())
    return Origin(source, tuple(materials), tuple(copied), secrets, agents, caches, networks)


def _needed(plan: Plan, last: Key) -> list[Step]:
    wanted, ahead = set[Key](), [last]
    while ahead:
        key = ahead.pop()
        if key not in wanted:
            wanted.add(key)
            ahead.extend(plan.steps[key].needs)
    return [step for key, step in plan.steps.items() if key in wanted]


def _open(text: str) -> str:
    """Text without what nobody else may know: users and passwords in URLs."""
    return _PASSWORD.sub("", shown(text))
