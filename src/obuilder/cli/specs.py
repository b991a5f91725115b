"""The spec that the command line names: an S-expression, or a Dockerfile turned into one."""

import argparse
import os
import sys
from typing import Literal

from msgspec import Struct

from obuilder.cli.options import read_file, settings
from obuilder.config import FileConfig, merged
from obuilder.engine.inputs import Contexts
from obuilder.engine.origin import Source
from obuilder.engine.settings import Settings
from obuilder.errors import UsageError
from obuilder.spec.decode import parse
from obuilder.spec.model import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:  # a spec that is no Dockerfile needs none of it
    from obuilder.spec.dockerfile import Dockerfile
    from obuilder.spec.from_dockerfile import Converted, Options

_NAMES = ("obuilder.spec", "Dockerfile")


class Chosen(Struct, frozen=True):
    """What to build, and where its files come from. `name` tells it from others of its context."""

    spec: Spec
    contexts: Contexts
    name: str


def add_spec(parser: argparse.ArgumentParser, *, context: bool) -> None:
    """-f, the context, and what a Dockerfile is told besides."""
    where = "DIR/" if context else ""
    parser.add_argument(
        "-f", "--file", metavar="SPEC",
        help="the spec or Dockerfile, - for standard input; "
        f"{where}obuilder.spec, else {where}Dockerfile, if not given",
    )  # fmt: skip
    if context:
        parser.add_argument(
            "context", nargs="?", default=".", metavar="DIR", help="where files are copied from"
        )
        parser.add_argument(
            "--build-context", action="append", default=[], metavar="NAME=DIR",
            help="one more directory to copy from; for a Dockerfile also docker-image://NAME, "
            "oci-layout://DIR, or a git URL; one for each time it is given",
        )  # fmt: skip
    group = parser.add_argument_group("Dockerfiles")
    group.add_argument(
        "--build-arg", action="append", default=[], metavar="NAME[=VALUE]",
        help="a value for an ARG, from the environment if not given; one for each time it is given",
    )  # fmt: skip
    group.add_argument(
        "--network", choices=("host", "none"), default="host",
        help="of a RUN that names none; host if not given",
    )  # fmt: skip


def spec_path(args: argparse.Namespace) -> str:
    """The file of the spec that the options name; - is standard input."""
    if args.file:
        return str(args.file)
    found = [os.path.join(getattr(args, "context", "."), name) for name in _NAMES]
    return next((path for path in found if os.path.exists(path)), found[0])


def is_dockerfile(path: str, text: bytes) -> bool:
    """Whether a file is a Dockerfile: its name says so, or its first sign that is no blank."""
    name = os.path.basename(path).lower()
    if name.endswith(".spec"):
        return False
    if name.startswith(("dockerfile", "containerfile")) or name.endswith(".dockerfile"):
        return True
    start = text.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"#"):
        return not start.startswith((b"#|", b"#;"))
    return start[:1].isalpha()


def settings_of_build(args: argparse.Namespace) -> Settings:
    """What the options come to, with the spec's lock file where only what it says may be taken.

    UsageError.
    """
    setup = settings(args)
    given = FileConfig(locked=args.locked)
    if not merged(given).get("locked", (False, ""))[0]:
        return setup
    import msgspec

    from obuilder.engine.lockfile import lock_path, read_lock

    path = spec_path(args)
    if path == "-":
        raise UsageError(
            "a spec from standard input has no lock file", hint="name a file with -f SPEC"
        )
    images = msgspec.structs.replace(setup.images, lock=read_lock(lock_path(path)))
    return msgspec.structs.replace(setup, images=images)


def chosen(args: argparse.Namespace, setup: Settings, text: bytes | None = None) -> Chosen:
    """The spec that the options name, or the build in it that `--target` names.

    `setup` says where a Dockerfile's base images are looked for; `text` is what the file says, where
    that was read already. SpecError, UsageError, FetchError.
    """
    path, where = spec_path(args), getattr(args, "context", ".")
    if args.file is None and not os.path.isdir(where):
        raise UsageError(
            f"there is no directory {where}",
            hint="name the one to copy files from, and the spec with -f",
        )
    if text is None:
        text = read_file(path, hint="name the spec with -f SPEC")
    given = pairs(getattr(args, "build_context", []))
    name = path if path == "-" else os.path.abspath(path)
    if not is_dockerfile(path, text):
        if args.build_arg:
            raise UsageError("--build-arg is for Dockerfiles", hint="a spec has no arguments")
        spec = _target(parse(text, file=path).spec, getattr(args, "target", None))
        source = _source("spec", args, path, text)
        return Chosen(spec, Contexts(where, named=tuple(given), source=source), name)
    from obuilder.spec.dockerfile import parse as parse_dockerfile

    options = _options(args, given, setup)
    found = _converted(parse_dockerfile(text, file=path), options, setup)
    ignore = (f"{path}.dockerignore", os.path.join(where, ".dockerignore"))
    named = tuple((key.lower(), value) for key, value in given if "://" not in value)
    source = _source("dockerfile", args, path, text, options.args)
    return Chosen(found.spec, Contexts(where, ignore, named, found.places, source), name)


def _source(
    frontend: Literal["spec", "dockerfile"], args: argparse.Namespace, path: str, text: bytes,
    arguments: tuple[tuple[str, str], ...] = (),
) -> Source:  # fmt: skip
    target = getattr(args, "target", None) or ""
    return Source(frontend, os.path.basename(path), os.fsdecode(text), arguments, target)


def build_args(given: list[str]) -> dict[str, str]:
    """The values of --build-arg, from the environment for names alone. UsageError."""
    values: dict[str, str] = {}
    for item in given:
        name, sign, value = item.partition("=")
        if not name:
            raise UsageError(f"{item!r} is no build argument", hint="write --build-arg NAME=VALUE")
        if sign:
            values[name] = value
        elif name in os.environ:
            values[name] = os.environ[name]
    return values


def pairs(given: list[str]) -> list[tuple[str, str]]:
    """The names and places of --build-context. UsageError."""
    return [_pair(item) for item in given]


def _options(args: argparse.Namespace, given: list[tuple[str, str]], setup: Settings) -> "Options":
    from obuilder.oci.platforms import host_platform
    from obuilder.spec.from_dockerfile import Options

    values = build_args(args.build_arg)
    return Options(
        host_platform(), setup.images.platform, tuple(values.items()), tuple(given),
        getattr(args, "target", None) or "", (args.network,),
    )  # fmt: skip


def _converted(dockerfile: "Dockerfile", options: "Options", setup: Settings) -> "Converted":
    from obuilder.engine.dockerfiles import convert

    found = convert(dockerfile, options, setup)
    for warning in found.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    return found


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name or not value:
        raise UsageError(f"{text!r} is no build context", hint="write --build-context NAME=DIR")
    return name, value


def _target(spec: Spec, target: str | None) -> Spec:
    if target is None:
        return spec
    from obuilder.spec.stages import target as chosen

    return chosen(spec, target)
