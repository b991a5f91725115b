"""Why a step has another key than last time: which of its inputs differ."""

from collections.abc import Callable, Iterable, Mapping

import msgspec

from obuilder.plan.model import (
    Action,
    AddAction,
    CopyAction,
    LayerAction,
    MkdirAction,
    Plan,
    RunAction,
)
from obuilder.spec.encode import one_line
from obuilder.values import NamedUser, OpPath, User, shown

_NAMED = 5
"""So many files are told by name."""

Files = dict[str, str]
"""By path, what tells a copied file from another of that path."""


class StepRecord(msgspec.Struct, frozen=True):
    """What is remembered of a step of a build: its place, and each input by name.

    `files` are those of a copy or an add from the context; None where they are not known, or too many.
    """

    stage: str
    op: tuple[int, ...]
    heading: str
    key: str
    inputs: dict[str, str]
    files: Files | None = None

    @property
    def title(self) -> str:
        """The step for people."""
        stage = f"[{self.stage}] " if self.stage else ""
        return stage + one_line(self.heading)


def records(plan: Plan, files: Callable[[OpPath], Files | None]) -> list[StepRecord]:
    """What is to be remembered of a plan; `files` has those of the copy or add at a place."""
    return [
        StepRecord(
            stage=shown(step.stage),
            op=step.op,
            heading=shown(step.heading),
            key=step.key,
            inputs={shown(name): shown(value) for name, value in _inputs(step.action).items()},
            files=_files(files(step.op))
            if isinstance(step.action, CopyAction | AddAction)
            else None,
        )
        for step in plan.steps.values()
    ]


def encode(builds: list[list[StepRecord]]) -> bytes:
    """The records of builds as they are kept."""
    return msgspec.msgpack.encode(builds)


def decode(data: bytes | None) -> list[list[StepRecord]]:
    """The builds that were kept; none if another version kept them, which can't be compared."""
    try:
        return msgspec.msgpack.decode(data or b"\x90", type=list[list[StepRecord]])
    except msgspec.DecodeError:
        return []


def _files(files: Files | None) -> Files | None:
    return None if files is None else {shown(path): shown(mark) for path, mark in files.items()}


def _inputs(action: Action) -> dict[str, str]:
    if isinstance(action, LayerAction):
        return {
            "the image's name": action.base.name,
            "the image's content": action.base.layers[action.index].digest,
            "the platform": str(action.base.platform),
        }
    if isinstance(action, RunAction):
        found = {
            "the command": " ".join(action.argv),
            "the working directory": action.cwd,
            "the user": _user(action.user),
            "the network": " ".join(action.network),
            "the secrets' ids": " ".join(secret.id for secret in action.secrets),
            "the sandbox's domain": action.domain,
        }
        mounts = (
            (
                "the builds it looks into",
                (f"{b.target}: {b.stage}{b.source}" for b in action.binds),
            ),
            ("the directories on memory", (tmpfs.target for tmpfs in action.tmpfs)),
            ("the agents' ids", (ssh.id for ssh in action.ssh)),
        )
        found |= {name: " ".join(words) for name, words in mounts}
        if action.insecure:
            found["the powers"] = "insecure"
        return found | {f"the variable {name}": value for name, value in action.env}
    if isinstance(action, MkdirAction):
        return {"the directory": action.path, "the user": _user(action.user)}
    return _copy_inputs(action)


def _copy_inputs(action: CopyAction | AddAction) -> dict[str, str]:
    found = {
        "the destination": action.dst,
        "the user": _user(action.user),
        "the copied files": action.manifest or "",
        "the sources": " ".join(action.src),
        "the excluded names": " ".join(action.exclude),
    }
    if isinstance(action, AddAction):
        found["the permissions"] = action.permissions
        found["the texts"] = " ".join(f"{name} {content!r}" for name, content in action.files)
        flags = (("parents", action.parents), ("link", action.link), ("unpack", action.unpack))
        found["the flags"] = " ".join(name for name, said in flags if said)
    return found


def _user(user: User | None) -> str:
    if user is None:
        return "as it was"
    return user.name if isinstance(user, NamedUser) else f"{user.uid}:{user.gid}"


def explain(old: Iterable[StepRecord], new: Iterable[StepRecord]) -> list[str]:
    """What differs between two builds, a line for each cause; [] when nothing does.

    A step that differs only through its base is not a cause and is not told.
    """
    before = {(step.stage, step.op): step for step in old}
    lines: list[str] = []
    for step in new:
        was = before.pop((step.stage, step.op), None)
        if was is None:
            lines.append(f"{step.title}: new")
        elif was.key != step.key:
            lines.extend(f"{step.title}: {change}" for change in _changes(was, step))
    lines.extend(f"{step.title}: gone" for step in before.values())
    return lines


def _changes(was: StepRecord, now: StepRecord) -> list[str]:
    changes = []
    for name in dict.fromkeys([*was.inputs, *now.inputs]):
        old, new = was.inputs.get(name), now.inputs.get(name)
        if old == new:
            continue
        if name == "the copied files":
            changes.extend(_changed_files(was.files, now.files))
        elif old is None:
            changes.append(f"{name} is new: {_short(new)}")
        elif new is None:
            changes.append(f"{name} is gone (was {_short(old)})")
        else:
            changes.append(f"{name} changed from {_short(old)} to {_short(new)}")
    return changes


def _changed_files(old: Mapping[str, str] | None, new: Mapping[str, str] | None) -> list[str]:
    if old is None or new is None:
        return ["the copied files changed"]
    kinds = (
        ("changed", [path for path in new if path in old and old[path] != new[path]]),
        ("new", [path for path in new if path not in old]),
        ("gone", [path for path in old if path not in new]),
    )
    return [f"{_list(paths)}: {kind}" for kind, paths in kinds if paths]


def _list(paths: list[str]) -> str:
    shown = ", ".join(paths[:_NAMED])
    return shown if len(paths) <= _NAMED else f"{shown} and {len(paths) - _NAMED} more files"


def _short(text: str | None) -> str:
    shown = repr(text or "")
    return shown if len(shown) <= 60 else shown[:57] + "…'"
