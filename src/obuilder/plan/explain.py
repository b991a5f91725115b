"""Why a step has another key than last time: which of its inputs differ."""

import msgspec

from obuilder.plan.model import (
    AddAction,
    CopyAction,
    LayerAction,
    MkdirAction,
    Plan,
    RunAction,
    Step,
)
from obuilder.values import shown


class StepRecord(msgspec.Struct, frozen=True):
    """What is remembered of a step of the last build: its place, and each input by name."""

    stage: str
    op: tuple[int, ...]
    heading: str
    key: str
    inputs: dict[str, str]


def _inputs(step: Step) -> dict[str, str]:
    return {shown(name): shown(value) for name, value in _raw_inputs(step).items()}


def _raw_inputs(step: Step) -> dict[str, str]:
    action = step.action
    if isinstance(action, LayerAction):
        layer = action.base.layers[action.index]
        return {
            "the image's name": action.base.name,
            "the layer's content": layer.digest,
            "the platform": str(action.base.platform),
        }
    if isinstance(action, RunAction):
        found = {
            "the command": " ".join(action.argv),
            "the working directory": action.cwd,
            "the user": repr(action.user),
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
        return {"the directory": action.path, "the user": repr(action.user)}
    return _copy_inputs(action)


def _copy_inputs(action: CopyAction | AddAction) -> dict[str, str]:
    found = {
        "the destination": action.dst,
        "the user": repr(action.user),
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


def record(plan: Plan) -> bytes:
    """A plan's inputs, to be compared with a later one."""
    steps = [
        StepRecord(step.stage, step.op, step.heading, step.key, _inputs(step))
        for step in plan.steps.values()
    ]
    return msgspec.msgpack.encode(steps)


def explain(old: bytes, new: Plan) -> list[str]:
    """What differs from the recorded plan, a line for each cause; [] when nothing does.

    A step that differs only through its base is not a cause and is not told. ValueError
    (msgspec's) if `old` is not a record.
    """
    before = {
        (step.stage, step.op): step for step in msgspec.msgpack.decode(old, type=list[StepRecord])
    }
    lines: list[str] = []
    for step in new.steps.values():
        was = before.pop((step.stage, step.op), None)
        title = step.heading.partition("\n")[0]
        if was is None:
            lines.append(f"{title}: new")
        elif was.key != step.key:
            lines.extend(f"{title}: {change}" for change in _changes(was.inputs, _inputs(step)))
    lines.extend(f"{step.heading.partition(chr(10))[0]}: gone" for step in before.values())
    return lines


def _changes(old: dict[str, str], new: dict[str, str]) -> list[str]:
    changes = []
    for name in [*old, *(name for name in new if name not in old)]:
        was, now = old.get(name), new.get(name)
        if was == now:
            continue
        if was is None:
            changes.append(f"{name} is new: {_short(now)}")
        elif now is None:
            changes.append(f"{name} is gone (was {_short(was)})")
        else:
            changes.append(f"{name} changed from {_short(was)} to {_short(now)}")
    return changes


def _short(text: str | None) -> str:
    shown = repr(text or "")
    return shown if len(shown) <= 60 else shown[:57] + "…'"
