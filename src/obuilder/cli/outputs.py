"""Where results go, as `build` and `export` are told it."""

import argparse
import os
import re
import sys

from obuilder import events
from obuilder.cli.options import human
from obuilder.config import FileConfig, merged
from obuilder.engine.outputs import (
    COMPRESSIONS,
    LOCAL_BUILDER,
    Wishes,
    parse_annotation,
    parse_epoch,
    whole_name,
)
from obuilder.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:  # most results are not signed
    from obuilder.oci.signing import PrivateKey

_URI = r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+"


def add_wishes(parser: argparse.ArgumentParser) -> None:
    """How images are made of results."""
    group = add_image_form(parser)
    group.add_argument(
        "-t", "--tag", action="append", default=[], metavar="NAME",
        help="a name for the image, besides what the output has; repeatable",
    )  # fmt: skip
    group = parser.add_argument_group("what else goes along with images")
    group.add_argument(
        "--provenance", action="store_true", help="how the result was built, as SLSA has it"
    )
    group.add_argument(
        "--sign", action="store_true", help="sign these, and the image, with the key of --sign-key"
    )
    group.add_argument(
        "--sign-key", metavar="FILE",
        help="a private key, of `obuilder key new`, cosign or openssl; means --sign",
    )  # fmt: skip
    add_builder_id(group)


def add_image_form(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """What an image is like, wherever it is made."""
    group = parser.add_argument_group("images")
    group.add_argument(
        "--squash",
        action="store_true",
        help="one layer for all steps; the base image keeps its own",
    )
    group.add_argument(
        "--compression", choices=COMPRESSIONS, default="gzip", help="of layers that are made"
    )
    group.add_argument(
        "--reproducible", action="store_true",
        help="no file is later than SOURCE_DATE_EPOCH (1970 if not set), nor is the image",
    )  # fmt: skip
    group.add_argument(
        "--annotation", action="append", default=[], metavar="KEY=VALUE",
        help="of the image's manifest, and of the index of several; repeatable",
    )  # fmt: skip
    group.add_argument(
        "--sbom", action="store_true",
        help="along with it, the packages that are in the result, as SPDX has it",
    )  # fmt: skip
    return group


def add_builder_id(group: "argparse._ActionsContainer") -> None:
    """Who provenance says has built."""
    group.add_argument(
        "--builder-id", metavar="URI", help=f"who built it; {LOCAL_BUILDER} if not given"
    )


def wishes(args: argparse.Namespace) -> Wishes:
    """What the options say, and the key that signs, opened. UsageError, BackendUnavailable."""
    return Wishes(
        names=tuple(whole_name(name) for name in args.tag),
        squash=args.squash,
        compression=args.compression,
        epoch=epoch(),
        reproducible=args.reproducible,
        annotations=tuple(parse_annotation(text) for text in args.annotation),
        provenance=args.provenance,
        sbom=args.sbom,
        signer=_signer(args) if args.sign or args.sign_key else None,
        builder_id=builder_id(args) if args.provenance or args.builder_id else LOCAL_BUILDER,
    )


def epoch() -> int | None:
    """What SOURCE_DATE_EPOCH says. UsageError."""
    return parse_epoch(os.environ.get("SOURCE_DATE_EPOCH"))


def builder_id(args: argparse.Namespace) -> str:
    """Who provenance says has built. ConfigError, UsageError."""
    found = _setting("builder_id", FileConfig(builder_id=args.builder_id)) or LOCAL_BUILDER
    if not re.fullmatch(_URI, found):
        raise UsageError(f"--builder-id {found!r} is no URI", hint="https://ci.example/runner, say")
    return found


def _signer(args: argparse.Namespace) -> "PrivateKey":
    path = _setting("sign_key", FileConfig(sign_key=args.sign_key))
    if not path:
        raise UsageError(
            "there is no key to sign with",
            hint="--sign-key FILE, or sign-key in the config file; `obuilder key new` makes one",
        )
    from obuilder.cli.key import password
    from obuilder.oci.signing import load_private

    return load_private(path, lambda: password(path))


def _setting(name: str, given: FileConfig) -> str:
    found = merged(given).get(name, ("", ""))[0]
    return found if isinstance(found, str) else ""


class Teller:
    """Says on standard error what is taken out; how far it got, where that is a terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet, self._live = quiet, sys.stderr.isatty() and not quiet
        self._line = ""

    def tell(self, event: events.Event) -> None:
        """Take an event."""
        if isinstance(event, events.Note):
            if self._quiet and not event.warning:
                return
            self._clear()
            kind = "warning: " if event.warning else ""
            sys.stderr.buffer.write(os.fsencode(f"{kind}{event.text}\n"))
        elif isinstance(event, events.Progress) and self._live:
            self._clear()
            if event.done < event.total:
                self._line = f"{human(event.done)} of {human(event.total)}"
                sys.stderr.write(self._line)
        sys.stderr.flush()

    def _clear(self) -> None:
        if self._line:
            sys.stderr.write("\r" + " " * len(self._line) + "\r")
            self._line = ""
