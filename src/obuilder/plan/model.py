"""The plan: steps in an order in which they can run, each with its key.

Two values come from outside before a plan can be made; together they are the `Inputs`:
what each base image name stands for (`Base`), and what each `copy` from the context would copy
(the digest of its manifest).
"""

from collections.abc import Container

from msgspec import Struct
from msgspec.structs import replace

from obuilder.spec.image import ImageConfig
from obuilder.spec.model import CacheMode, Ssh, Tmpfs
from obuilder.values import Key, Limits, OpPath, Platform, UnixUser, User


class Layer(Struct, frozen=True):
    """One layer of a base image.

    `digest` names the content ("sha256:…" of the uncompressed layer, or of a directory's
    manifest); `source` is the fetcher's own note of where to get it.
    """

    digest: str
    source: str = ""


class Base(Struct, frozen=True):
    """A base image, resolved: `name` as the spec has it, `digest` what it stands for."""

    name: str
    digest: str
    platform: Platform
    layers: tuple[Layer, ...]
    config: ImageConfig = ImageConfig()


class Inputs(Struct, frozen=True):
    """What the outside world adds to a spec.

    `copies` has the manifest digest of each `copy` and `add` from the context, by its place.
    """

    bases: dict[str, Base]
    copies: dict[OpPath, str]


class LayerAction(Struct, frozen=True, tag="layer"):
    """Unpack layer `index` of a base image over the layers below it."""

    base: Base
    index: int


class CacheMount(Struct, frozen=True):
    """A cache volume in a step; what is None is as for any other."""

    id: str
    target: str
    mode: CacheMode
    owner: UnixUser | None = None
    permissions: int | None = None


class SecretMount(Struct, frozen=True):
    """A secret's file in a step, or its variable (`env`); what is None is as for any other."""

    id: str
    target: str
    required: bool = True
    env: str = ""
    owner: UnixUser | None = None
    permissions: int | None = None


class BindMount(Struct, frozen=True):
    """A part of the result `stage` in a step."""

    stage: Key
    source: str
    target: str
    writable: bool = False


class RunAction(Struct, frozen=True, tag="run"):
    """Run `argv` as `user` in `cwd` (absolute, normalised) with exactly `env`."""

    argv: tuple[str, ...]
    cwd: str
    user: User
    env: tuple[tuple[str, str], ...]
    network: tuple[str, ...] = ()
    secrets: tuple[SecretMount, ...] = ()
    caches: tuple[CacheMount, ...] = ()
    limits: Limits = Limits()
    binds: tuple[BindMount, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    ssh: tuple[Ssh, ...] = ()
    insecure: bool = False
    ambient: tuple[tuple[str, str], ...] = ()
    """Variables that are in no key; those of `env` win."""
    domain: str = ""
    """Of the sandbox (`Features.domain`): results of one are never those of another."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Where something is mounted."""
        found = [secret.target for secret in self.secrets if secret.target]
        found += [cache.target for cache in self.caches] + [bind.target for bind in self.binds]
        found += [tmpfs.target for tmpfs in self.tmpfs] + [ssh.target for ssh in self.ssh]
        return tuple(found)

    @property
    def owners(self) -> tuple[UnixUser, ...]:
        """Who owns what is mounted, where that is said."""
        found = [secret.owner for secret in self.secrets] + [cache.owner for cache in self.caches]
        found += [ssh.owner for ssh in self.ssh]
        return tuple(owner for owner in found if owner is not None)


class CopyAction(Struct, frozen=True, tag="copy"):
    """Copy `src` to `dst` (absolute, normalised), giving new files to `user`.

    `into` says that `dst` was written with a final `/`: sources go under it by their names.
    `stage` is the key of the result to copy from, None for the context. `manifest` is the digest
    of what is copied; None for a stage, whose content is known only once it is built.
    """

    src: tuple[str, ...]
    dst: str
    into: bool
    user: User
    exclude: tuple[str, ...] = ()
    stage: Key | None = None
    manifest: str | None = None


class AddAction(Struct, frozen=True, tag="add"):
    """Copy as a Dockerfile's COPY does: see `Add` of the language, whose words these are.

    `dst` is absolute and normalised, `into` says that it must be a directory. `stage` and `manifest`
    are as a copy's; an add of `files` alone has the manifest "".
    """

    src: tuple[str, ...]
    dst: str
    into: bool
    user: User | None
    files: tuple[tuple[str, str], ...] = ()
    permissions: str = ""
    exclude: tuple[str, ...] = ()
    parents: bool = False
    link: bool = False
    unpack: bool = False
    stage: Key | None = None
    manifest: str | None = None


class MkdirAction(Struct, frozen=True, tag="mkdir"):
    """Make the directory `path` (absolute, normalised) for `user`, unless it is there."""

    path: str
    user: User


Action = LayerAction | RunAction | CopyAction | AddAction | MkdirAction


class Step(Struct, frozen=True):
    r"""One snapshot to be made.

    `base` is the key of the step it starts from (None: an empty root). `needs` are the keys that
    must be ready before, `base` included. `notes` are the headings of the ops since the step
    before that make no snapshot of their own (workdir, env, comment …), in order.
    """

    key: Key
    base: Key | None
    action: Action
    heading: str
    stage: str
    op: OpPath
    notes: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[Key, ...]:
        """The keys of the steps that must be ready before this one."""
        found = [] if self.base is None else [self.base]
        action = self.action
        if isinstance(action, CopyAction | AddAction) and action.stage is not None:
            found.append(action.stage)
        elif isinstance(action, RunAction):
            found.extend(bind.stage for bind in action.binds)
        return tuple(found)


class FinalContext(Struct, frozen=True):
    """What the ops of a stage leave behind for whoever enters or exports its result."""

    cwd: str = "/"
    user: User | None = None
    env: tuple[tuple[str, str], ...] = ()
    shell: tuple[str, ...] = ()
    config: ImageConfig = ImageConfig()
    """What an image of the result says of itself."""


class Plan(Struct, frozen=True):
    """Steps by key, in an order in which they can run; only those that `result` needs.

    `tail` are the headings after the last step. `contexts` has what each stage comes to, by the key
    of its last step.
    """

    steps: dict[Key, Step]
    result: Key
    tail: tuple[str, ...] = ()
    contexts: dict[Key, FinalContext] = {}

    def cached(self, found: Container[Key]) -> set[Key]:
        """The steps that need not run where `found` have results: these, and those that only they
        stand on.
        """
        to_run, ahead = set[Key](), [self.result]
        while ahead:
            key = ahead.pop()
            if key not in to_run and key not in found:
                to_run.add(key)
                ahead.extend(self.steps[key].needs)
        return self.steps.keys() - to_run

    def limited(self, limits: Limits) -> "Plan":
        """The plan with these limits for the runs that set none of their own. Keys stay."""
        steps = {
            key: replace(step, action=replace(step.action, limits=step.action.limits.over(limits)))
            if isinstance(step.action, RunAction)
            else step
            for key, step in self.steps.items()
        }
        return replace(self, steps=steps)

    @property
    def passing(self) -> set[Key]:
        """The steps on the way to something: neither of a base image nor a stage's last."""
        return {
            key
            for key, step in self.steps.items()
            if key not in self.contexts and not isinstance(step.action, LayerAction)
        }
