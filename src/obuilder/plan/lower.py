"""Spec and Inputs to Plan: the ops are walked once, carrying what they change.

A stage that nobody needs is not in the plan. A nested build starts from the initial context, not
from its parent's; only its result leaves it.
"""

from msgspec import Struct

from obuilder.errors import Unsupported
from obuilder.plan.context import Context, normalise
from obuilder.plan.keys import (
    add_definition_key,
    add_key,
    copy_definition_key,
    copy_key,
    layer_key,
    mkdir_key,
    run_key,
)
from obuilder.plan.model import (
    Action,
    AddAction,
    BindMount,
    CacheMount,
    CopyAction,
    FinalContext,
    Inputs,
    LayerAction,
    MkdirAction,
    Plan,
    RunAction,
    SecretMount,
    Step,
)  # fmt: skip
from obuilder.spec.encode import heading
from obuilder.spec.model import NO_NETWORK, Add, Copy, Mkdir, Op, Run, Spec, Workdir
from obuilder.spec.sexp import quote
from obuilder.spec.stages import Stage, needed
from obuilder.values import Key, OpPath, shown

DEFAULT_SHELL = ("/usr/bin/env", "bash", "-c")


class ContextCopy(Struct, frozen=True):
    """A copy from the build context whose manifest the plan needs."""

    op: OpPath
    src: tuple[str, ...]
    dst: str
    into: bool
    exclude: tuple[str, ...]


class ContextAdd(Struct, frozen=True):
    """An add from the build context, or from the one of that name, whose manifest the plan needs."""

    op: OpPath
    src: tuple[str, ...]
    exclude: tuple[str, ...]
    parents: bool
    context: str | None


class Wanted(Struct, frozen=True):
    """What has to be looked up before a plan can be made, for the stages that are needed."""

    bases: tuple[str, ...]
    copies: tuple[ContextCopy, ...]
    adds: tuple[ContextAdd, ...] = ()


def wanted(spec: Spec) -> Wanted:
    """The base images and context copies of every stage that the result needs."""
    bases: dict[str, None] = {}
    copies: list[ContextCopy] = []
    adds: list[ContextAdd] = []
    for stage in needed(spec):
        if isinstance(stage.spec.base, str):
            bases.setdefault(stage.spec.base)
        cwd = "/"
        for index, op in enumerate(stage.spec.ops):
            at = (*stage.path, index)
            if isinstance(op, Workdir):
                cwd = normalise(op.path, cwd)
            elif isinstance(op, Copy) and op.build is None:
                dst, into = _destination(op.dst, cwd)
                copies.append(ContextCopy(at, op.src, dst, into, op.exclude))
            elif isinstance(op, Add) and op.build is None and op.src:
                adds.append(ContextAdd(at, op.src, op.exclude, op.parents, op.context))
    return Wanted(tuple(bases), tuple(copies), tuple(adds))


def _destination(dst: str, cwd: str) -> tuple[str, bool]:
    """Where a copy goes, and whether its sources go under that by their names."""
    return normalise(dst, cwd), dst.endswith("/") or dst == ""


class _Lowering:
    def __init__(self, inputs: Inputs, shell: tuple[str, ...], domain: str) -> None:
        self.inputs, self.shell, self.domain = inputs, shell, domain
        self.steps: dict[Key, Step] = {}
        self.contexts: dict[Key, FinalContext] = {}
        self.done: dict[OpPath, Key] = {}
        self.left: dict[OpPath, Context] = {}

    def stage(self, stage: Stage) -> tuple[Key, list[str]]:
        """Add a stage's steps. The key of its result, and the headings after its last step.

        The stages that it copies from must have been added.
        """
        spec, path, name = stage.spec, stage.path, stage.name
        notes: list[str] = []
        if isinstance(spec.base, str):
            key = self.image(spec.base, stage, notes)
            base = self.inputs.bases[spec.base]
            context = Context(base.name, base.config, self.shell)
        else:
            before = stage.find(spec.base.name)
            key = self.done[before.path]
            context = self.left[before.path].child()
            notes.append(f"(from (build {quote(spec.base.name)}))")
        for index, op in enumerate(spec.ops):
            text = _headline(context.cwd, op)
            at = (*path, index)
            action: Action
            step_key: Key
            match op:
                case Run():
                    action = self.run(op, context, stage)
                    step_key = run_key(action, key)
                case Copy():
                    action = self.copy(op, at, context, stage)
                    step_key = (
                        copy_definition_key(action, key)
                        if action.manifest is None
                        else copy_key(action, key, action.manifest)
                    )
                case Add():
                    action = self.addition(op, at, context, stage)
                    step_key = (
                        add_definition_key(action, key)
                        if action.manifest is None
                        else add_key(action, key, action.manifest)
                    )
                case Mkdir():
                    action = MkdirAction(normalise(op.path, context.cwd), context.user)
                    step_key = mkdir_key(action, key)
                case _:
                    context.take(op)
                    notes.append(text)
                    continue
            key = self.add(action, step_key, key, text, name, at, notes)
            notes = []
        self.contexts[key] = context.final()
        self.done[path], self.left[path] = key, context
        return key, notes

    def image(self, image: str, stage: Stage, notes: list[str]) -> Key:
        """Add the layers of a base image."""
        base = self.inputs.bases[image]
        key: Key | None = None
        for index in range(len(base.layers)):
            layer = LayerAction(base, index)
            text = f"(from {quote(image)})"
            if len(base.layers) > 1:
                text += f" layer {index + 1}/{len(base.layers)}"
            at = (*stage.path, -1)
            key = self.add(layer, layer_key(layer, key), key, text, stage.name, at, notes)
        if key is None:
            message = f"the image {image} has no layers"
            raise Unsupported(message)
        return key

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

    def copy(self, op: Copy, at: OpPath, context: Context, stage: Stage) -> CopyAction:
        dst, into = _destination(op.dst, context.cwd)
        source = None if op.build is None else self.done[stage.find(op.build).path]
        return CopyAction(
            src=op.src, dst=dst, into=into, user=context.user, exclude=op.exclude, stage=source,
            manifest=None if source is not None else self.inputs.copies[at],
        )  # fmt: skip

    def addition(self, op: Add, at: OpPath, context: Context, stage: Stage) -> AddAction:
        dst, into = _destination(op.dst, context.cwd)
        source = None if op.build is None else self.done[stage.find(op.build).path]
        manifest: str | None = "" if not op.src else None
        if source is None and op.src:
            manifest = self.inputs.copies[at]
        return AddAction(
            src=op.src, dst=dst, into=into, user=op.owner, files=op.files,
            permissions=op.permissions, exclude=op.exclude, parents=op.parents, link=op.link,
            unpack=op.unpack, stage=source if op.src else None, manifest=manifest,
        )  # fmt: skip

    def run(self, op: Run, context: Context, stage: Stage) -> RunAction:
        cwd = context.cwd
        return RunAction(
            argv=op.exec or (*context.shell, op.shell),
            cwd=cwd,
            user=context.user,
            env=tuple(sorted(context.env.items())),
            network=() if op.network == NO_NETWORK else op.network,
            secrets=tuple(
                SecretMount(
                    s.id, normalise(s.target) if s.target else "", s.required, s.env, s.owner,
                    s.permissions,
                )
                for s in op.secrets
            ),
            caches=tuple(
                CacheMount(c.id, normalise(c.target), c.mode, c.owner, c.permissions)
                for c in op.cache
            ),
            limits=op.limits,
            binds=tuple(
                BindMount(
                    self.done[stage.find(b.build).path], normalise(b.source), normalise(b.target),
                    b.writable,
                )
                for b in op.binds
            ),
            tmpfs=op.tmpfs,
            ssh=op.ssh,
            insecure=op.insecure,
            ambient=tuple(sorted(context.ambient.items())),
            domain=self.domain,
        )  # fmt: skip


def _headline(cwd: str, op: Op) -> str:
    cwd = shown(cwd)
    return f"{cwd}: " + heading(op).replace("\n", "\n" + " " * (len(cwd) + 2))


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
