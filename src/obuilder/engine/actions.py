"""Carrying out one action in a draft: where store, sandbox and fetcher meet."""

from collections.abc import Callable, Collection, Mapping
from contextlib import AsyncExitStack
from typing import BinaryIO

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
from obuilder.engine import additions, bindings
from obuilder.engine.volumes import Volumes
from obuilder.errors import (
    LimitHit,
    StepFailed,
    StepTimedOut,
    Unsupported,
    UsageError,
    not_text,
)  # fmt: skip
from obuilder.plan.context import on_drive
from obuilder.plan.model import (
    Action,
    AddAction,
    Base,
    CopyAction,
    LayerAction,
    MkdirAction,
    Plan,
    RunAction,
    SecretMount,
)
from obuilder.system.emulation import check_runnable
from obuilder.system.picking import Selection
from obuilder.system.tree import Manifest
from obuilder.values import ROOT, Key, Limits, NamedUser, Platform, User, shown

Output = Callable[[bytes], None]


class Workshop:
    """A store, a sandbox and volumes that work together."""

    def __init__(
        self,
        store: Store,
        sandbox: Sandbox,
        volumes: Volumes,
        limits: Limits,
        sources: Sources,
        *,
        insecure: bool = False,
        agents: Mapping[str, str] | None = None,
    ) -> None:
        self.store, self.sandbox, self.volumes = store, sandbox, volumes
        self._limits, self._sources, self._insecure = limits, sources, insecure
        self.agents = agents or {}
        """Sockets of agents of SSH keys, by the ids that steps know them by."""
        self._fetchers: dict[type[Fetcher], Fetcher] = {}

    async def close(self) -> None:
        """Let go of what fetchers kept from one layer to the next."""
        for fetcher in self._fetchers.values():
            await fetcher.close()

    async def blob(self, base: Base, index: int, file: BinaryIO) -> bool:
        """Write the blob of a base image's layer as it came. False if there is none; FetchError."""
        fetcher = fetcher_for(base.name, self._sources)
        fetcher = self._fetchers.setdefault(type(fetcher), fetcher)
        return await fetcher.blob(base, index, file)

    def refuse(self, action: Action) -> None:
        """Unsupported: store or sandbox lack something that the action needs."""
        if isinstance(action, LayerAction):
            return
        # Names of who gets what is added are looked up here; all else is the sandbox's to do.
        named = isinstance(action, AddAction | MkdirAction) and isinstance(action.user, NamedUser)
        if action.user is not None and not named:
            self._refuse_user(action.user)
        if isinstance(action, RunAction):
            self._refuse_run(action)
        elif isinstance(action, MkdirAction):
            self._refuse_place("make", action.path)
            self._refuse_drive(action.path)
        else:
            self._refuse_place("copy to", action.dst)
            if isinstance(action, AddAction):
                self._refuse_drive(action.dst)

    def _refuse_run(self, action: RunAction) -> None:
        features = self.sandbox.features
        if action.insecure and not self._insecure:
            raise Unsupported(
                "a step asks to be run insecurely, which nobody has allowed",
                hint="allow it with --allow security.insecure",
            )
        if (action.tmpfs or action.binds or action.ssh or action.insecure) and not features.mounts:
            raise Unsupported(
                "this sandbox can't show builds, memory or agents of keys to a step",
                hint="build with --sandbox=oci",
            )
        self._refuse_network(action.network)
        if action.cwd != "/":
            self._refuse_place("start in", action.cwd)
        for target in action.targets:
            self._refuse_place("mount on", target)
        for owner in action.owners:
            self._refuse_user(owner)
        if features.utf8_only:
            variables = [f"{name}={value}" for name, value in (*action.env, *action.ambient)]
            for text in (*action.argv, action.cwd, *variables, *action.targets):
                if shown(text) != text:
                    raise not_text(text)
        if not features.readonly_mounts and any(c.mode == "read-only" for c in action.caches):
            raise Unsupported(
                "this sandbox can't keep a step from writing to a cache it sees",
                hint="choose another mode for the cache, or build with --sandbox=oci",
            )
        if action.secrets and not features.secrets:
            raise Unsupported(
                "this sandbox can't show secrets to a step", hint="build with --sandbox=oci"
            )
        if not features.secret_variables and any(secret.env for secret in action.secrets):
            raise Unsupported(
                "this sandbox can't show a secret to a step as a variable",
                hint="show it as a file, or build with --sandbox=oci",
            )
        for name in msgspec.structs.fields(Limits):
            asked = getattr(action.limits, name.name) is not None
            if asked and name.name not in features.limits and name.name != "log":
                raise Unsupported(
                    f"this sandbox can't limit {name.name}",
                    hint="`obuilder healthcheck` says what would be needed",
                )

    def _refuse_drive(self, path: str) -> None:
        if on_drive(path):
            raise Unsupported(
                "nothing but a `copy` puts files into a root of Windows",
                hint="write (copy …) instead",
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
        async with AsyncExitStack() as stack:
            into = draft.root
            if not fetcher.takes(into):
                files = self.store.files(into, write=True)
                into = HostDir(await stack.enter_async_context(files))
            await fetcher.fetch(
                action.base, action.index, into=into, idmap=self.store.idmap, output=output,
                progress=progress,
            )  # fmt: skip

    async def copy(
        self,
        action: CopyAction | AddAction,
        draft: Draft,
        found: Manifest | Selection,
        source: str | Key,
    ) -> None:
        """Copy what was `found` in a directory of the host, or in the result `source`."""
        async with AsyncExitStack() as stack:
            path = str(source)
            if action.stage is not None:
                root = await stack.enter_async_context(self.store.view(Key(path)))
                only = action.src if isinstance(action, CopyAction) else None
                path = await stack.enter_async_context(self.store.files(root, only=only))
            if isinstance(action, CopyAction) and isinstance(found, Manifest):
                await self.sandbox.put(
                    draft.root, found, HostDir(path), to=action.dst, owner=action.user
                )
            elif isinstance(action, AddAction) and isinstance(found, Selection):
                owner = None if action.user is None else self._owner(action.user)
                await additions.add(self.store, draft, action, found, path, owner)

    def _owner(self, user: User) -> User:
        """Who gets what is added: where all steps are of one user, that one."""
        return user if self.sandbox.features.users else ROOT

    async def mkdir(self, action: MkdirAction, draft: Draft) -> None:
        """Make a directory unless it is there."""
        await additions.mkdir(self.store, draft, action, self._owner(action.user))

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
        results: Mapping[Key, Key],
    ) -> None:
        """Run a command. `results`: what the stages that it looks into came to, by their keys.

        StepFailed, StepTimedOut, LimitHit.
        """
        limits = self.limits(action)
        async with AsyncExitStack() as stack:
            mounts = await stack.enter_async_context(
                self.volumes.mounted(action.caches, self._owner(action.user))
            )
            for bind in action.binds:
                bound = bindings.bound(self.store, bind, results[bind.stage])
                mounts.append(await stack.enter_async_context(bound))
            env = {**dict(action.ambient), **dict(action.env)}
            for number, ssh in enumerate(action.ssh):
                if ssh.id in self.agents:
                    agent = bindings.agent(
                        self.agents[ssh.id], self.store, number, ssh, action.user
                    )
                    mounts.append(await stack.enter_async_context(agent))
                    env.setdefault("SSH_AUTH_SOCK", ssh.target)
            ended = await self.sandbox.run(
                draft.root,
                Command(
                    argv=action.argv,
                    cwd=action.cwd,
                    user=action.user,
                    env=tuple(env.items()),
                    network=action.network,
                    mounts=tuple(mounts),
                    secrets=tuple(
                        file
                        for secret in action.secrets
                        if secret.id in secrets
                        for file in _shown(secret, secrets[secret.id])
                    ),
                    limits=limits,
                    tmpfs=action.tmpfs,
                    insecure=action.insecure,
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


def _shown(secret: SecretMount, value: bytes) -> list[SecretFile]:
    """A secret's file, its variable, or both."""
    permissions = 0o400 if secret.permissions is None else secret.permissions
    found = []
    if secret.target:
        found.append(SecretFile(secret.target, value, secret.owner, permissions))
    if secret.env:
        found.append(SecretFile("", value, env=secret.env))
    return found


def check_secrets(action: Action, secrets: Mapping[str, bytes], agents: Mapping[str, str]) -> None:
    """UsageError: a step asks for a secret, or an agent of keys, that nobody gave."""
    if not isinstance(action, RunAction):
        return
    for ssh in action.ssh:
        if ssh.required and ssh.id not in agents:
            raise UsageError(
                f"there is no agent of SSH keys for the requested {ssh.id!r}",
                hint=f"give one with --ssh {ssh.id}, or --ssh {ssh.id}=SOCKET",
            )
    for secret in action.secrets:
        if secret.required and secret.id not in secrets:
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
