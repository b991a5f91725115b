"""What steps are shown of this machine: its init, and the certificates it trusts."""

import os

_INITS = ("tini-static", "docker-init", "tini")
_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


def find_program(name: str) -> str | None:
    """Where a program is, whatever PATH says."""
    for folder in _FOLDERS:
        path = os.path.join(folder, name)  # a name with a slash at its start stands for itself
        if os.access(path, os.X_OK):
            return os.path.realpath(path)
    return None


def static_init() -> str | None:
    """An init for steps, whose root may lack a loader; None if there is none (Debian: tini)."""
    return next(
        (path for name in _INITS if (path := find_program(name)) and _is_static(path)), None
    )


def _is_static(path: str) -> bool:
    with open(path, "rb") as stream:
        return b"/ld-" not in stream.read(4096)


def ca_bundle() -> str | None:
    """The certificates that this machine trusts, in one file; None if there is none."""
    return next((path for path in _BUNDLES if os.path.exists(path)), None)
