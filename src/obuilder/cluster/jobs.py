"""Carrying out one job on a worker: its files, its build, and where its results go."""

import hashlib
import inspect
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import entry_points
from typing import cast

import anyio.to_thread
import msgspec
from msgspec import Struct

from obuilder import events
from obuilder.cluster.blobs import Blobs
from obuilder.cluster.contexts import IN_USE, Contents, materialise
from obuilder.cluster.git import Repositories
from obuilder.cluster.messages import (
    Build,
    Context,
    Custom,
    FilesContext,
    GitContext,
    Job,
    NoContext,
    Outcome,
)
from obuilder.engine.builder import Builder
from obuilder.engine.dockerfiles import convert
from obuilder.engine.export import export
from obuilder.engine.inputs import Contexts
from obuilder.engine.lockfile import Lock
from obuilder.engine.outputs import Output, Wishes, parse_output
from obuilder.engine.settings import Images, Settings
from obuilder.engine.takeout import take_out
from obuilder.errors import NotFound, ObuilderError, Refused, UsageError
from obuilder.oci.archive import write_tar
from obuilder.oci.members import Manner
from obuilder.oci.platforms import host_platform, parse_platform
from obuilder.oci.reference import Reference
from obuilder.spec.decode import parse
from obuilder.spec.dockerfile import parse as parse_dockerfile
from obuilder.spec.from_dockerfile import Options
from obuilder.spec.model import Spec
from obuilder.spec.stages import target
from obuilder.system.linux import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from obuilder.values import IdMap

GROUP = "obuilder.jobs"
"""The group of entry points for kinds of custom jobs."""
_LARGEST_SPEC = 16 << 20
_FILES = 10 << 30
"""Bytes of files from clients that are kept from one job to the next."""
_CLONES = 30 * 24 * 3600.0
"""Seconds for which a clone is kept that no job has asked for."""


class Call(Struct, frozen=True):
    """What a custom job is given: see `Kind`."""

    job: Job
    payload: bytes
    directory: str
    """The files of its context; empty without one."""
    secrets: Mapping[str, bytes]
    builder: Builder
    sink: events.Sink
    """Takes events for its log; `events.Note(text)` says something, and never waits."""


Kind = Callable[[Call], Awaitable[bytes]]
"""A kind of custom job: an async function that an entry point of `GROUP` names.

What it returns is `Outcome.value`. An ObuilderError fails the job with its message and exit status;
being cancelled is being cancelled. It must not block the event loop.
"""


def _unwatched(sink: events.Sink, _: Job) -> events.Sink:
    return sink


class Shop(Struct, frozen=True):
    """What jobs are carried out with."""

    builder: Builder
    repositories: Repositories
    contents: Contents
    scratch: str
    blobs: Callable[[str], Blobs]
    """The files of a client."""
    may_push: tuple[str, ...] = ()
    """Repositories that images may be pushed to: HOST/NAME, or HOST/PART/* for all below."""
    watched: Callable[[events.Sink, Job], events.Sink] = _unwatched
    """Makes the sink of a build one that somebody else watches too."""

    async def tidy(self, *, scarce: bool) -> None:
        """Let go of files and clones that no job has used for long; where room is scarce, of all
        that none can be using.
        """
        unused = IN_USE if scarce else _CLONES
        await anyio.to_thread.run_sync(self.contents.trim, 0 if scarce else _FILES)
        await anyio.to_thread.run_sync(self.repositories.trim, unused)


async def carry_out(
    shop: Shop, job: Job, secrets: Mapping[str, bytes], sink: events.Sink
) -> Outcome:
    """Do a job. Whatever is wrong is raised: ObuilderError."""
    if isinstance(job.work, Build):
        names = [_pushed(name, shop.may_push) for name in job.work.push]
        async with _files(shop, job, sink) as where:
            return await _build(shop, job, job.work, where, secrets, names, sink)
    async with _files(shop, job, sink) as where:
        call = Call(
            job, job.work.payload, where.directory if where else "", secrets, shop.builder, sink
        )
        return Outcome(value=await _kind(job.work)(call))


def _kind(work: Custom) -> Kind:
    """What carries out a custom job. Refused."""
    kinds = {point.name: point for point in entry_points(group=GROUP)}
    if work.kind not in kinds:
        known = ", ".join(sorted(kinds))
        raise Refused(
            f"this worker knows no jobs of the kind {work.kind!r}",
            hint=f"it knows {known}" if known else f"install one: an entry point of {GROUP}",
        )
    try:
        found = kinds[work.kind].load()
    except Exception as error:
        raise Refused(f"the kind of jobs {work.kind!r} can't be loaded: {error}") from error
    if not inspect.iscoroutinefunction(found):
        raise Refused(f"the kind of jobs {work.kind!r} is no async function")
    return cast("Kind", found)


# --- files -------------------------------------------------------------------------------------


@asynccontextmanager
async def _files(shop: Shop, job: Job, sink: events.Sink) -> AsyncIterator[Contexts | None]:
    """The files of a job's context; None without one."""
    context: Context = job.context
    match context:
        case NoContext():
            yield None
        case GitContext():

            def tell(text: str) -> None:
                sink(events.Note(text=text))

            async with shop.repositories.files(context, tell) as directory:
                yield Contexts(directory)
        case FilesContext(manifest=manifest):
            with tempfile.TemporaryDirectory(dir=shop.scratch) as place:
                directory = os.path.join(place, "context")
                blobs = shop.blobs(job.client)
                yield await materialise(blobs, shop.contents, manifest, directory)


# --- builds ------------------------------------------------------------------------------------


async def _build(
    shop: Shop,
    job: Job,
    work: Build,
    where: Contexts | None,
    secrets: Mapping[str, bytes],
    push: list[str],
    sink: events.Sink,
) -> Outcome:
    setup = _settings(shop.builder.settings, work)
    with tempfile.TemporaryDirectory(dir=shop.scratch) as empty:
        contexts = where or Contexts(empty)
        if work.text_at:
            text = await shop.blobs(job.client).get(work.text_at, most=_LARGEST_SPEC)
        else:
            text = _text(work, contexts.directory)
        spec, contexts = await _spec(work, text, contexts, setup, sink)
        result = await shop.builder.build(
            spec, contexts, secrets=secrets, sink=shop.watched(sink, job), fresh=work.fresh,
            name=f"{job.client} {job.hint or work.file}", images=setup.images, limits=work.limits,
        )  # fmt: skip
    finals = {} if result.final is None else {str(result.key): result.final}
    form = Wishes(**msgspec.structs.asdict(work.form))
    images = []
    for name in push:
        said: list[str] = []

        def hear(event: events.Event, said: list[str] = said) -> None:
            if isinstance(event, events.Note):
                said.append(event.text)
            sink(event)

        output = parse_output(f"docker://{name}")
        await export(shop.builder, [result.key], output, form, finals=finals, sink=hear)
        digest = next((text.rpartition("@")[2] for text in said if "@sha256:" in text), "")
        images.append((name, digest))
    archive = artifacts = None
    with tempfile.TemporaryDirectory(dir=shop.scratch) as place:
        if work.archive:
            path = os.path.join(place, "image.tar")
            output = Output(work.archive, path, work.archived_as)
            await export(shop.builder, [result.key], output, form, finals=finals, sink=sink)
            archive = await _sent(shop, job, path, sink)
        if work.artifacts:
            path = await _artifacts(shop, result.key, work.artifacts, place)
            artifacts = await _sent(shop, job, path, sink)
    return Outcome(
        result=result.key, images=tuple(images), artifacts=artifacts, archive=archive,
        cached=result.cached, ran=result.ran,
    )  # fmt: skip


def _settings(settings: Settings, work: Build) -> Settings:
    """A worker's settings, with the images that a build asks for. UsageError."""
    lock = Lock("what the client locked", dict(work.locked)) if work.locked else None
    platform = parse_platform(work.platform) if work.platform else settings.images.platform
    images = Images(pull=work.pull or settings.images.pull, platform=platform, lock=lock)
    return msgspec.structs.replace(settings, images=images)


def _text(work: Build, directory: str) -> bytes:
    """The text of the spec: the job's own, or that of a file of its context. UsageError."""
    if work.text is not None:
        return os.fsencode(work.text)
    top = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
        fd = openat2(work.file, os.O_RDONLY | os.O_NONBLOCK, at=top, resolve=resolve)
    except OSError as error:
        raise UsageError(
            f"the context has no {work.file}: {error.strerror}", hint="name the spec's file"
        ) from error
    finally:
        os.close(top)
    with os.fdopen(fd, "rb") as file:
        if not os.path.isfile(f"/proc/self/fd/{fd}"):
            raise UsageError(f"{work.file} of the context is no file")
        return file.read(_LARGEST_SPEC)


async def _spec(
    work: Build, text: bytes, contexts: Contexts, setup: Settings, sink: events.Sink
) -> tuple[Spec, Contexts]:
    """The spec that a job is of, and its files. SpecErrors, UsageError, FetchError."""
    if work.language == "spec":
        if work.build_args:
            raise UsageError("build arguments are for Dockerfiles", hint="a spec has none")
        spec = parse(text, file=work.file).spec
        return (target(spec, work.target) if work.target else spec), contexts
    options = Options(
        host_platform(), setup.images.platform, work.build_args, contexts.named, work.target,
        (work.network,),
    )  # fmt: skip
    dockerfile = parse_dockerfile(text, file=work.file)
    # It may ask registries, in an event loop of its own.
    found = await anyio.to_thread.run_sync(convert, dockerfile, options, setup)
    for warning in found.warnings:
        sink(events.Note(text=warning, warning=True))
    ignore = contexts.ignore or tuple(
        os.path.join(contexts.directory, name)
        for name in (f"{work.file}.dockerignore", ".dockerignore")
    )
    return found.spec, msgspec.structs.replace(contexts, ignore=ignore, places=found.places)


def _pushed(name: str, allowed: tuple[str, ...]) -> str:
    """A name that may be pushed. Refused, UsageError."""
    try:
        reference = Reference.parse(name)
    except NotFound as error:
        raise UsageError(error.message, hint=error.hint) from error
    place = f"{reference.registry}/{reference.repository}"
    for wanted in allowed:
        if wanted.endswith("/*"):
            if place.startswith(wanted[:-1]):
                return name
            continue
        with_defaults = Reference.parse(wanted)
        if place == f"{with_defaults.registry}/{with_defaults.repository}":
            return name
    raise Refused(
        f"this worker may not push to {place}",
        hint="whoever runs it allows it with --allow-push REPOSITORY",
    )


async def _artifacts(shop: Shop, key: str, paths: tuple[str, ...], place: str) -> str:
    """Paths of a result as one tar archive: a file in `place`. UsageError for one that isn't there."""
    archive = os.path.join(place, "artifacts.tar")
    if "/" in paths:
        with open(archive, "xb") as file:
            async with shop.builder.files(key) as root:
                own = Manner(shop.builder.store.idmap)
                await anyio.to_thread.run_sync(write_tar, root, file, own)
        return archive
    tree = os.path.join(place, "tree")
    os.mkdir(tree, 0o755)
    for path in paths:
        inside = os.path.normpath(f"/{path}")
        target = os.path.join(tree, os.path.dirname(inside).lstrip("/"))
        os.makedirs(target, exist_ok=True)
        await take_out(shop.builder, key, path, target)
    with open(archive, "xb") as file:
        manner = Manner(IdMap(first=os.geteuid(), count=1))
        await anyio.to_thread.run_sync(write_tar, tree, file, manner)
    return archive


async def _sent(shop: Shop, job: Job, path: str, sink: events.Sink) -> str:
    """Send a file to the job's client. Its digest."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        digest = await anyio.to_thread.run_sync(_digest, path)
        if not await shop.blobs(job.client).send(fd, digest):
            raise UsageError("the artifacts changed while they were sent")
    finally:
        os.close(fd)
    sink(events.Note(text=f"sent {os.path.basename(path)}, {size / 1e6:.1f} MB"))
    return digest


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def outcome_of(error: ObuilderError) -> Outcome:
    """How a job ended that failed with an error."""
    message = error.message if error.hint is None else f"{error.message} ({error.hint})"
    return Outcome(code=error.code, message=message, exit_status=error.exit_status)
