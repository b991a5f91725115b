"""`obuilder web`: the page of a cluster."""

import argparse
import sys

from obuilder.cli.options import add_messages, credentials_of, is_quiet, read_file
from obuilder.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from obuilder.web.site import Access

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--cluster", metavar="FILE",
        help="credentials of an administrator or a viewer; those of the local cluster if not given",
    )  # fmt: skip
    parser.add_argument(
        "--listen", metavar="HOST:PORT", type=_address, default="127.0.0.1:8080",
        help="where it is; port 0 is any",
    )  # fmt: skip
    parser.add_argument(
        "--token-file", metavar="FILE",
        help="a file with a token; who knows it can cancel jobs and run them again. Nobody can without",
    )  # fmt: skip
    parser.add_argument("--private", action="store_true", help="reading needs the token too")
    parser.add_argument(
        "--public", action="store_true",
        help="listen where other machines can come. Needs --token-file, and TLS: --certificate, or a"
        " proxy that has it",
    )  # fmt: skip
    parser.add_argument(
        "--host", action="append", default=[], metavar="NAME",
        help="a name that browsers come by, besides that of --listen; one for each time it is given",
    )  # fmt: skip
    parser.add_argument("--certificate", metavar="FILE", help="for https: the chain, as PEM")
    parser.add_argument("--key", metavar="FILE", help="its key, as PEM")
    add_messages(parser)


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no HOST:PORT")
    return host, int(port)


def run(args: argparse.Namespace) -> int:
    """Serve until it is stopped."""
    access = _access(args)
    from obuilder.cli.session import Cancelled, in_loop
    from obuilder.web.serve import Tls, serve

    tls = Tls(args.certificate, args.key) if args.certificate else None

    def tell(url: str) -> None:
        if not is_quiet(args):
            sys.stdout.write(f"{url}\n")
            sys.stdout.flush()

    credentials = credentials_of(args, "admin")
    try:
        in_loop(lambda: serve(credentials, args.listen, access, tell, tls=tls))
    except Cancelled:
        return 0  # that is how it ends
    return 0


def _access(args: argparse.Namespace) -> "Access":
    """Who may come, and what they may do. UsageError."""
    host, _ = args.listen
    token = None
    if args.token_file is not None:
        token = read_file(args.token_file).strip()
        if len(token) < 16:
            raise UsageError(
                f"the token in {args.token_file} is too short", hint="take 16 characters or more"
            )
    if args.private and token is None:
        raise UsageError("--private needs a token", hint="give --token-file FILE")
    if host not in _LOOPBACK and not args.public:
        raise UsageError(
            f"other machines can reach {host}",
            hint="if they shall, say --public, with --token-file and --certificate or a proxy with TLS",
        )
    if args.public and token is None:
        raise UsageError(
            "a public page needs a token, for those who may cancel jobs",
            hint="give --token-file FILE",
        )
    if args.public and not args.certificate and not args.host:
        raise UsageError(
            "a public page is reached by https",
            hint="give --certificate and --key, or with --host the name of the proxy that has TLS",
        )
    if bool(args.certificate) != bool(args.key):
        raise UsageError("--certificate and --key go together")
    from obuilder.web.site import Access

    names = {name.lower() for name in args.host} | {host.lower()}
    if host in _LOOPBACK:
        names.update(_LOOPBACK)
    return Access(token=token, private=args.private, public=args.public, hosts=tuple(sorted(names)))
