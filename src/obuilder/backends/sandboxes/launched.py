"""Sandboxes whose steps are started by our own launcher: no OCI runtime is needed.

See `system.launcher` for what it does with what is written here.
"""

import os
import sys
from abc import abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from typing import ClassVar

import msgspec

from obuilder.backends.protocols import Command
from obuilder.backends.sandboxes.local import (
    LocalSandbox,
    directory_of,
    secret_variables,
    write_for_starter,
)
from obuilder.backends.sandboxes.mountpoints import MountPoints
from obuilder.errors import SandboxError
from obuilder.system import launcher
from obuilder.system.launcher import Launch, Piece, piece


class LaunchedSandbox(LocalSandbox):
    """The part of such a sandbox that does not depend on what a step may see."""

    waits: ClassVar[bool] = True

    @abstractmethod
    def _launch(self, stack: ExitStack, bundle: str, root: str, command: Command) -> Launch:
        """The step; `stack` undoes the rest after it."""

    def _command_line(self, bundle: str) -> list[str]:
        # The interpreter's own files only: whatever an environment adds is none of a step's.
        return [sys.executable, "-I", "-S", launcher.__file__, bundle]

    def _fill(
        self, stack: ExitStack, bundle: str, root: str, command: Command, *, terminal: bool
    ) -> None:
        launch = self._launch(stack, bundle, root, command)
        launch["env"] += secret_variables(command.secrets)
        write_for_starter(bundle, "launch.json", msgspec.json.encode(launch), command.secrets)

    def _unstarted(self, bundle: str, said: bytes) -> SandboxError:
        text = said.decode(errors="replace").strip()
        return SandboxError(f"the step could not be started: {text}")


def mounted(
    places: MountPoints, command: Command, secrets: list[tuple[str, str]], *,
    shifted: Callable[[str], bool],
) -> list[Piece]:  # fmt: skip
    """The cache volumes and secrets of a step, at places made for them in its root.

    `shifted` tells of a volume's source whether its ids are to be.
    """
    pieces = [
        piece("tree", places.file(target), source=os.path.realpath(path), readonly=True)
        for path, target in secrets
    ]
    for mount in command.mounts:
        source = directory_of(mount.source)
        place = places.like(source, mount.target)
        pieces.append(
            piece(
                "tree", place, source=os.path.realpath(source), readonly=mount.readonly,
                shifted=shifted(source),
            )
        )  # fmt: skip
    return pieces
