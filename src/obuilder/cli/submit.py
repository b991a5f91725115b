"""`obuilder submit`: a build on a pool of the cluster."""

import argparse
import os
import re

from obuilder.cli.options import (
    add_cluster,
    add_job,
    add_messages,
    read_file,
    secrets,
    settings,
)
from obuilder.cli.specs import add_spec, chosen, is_dockerfile, spec_path
from obuilder.engine.inputs import Contexts
from obuilder.engine.outputs import parse_output, whole_name
from obuilder.engine.settings import Settings
from obuilder.errors import UsageError
from obuilder.spec.encode import print_spec
from obuilder.spec.model import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from obuilder import events
    from obuilder.cli.remote import Order
    from obuilder.cluster.client import Client, Wishes
    from obuilder.cluster.messages import Build, Context

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?", re.ASCII)


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
        "--git", nargs="+", metavar=("URL", "COMMIT"),
        help="copy files from these commits in place of DIR: the first is checked out, the others are"
        " merged into it",
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
        "--platform", metavar="OS/ARCH", help="of base images; the worker's if not given"
    )
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

    where = args.git[0] if getattr(args, "git", None) else os.path.abspath(args.context)
    return Wishes(
        title=args.title or f"{os.path.basename(spec_path(args))} of {where}", hint=args.hint,
        urgent=args.urgent, slots=args.slots, memory=args.job_memory, cpus=args.job_cpus,
        seconds=args.job_timeout, attempts=args.attempts, attached=attached,
        secrets=secrets(args.secret), trace=os.environ.get("TRACEPARENT", ""),
    )  # fmt: skip


def _build(
    args: argparse.Namespace, text: bytes | str | None, file: str, **more: object
) -> "Build":
    from obuilder.cluster.messages import Build

    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError:
            raise UsageError(f"{file} is no UTF-8 text", hint="a pool takes no other") from None
    return Build(
        text=text, file=file, platform=args.platform, fresh=args.no_cache,
        push=tuple(map(whole_name, getattr(args, "push", ()))),
        artifacts=tuple(getattr(args, "artifact", ())), **more,  # type: ignore[arg-type] # as here
    )  # fmt: skip


def order_of(args: argparse.Namespace, setup: Settings | None = None) -> "Order":
    """A build of a spec or Dockerfile here, with files from here. SpecError, UsageError."""
    from obuilder.cli.remote import Order
    from obuilder.cluster import hints

    path = spec_path(args)
    outputs = tuple(parse_output(text) for text in args.output)
    spec: Spec | None = None
    text = read_file(path, hint="name the spec with -f SPEC")
    name = os.path.basename(path) if path != "-" else "-"
    if getattr(args, "dockerfile", False) or is_dockerfile(path, text):
        work, where = _dockerfile(args, text, name)
    else:
        found = chosen(args, setup or settings(args))
        spec, where = found.spec, found.contexts
        locked: tuple[tuple[str, str], ...] = ()
        if setup is not None and setup.images.lock is not None:
            locked = tuple(setup.images.lock.images.items())
        work = _build(args, print_spec(spec), name, locked=locked)

    async def send(client: "Client", sink: "events.Sink") -> "Context":
        return await client.send(spec, where, sink=sink)

    def hint(context: "Context") -> str:
        if spec is not None:
            return hints.of_spec(spec, context)
        return hints.of_dockerfile(text, context)

    return Order(work, send, hint, outputs)


def _dockerfile(args: argparse.Namespace, text: bytes, name: str) -> "tuple[Build, Contexts]":
    """The build of a Dockerfile, which the worker turns into a spec: it has the base images."""
    from obuilder.cli.specs import build_args, pairs
    from obuilder.spec.dockerfile import parse

    path, where = spec_path(args), args.context
    parse(text, file=path)  # says what is wrong with it
    given = pairs(args.build_context)
    for key, value in given:
        if "://" in value:
            raise UsageError(
                f"--build-context {key}={value} can't go to a pool", hint="directories can"
            )
    work = _build(
        args, text, name, language="dockerfile", target=args.target or "",
        build_args=tuple(build_args(args.build_arg).items()),
    )  # fmt: skip
    ignore = (f"{path}.dockerignore", os.path.join(where, ".dockerignore"))
    return work, Contexts(where, ignore, tuple((key.lower(), value) for key, value in given))


def git_order(args: argparse.Namespace) -> "Order":
    """A build with the files of commits. SpecError, UsageError."""
    from obuilder.cli.remote import Order
    from obuilder.cluster import hints
    from obuilder.cluster.messages import GitContext
    from obuilder.spec.decode import parse

    url, *commits = args.git
    if not commits:
        raise UsageError(f"--git {url} names no commit", hint=f"write --git {url} COMMIT")
    for commit in commits:
        if not _COMMIT.fullmatch(commit):
            raise UsageError(
                f"{commit!r} is no whole commit id", hint="`git rev-parse NAME` tells it"
            )
    context = GitContext(
        url=url, commits=tuple(commits), include_git=args.include_git,
        submodules=not args.no_submodules,
    )  # fmt: skip
    outputs = tuple(parse_output(text) for text in args.output)
    if args.file and args.context_file:
        raise UsageError("-f is a file here, --context-file one of the commits", hint="take one")
    file = args.file or args.context_file or "obuilder.spec"
    text = read_file(args.file) if args.file else None
    dockerfile = args.dockerfile or is_dockerfile(file, text or b"(")
    spec = None
    if dockerfile:
        from obuilder.cli.specs import build_args

        work = _build(
            args, text, os.path.basename(file) if args.file else file, language="dockerfile",
            target=args.target or "", build_args=tuple(build_args(args.build_arg).items()),
        )  # fmt: skip
    else:
        if text is not None:
            spec = parse(text, file=file).spec
        work = _build(
            args, text, os.path.basename(file) if args.file else file, target=args.target or ""
        )

    async def send(_client: "Client", _sink: "events.Sink") -> "Context":
        return context

    def hint(context: "Context") -> str:
        if spec is not None:
            return hints.of_spec(spec, context)
        if text is not None:
            return hints.of_dockerfile(text, context)
        return hints.of_file(file, context)

    return Order(work, send, hint, outputs)
