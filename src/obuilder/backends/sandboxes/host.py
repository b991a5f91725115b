"""No isolation: a step's root is its /, and all else is the machine's.

What is kept from a step even so is not there for its safety: a process namespace, so that nothing
outlives the step; where this process has many ids, a user namespace, so that files have the ids
that the store's map says.
"""

import os
from contextlib import ExitStack
from typing import final

from obuilder.backends.protocols import Command, Features
from obuilder.backends.sandboxes.homes import account, home_of
from obuilder.backends.sandboxes.launched import LaunchedSandbox, mounted
from obuilder.backends.sandboxes.local import secret_files
from obuilder.backends.sandboxes.mountpoints import MountPoints
from obuilder.errors import SandboxError
from obuilder.oci.platforms import host_platform
from obuilder.system.cgroups import Hierarchies
from obuilder.system.launcher import Launch, piece
from obuilder.values import IdMap, Policy, UnixUser

_SHOWN = ("/etc/hosts", "/etc/resolv.conf")


@final
class HostSandbox(LaunchedSandbox):
    """Runs commands in a root without keeping anything from them. Made by `open`."""

    def __init__(self, directory: str, idmap: IdMap, session: str, policy: Policy) -> None:
        super().__init__(directory, idmap, session, Hierarchies(devices=False))
        self._policy = policy
        self.features = Features(
            users=not idmap.single,
            networks=frozenset({"", "host"}),
            secrets=True,
            limits=self._groups.limits | {"seconds"},
            platforms=(host_platform(),),
            isolation=False,
            utf8_only=True,
            policies=frozenset({"no_new_privileges"}),
            named_users=True,
            mounts=True,
            domain="host",
            warning="NO ISOLATION: steps use the network, the devices and the kernel of this "
            "machine, whatever the spec says",
        )

    @classmethod
    async def open(
        cls,
        directory: str,
        idmap: IdMap,
        *,
        session: str,
        policy: Policy = Policy(),  # noqa: B008 - frozen
    ) -> "HostSandbox":
        """Nothing is looked for: whether it works here, `check` tells."""
        return cls(directory, idmap, session, policy)

    async def check(self) -> None:
        """See `Sandbox`. Namespaces, all that is needed, are this process's own already."""

    async def describe(self) -> str:
        """What it is, loudly."""
        limits = ", ".join(sorted(self.features.limits))
        return f"host: {self.features.warning}; limits: {limits}"

    def _launch(self, stack: ExitStack, bundle: str, root: str, command: Command) -> Launch:
        user, groups = account(root, command.user)
        places = stack.enter_context(MountPoints(root, (self._idmap.to_disk(0),) * 2))
        for target in ("/proc", "/dev", "/sys", "/etc"):
            places.fixed(target)
        places.directory(command.cwd, keep=True)
        ids = self._idmap

        def owned(owner: UnixUser | None) -> tuple[int, int]:
            mine = owner or user
            return ids.to_disk(mine.uid), ids.to_disk(mine.gid)

        try:
            secrets = secret_files(stack, bundle, command.secrets, owned)
            owned(user)
        except ValueError as error:
            raise SandboxError(str(error)) from error
        pieces = [piece("tree", name, source=name, whole=True) for name in ("/dev", "/sys")]
        pieces += [
            piece("tree", places.file(name), source=os.path.realpath(name), readonly=True)
            for name in _SHOWN
            if os.path.exists(name)
        ]
        pieces += mounted(places, command, secrets, shifted=lambda _: False)
        own = {"mode": "0755", "uid": str(ids.to_disk(0)), "gid": str(ids.to_disk(0))}
        for tmpfs in command.tmpfs:
            room = {} if tmpfs.size is None else {"size": str(tmpfs.size)}
            pieces.append(piece("memory", places.directory(tmpfs.target), options=own | room))
        pieces.append(piece("processes", "/proc"))
        return Launch(
            argv=list(command.argv),
            cwd=command.cwd,
            env=[("HOME", home_of(root, user.uid)), *command.env],
            uid=0 if ids.single else user.uid,
            gid=0 if ids.single else user.gid,
            groups=[] if ids.single else list(groups),
            root=root,
            sealed=False,
            apart=False,
            network=True,
            hostname="",
            ids="",
            user_namespace="" if ids.single else f"0 {ids.first} {ids.count}\n",
            privileges=not self._policy.no_new_privileges,
            filter="",
            pieces=pieces,
        )
