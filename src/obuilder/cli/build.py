"""`obuilder build`: the main job. A fully cached build never starts an event loop."""

import argparse
import os
import sys
from typing import get_args

import msgspec
from msgspec import Struct

from obuilder import events
from obuilder.cli.options import (
    add_caches,
    add_cluster,
    add_images,
    add_job,
    add_limits,
    add_sandbox,
    add_store,
    agents,
    count,
    is_quiet,
    is_verbose,
    secrets,
)
from obuilder.cli.outputs import Teller, add_wishes, wishes
from obuilder.cli.specs import Chosen, add_spec, chosen, settings_of_build
from obuilder.cli.tracing import Traced, Tracing
from obuilder.engine.cached import replay
from obuilder.engine.outputs import Output, Wishes, check, parse_output
from obuilder.engine.result import Result
from obuilder.engine.settings import Keep, Settings
from obuilder.errors import ObuilderError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from obuilder.ui.jsonl import JsonSink


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    add_spec(parser, context=True)
    parser.add_argument(
        "--secret", action="append", default=[], metavar="ID:FILE",
        help="a secret's value, from a file (- is standard input) or with ID=env:VAR from a variable;"
        " one for each time it is given",
    )  # fmt: skip
    parser.add_argument(
        "--target",
        metavar="NAME",
        help="only that nested build, or stage of a Dockerfile; OUTER/INNER for one in another",
    )
    parser.add_argument(
        "-o", "--output", action="append", default=[], metavar="OUTPUT",
        help="write the result out, as `obuilder export` does: DIR, tar:FILE, - for the pipe, or an"
        " image; one for each time it is given",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done, as `obuilder plan` does"
    )
    parser.add_argument(
        "--no-cache", action="store_true", help="run every step again, but for base images"
    )
    parser.add_argument(
        "--progress", choices=("auto", "plain", "live", "json", "quiet"), default="auto",
        help="plain: lines, as OBuilder prints them; live: a screen that moves; json: a line for each"
        " event; quiet: the result's key alone; auto: live on a terminal, else plain",
    )  # fmt: skip
    parser.add_argument(
        "--keep-failed", action=argparse.BooleanOptionalAction,
        help="keep the root of a failed step, for `obuilder shell`; on",
    )  # fmt: skip
    parser.add_argument(
        "--keep", choices=get_args(Keep),
        help="which results stay: all, or the last of each stage and base images; all if not given",
    )  # fmt: skip
    parser.add_argument(
        "--parallel", type=count, metavar="N",
        help="steps at one time; one for each core, and at least two, if not given",
    )  # fmt: skip
    parser.add_argument(
        "--ssh", action="append", default=[], metavar="ID[=SOCKET]",
        help="an agent of SSH keys for steps; $SSH_AUTH_SOCK if not given; one for each time it is"
        " given",
    )  # fmt: skip
    parser.add_argument(
        "--allow", action="append", default=[], choices=("security.insecure",),
        help="let steps ask for this",
    )  # fmt: skip
    add_caches(parser)
    add_images(parser, spec=True)
    add_wishes(parser)
    add_store(parser)
    add_sandbox(parser)
    add_limits(parser)
    add_job(parser)
    add_cluster(parser)


_OF_JOBS = (
    "urgent", "hint", "title", "job_memory", "job_cpus", "job_timeout", "slots", "attempts", "cluster",
)  # fmt: skip
"""What only a job on a pool can heed, by the names of the options."""
_ANYWHERE = frozenset(
    (
        "file", "context", "build_context", "build_arg", "network", "secret", "target", "output",
        "no_cache", "progress", "platform", "pull", "locked", "squash", "compression", "reproducible",
        "annotation", "sbom", "memory", "cpus", "pids", "timeout", "log", "on", "cluster", "color",
        "verbose", "quiet", "verbosity", *_OF_JOBS,
    )
)  # fmt: skip
"""What is heeded on pools as well. All other options are about this machine."""


class Job(Struct, frozen=True):
    """What to build for one platform."""

    setup: Settings
    chosen: Chosen


def run(args: argparse.Namespace) -> int:
    """Build."""
    if args.on:
        return _on_pools(args)
    for name in _OF_JOBS:
        if getattr(args, name):
            raise UsageError(f"{_option(name)} is for builds on pools", hint="add --on POOL")
    outputs, asked = [parse_output(text) for text in args.output], wishes(args)
    if args.dry_run:
        from obuilder.cli.plan import show

        setup = settings_of_build(args)
        return show(chosen(args, setup), setup)
    piped = any(output.piped for output in outputs)
    if piped or (is_quiet(args) and args.progress != "json"):
        args.progress = "quiet"  # standard output is the result's
    with Tracing() as traced, Screen(args.progress, args.color) as sink:
        results = _made(args, outputs, asked, sink, traced)
    for result in results:
        if is_verbose(args):
            taken = f"{result.cached} steps from cache, {result.ran} run, in {result.seconds:.2f} s"
            sys.stderr.write(f"{taken}\n")
        if piped:
            continue
        if args.progress in ("auto", "plain", "live"):
            sys.stdout.write(f'Got: "{result.key}"\n')
        elif args.progress == "quiet":
            sys.stdout.write(f"{result.key}\n")
    return 0


def _on_pools(args: argparse.Namespace) -> int:
    """Build on pools, as here: interrupted, the jobs are cancelled. UsageError."""
    from obuilder.cli.options import parser_for
    from obuilder.cli.remote import submit
    from obuilder.cli.submit import order_of, wishes as of_job

    parser = parser_for("build", sys.modules[__name__])
    for name, given in vars(args).items():
        if name not in _ANYWHERE and given != parser.get_default(name):
            raise UsageError(
                f"{_option(name)} can't go with --on", hint="it is for builds on this machine"
            )
    return submit(args, order_of(args), of_job(args, attached=True), detach=False)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _made(
    args: argparse.Namespace,
    outputs: list[Output],
    asked: Wishes,
    sink: events.Sink,
    traced: Traced,
) -> list[Result]:
    """The results, from the index alone if it has all that is wanted."""
    jobs = _jobs(args)
    check(outputs, asked, platforms=len(jobs))
    values = secrets(args.secret)
    if not args.no_cache and not outputs and len(jobs) == 1:
        wanted = jobs[0].chosen
        result = replay(wanted.spec, wanted.contexts, jobs[0].setup, traced(sink), name=wanted.name)
        if result is not None:
            return [result]
    if not wants_live(args.progress):
        return _build(args, jobs, values, outputs, asked, sink, traced)
    # Only here: a fully cached build has no use for a live screen, and never loads it.
    from obuilder.ui.live import LiveScreen
    from obuilder.ui.messages import colour_wanted

    with LiveScreen(sys.stdout, colour=colour_wanted(args.color, sys.stdout)) as live:
        return _build(args, jobs, values, outputs, asked, live, traced)


def _jobs(args: argparse.Namespace) -> list[Job]:
    """One build for each platform that is asked for. SpecError, UsageError."""
    jobs = []
    for platform in [None] if args.platform is None else args.platform.split(","):
        args.platform = platform
        setup = msgspec.structs.replace(
            settings_of_build(args),
            insecure="security.insecure" in args.allow,
            agents=agents(args.ssh),
        )
        jobs.append(Job(setup, chosen(args, setup)))
    platforms = [job.setup.images.platform for job in jobs]
    if len(set(platforms)) < len(platforms):
        raise UsageError("a platform is asked for twice", hint="--platform A,B has different ones")
    return jobs


def wants_live(progress: str) -> bool:
    """Whether a screen that moves is wanted."""
    if progress == "auto":
        return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    return progress == "live"


class Screen:
    """A sink and its end."""

    def __init__(self, progress: str, color: str) -> None:
        self._progress, self._color = progress, color
        self._json: JsonSink | None = None

    def __enter__(self) -> events.Sink:
        """Start showing."""
        if self._progress == "json":
            from obuilder.ui.jsonl import JsonSink

            self._json = JsonSink(sys.stdout.buffer)
            return self._json
        if self._progress == "quiet":
            return lambda _: None
        from obuilder.ui.messages import colour_wanted
        from obuilder.ui.plain import plain

        return plain(colour_wanted(self._color, sys.stdout))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        """Stop showing. A stream for programs has an end, also of a build that never began."""
        if self._json is not None and isinstance(error, ObuilderError):
            self._json.fail(error)
        sys.stdout.flush()


def _build(
    args: argparse.Namespace,
    jobs: list[Job],
    values: dict[str, bytes],
    outputs: list[Output],
    asked: Wishes,
    sink: events.Sink,
    traced: Traced,
) -> list[Result]:
    from obuilder.cli.session import in_session
    from obuilder.engine.builder import Builder
    from obuilder.engine.export import export

    async def build(builder: Builder) -> list[Result]:
        if is_verbose(args):
            picked = await builder.sandbox.describe()
            sys.stderr.write(f"store: {jobs[0].setup.named_store}\nsandbox: {picked}\n")
        results = [
            await builder.build(
                job.chosen.spec, job.chosen.contexts, secrets=values, sink=traced(sink),
                fresh=args.no_cache, name=job.chosen.name, images=job.setup.images,
            )
            for job in jobs
        ]  # fmt: skip
        tell = sink if args.progress == "json" else Teller(quiet=is_quiet(args)).tell
        for output in outputs:
            keys = [result.key for result in results]
            finals = {str(r.key): r.final for r in results if r.final is not None}
            await export(builder, keys, output, asked, finals=finals, sink=tell)
        return results

    return in_session(jobs[0].setup, build)
