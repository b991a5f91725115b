"""`obuilder key`: pairs of keys that sign images, as cosign makes them."""

import argparse
import os
import sys

from obuilder.cli.options import add_messages, add_verb
from obuilder.errors import UsageError
from obuilder.oci.attestation import ALGORITHMS

_VARIABLE = "COSIGN_PASSWORD"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    verbs = parser.add_subparsers(dest="action", required=True, metavar="new|public")
    new = add_verb(
        verbs, "new", "make a pair: NAME.key, with a password (COSIGN_PASSWORD, or asked), and NAME.pub"
    )  # fmt: skip
    new.add_argument("name", metavar="NAME", help="the files' path without their endings")
    new.add_argument(
        "--algorithm", choices=ALGORITHMS, default=ALGORITHMS[0],
        help="ecdsa-p256 is what everybody reads",
    )  # fmt: skip
    public = add_verb(verbs, "public", "print the public key of a private one")
    public.add_argument("file", metavar="FILE", help="as cosign or openssl writes it")
    for sub in (new, public):
        add_messages(sub)


def run(args: argparse.Namespace) -> int:
    """Make a pair, or print a public key."""
    from obuilder.oci.signing import generate, load_private

    if args.action == "public":
        key = load_private(args.file, lambda: password(args.file))
        sys.stdout.buffer.write(key.public.pem)
        return 0
    private, public = f"{args.name}.key", f"{args.name}.pub"
    for path in (private, public):
        if os.path.lexists(path):
            raise UsageError(f"{path} is there already", hint="name another, or remove it")
    key = generate(args.algorithm)
    for path, mode, data in (
        (private, 0o600, key.sealed(password(private, new=True))), (public, 0o644, key.public.pem)
    ):  # fmt: skip
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with open(fd, "wb") as file:
                file.write(data)
        except OSError as error:
            raise UsageError(f"can't write {path}: {error.strerror}") from error
    sys.stdout.write(f"{private}\n{public}\n")
    return 0


def password(path: str, *, new: bool = False) -> bytes:
    """The password of a key: as the environment has it, or a terminal's user, else the empty one.

    A `new` one is asked for twice. UsageError.
    """
    said = os.environb.get(_VARIABLE.encode())
    if said is not None or not sys.stdin.isatty():
        return said or b""
    from getpass import getpass

    given = os.fsencode(getpass(f"Password for {path}: "))
    if new and os.fsencode(getpass("The same again: ")) != given:
        raise UsageError("these were two passwords")
    return given
