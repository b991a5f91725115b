"""Options that verbs share, and the parser of each verb."""

import argparse
import os
import sys
from types import ModuleType
from typing import Any, NoReturn, get_args

from obuilder.backends.registry import SANDBOXES, STORES
from obuilder.config import FileConfig, load, merged
from obuilder.engine.settings import CacheMode, RsyncMode, Settings
from obuilder.errors import StoreError, UsageError
from obuilder.ui.terminal import width

TYPE_CHECKING = False
if TYPE_CHECKING:
    from obuilder.cluster.credentials import Credentials, Kind

_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_TIMES = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Parser(argparse.ArgumentParser):
    """argparse, with our way of telling errors and usage. Options may be cut short."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_formatter, **options)

    def print_help(self, _: object = None) -> None:
        """Print it. StoreError where it can't be written: argparse would say nothing."""
        try:
            sys.stdout.write(self.format_help())
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise StoreError(f"can't write the output: {error.strerror}") from error

    def error(self, message: str) -> NoReturn:
        """Raise in place of exiting."""
        raise UsageError(message, hint=self._guess(message) or f"see {self.prog} --help")

    def _guess(self, message: str) -> str | None:
        unknown = message.partition("unrecognized arguments: ")[2].split()
        if not unknown or not unknown[0].startswith("-"):
            return None
        from difflib import get_close_matches

        known = [name for action in self._actions for name in action.option_strings]
        close = get_close_matches(unknown[0].partition("=")[0], known, n=1)
        return f"did you mean {close[0]}?" if close else None

    def format_help(self) -> str:
        """The help; its usage line has what is given by place, the options follow below."""
        words = [self.prog, "[OPTION]…"]
        for action in self._actions:
            if not action.option_strings:
                name = str(action.metavar or action.dest.upper())
                several = f"{name}…" if action.nargs in ("*", "+") else name
                words.append(f"[{several}]" if action.nargs in ("*", "?") else several)
        self.usage = " ".join(words).replace("%", "%%")
        return super().format_help()


def _formatter(prog: str) -> argparse.HelpFormatter:
    # argparse makes one for each option; left to itself, it loads shutil to ask for the width.
    return _Help(prog, width=max((width() or 100) - 2, 40), max_help_position=30)


class _Help(argparse.HelpFormatter):
    """Tells defaults where they are values."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return explained(action).replace("%", "%%")


def explained(action: argparse.Action) -> str:
    """What an option means, and its default where that is a value."""
    text = "" if action.help in (None, argparse.SUPPRESS) else str(action.help)
    default = action.default
    if default in (None, False, "", [], argparse.SUPPRESS, 0):
        return text
    shown = " ".join(default) if isinstance(default, list) else default
    return f"{text} (default: {shown})".strip()


def sentence(summary: str) -> str:
    """A summary as a sentence."""
    return f"{summary[:1].upper()}{summary[1:]}."


def parser_for(verb: str, module: ModuleType) -> Parser:
    """The parser of one verb."""
    from obuilder.cli.verbs import VERBS

    parser = Parser(prog=f"obuilder {verb}", description=sentence(VERBS[verb]))
    module.add_arguments(parser)
    return parser


def add_verb(verbs: "argparse._SubParsersAction[Any]", name: str, summary: str) -> Parser:
    """A verb of a verb: `obuilder image import`."""
    parser: Parser = verbs.add_parser(name, help=summary, description=sentence(summary))
    return parser


def size(text: str) -> int:
    """Bytes, with k, m, g or t."""
    return int(_measure(text, {name: float(factor) for name, factor in _SIZES.items()}))


def seconds(text: str) -> float:
    """Seconds, with s, m, h or d."""
    return _measure(text, _TIMES)


def positive(text: str) -> float:
    """A number above 0."""
    return _measure(text, {"": 1.0})


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isascii() or not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def is_quiet(args: argparse.Namespace) -> bool:
    """Whether only results and errors are wanted."""
    return bool(args.quiet) or args.verbosity in ("quiet", "error")


def is_verbose(args: argparse.Namespace) -> bool:
    """Whether more than usual is wanted."""
    return bool(args.verbose) or args.verbosity in ("info", "debug")


def human(size: int) -> str:
    """Bytes as people read them."""
    number = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def _measure(text: str, units: dict[str, float]) -> float:
    number = text.lower().rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = text.lower()[len(number) :].removesuffix("ib").removesuffix("b")
    if unit not in units:
        raise argparse.ArgumentTypeError(f"unknown unit {unit!r}")
    try:
        value = float(number) * units[unit]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not 0 < value < 1e18:
        raise argparse.ArgumentTypeError(f"{text!r} is out of range")
    return value


def add_store(parser: argparse.ArgumentParser) -> None:
    """--store and what every verb on a store takes."""
    group = parser.add_argument_group("store")
    forms = ", ".join(row.form(kind) for kind, row in STORES.items())
    group.add_argument(
        "--store", metavar="KIND:PLACE",
        help=f"where results are: {forms}; overlayfs in the user's data directory if not given",
    )  # fmt: skip
    group.add_argument("--rsync-mode", choices=get_args(RsyncMode), help="of a store rsync:/path")
    add_messages(parser)


def add_id(parser: argparse.ArgumentParser) -> None:
    """What one result is named by."""
    parser.add_argument(
        "id", metavar="ID", help="a key, or as much of its beginning as tells it from the others"
    )


def add_job(parser: argparse.ArgumentParser) -> None:
    """What a job asks of its pool."""
    group = parser.add_argument_group("job on a pool of the cluster")
    group.add_argument(
        "--on",
        metavar="POOL[,POOL]",
        help="the pools to build on; for `submit` the only one if not given",
    )
    group.add_argument("--urgent", action="store_true", help="go before what is not urgent")
    group.add_argument(
        "--hint", "--cache-hint", metavar="TEXT", default="",
        help="jobs with the same one go to the same worker, whose cache has much of them; by the base"
        " image and the first steps if not given",
    )  # fmt: skip
    group.add_argument(
        "--title",
        metavar="TEXT",
        default="",
        help="what lists call it; the spec's name if not given",
    )
    group.add_argument(
        "--slots",
        type=count,
        metavar="N",
        help="of the worker's capacity that it takes; 1 if not given",
    )
    group.add_argument(
        "--job-memory", type=size, metavar="SIZE", help="that the worker must have to spare"
    )
    group.add_argument(
        "--job-cpus", type=positive, metavar="N", help="that the worker must have to spare"
    )
    group.add_argument(
        "--job-timeout", type=seconds, metavar="TIME",
        help="for all of it, once it runs: seconds, or with m, h, d; none if not given",
    )  # fmt: skip
    group.add_argument(
        "--attempts", type=count, metavar="N",
        help="workers that may die of it before it is given up; 3 if not given",
    )  # fmt: skip


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Which cluster, and as whom."""
    group = parser.add_argument_group("cluster")
    group.add_argument(
        "--cluster", metavar="FILE",
        help="the credentials, or a directory with client.json, worker.json and admin.json; those of"
        " this machine's `obuilder cluster up` if not given",
    )  # fmt: skip


def credentials_of(args: argparse.Namespace, kind: "Kind") -> "Credentials":
    """Who we are to which cluster, by --cluster, OBUILDER_CLUSTER or the config files. ConfigError."""
    from obuilder.cluster.credentials import load_credentials

    found = merged(FileConfig(cluster=args.cluster)).get("cluster", (None, ""))[0]
    return load_credentials(None if found is None else str(found), kind=kind)


def add_messages(parser: argparse.ArgumentParser) -> None:
    """How much is said, and how it looks."""
    group = parser.add_argument_group("messages")
    group.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto",
        help="colour what is printed; auto: on a terminal that can, and without NO_COLOR",
    )  # fmt: skip
    group.add_argument("-v", "--verbose", action="count", default=0, help="say what was picked")
    group.add_argument("-q", "--quiet", action="store_true", help="print results and errors only")
    group.add_argument(
        "--verbosity", choices=("quiet", "error", "warning", "info", "debug"), metavar="LEVEL",
        help="as OBuilder has it: info and debug are -v, quiet and error are -q, warning is neither",
    )  # fmt: skip


def add_sandbox_kind(group: "argparse._ActionsContainer") -> None:
    """--sandbox alone: all of it that a plan depends on."""
    kinds = ", ".join(SANDBOXES)
    group.add_argument(
        "--sandbox", metavar="KIND", help=f"{kinds}; the first that fits the store if not given"
    )


def add_sandbox(parser: argparse.ArgumentParser) -> None:
    """What steps run in, and what they may do."""
    group = parser.add_argument_group("sandbox")
    add_sandbox_kind(group)
    group.add_argument(
        "--runtime",
        metavar="NAME",
        help="crun, runc or runsc, or a path; the best of crun and runc if not given",
    )
    flag = argparse.BooleanOptionalAction
    group.add_argument("--fast-sync", action=flag, help="let sync calls return at once; on")
    group.add_argument("--nested-userns", action=flag, help="let steps make user namespaces; on")
    group.add_argument(
        "--no-new-privileges", action="store_true", default=None,
        help="take the power of setuid programs, sudo among them, from steps; off",
    )  # fmt: skip
    group.add_argument(
        "--ca-bundle", action=flag,
        help="offer this machine's certificates to steps that use its network; on",
    )  # fmt: skip
    group.add_argument(
        "--isolation", "--docker-isolation", choices=("default", "process", "hyperv"), metavar="KIND",
        help="of Windows containers: process, hyperv, or the engine's default",
    )  # fmt: skip
    group.add_argument(
        "--docker-network", metavar="NAME", help="OBuilder's, for a helper that is not needed here"
    )


def add_limits(parser: argparse.ArgumentParser) -> None:
    """What a step may use."""
    group = parser.add_argument_group("limits of each step that sets none of its own")
    group.add_argument(
        "--memory", "--docker-memory", type=size, metavar="SIZE",
        help="bytes, or with k, m, g, t; none if not given",
    )  # fmt: skip
    group.add_argument(
        "--cpus", "--docker-cpus", type=positive, metavar="N",
        help="cores' worth of time, 0.5 say; none if not given",
    )  # fmt: skip
    group.add_argument(
        "--pids",
        type=count,
        metavar="N",
        help="processes and threads at one time; 1024 if not given",
    )
    group.add_argument(
        "--timeout", type=seconds, metavar="TIME",
        help="seconds, or with m, h, d; none if not given",
    )  # fmt: skip
    group.add_argument(
        "--log", type=size, metavar="SIZE",
        help="bytes of output that are kept, or with k, m, g, t; 64m if not given",
    )  # fmt: skip


def add_caches(parser: argparse.ArgumentParser) -> None:
    """Which caches in other places results come from, and go to."""
    group = parser.add_argument_group("caches in other places")
    group.add_argument(
        "--cache-from", action="append", metavar="CACHE",
        help="take results that are there: docker://HOST/NAME, oci:DIR, s3://BUCKET/PREFIX; one for"
        " each time it is given",
    )  # fmt: skip
    group.add_argument(
        "--cache-to", action="append", metavar="CACHE",
        help="send results there; one for each time it is given",
    )  # fmt: skip
    group.add_argument(
        "--cache-mode", choices=get_args(CacheMode),
        help="send what every step comes to, or the build's result alone; max if not given",
    )  # fmt: skip


def add_images(parser: argparse.ArgumentParser, *, spec: bool) -> None:
    """Which base images there are to be; with a spec, also when they are looked for anew."""
    group = parser.add_argument_group("base images")
    group.add_argument(
        "--platform",
        metavar="OS/ARCH",
        help="linux/arm64, say; this machine's if not given"
        + ("; `build` takes several with commas" if spec else ""),
    )
    if spec:
        group.add_argument(
            "--pull", choices=("missing", "always", "never"),
            help="ask registries what names stand for: if it was never asked, at each build, or not"
            " at all; missing if not given",
        )  # fmt: skip
        group.add_argument(
            "--locked", action="store_true", default=None,
            help="take only what SPEC.lock says, which `obuilder lock` writes; off",
        )  # fmt: skip


def settings(args: argparse.Namespace) -> Settings:
    """What the options, the environment and the config files come to."""
    names = FileConfig.__struct_fields__
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return load(FileConfig(**given))


def read_file(path: str, *, hint: str | None = None) -> bytes:
    """A whole file; - is standard input. UsageError."""
    if path == "-":
        return sys.stdin.buffer.read()
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}", hint=hint) from error


def secrets(given: list[str]) -> dict[str, bytes]:
    """The values of --secret ID:FILE and --secret ID=env:VAR. UsageError."""
    found: dict[str, bytes] = {}
    for text in given:
        name, sign, variable = text.partition("=env:")
        if sign and ":" not in name:
            if variable not in os.environ:
                raise UsageError(f"the variable {variable} of the secret {name} is not set")
            found[name] = os.environb[os.fsencode(variable)]
            continue
        name, colon, path = text.partition(":")
        if not colon or not name or not path:
            raise UsageError(
                f"--secret {text!r} tells no value", hint="write --secret ID:FILE or ID=env:VAR"
            )
        found[name] = read_file(path)
    return found


def agents(given: list[str]) -> tuple[tuple[str, str], ...]:
    """The sockets of --ssh ID[=SOCKET]. UsageError."""
    found: dict[str, str] = {}
    for text in given:
        name, sign, path = text.partition("=")
        path = path if sign else os.environ.get("SSH_AUTH_SOCK", "")
        if not name or not path:
            raise UsageError(
                f"{text!r} names no agent of SSH keys",
                hint="write --ssh ID=SOCKET, or set SSH_AUTH_SOCK",
            )
        if not os.path.exists(path):
            raise UsageError(f"there is no agent's socket {path}")
        found[name] = os.path.abspath(path)
    return tuple(found.items())
