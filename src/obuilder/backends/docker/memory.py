"""Secrets on this machine's memory, for an engine of this machine to show them to steps."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from obuilder.backends.docker.containers import Bind
from obuilder.backends.docker.model import Info
from obuilder.backends.docker.names import Names
from obuilder.backends.protocols import SecretFile
from obuilder.errors import SandboxError
from obuilder.system.files import remove_tree
from obuilder.system.namespaces import by_root
from obuilder.values import UnixUser, User

_PLACE = "/dev/shm"  # noqa: S108 - each directory there is named at random, and closed to others


class Memory:
    """Where a session's secrets are while a step sees them."""

    def __init__(self, names: Names, info: Info) -> None:
        self._names = names
        options = info.security_options or []
        self._rootless = "name=rootless" in options
        self._shift = (0, 0)
        if any(option.startswith("name=userns") for option in options):
            # Docker keeps what it has under another map in a directory called after the map.
            uid, _, gid = os.path.basename(info.docker_root_dir).partition(".")
            self._shift = (int(uid), int(gid))

    @staticmethod
    def works() -> bool:
        """Whether there is such a place."""
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as table:
            return any(line.split()[1:3] == [_PLACE, "tmpfs"] for line in table)

    @contextmanager
    def shown(self, name: str, secrets: Sequence[SecretFile], user: User) -> Iterator[list[Bind]]:
        """The secrets of one step, as files that are its user's or their own owners'. SandboxError."""
        if not secrets:
            yield []
            return
        folder = os.path.join(_PLACE, self._names.thing(name))
        os.mkdir(folder, 0o700)
        try:
            binds = []
            for number, secret in enumerate(secrets):
                path = os.path.join(folder, str(number))
                self._write(path, secret, secret.owner or user)
                binds.append(Bind(path, secret.target))
            yield binds
        finally:
            remove_tree(folder)

    def _write(self, path: str, secret: SecretFile, user: User) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        with open(fd, "wb") as file:
            file.write(secret.value)
            os.fchmod(fd, secret.permissions)
            if isinstance(user, UnixUser) and (user.uid, user.gid) != (0, 0):
                self._give(fd, user)
            elif self._shift != (0, 0):
                os.fchown(fd, *self._shift)

    def _give(self, fd: int, user: UnixUser) -> None:
        """Make the file the user's, as the engine's containers see it."""
        if by_root() == self._rootless:
            raise SandboxError(
                f"a secret can't be given to user {user.uid} of this engine's containers",
                hint="run as who runs the engine, or let a step of root's read the secret",
            )
        os.fchown(fd, self._shift[0] + user.uid, self._shift[1] + user.gid)

    def sweep(self, alive: Callable[[str], bool]) -> None:
        """Remove what dead sessions left."""
        start = self._names.thing("")
        for name in os.listdir(_PLACE) if os.path.isdir(_PLACE) else ():
            if name.startswith(start) and not alive(name.removeprefix(start).partition(".")[0]):
                remove_tree(os.path.join(_PLACE, name))
