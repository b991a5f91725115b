"""What goes over the wire, versioned; knows no transport. Pure.

Every message is msgpack of a Struct with its `v`. A reader takes fields it does not know for nothing, so
fields may be added with a default; anything else raises the number, and a message with a
greater one than ours is refused (`Incompatible`) by who can't do without it.
"""

from typing import Literal, TypeVar

import msgspec
from msgspec import Struct

from obuilder.errors import Incompatible
from obuilder.values import Key, Limits, Pull

VERSION = 1
M = TypeVar("M", bound="Message")


class Message(Struct, frozen=True, kw_only=True):
    """Anything that goes over the wire by itself."""

    v: int = VERSION


def encode(message: Message) -> bytes:
    """A message as bytes."""
    return msgspec.msgpack.encode(message)


def decode(data: bytes, kind: type[M]) -> M:
    """A message of that kind. Incompatible."""
    try:
        found = msgspec.msgpack.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise Incompatible(f"that is no {kind.__name__} of ours: {error}") from error
    if found.v > VERSION:
        raise Incompatible(
            f"a {kind.__name__} of version {found.v} came, and this obuilder knows {VERSION}",
            hint="update this one",
        )
    return found


# --- what a job is -------------------------------------------------------------------------------


class GitContext(Struct, frozen=True, tag="git"):
    """The files of commits: the first is checked out, the others are merged into it."""

    url: str
    commits: tuple[str, ...]
    """Whole commit ids (40 or 64 hexadecimal digits)."""
    include_git: bool = False
    """Whether .git is among the files."""
    submodules: bool = True
    directory: str = ""
    """The part of the files that is the context; empty: all."""


class FilesContext(Struct, frozen=True, tag="files"):
    """Files that the client sent: the digest of a blob that lists them."""

    manifest: str


class NoContext(Struct, frozen=True, tag="none"):
    """No files."""


Context = GitContext | FilesContext | NoContext


class Form(Struct, frozen=True):
    """How images are made of a result: see `engine.outputs.Wishes`, whose words these are."""

    squash: bool = False
    compression: Literal["gzip", "zstd"] = "gzip"
    epoch: int | None = None
    reproducible: bool = False
    annotations: tuple[tuple[str, str], ...] = ()
    sbom: bool = False


class Build(Struct, frozen=True, tag="build"):
    """A build of a spec or a Dockerfile."""

    text: str | None = None
    """The spec itself; None: it is the file `file` of the context, or the blob `text_at`."""
    text_at: str = ""
    """The digest of a blob that is the spec, where that is too long for a message."""
    file: str = "obuilder.spec"
    language: Literal["spec", "dockerfile"] = "spec"
    target: str = ""
    build_args: tuple[tuple[str, str], ...] = ()
    network: Literal["host", "none"] = "host"
    """Of a Dockerfile's RUN that names none."""
    platform: str | None = None
    pull: Pull | None = None
    """When registries are asked; None: as the worker has it."""
    limits: Limits = Limits()
    """For steps that set none of their own, where they are set; else the worker's."""
    fresh: bool = False
    """Run every step again."""
    push: tuple[str, ...] = ()
    """Names of images that the result is pushed as."""
    form: Form = Form()
    """Of these images, and of that in an archive."""
    archive: Literal["", "oci-archive", "docker-archive"] = ""
    """The kind of archive that is sent back with an image of the result; empty: none."""
    archived_as: str = ""
    """The tag, or for Docker the name, that the image has there."""
    artifacts: tuple[str, ...] = ()
    """Paths in the result that are sent back, as one tar archive."""
    locked: tuple[tuple[str, str], ...] = ()
    """What names of base images stand for: names and digests. Empty: the worker resolves them."""


class Custom(Struct, frozen=True, tag="custom"):
    """A job of somebody's own kind: an entry point of the group `obuilder.jobs`."""

    kind: str
    payload: bytes = b""


class Job(Message, frozen=True, kw_only=True):
    """What is to be done."""

    id: str
    client: str
    pool: str
    work: Build | Custom
    context: Context = NoContext()
    title: str = ""
    """A line for people: what is built."""
    hint: str = ""
    """Jobs with the same one have much of their cache in common; empty: nothing is known."""
    urgent: bool = False
    slots: int = 1
    """Of the worker's capacity."""
    memory: int | None = None
    """Bytes that the worker must have free of its share; None: no matter."""
    cpus: float | None = None
    seconds: float | None = None
    """The time it may take, once it runs."""
    attempts: int = 3
    """Workers that may die of it before it is failed."""
    secrets: tuple[tuple[str, bytes], ...] = ()
    """Ids, and values sealed to the pool's key."""
    attached: bool = False
    """Whether it is cancelled when its client is gone."""
    submitted: float = 0.0
    """Seconds since 1970, by the client's clock."""
    rerun: str = ""
    """The job that it does again."""
    trace: str = ""
    """The trace's context that its spans belong to, as TRACEPARENT has it."""


class Signed(Message, frozen=True, kw_only=True):
    """A job as its client signed it: ed25519 by `key` (a public key in NATS's form) of `job`'s bytes."""

    job: bytes
    key: str
    signature: bytes


class Ticket(Message, frozen=True, kw_only=True):
    """A job's place in a queue: what has to be known to choose it."""

    id: str
    client: str
    hint: str = ""
    urgent: bool = False
    slots: int = 1
    memory: int | None = None
    cpus: float | None = None
    forwarded: str = ""
    """The worker it was sent on to."""


Phase = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED: frozenset[Phase] = frozenset(("done", "failed", "cancelled"))


class Outcome(Struct, frozen=True):
    """How a job ended: `code` and `message` of its error, or empty; what came of it."""

    code: str = ""
    message: str = ""
    exit_status: int = 0
    """What `obuilder build` would have ended with."""
    result: Key | None = None
    images: tuple[tuple[str, str], ...] = ()
    """Names that were pushed, and their digests."""
    artifacts: str | None = None
    """The digest of a blob, a tar archive."""
    archive: str | None = None
    """The digest of a blob, an image in an archive."""
    cached: int = 0
    ran: int = 0
    value: bytes = b""
    """What a custom job returned."""


class State(Message, frozen=True, kw_only=True):
    """Where a job is. Changed by compare-and-set alone; `attempt` fences who was thought dead."""

    phase: Phase = "queued"
    attempt: int = 0
    """The number of the worker that has it, or had it last, from 1."""
    returned: int = 0
    """How many of these gave it back unharmed: they don't count as workers that died of it."""
    worker: str = ""
    session: str = ""
    submitted: float = 0.0
    started: float | None = None
    """Of the last attempt. All times are seconds since 1970."""
    ended: float | None = None
    outcome: Outcome | None = None
    log_end: int | None = None
    """How many batches its log has, once it has ended."""
    title: str = ""
    hint: str = ""
    urgent: bool = False
    warm: bool = False
    """Whether the worker was thought to have the cache of its hint."""


class Cancel(Message, frozen=True, kw_only=True):
    """A job is not wanted any more."""

    reason: str = ""
    at: float = 0.0


# --- what workers say ----------------------------------------------------------------------------

Reason = Literal["admin", "worker", "shutdown", "health", "disk", "starting"]


class Running(Struct, frozen=True):
    """A job on a worker."""

    id: str
    client: str
    slots: int
    started: float
    urgent: bool = False
    forwarded: bool = False
    """Whether its ticket was sent on to this worker."""


class Presence(Message, frozen=True, kw_only=True):
    """A worker's heart-beat. `session` is new each time it starts."""

    pool: str
    name: str
    session: str
    capacity: int
    in_use: int
    paused: tuple[tuple[Reason, str], ...] = ()
    """Why it takes no jobs, each with a line of text; empty: it does."""
    running: tuple[Running, ...] = ()
    memory: int | None = None
    """Bytes, and processors, that jobs may use together."""
    cpus: float | None = None
    platform: str = ""
    version: str = ""
    store: str = ""
    sandbox: str = ""
    host: str = ""
    free: int | None = None
    """Bytes in the store, of `total`."""
    total: int | None = None
    since: float = 0.0
    at: float = 0.0
    load: float = 0.0
    accepted: int = 0
    """Jobs since it started."""
    hits: int = 0
    """Steps that were cached since it started, and steps that ran."""
    misses: int = 0


class Known(Message, frozen=True, kw_only=True):
    """A worker that was there once."""

    first: float
    last: float


class Paused(Message, frozen=True, kw_only=True):
    """A worker is paused by an administrator."""

    reason: str = ""
    by: str = ""
    at: float = 0.0


class Share(Message, frozen=True, kw_only=True):
    """What a client has had of a pool: start-time fair queueing. `time` is virtual, in seconds."""

    rate: float = 1.0
    time: float = 0.0
    floor: float = 0.0
    """The pool's virtual time when the client was last charged; the greatest of all is the pool's."""
    limit: int = 0
    """Jobs of it that may run at a time; 0: any number."""


class Warmth(Message, frozen=True, kw_only=True):
    """Who has the cache of a hint, with the time of the last use; what jobs of it took, in seconds."""

    workers: tuple[tuple[str, float], ...] = ()
    making: tuple[tuple[str, str, float], ...] = ()
    """Workers, with their sessions, that run a job of it without the cache since then."""
    cold: float | None = None
    warm: float | None = None


class Pool(Message, frozen=True, kw_only=True):
    """A pool of workers."""

    name: str
    platform: str = ""
    """What all its workers must be; empty: anything."""
    key: bytes = b""
    """Secrets are sealed to it (X25519)."""
    signature: bytes = b""
    """By the cluster's key, of the message with an empty signature."""
    cold: float = 600.0
    """Seconds of a job of which nothing is known and nothing is cached, and of one that is cached."""
    warm: float = 10.0


class Client(Message, frozen=True, kw_only=True):
    """A client, and the public keys that sign its jobs."""

    name: str
    keys: tuple[str, ...] = ()
    added: float = 0.0
    revoked: bool = False
    signature: bytes = b""


class Issued(Message, frozen=True, kw_only=True):
    """The public keys of a worker or a viewer, so that it can be cut off by its name."""

    keys: tuple[str, ...] = ()
    added: float = 0.0


# --- answers of workers to requests ----------------------------------------------------------


class Answer(Message, frozen=True, kw_only=True):
    """Of a worker to a request."""

    ok: bool = True
    text: str = ""
    data: bytes = b""
