"""Steps as users of the machine, by whatever this system has to keep them apart."""

import sys
from typing import ClassVar

from obuilder.backends.protocols import HostDir, Sandbox
from obuilder.values import IdMap, Policy


class UsersSandbox:
    """Opens the sandbox of this system: see `users_linux` and `users_macos`."""

    accepts: ClassVar[frozenset[type]] = frozenset({HostDir})

    @classmethod
    async def open(
        cls,
        directory: str,
        idmap: IdMap,
        *,
        session: str,
        policy: Policy = Policy(),  # noqa: B008 - frozen
    ) -> Sandbox:
        """BackendUnavailable where users can't be made, or not be kept apart."""
        if sys.platform == "darwin":
            from obuilder.backends.sandboxes.users_macos import MacSystem
            from obuilder.backends.sandboxes.users_redirected import RedirectedUsers

            return await RedirectedUsers.open(MacSystem(), directory, idmap, session=session)
        from obuilder.backends.sandboxes.users_linux import LinuxUsersSandbox

        return await LinuxUsersSandbox.open(directory, idmap, session=session, policy=policy)
