"""See the package."""

import os
import resource
import sys

from obuilder.errors import BackendUnavailable, ObuilderError, UsageError
from obuilder.redirect.bases import Bases
from obuilder.redirect.requests import Requests
from obuilder.redirect.tree import Tree


def main(links: str, mountpoint: str) -> int:
    """Serve until standard input is at its end. ObuilderError, OSError."""
    from obuilder.redirect.mount import Mount

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.umask(0)  # the kernel has applied the caller's
    below = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    mount = Mount(mountpoint, Requests(Tree(Bases(links, below).base)), name="obuilder")
    sys.stdout.write("mounted\n")
    sys.stdout.flush()
    mount.serve(0)
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.stderr.write("usage: python -m obuilder.redirect LINKS MOUNTPOINT\n")
        sys.exit(UsageError.exit_status)
    try:
        sys.exit(main(*sys.argv[1:]))
    except ObuilderError as _error:
        sys.stderr.write(f"error: {_error.message}\nhint: {_error.hint}\n")
        sys.exit(_error.exit_status)
    except OSError as _error:
        sys.stderr.write(f"error: {_error.filename}: {_error.strerror}\n")
        sys.exit(BackendUnavailable.exit_status)
