"""Spec and Inputs to Plan: the ops are walked once, carrying what they change.

A stage that nobody needs is not in the plan. A nested build starts from the initial context, not
from its parent's; only its result leaves it.
"""

from msgspec import Struct

from obuilder.errors import Unsupported
from obuilder.plan.keys import copy_definition_key, copy_key, layer_key, run_key
from obuilder.plan.model import (
    Action,
    CacheMount,
    CopyAction,
    FinalContext,
    Inputs,
    LayerAction,
    Plan,
    RunAction,
    SecretMount,
    Step,
)  # fmt: skip
from obuilder.spec.encode import heading
from obuilder.spec.model import Comment, Copy, Env, Op, Run, SetUser, Shell, Spec, Workdir
from obuilder.spec.sexp import quote
from obuilder.spec.stages import Stage, needed
from obuilder.values import ROOT, Key, NamedUser, OpPath, User, shown

DEFAULT_SHELL = ("/usr/bin/env", "bash", "-c")
_WINDOWS_SHELL = ("cmd", "/S", "/C")
_WINDOWS_TOP = "C:/"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""For images that bring no PATH, as most that are no OCI images do not."""


class ContextCopy(Struct, frozen=True):
    """A copy from the build context whose manifest the plan needs."""

    op: OpPath
    src: tuple[str, ...]
    dst: str
    into: bool
    exclude: tuple[str, ...]


class Wanted(Struct, frozen=True):
    """What has to be looked up before a plan can be made, for the stages that are needed."""

    bases: tuple[str, ...]
    copies: tuple[ContextCopy, ...]


def normalise(path: str, cwd: str = "/") -> str:
    """An absolute path without `.`, `..`, doubled or final slashes; relative ones start at `cwd`.

    Where `cwd` has a drive, paths are those of Windows.
    """
    drive = ""
    if cwd[1:2] == ":":
        drive, cwd, path = cwd[:2], cwd[2:], path.replace("\\", "/")
        if path[1:2] == ":":
            drive, path = path[:2], "/" + path[2:]
    parts: list[str] = []
    for part in (path if path.startswith("/") else f"{cwd}/{path}").split("/"):
        if part == "..":
            if parts:
                parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return drive + "/" + "/".join(parts)


def wanted(spec: Spec) -> Wanted:
    """The base images and context copies of every stage that the result needs."""
    bases: dict[str, None] = {}
    copies: list[ContextCopy] = []
    for stage in needed(spec):
        bases.setdefault(stage.spec.base)
        cwd = "/"
        for index, op in enumerate(stage.spec.ops):
            if isinstance(op, Workdir):
                cwd = normalise(op.path, cwd)
            elif isinstance(op, Copy) and op.build is None:
                dst, into = _destination(op, cwd)
                copies.append(ContextCopy((*stage.path, index), op.src, dst, into, op.exclude))
    return Wanted(tuple(bases), tuple(copies))


def _destination(op: Copy, cwd: str) -> tuple[str, bool]:
    """Where a copy goes, and whether its sources go under that by their names."""
    return normalise(op.dst, cwd), op.dst.endswith("/") or op.dst == ""


class _Lowering:
    def __init__(self, inputs: Inputs, shell: tuple[str, ...], domain: str) -> None:
        self.inputs, self.shell, self.domain = inputs, shell, domain
        self.steps: dict[Key, Step] = {}
        self.contexts: dict[Key, FinalContext] = {}
        self.done: dict[OpPath, Key] = {}

    def stage(self, stage: Stage) -> tuple[Key, list[str]]:
        """Add a stage's steps. The key of its result, and the headings after its last step.

        The stages that it copies from must have been added.
        """
        spec, path, name = stage.spec, stage.path, stage.name
        base = self.inputs.bases[spec.base]
        key: Key | None = None
        notes: list[str] = []
        for index in range(len(base.layers)):
            layer = LayerAction(base, index)
            text = f"(from {quote(spec.base)})"
            if len(base.layers) > 1:
                text += f" layer {index + 1}/{len(base.layers)}"
            key = self.add(layer, layer_key(layer, key), key, text, name, (*path, -1), notes)
        if key is None:
            message = f"the image {spec.base} has no layers"
            raise Unsupported(message)
        cwd, shell, env = "/", self.shell, {"PATH": DEFAULT_PATH}
        current: User = ROOT
        if base.platform.os == "windows":
            cwd, current, env = _WINDOWS_TOP, NamedUser("ContainerAdministrator"), {}
            shell = _WINDOWS_SHELL if shell == DEFAULT_SHELL else shell
        env |= dict(base.config.env)
        for index, op in enumerate(spec.ops):
            text = _headline(cwd, op)
            at = (*path, index)
            action: Action
            step_key: Key
            match op:
                case Comment():
                    notes.append(text)
                    continue
                case Workdir():
                    cwd = normalise(op.path, cwd)
                    notes.append(text)
                    continue
                case Shell():
                    shell = op.argv
                    notes.append(text)
                    continue
                case SetUser():
                    current = op.user
                    notes.append(text)
                    continue
                case Env():
                    env[op.name] = op.value
                    notes.append(text)
                    continue
                case Run():
                    action = _run(op, cwd, current, env, shell, self.domain)
                    step_key = run_key(action, key)
                case _:
                    action = self.copy(op, at, cwd, current, stage)
                    step_key = (
                        copy_definition_key(action, key)
                        if action.manifest is None
                        else copy_key(action, key, action.manifest)
                    )
            key = self.add(action, step_key, key, text, name, at, notes)
            notes = []
        self.contexts[key] = FinalContext(
            cwd=cwd, user=current, env=tuple(sorted(env.items())), shell=shell
        )
        self.done[path] = key
        return key, notes

    def add(
        self, action: Action, key: Key, base: Key | None, text: str, stage: str, at: OpPath,
        notes: list[str],
    ) -> Key:  # fmt: skip
        if key not in self.steps:
            self.steps[key] = Step(
                key=key, base=base, action=action, heading=text, stage=shown(stage), op=at,
                notes=tuple(notes),
            )  # fmt: skip
        return key

    def copy(self, op: Copy, at: OpPath, cwd: str, user: User, stage: Stage) -> CopyAction:
        dst, into = _destination(op, cwd)
        source = None if op.build is None else self.done[stage.find(op.build).path]
        return CopyAction(
            src=op.src, dst=dst, into=into, user=user, exclude=op.exclude, stage=source,
            manifest=None if source is not None else self.inputs.copies[at],
        )  # fmt: skip


def _headline(cwd: str, op: Op) -> str:
    cwd = shown(cwd)
    return f"{cwd}: " + heading(op).replace("\n", "\n" + " " * (len(cwd) + 2))


def _run(
    op: Run, cwd: str, user: User, env: dict[str, str], shell: tuple[str, ...], domain: str
) -> RunAction:
    top = _WINDOWS_TOP if cwd[1:2] == ":" else "/"
    return RunAction(
        argv=(*shell, op.shell),
        cwd=cwd,
        user=user,
        env=tuple(sorted(env.items())),
        network=op.network,
        secrets=tuple(SecretMount(s.id, normalise(s.target, top)) for s in op.secrets),
        caches=tuple(CacheMount(c.id, normalise(c.target, top), c.mode) for c in op.cache),
        limits=op.limits,
        domain=domain,
    )


def lower(
    spec: Spec, inputs: Inputs, *, shell: tuple[str, ...] = DEFAULT_SHELL, domain: str = ""
) -> Plan:
    """The plan of `spec`. `inputs` must hold what `wanted(spec)` asks for.

    `domain` is that of the sandbox that will run it.
    """
    lowering = _Lowering(inputs, shell, domain)
    *before, last = needed(spec)
    for stage in before:
        lowering.stage(stage)
    result, tail = lowering.stage(last)
    return Plan(steps=lowering.steps, result=result, tail=tuple(tail), contexts=lowering.contexts)
