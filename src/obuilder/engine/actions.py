"""Carrying out one action in a draft: where store, sandbox and fetcher meet."""

from collections.abc import Callable, Collection, Mapping
from contextlib import AsyncExitStack

import msgspec

from obuilder.backends.fetchers import Sources, fetcher_for
from obuilder.backends.protocols import (
    Command,
    Draft,
    Fetcher,
    HostDir,
    Progress,
    Sandbox,
    SecretFile,
    Store,
)  # fmt: skip
from obuilder.engine.volumes import Volumes
from obuilder.errors import LimitHit, StepFailed, StepTimedOut, Unsupported, UsageError
from obuilder.plan.model import Action, CopyAction, LayerAction, Plan, RunAction
from obuilder.system.emulation import check_runnable
from obuilder.system.tree import Manifest
from obuilder.values import ROOT, Key, Limits, NamedUser, Platform, User

Output = Callable[[bytes], None]


class Workshop:
    """A store, a sandbox and volumes that work together."""

    def __init__(
        self, store: Store, sandbox: Sandbox, volumes: Volumes, limits: Limits, sources: Sources
    ) -> None:
        self.store, self.sandbox, self.volumes = store, sandbox, volumes
        self._limits, self._sources = limits, sources
        self._fetchers: dict[type[Fetcher], Fetcher] = {}

    async def close(self) -> None:
        """Let go of what fetchers kept from one layer to the next."""
        for fetcher in self._fetchers.values():
            await fetcher.close()

    def refuse(self, action: Action) -> None:
        """Unsupported: store or sandbox lack something that the action needs."""
        if isinstance(action, LayerAction):
            return
        self._refuse_user(action.user)
        if isinstance(action, CopyAction):
            self._refuse_place("copy to", action.dst)
            return
        features = self.sandbox.features
        self._refuse_network(action.network)
        if action.cwd != "/":
            self._refuse_place("start in", action.cwd)
        targets = [secret.target for secret in action.secrets]
        for target in targets + [cache.target for cache in action.caches]:
            self._refuse_place("mount on", target)
        if action.secrets and not features.secrets:
            raise Unsupported("this sandbox can't show secrets to a step")
        for name in msgspec.structs.fields(Limits):
            asked = getattr(action.limits, name.name) is not None
            if asked and name.name not in features.limits and name.name != "log":
                raise Unsupported(
                    f"this sandbox can't limit {name.name}",
                    hint="`obuilder healthcheck` says what would be needed",
                )

    def _refuse_network(self, asked: tuple[str, ...]) -> None:
        names = self.sandbox.features.networks
        if not asked and "" not in names:
            raise Unsupported(
                "this sandbox can't keep a step off the network",
                hint="write (network host) in the run, or build with --sandbox=oci",
            )
        for name in asked:
            if name not in names:
                raise Unsupported(
                    f"this sandbox has no network called {name!r}",
                    hint="networks here: " + (", ".join(sorted(names - {""})) or "none"),
                )

    def _refuse_place(self, what: str, path: str) -> None:
        features = self.sandbox.features
        if not features.holds(path):
            raise Unsupported(
                f"this sandbox can't {what} {path}: steps do not have it for their own",
                hint=f"what they have: {', '.join(features.places)}",
            )

    def _refuse_user(self, user: User) -> None:
        if isinstance(user, NamedUser):
            if self.sandbox.features.named_users:
                return
            raise Unsupported(
                f"this sandbox takes users by number, not by a name as {user.name!r}",
                hint="write (user (uid N) (gid N))",
            )
        idmap = self.store.idmap
        if user != ROOT and not (self.sandbox.features.users or idmap.single):
            raise Unsupported(
                "all steps are of one user here, who is root to the spec",
                hint="leave (user …) out, or build with --sandbox=oci",
            )
        largest = max(user.uid, user.gid)
        if not idmap.single and largest >= idmap.count:
            raise Unsupported(
                f"there is no id {largest} in this store's steps: they have {idmap.count} ids",
                hint=f"use ids from 0 to {idmap.count - 1}",
            )

    def limits(self, action: Action) -> Limits:
        """What the action may use."""
        own = action.limits if isinstance(action, RunAction) else Limits()
        return own.over(self._limits)

    async def layer(
        self, action: LayerAction, draft: Draft, output: Output, progress: Progress
    ) -> None:
        """Unpack a layer."""
        fetcher = fetcher_for(action.base.name, self._sources)
        fetcher = self._fetchers.setdefault(type(fetcher), fetcher)
        async with self.store.files(draft.root, write=True) as path:
            await fetcher.fetch(
                action.base, action.index, into=HostDir(path), idmap=self.store.idmap,
                output=output, progress=progress,
            )  # fmt: skip

    async def copy(
        self, action: CopyAction, draft: Draft, manifest: Manifest, source: str | Key | None
    ) -> None:
        """Copy `manifest` from a directory of the host, or from the result `source`."""
        async with AsyncExitStack() as stack:
            path = str(source)
            if action.stage is not None:
                root = await stack.enter_async_context(self.store.view(Key(path)))
                path = await stack.enter_async_context(self.store.files(root, only=action.src))
            await self.sandbox.put(
                draft.root, manifest, HostDir(path), to=action.dst, owner=action.user
            )

    async def run(
        self,
        action: RunAction,
        draft: Draft,
        secrets: Mapping[str, bytes],
        output: Output,
        *,
        key: Key,
        heading: str,
        tail: Callable[[], bytes],
    ) -> None:
        """Run a command. StepFailed, StepTimedOut, LimitHit."""
        limits = self.limits(action)
        owner = action.user if self.sandbox.features.users else ROOT
        async with self.volumes.mounted(action.caches, owner) as mounts:
            ended = await self.sandbox.run(
                draft.root,
                Command(
                    argv=action.argv,
                    cwd=action.cwd,
                    user=action.user,
                    env=action.env,
                    network=action.network,
                    mounts=tuple(mounts),
                    secrets=tuple(
                        SecretFile(target=secret.target, value=secrets[secret.id])
                        for secret in action.secrets
                    ),
                    limits=limits,
                ),
                output=output,
            )
        if ended.status == 0 and not ended.timed_out:
            return
        if ended.timed_out:
            raise StepTimedOut(
                f"the step was stopped after {limits.seconds:g} s, its time limit",
                key=key, heading=heading, status=ended.status, tail=tail(),
                hint="raise it with (limits (time …)) in the step or --timeout",
            )  # fmt: skip
        if ended.out_of_memory:
            raise LimitHit(
                f"the step was stopped at its memory limit of {limits.memory} bytes",
                key=key, heading=heading, status=ended.status, tail=tail(),
                hint="raise it with (limits (memory …)) in the step or --memory",
            )  # fmt: skip
        raise StepFailed(
            _how(ended.status), key=key, heading=heading, status=ended.status, tail=tail()
        )


def check_secrets(actions: "list[Action]", secrets: Mapping[str, bytes]) -> None:
    """UsageError: a step asks for a secret nobody gave."""
    for action in actions:
        if isinstance(action, RunAction):
            for secret in action.secrets:
                if secret.id not in secrets:
                    raise UsageError(
                        f"couldn't find a value for the requested secret {secret.id!r}",
                        hint=f"give it with --secret {secret.id}:FILE or --secret {secret.id}=env:VAR",
                    )


def check_platforms(plan: Plan, needed: Collection[Key]) -> None:
    """Unsupported: a step that is needed is for a platform whose programs don't run here."""
    platforms: dict[Key, Platform] = {}
    for step in plan.steps.values():
        if isinstance(step.action, LayerAction):
            platforms[step.key] = step.action.base.platform
        elif step.base is not None:
            platforms[step.key] = platforms[step.base]
            if isinstance(step.action, RunAction) and step.key in needed:
                check_runnable(platforms[step.key])


def _how(status: int) -> str:
    if status > 128:
        return f"the command was killed by signal {status - 128}"
    return f"the command exited with status {status}"
