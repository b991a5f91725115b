"""Builds on pools: what `submit` and `build --on` share, from the options to the exit status."""

import argparse
import os
import sys
from collections.abc import Awaitable, Callable, Container, Iterable
from typing import BinaryIO, TypeVar

import anyio
import msgspec
from msgspec import Struct

from obuilder import events
from obuilder.cli.build import Screen, wants_live
from obuilder.cli.options import credentials_of, is_quiet, is_verbose
from obuilder.cli.session import in_loop
from obuilder.cluster.client import Client, Ref, Wishes, error_of
from obuilder.cluster.messages import Build, Context, Form, Outcome, State
from obuilder.cluster.tasks import together
from obuilder.engine.outputs import Output, Wishes as ImageWishes, check
from obuilder.errors import BadImage, StoreError, UsageError
from obuilder.ui.messages import complain
from obuilder.values import IdMap

T = TypeVar("T")
_ARCHIVES = ("oci-archive", "docker-archive")
"""What a worker can send an image back as."""
_WAITS = 3.0
"""Seconds after which it is told that a job waits."""


class Order(Struct, frozen=True):
    """What is to be built: its context is sent once connected."""

    work: Build
    send: Callable[[Client, events.Sink], Awaitable[Context]]
    hint: Callable[[Context], str]
    outputs: tuple[Output, ...] = ()


def as_client(args: argparse.Namespace, work: Callable[[Client], Awaitable[T]]) -> T:
    """What `work` comes to, given a client connected with the credentials that the options name."""

    async def connected() -> T:
        async with Client.open(credentials_of(args, "client")) as client:
            return await work(client)

    return in_loop(connected)


def asked_of(order: Order) -> Build:
    """The work, with what its outputs ask of the worker. UsageError."""
    work, form = order.work, order.work.form
    pushed = [Output("registry", name=name) for name in work.push]
    check([*order.outputs, *pushed], ImageWishes(**msgspec.structs.asdict(form)))
    push, artifacts = list(work.push), list(work.artifacts)
    archive: Output | None = None
    for output in order.outputs:
        if output.kind == "registry":
            push.append(output.name)
        elif output.kind in _ARCHIVES and archive is None:
            archive = output
        elif output.is_image:
            raise UsageError(
                f"{output.kind} can't come from a pool" + (" as well" if archive else ""),
                hint="docker://NAME can, DIR, tar:FILE, -, and one image: oci-archive:FILE or"
                " docker-archive:FILE",
            )
        elif not artifacts:
            artifacts.append("/")
    check_room(order.outputs, artifacts)
    if not push and archive is None and form != Form(epoch=form.epoch):
        raise UsageError(
            "what an image is to be like is told, and none is made", hint="add -o docker://NAME"
        )
    return msgspec.structs.replace(
        work, push=tuple(push), artifacts=tuple(artifacts),
        archive=archive.kind if archive else "", archived_as=archive.name if archive else "",
    )  # fmt: skip


def check_room(outputs: Iterable[Output], artifacts: Container[str]) -> None:
    """UsageError: a whole result would be spilt over what is there already."""
    for output in outputs:
        path, whole = output.path, "/" in artifacts and output.kind == "directory"
        if whole and os.path.exists(path) and not (os.path.isdir(path) and not os.listdir(path)):
            raise UsageError(f"{path} is not an empty directory", hint="name a new directory")


async def pools_of(client: Client, on: str | None) -> list[str]:
    """The pools that were asked for: the only one, if none was. UsageError, NoSuchPool."""
    if on:
        wanted = [name for name in on.split(",") if name]
        if len(set(wanted)) < len(wanted):
            raise UsageError("a pool is asked for twice", hint="--on A,B has different ones")
        return [(await client.pool(name)).name for name in wanted]
    known = [pool.name for pool in await client.pools()]
    if len(known) != 1:
        hint = f"name some with --on: {', '.join(known)}" if known else None
        raise UsageError(
            "there is more than one pool" if known else "there are no pools", hint=hint
        )
    return known


def submit(args: argparse.Namespace, order: Order, wishes: Wishes, *, detach: bool) -> int:
    """Build on each pool that `--on` names. The exit status: the worst."""
    work = asked_of(order)
    # Standard output is the result's, or the job's name for programs.
    progress = "quiet" if detach or any(output.piped for output in order.outputs) else args.progress
    if is_quiet(args) and progress != "json":
        progress = "quiet"
    refs: list[Ref] = []

    async def go(client: Client) -> list[State]:
        pools = await pools_of(client, args.on)
        if len(pools) > 1 and any(o.kind in ("tar", *_ARCHIVES) for o in order.outputs):
            raise UsageError(
                "results of several pools can't go to one archive",
                hint="-o DIR has a directory for each",
            )
        if len(pools) > 1 and work.push:
            raise UsageError(
                f"several pools would push one name, {work.push[0]}",
                hint="submit to each alone, with a name for each",
            )
        say = _Said(quiet=progress == "quiet" or is_quiet(args))
        context = await order.send(client, say)
        chosen = wishes
        if not wishes.hint:
            chosen = msgspec.structs.replace(wishes, hint=order.hint(context))
        for pool in pools:
            refs.append(await client.submit(work, pool, context=context, wishes=chosen))
            if not detach:
                say.line(f"job {refs[-1].id} on {pool}")
        if detach:
            return []
        if wishes.attached:
            async with client.attached(refs):
                return await followed(client, args, refs, progress)
        return await followed(client, args, refs, progress)

    try:
        states = as_client(args, go)
    except KeyboardInterrupt:
        if refs and not wishes.attached:
            names = " ".join(ref.id for ref in refs)
            sys.stderr.write(
                f"\nit goes on without us: `obuilder job log -f {refs[0].id}` follows it,"
                f" `obuilder job cancel {names}` stops it\n"
            )
        raise
    if detach:
        sys.stdout.write("".join(f"{ref.id}\n" for ref in refs))
        return 0
    return finished(args, refs, states, progress, order.outputs)


class _Said:
    """Notes on standard error."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.Note):
            self.line(event.text)

    def line(self, text: str) -> None:
        if not self._quiet:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


# --- following -----------------------------------------------------------------------------------


class _Prefixed:
    """A stream in which every line says which pool it is of."""

    def __init__(self, name: str) -> None:
        self._prefix = f"[{name}] ".encode()
        self._open = b""

    def write(self, data: bytes) -> int:
        *whole, self._open = (self._open + data).split(b"\n")
        for line in whole:
            sys.stdout.buffer.write(self._prefix + line + b"\n")
        return len(data)

    def flush(self) -> None:
        sys.stdout.flush()


async def followed(
    client: Client, args: argparse.Namespace, refs: list[Ref], progress: str
) -> list[State]:
    """Show the logs of jobs until they have ended. Where they are then, in the same order."""
    states: dict[Ref, State] = {}
    live = len(refs) == 1 and wants_live(progress)
    say = _Said(quiet=progress == "quiet" or is_quiet(args))

    async def one(ref: Ref, sink: events.Sink) -> None:
        async with together() as tasks:
            tasks.start_soon(_tell_of_waiting, client, ref, sink if live else say)
            states[ref] = await _show(client, ref, sink)
            tasks.cancel_scope.cancel()

    if len(refs) == 1:
        if live:
            from obuilder.ui.live import LiveScreen
            from obuilder.ui.messages import colour_wanted

            with LiveScreen(sys.stdout, colour=colour_wanted(args.color, sys.stdout)) as screen:
                await one(refs[0], screen)
        else:
            with Screen(progress, args.color) as sink:
                await one(refs[0], sink)
    else:
        async with together() as tasks:
            for ref in refs:
                tasks.start_soon(one, ref, _sink_of(ref, progress, args.color))
    return [states[ref] for ref in refs]


async def _tell_of_waiting(client: Client, ref: Ref, say: events.Sink) -> None:
    """A job that nobody takes looks like one that hangs."""
    await anyio.sleep(_WAITS)
    if (await client.state(ref)).phase == "queued":
        text = f"no worker of {ref.pool} has taken it yet; `obuilder worker` starts one"
        say(events.Note(text=text))


async def _show(client: Client, ref: Ref, sink: events.Sink) -> State:
    """Show a job's log. Where the job is in the end, which is told even if it was never begun."""
    ended = False
    async with client.follow(ref) as pieces:
        async for piece in pieces:
            for event in piece.events:
                ended = ended or isinstance(event, events.BuildDone | events.BuildEnded)
                sink(event)
    state = await client.wait(ref)
    if state.phase != "done" and not ended:
        error = error_of(state.outcome or Outcome(), state.phase)
        sink(events.BuildEnded(code=error.code, message=error.message, seconds=0.0))
    return state


def _sink_of(ref: Ref, progress: str, color: str) -> events.Sink:
    """The sink of one of several jobs."""
    if progress == "quiet":
        return lambda _: None
    if progress == "json":
        from obuilder.ui.jsonl import as_json

        def put(event: events.Event) -> None:
            row = {"job": ref.id, "pool": ref.pool, **msgspec.to_builtins(event)}
            sys.stdout.buffer.write(as_json(row) + b"\n")
            sys.stdout.flush()

        return put
    from obuilder.ui.messages import colour_wanted
    from obuilder.ui.plain import PlainSink

    stream: BinaryIO = _Prefixed(ref.pool)  # type: ignore[assignment] # it only writes
    return PlainSink(
        stream, colour=colour_wanted(color, sys.stdout), guard=sys.stdout.isatty()
    )  # fmt: skip


# --- the end -------------------------------------------------------------------------------------


def finished(
    args: argparse.Namespace, refs: list[Ref], states: list[State], progress: str,
    outputs: tuple[Output, ...] = (),
) -> int:  # fmt: skip
    """Tell how jobs ended, and bring what they made: of several each to a directory of its pool's name.
    The exit status: the worst.
    """
    status = 0
    for ref, state in zip(refs, states, strict=True):
        outcome = state.outcome or Outcome()
        if state.phase != "done":
            error = error_of(outcome, state.phase)
            if len(refs) > 1:
                error.message = f"{ref.pool}: {error.message}"
            complain(error)
            status = max(status, error.exit_status)
            continue
        shown = "json" if any(output.piped for output in outputs) else progress
        _tell(args, ref, outcome, shown, several=len(refs) > 1)
        for output in outputs:
            digest = outcome.archive if output.is_image else outcome.artifacts
            if output.path and digest is not None:
                path = f"{output.path}/{ref.pool}" if len(refs) > 1 else output.path
                bring(args, digest, msgspec.structs.replace(output, path=path))
    return status


def _tell(
    args: argparse.Namespace, ref: Ref, outcome: Outcome, progress: str, *, several: bool
) -> None:
    if is_verbose(args):
        sys.stderr.write(f"{outcome.cached} steps from cache, {outcome.ran} run\n")
    for name, digest in outcome.images:
        sys.stderr.write(f"pushed {name}@{digest}\n")
    if outcome.result is None or progress == "json":
        return
    prefix = f"[{ref.pool}] " if several else ""
    said = outcome.result if progress == "quiet" else f'{prefix}Got: "{outcome.result}"'
    sys.stdout.write(f"{said}\n")


def bring(args: argparse.Namespace, digest: str, output: Output) -> None:
    """Write what a job sent back, an archive, to a place. ClusterError, StoreError."""
    as_client(args, lambda client: _fetch(client, digest, output))


async def _fetch(client: Client, digest: str, output: Output) -> None:
    if output.piped:
        async for piece in client.blobs.pieces(digest):
            sys.stdout.buffer.write(piece)
        return
    whole = output.kind != "directory"
    directory = os.path.dirname(output.path) or "." if whole else output.path
    try:
        os.makedirs(directory, exist_ok=True)
        draft = os.path.join(directory, f".obuilder-{os.urandom(6).hex()}.tar")
        try:
            with open(draft, "xb") as file:
                async for piece in client.blobs.pieces(digest):
                    file.write(piece)
            if whole:
                os.replace(draft, output.path)
            else:
                _unpack(draft, directory)
        finally:
            if os.path.lexists(draft):
                os.unlink(draft)
    except OSError as error:
        raise StoreError(f"can't write to {output.path}: {error.strerror}") from error


def _unpack(archive: str, directory: str) -> None:
    from obuilder.oci.layers import unpack

    with open(archive, "rb") as file:
        try:
            unpack(
                file, directory, IdMap(os.geteuid(), 1), lambda _: None, whiteouts=False
            )  # fmt: skip
        except BadImage as error:
            raise StoreError(f"the artifacts can't be unpacked: {error.message}") from error
