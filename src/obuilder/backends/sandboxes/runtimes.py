"""The OCI runtimes that are known, and in what they differ."""

import os

from msgspec import Struct


class Runtime(Struct, frozen=True):
    """What one runtime needs to be told, and what it does not do.

    `lacks`: networks, and limits and policies by their fields' names, that it does not have in a
    user namespace. `compiled`: it takes a seccomp filter that is compiled already. `spilt`: mount
    points that it makes in the root and leaves there. `hidden`: directories of the root that it
    would put memory over, unless they are mounted.
    """

    options: tuple[str, ...] = ()
    lacks: frozenset[str] = frozenset()
    compiled: bool = False
    spilt: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()


RUNTIMES = {
    # The groups are ours: crun leaves them alone.
    "crun": Runtime(options=("--cgroup-manager=disabled",), compiled=True),
    "runc": Runtime(),
    # A kernel of its own: processes of a step are none of the machine's, and system calls are not
    # filtered by our list but answered by it.
    "runsc": Runtime(
        options=("--ignore-cgroups", "--network=none", "--overlay2=none"),
        lacks=frozenset({"host", "pids", "nested_userns", "fast_sync", "no_new_privileges"}),
        spilt=("/dev/.init",),
        hidden=("/tmp",),  # noqa: S108 - the step's
    ),
}
"""By the program's name; one that is not here is taken for one like runc."""

PREFERRED = ("crun", "runc")
"""Those that are tried where none is asked for, the best first."""


def runtime_of(path: str) -> Runtime:
    """What is known of the runtime at `path`."""
    name = os.path.basename(path)
    return next((row for known, row in RUNTIMES.items() if name.startswith(known)), Runtime())
