"""`obuilder submit`: a build on a pool of the cluster."""

import argparse
import os

from obuilder.backends.fetchers.git import commit_of
from obuilder.cli.options import (
    add_cluster,
    add_images,
    add_job,
    add_limits,
    add_messages,
    read_file,
    secrets,
    settings,
)
from obuilder.cli.outputs import add_image_form, epoch
from obuilder.cli.specs import add_spec, chosen, is_dockerfile, settings_of_build, spec_path
from obuilder.engine.inputs import Contexts
from obuilder.engine.outputs import parse_annotation, parse_output, whole_name
from obuilder.errors import UsageError
from obuilder.spec.encode import print_spec
from obuilder.spec.model import Spec
from obuilder.values import Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from obuilder import events
    from obuilder.cli.remote import Order
    from obuilder.cluster.client import Client, Wishes
    from obuilder.cluster.messages import Build, Context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    add_spec(parser, context=True)
    parser.add_argument(
        "--target", metavar="NAME", help="only that nested build, or stage of a Dockerfile"
    )
    parser.add_argument(
        "--dockerfile", action="store_true", help="the file is a Dockerfile, whatever its name"
    )
    parser.add_argument(
        "--git", nargs="+", metavar=("URL[#REF[:DIR]]", "REF"),
        help="copy files from commits in place of DIR: the first is checked out, the others are merged"
        " into it. A REF is a branch, a tag, a commit's whole id, or pull/N/head",
    )  # fmt: skip
    parser.add_argument(
        "--context-file", metavar="PATH",
        help="with --git: build this file of the commits; obuilder.spec if neither it nor -f is given",
    )  # fmt: skip
    parser.add_argument(
        "--include-git", action="store_true", help="with --git: have .git among the files"
    )
    parser.add_argument(
        "--no-submodules", action="store_true", help="with --git: leave submodules out"
    )
    parser.add_argument("--no-cache", action="store_true", help="run every step again")
    parser.add_argument(
        "--secret", action="append", default=[], metavar="ID:FILE",
        help="a secret's value, as `obuilder build` takes it; sealed for the pool's workers alone",
    )  # fmt: skip
    group = parser.add_argument_group("results")
    group.add_argument(
        "--push", action="append", default=[], metavar="NAME",
        help="have the worker push the result under this name; repeatable",
    )  # fmt: skip
    group.add_argument(
        "--artifact", action="append", default=[], metavar="PATH",
        help="bring this path of the result back; all of it, if none is given and -o is; repeatable",
    )  # fmt: skip
    group.add_argument(
        "-o", "--output", action="append", default=[], metavar="OUTPUT",
        help="where to: DIR, tar:FILE, or - for the pipe; docker://NAME is pushed by the worker",
    )  # fmt: skip
    add_image_form(parser)
    add_images(parser, spec=True)
    add_limits(parser)
    add_job(parser)
    group = parser.add_argument_group("following")
    group.add_argument(
        "--detach", action="store_true", help="print the job's name and leave it alone"
    )
    group.add_argument(
        "--attached", action="store_true", help="cancel the job when this program ends"
    )
    group.add_argument(
        "--progress", choices=("auto", "plain", "live", "json", "quiet"), default="auto",
        help="as `obuilder build` has it",
    )  # fmt: skip
    add_cluster(parser)
    add_messages(parser)


def run(args: argparse.Namespace) -> int:
    """Submit."""
    from obuilder.cli.remote import submit

    if args.detach and args.attached:
        raise UsageError("--detach leaves the job alone, --attached does not", hint="take one")
    if args.detach and any(not text.startswith("docker://") for text in args.output):
        raise UsageError(
            "nothing is brought back from a job that is left alone",
            hint="`obuilder job wait -o OUTPUT ID` brings what --artifact names",
        )
    order = git_order(args) if args.git else order_of(args)
    return submit(args, order, wishes(args, attached=args.attached), detach=args.detach)


def wishes(args: argparse.Namespace, *, attached: bool) -> "Wishes":
    """What the options say of the job. UsageError."""
    from obuilder.cluster.client import Wishes

    where, name = os.path.abspath(args.context), os.path.basename(spec_path(args))
    if getattr(args, "git", None):
        where, name = args.git[0], args.context_file or name
    return Wishes(
        title=args.title or f"{name} of {where}", hint=args.hint,
        urgent=args.urgent, slots=args.slots or 1, memory=args.job_memory, cpus=args.job_cpus,
        seconds=args.job_timeout, attempts=args.attempts or 3, attached=attached,
        secrets=secrets(args.secret), trace=os.environ.get("TRACEPARENT", ""),
    )  # fmt: skip


def _build(
    args: argparse.Namespace, text: bytes | str | None, file: str, **more: object
) -> "Build":
    """What to build, as all options say that both a spec and a Dockerfile heed."""
    from obuilder.cluster.messages import Build, Form

    form = Form(
        squash=args.squash, compression=args.compression, epoch=epoch(), sbom=args.sbom,
        reproducible=args.reproducible, annotations=tuple(map(parse_annotation, args.annotation)),
    )  # fmt: skip
    limits = Limits(
        memory=args.memory, cpus=args.cpus, pids=args.pids, seconds=args.timeout, log=args.log
    )  # fmt: skip
    return Build(
        text=os.fsdecode(text) if isinstance(text, bytes) else text, file=file, limits=limits,
        platform=args.platform, pull=args.pull, locked=_locked(args), fresh=args.no_cache,
        push=tuple(map(whole_name, getattr(args, "push", ()))), form=form,
        artifacts=tuple(getattr(args, "artifact", ())), **more,  # type: ignore[arg-type] # as here
    )  # fmt: skip


def _locked(args: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    if getattr(args, "git", None) and not args.file:
        return ()  # the lock file of what is here is not of what is there
    lock = settings_of_build(args).images.lock
    return () if lock is None else tuple(lock.images.items())


def order_of(args: argparse.Namespace) -> "Order":
    """A build of a spec or Dockerfile here, with files from here. SpecError, UsageError."""
    from obuilder.cli.remote import Order
    from obuilder.cluster import hints

    _refuse(args, ("--context-file", "--include-git", "--no-submodules"), "is for --git")
    path = spec_path(args)
    outputs = tuple(parse_output(text) for text in args.output)
    spec: Spec | None = None
    text = read_file(path, hint="name the spec with -f SPEC")
    name = os.path.basename(path) if path != "-" else "-"
    if getattr(args, "dockerfile", False) or is_dockerfile(path, text):
        work, where = _dockerfile(args, text, name)
    else:
        found = chosen(args, settings(args), text)
        spec, where = found.spec, found.contexts
        work = _build(args, print_spec(spec), name)

    async def send(client: "Client", sink: "events.Sink") -> "Context":
        return await client.send(spec, where, sink=sink)

    def hint(context: "Context") -> str:
        if spec is not None:
            return hints.of_spec(spec, context)
        return hints.of_dockerfile(text, context)

    return Order(work, send, hint, outputs)


def _refuse(args: argparse.Namespace, options: tuple[str, ...], why: str) -> None:
    for option in options:
        if getattr(args, option.lstrip("-").replace("-", "_"), None):
            raise UsageError(f"{option} {why}", hint="see obuilder submit --help")


def _dockerfile(args: argparse.Namespace, text: bytes, name: str) -> "tuple[Build, Contexts]":
    """The build of a Dockerfile, which the worker turns into a spec: it has the base images."""
    from obuilder.cli.specs import pairs
    from obuilder.spec.dockerfile import parse

    path, where = spec_path(args), args.context
    parse(text, file=path)  # says what is wrong with it
    given = pairs(args.build_context)
    for key, value in given:
        if "://" in value:
            raise UsageError(
                f"--build-context {key}={value} can't go to a pool", hint="directories can"
            )
    ignore = (f"{path}.dockerignore", os.path.join(where, ".dockerignore"))
    return (
        _build(args, text, name, **_told(args, dockerfile=True)),
        Contexts(where, ignore, tuple((key.lower(), value) for key, value in given)),
    )


def _told(args: argparse.Namespace, *, dockerfile: bool) -> dict[str, object]:
    """What a worker has to know to make a spec of a text."""
    from obuilder.cli.specs import build_args

    if not dockerfile and args.build_arg:
        raise UsageError("--build-arg is for Dockerfiles", hint="a spec has no arguments")
    return {
        "language": "dockerfile" if dockerfile else "spec", "target": args.target or "",
        "build_args": tuple(build_args(args.build_arg).items()), "network": args.network,
    }  # fmt: skip


def git_order(args: argparse.Namespace) -> "Order":
    """A build with the files of commits. SpecError, UsageError, NotFound, Unreachable."""
    from obuilder.cli.remote import Order
    from obuilder.cluster import hints
    from obuilder.cluster.messages import GitContext
    from obuilder.spec.decode import parse

    _refuse(args, ("--build-context",), "can't go with --git")
    if args.locked and not args.file:
        raise UsageError("--locked takes a lock file from here", hint="name its spec with -f")
    if args.file and args.context_file:
        raise UsageError("-f is a file here, --context-file one of the commits", hint="take one")
    place, *others = args.git
    url, _, fragment = place.partition("#")
    first, _, directory = fragment.partition(":")
    refs = [first, *others] if first or not others else others
    context = GitContext(
        url=url, commits=tuple(commit_of(url, ref) for ref in refs), directory=directory.strip("/"),
        include_git=args.include_git, submodules=not args.no_submodules,
    )  # fmt: skip
    outputs = tuple(parse_output(text) for text in args.output)
    file = args.file or args.context_file or "obuilder.spec"
    text = read_file(args.file) if args.file else None
    dockerfile = args.dockerfile or is_dockerfile(file, text or b"(")
    spec = parse(text, file=file).spec if text is not None and not dockerfile else None
    name = os.path.basename(file) if args.file else file
    work = _build(args, text, name, **_told(args, dockerfile=dockerfile))

    async def send(_client: "Client", _sink: "events.Sink") -> "Context":
        return context

    def hint(context: "Context") -> str:
        if spec is not None:
            return hints.of_spec(spec, context)
        if text is not None:
            return hints.of_dockerfile(text, context)
        return hints.of_file(file, context)

    return Order(work, send, hint, outputs)
