"""Steps as users of the machine: each is a builder user, with a home and a prefix of its own.

There is no image: programs are the machine's. A root is the part of the file system that belongs
to a step, at its usual place: its home, its prefix, and /run. Every step has the same paths and
sees its own files there, in a mount namespace; all else is read-only or, where users keep things,
out of sight. Its files belong to root in the store, and to the step's user while it runs.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import final

import anyio.to_thread
import msgspec

from obuilder.backends.protocols import Command, Exit, Features, Root
from obuilder.backends.sandboxes.accounts import Account, LinuxAccounts, Pool, need
from obuilder.backends.sandboxes.launched import LaunchedSandbox, mounted
from obuilder.backends.sandboxes.local import directory_of, secret_files, write_new
from obuilder.backends.sandboxes.mountpoints import MountPoints
from obuilder.errors import BackendUnavailable, SandboxError
from obuilder.oci.bpf import compiled
from obuilder.oci.platforms import host_platform
from obuilder.oci.seccomp import filter_for
from obuilder.system import linux, shifting
from obuilder.system.cgroups import Hierarchies
from obuilder.system.launcher import Launch, Piece, piece
from obuilder.system.sessions import alive
from obuilder.system.tree import Manifest
from obuilder.values import ROOT, IdMap, Policy, UnixUser, User

HOME = "/home/builder"
PREFIX = "/usr/local"
PLACES = (HOME, PREFIX, "/run")
"""What a root is made of, at the paths at which steps see it."""


@final
class LinuxUsersSandbox(LaunchedSandbox):
    """Runs commands as users of this machine. Made by `open`."""

    def __init__(self, directory: str, idmap: IdMap, session: str, policy: Policy) -> None:
        super().__init__(directory, idmap, session, Hierarchies())
        self._pool = Pool(LinuxAccounts(HOME), self._mark, session)
        self._shifts: dict[int, int] = {}
        profile = filter_for(
            linux.machine(), nested_userns=policy.nested_userns, fast_sync=policy.fast_sync
        )
        self._filter = compiled(profile, folder=directory, temporary=self._temporary("bpf"))
        filtered = {"fast_sync", "nested_userns"} if self._filter is not None else set[str]()
        self.features = Features(
            users=False,
            networks=frozenset({"", "host"}),
            secrets=True,
            limits=self._groups.limits | {"seconds"},
            platforms=(host_platform(),),
            isolation=False,
            utf8_only=True,
            policies=frozenset(filtered),
            places=PLACES,
            domain="users",
        )

    @classmethod
    async def open(
        cls,
        directory: str,
        idmap: IdMap,
        *,
        session: str,
        policy: Policy = Policy(),  # noqa: B008 - frozen
    ) -> "LinuxUsersSandbox":
        """BackendUnavailable where users can't be made, or files not be shown as theirs."""
        if os.geteuid() != 0 or idmap.first < 2:
            raise BackendUnavailable(
                "only the machine's root can make users for steps",
                hint="run as root, or use --sandbox=oci",
            )
        need("useradd", "userdel")
        sandbox = cls(directory, idmap, session, policy)
        try:
            await anyio.to_thread.run_sync(sandbox._try_shift)
        except OSError as error:
            raise BackendUnavailable(
                f"files in {directory} can't be shown as a step's own: {error.strerror}",
                hint="that takes Linux 5.19 and a file system with id-mapped mounts: ext4, xfs, "
                "btrfs, tmpfs, or an overlay of these",
            ) from error
        return sandbox

    def _try_shift(self) -> None:
        ids = shifting.shift(self._idmap.to_disk(0), (1, 1))
        try:
            tree = linux.open_tree(self._directory, linux.OPEN_TREE_CLONE)
            try:
                linux.mount_setattr(tree, ids=ids)
            finally:
                os.close(tree)
        finally:
            os.close(ids)

    async def check(self) -> None:
        """See `Sandbox`."""
        for place in (os.path.dirname(HOME), PREFIX, "/run", "/tmp", "/var/tmp"):  # noqa: S108
            if os.path.realpath(place) != place or not os.path.isdir(place):
                raise BackendUnavailable(
                    f"{place} is not a directory of this machine, and steps are to have it",
                    hint=f"make the directory {place}",
                )

    async def describe(self) -> str:
        """What a step is here."""
        limits = ", ".join(sorted(self.features.limits))
        own = ", ".join(PLACES)
        return f"users: each step as a user of this machine, with its own {own}; limits: {limits}"

    async def put(self, root: Root, tree: Manifest, source: Root, *, to: str, owner: User) -> None:
        """See `Sandbox`. There is one owner, whatever the spec says."""
        await super().put(root, tree, source, to=to, owner=ROOT)

    async def recover(self) -> None:
        """See `Sandbox`."""
        await super().recover()
        await self._pool.recover(lambda session: not alive(self._directory, session))

    async def close(self) -> None:
        """See `Sandbox`."""
        await super().close()
        await self._pool.close()
        while self._shifts:
            os.close(self._shifts.popitem()[1])

    async def _run(
        self, root: Root, command: Command, output: Callable[[bytes], None] | None
    ) -> Exit:
        async with self._pool.one() as account:
            if account.uid not in self._shifts:
                self._shifts[account.uid] = await anyio.to_thread.run_sync(self._shift, account)
            user = UnixUser(account.uid, account.gid)
            return await super()._run(root, msgspec.structs.replace(command, user=user), output)

    def _shift(self, account: Account) -> int:
        return shifting.shift(self._idmap.to_disk(0), (account.uid, account.gid))

    def _launch(self, stack: ExitStack, bundle: str, root: str, command: Command) -> Launch:
        user = command.user
        assert isinstance(user, UnixUser)  # the account's: see `_run`
        ids = self._shifts[user.uid]
        owner = (user.uid, user.gid)
        shown = [root, *(directory_of(mount.source) for mount in command.mounts)]
        restacked = {path for path in shown if self._restack(path, ids, bundle)}
        shifted = root not in restacked
        here = (self._idmap.to_disk(0),) * 2 if shifted else owner
        places = stack.enter_context(MountPoints(root, here))
        for place in PLACES:
            self._check_owner(root, places.directory(place), place, here)
        if command.cwd != "/":
            places.directory(command.cwd, keep=True)
        secrets = secret_files(stack, bundle, command.secrets, lambda _: owner)
        pieces = [*self._own(bundle, root, owner, shifted=shifted)]
        resolv = os.path.realpath("/etc/resolv.conf")
        if "host" in command.network and resolv.startswith("/run/") and os.path.exists(resolv):
            pieces.append(piece("tree", places.file(resolv), source=resolv, readonly=True))
        for found in mounted(places, command, secrets, shifted=lambda path: path not in restacked):
            if not self.features.holds(found["target"]):
                raise SandboxError(
                    f"a step can't have {found['target']}: it leads out of its places"
                )
            pieces.append(found)
        filtered = os.path.join(bundle, "filter.bpf") if self._filter else ""
        if self._filter:
            write_new(filtered, self._filter, 0o600)
        return Launch(
            argv=list(command.argv),
            cwd=command.cwd,
            env=[("HOME", HOME), *command.env],
            uid=user.uid,
            gid=user.gid,
            groups=[],
            root="/",
            sealed=True,
            apart=True,
            network="host" in command.network,
            hostname=command.hostname,
            ids=f"/proc/{os.getpid()}/fd/{ids}",
            user_namespace="",
            privileges=False,
            filter=filtered,
            pieces=[
                *pieces,
                piece("devices", "/dev"),
                piece("kernel", "/sys", readonly=True),
                piece("processes", "/proc", options={"hidepid": "2"}),
            ],
        )

    def _restack(self, path: str, ids: int, bundle: str) -> bool:
        if not shifting.is_overlay(path):
            return False
        scratch = os.path.join(bundle, "layers")
        os.makedirs(scratch, mode=0o700, exist_ok=True)
        shifting.restack(path, ids, scratch)
        return True

    @staticmethod
    def _check_owner(root: str, place: str, shown: str, owner: tuple[int, int]) -> None:
        found = os.stat(root + place)
        if (found.st_uid, found.st_gid) != owner:
            raise SandboxError(
                f"{shown} in the base is not root's, so a step could not write there",
                hint="prepare a base with all its files root's, as by tar --owner=0 --group=0",
            )

    def _own(self, bundle: str, root: str, owner: tuple[int, int], *, shifted: bool) -> list[Piece]:
        """What a step has of its own, over what it sees of the machine."""
        pieces = [
            # Other steps' files are there, and all that the store holds.
            piece("memory", os.path.realpath(self._directory), readonly=True, options={"mode": "0700"}),
            piece(
                "memory", os.path.dirname(HOME), readonly=True, made=[os.path.basename(HOME)],
                options={"mode": "0755"},
            ),
        ]  # fmt: skip
        for name, target in (("tmp", "/tmp"), ("var-tmp", "/var/tmp")):  # noqa: S108 - that is what they are
            source = os.path.join(bundle, name)
            os.mkdir(source)
            os.chmod(source, 0o1777)  # noqa: S103 - as every /tmp
            os.chown(source, *owner)
            pieces.append(piece("tree", target, source=os.path.realpath(source)))
        pieces += [
            piece("tree", place, base=root, source=place, shifted=shifted) for place in PLACES
        ]
        return pieces
