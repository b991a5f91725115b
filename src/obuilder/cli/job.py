"""`obuilder job`: the jobs of this client."""

import argparse
import sys
import time

import msgspec

from obuilder.cli.options import (
    add_cluster,
    add_messages,
    add_verb,
    count,
    human,
    is_quiet,
    seconds,
)
from obuilder.cli.results import show, when
from obuilder.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from obuilder.cluster.client import Client, Ref, Row
    from obuilder.cluster.messages import Job, State

_PHASES = ("queued", "running", "done", "failed", "cancelled")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    verbs = parser.add_subparsers(dest="action", required=True, metavar="|".join(_ACTIONS))
    subs = {name: add_verb(verbs, name, summary) for name, (summary, _) in _ACTIONS.items()}
    listing = subs["ls"]
    listing.add_argument("--pool", metavar="POOL", help="only of this pool")
    listing.add_argument(
        "--phase", choices=_PHASES, action="append", default=[], help="only these; repeatable"
    )
    listing.add_argument("--hint", metavar="TEXT", default="", help="only with this cache hint")
    listing.add_argument(
        "--since", type=seconds, metavar="TIME", help="only of the last seconds, or with m, h, d"
    )
    listing.add_argument("-n", "--number", type=count, metavar="N", help="at most so many")
    for name in ("show", "log", "rerun"):
        subs[name].add_argument("id", metavar="ID", nargs="?", default="", help=_ID)
    for name in ("cancel", "wait"):
        subs[name].add_argument("ids", metavar="ID", nargs="+", help=_ID)
    log = subs["log"]
    log.add_argument("-f", "--follow", action="store_true", help="go on until the job has ended")
    log.add_argument(
        "--since", type=int, default=0, metavar="N", help="from this batch of the log on"
    )
    subs["cancel"].add_argument("--reason", metavar="TEXT", default="", help="what the log says")
    subs["rerun"].add_argument(
        "--detach", action="store_true", help="print the new job's name and leave it alone"
    )
    wait = subs["wait"]
    wait.add_argument(
        "-o", "--output", action="append", default=[], metavar="OUTPUT",
        help="bring the artifacts to DIR, tar:FILE, or - for the pipe",
    )  # fmt: skip
    for name in ("log", "rerun"):
        subs[name].add_argument(
            "--progress", choices=("auto", "plain", "live", "json", "quiet"), default="plain",
            help="as `obuilder build` has it",
        )  # fmt: skip
    for name in ("ls", "show", "wait"):
        subs[name].add_argument("--json", action="store_true", help="records, for programs")
    for sub in subs.values():
        add_cluster(sub)
        add_messages(sub)


_ID = "a job's name, or as much of its beginning or end as tells it from the others"


def run(args: argparse.Namespace) -> int:
    """Carry the action out."""
    return _ACTIONS[args.action][1](args)


def _list(args: argparse.Namespace) -> int:
    from obuilder.cli.remote import as_client

    since = 0.0 if args.since is None else time.time() - args.since

    async def rows(client: "Client") -> "list[Row]":
        if args.pool:
            await client.pool(args.pool)
        return await client.list(
            pool=args.pool or "*", phases=args.phase, hint=args.hint, since=since
        )

    found = as_client(args, rows)[: args.number]
    if args.json:
        _json([_record(row.pool, row.id, row.state) for row in found])
    elif is_quiet(args):
        show(row.id for row in found)
    else:
        show(_line(row) for row in found)
    return 0


def _line(row: "Row") -> str:
    state = row.state
    mark = "urgent " if state.urgent else ""
    return "  ".join(
        [
            row.id, when(state.submitted), f"{state.phase:9}", f"{row.pool:14}",
            f"{state.worker or '-':14}", f"{_took(state):>8}", f"{mark}{state.title}",
        ]
    )  # fmt: skip


def _took(state: "State") -> str:
    """How long it has run, or waits."""
    if state.phase == "queued":
        return f"+{_time(time.time() - state.submitted)}"
    if state.started is None:
        return "-"
    return _time((state.ended or time.time()) - state.started)


def _time(taken: float) -> str:
    taken = max(taken, 0)
    return f"{taken:.1f}s" if taken < 120 else f"{taken / 60:.0f}m"


def _record(pool: str, name: str, state: "State", job: "Job | None" = None) -> dict[str, object]:
    record: dict[str, object] = {"id": name, "pool": pool, **msgspec.to_builtins(state)}
    if job is not None:
        described = msgspec.to_builtins(job)
        described["secrets"] = [secret for secret, _ in job.secrets]  # their names alone
        record["job"] = described
    return record


def _json(value: object) -> None:
    from obuilder.ui.jsonl import as_json

    sys.stdout.buffer.write(as_json(value) + b"\n")


def _show(args: argparse.Namespace) -> int:
    from obuilder.cli.remote import as_client

    async def find(client: "Client") -> "tuple[Ref, State, Job]":
        ref = await client.find(args.id)
        return ref, await client.state(ref), await client.job(ref)

    ref, state, job = as_client(args, find)
    if args.json:
        _json(_record(ref.pool, ref.id, state, job))
        return 0
    outcome = state.outcome
    rows = {
        "job": ref.id, "pool": ref.pool, "title": state.title, "phase": state.phase,
        "worker": state.worker, "attempt": state.attempt or "", "hint": state.hint,
        "submitted": when(state.submitted),
        "started": when(state.started) if state.started else "",
        "ended": when(state.ended) if state.ended else "",
        "took": _took(state), "rerun of": job.rerun,
        "memory": human(job.memory) if job.memory else "", "cpus": job.cpus or "",
        "secrets": " ".join(secret for secret, _ in job.secrets),
    }  # fmt: skip
    if outcome is not None:
        rows |= {
            "result": outcome.result or "", "cached": outcome.cached, "ran": outcome.ran,
            "images": " ".join(f"{name}@{digest}" for name, digest in outcome.images),
            "error": outcome.message,
        }  # fmt: skip
    show(f"{name:10} {value}" for name, value in rows.items() if value != "")
    return 0


def _log(args: argparse.Namespace) -> int:
    from obuilder.cli.build import Screen
    from obuilder.cli.remote import as_client

    async def follow(client: "Client") -> None:
        ref = await client.find(args.id)
        with Screen(args.progress, args.color) as sink:
            async with client.follow(ref, offset=args.since, live=args.follow) as pieces:
                async for piece in pieces:
                    for event in piece.events:
                        sink(event)

    as_client(args, follow)
    return 0


def _cancel(args: argparse.Namespace) -> int:
    from obuilder.cli.remote import as_client

    async def cancel(client: "Client") -> list[str]:
        refs = [await client.find(name) for name in args.ids]
        return [ref.id for ref in refs if not await client.cancel(ref, args.reason)]

    for name in as_client(args, cancel):
        sys.stderr.write(f"{name} has ended already\n")
    return 0


def _rerun(args: argparse.Namespace) -> int:
    from obuilder.cli.remote import as_client, finished, followed

    progress = "quiet" if is_quiet(args) and args.progress != "json" else args.progress

    async def rerun(client: "Client") -> "tuple[Ref, list[State]]":
        ref = await client.rerun(await client.find(args.id))
        if args.detach:
            return ref, []
        if progress != "quiet":
            sys.stderr.write(f"job {ref.id} on {ref.pool}\n")
        return ref, await followed(client, args, [ref], progress)

    ref, states = as_client(args, rerun)
    if args.detach:
        sys.stdout.write(f"{ref.id}\n")
        return 0
    return finished(args, [ref], states, progress)


def _wait(args: argparse.Namespace) -> int:
    from obuilder.cli.remote import as_client, check_room, finished
    from obuilder.cluster.messages import Build
    from obuilder.engine.outputs import parse_output

    outputs = tuple(parse_output(text) for text in args.output)
    if any(output.is_image for output in outputs):
        raise UsageError(
            "artifacts are files, and no image", hint="submit with -o docker://NAME, or --push NAME"
        )
    if outputs and len(args.ids) > 1:
        raise UsageError("artifacts of several jobs can't be brought to one place")

    async def wait(client: "Client") -> "tuple[list[Ref], list[State]]":
        refs = [await client.find(name) for name in args.ids]
        for ref in refs if outputs else ():
            work = (await client.job(ref)).work
            if not isinstance(work, Build) or not work.artifacts:
                raise UsageError(
                    f"nothing comes back from the job {ref.id}",
                    hint="submit it with --artifact PATH",
                )
            check_room(outputs, work.artifacts)
        return refs, [await client.wait(ref) for ref in refs]

    refs, states = as_client(args, wait)
    if args.json:
        _json([_record(ref.pool, ref.id, state) for ref, state in zip(refs, states, strict=True)])
    progress = "json" if args.json else "quiet" if is_quiet(args) else "plain"
    return finished(args, refs, states, progress, outputs)


_ACTIONS = {
    "ls": ("list jobs, the newest first", _list),
    "show": ("tell all that is known of a job; of the newest if none is named", _show),
    "log": ("print a job's log; the newest one's if none is named", _log),
    "cancel": ("stop jobs, or have them not done", _cancel),
    "rerun": ("do a job again, the newest if none is named", _rerun),
    "wait": ("wait until jobs have ended; the exit status is theirs", _wait),
}
