"""`obuilder healthcheck`: builds a tiny spec for real, and says what was picked and why."""

import argparse
import sys

from obuilder.cli.options import add_sandbox, add_store, settings
from obuilder.cli.session import in_loop, in_session
from obuilder.engine.builder import Builder
from obuilder.engine.checkup import Finding, look_over
from obuilder.engine.settings import Settings
from obuilder.errors import BackendUnavailable, ObuilderError, UsageError
from obuilder.ui.jsonl import as_json

_VERSION = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--all",
        action="store_true",
        help="try every store and sandbox, each at a place of its own near the store: what works "
        "on this machine, what does not, and how to get it",
    )
    parser.add_argument("--json", action="store_true", help="what was found, for programs")
    add_store(parser)
    add_sandbox(parser)


def run(args: argparse.Namespace) -> int:
    """Check what builds here would use, or (`--all`) whatever they could."""
    if args.all and args.sandbox is not None:
        raise UsageError(
            "--all tries every sandbox",
            hint="leave out --sandbox, or --all to check that one alone",
        )
    chosen = settings(args)
    return _all(args, chosen) if args.all else _one(args, chosen)


# --- one store and sandbox -----------------------------------------------------------------------


def _one(args: argparse.Namespace, chosen: Settings) -> int:
    """Run a step that was never run before, and look at what it saw. 1 if something is wrong."""

    def say(found: list[Finding], error: ObuilderError | None, *, healthy: bool) -> None:
        said = {
            "version": _VERSION,
            "usable": healthy,
            "store": chosen.named_store,
            "sandbox": chosen.sandbox,
            "findings": found,
            "error": error and {"code": error.code, "message": error.message, "hint": error.hint},
        }
        sys.stdout.buffer.write(as_json(said) + b"\n")

    async def check(builder: Builder) -> list[Finding]:
        return await look_over(builder)

    try:
        found = in_session(chosen, check)
    except ObuilderError as error:
        if args.json:
            say([], error, healthy=False)
        raise
    healthy = all(finding.status != "failed" for finding in found)
    if args.json:
        say(found, None, healthy=healthy)
    else:
        for finding in found:
            mark = "" if finding.status == "ok" else f"{finding.status}: "
            sys.stdout.write(f"{finding.check}: {mark}{finding.detail}\n")
            if finding.hint:
                sys.stdout.write(f"  hint: {finding.hint}\n")
        sys.stdout.write("Healthcheck passed\n" if healthy else "Healthcheck failed\n")
    return 0 if healthy else 1


# --- all of them ---------------------------------------------------------------------------------


def _all(args: argparse.Namespace, chosen: Settings) -> int:
    """Try everything. 3 if nothing can build here."""
    from obuilder.engine.survey import take_survey
    from obuilder.ui.messages import colour_wanted
    from obuilder.ui.survey import lines, show_table

    survey = in_loop(lambda: take_survey(chosen))
    if args.json:
        sys.stdout.buffer.write(as_json(survey) + b"\n")
    elif sys.stdout.isatty():
        show_table(survey, sys.stdout, colour=colour_wanted(args.color, sys.stdout))
    else:
        for line in lines(survey):
            sys.stdout.write(f"{line}\n")
    return 0 if survey.usable else BackendUnavailable.exit_status
