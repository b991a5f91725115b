"""The names of everything in the engine: streams, consumers, subjects. Pure.

A subject is `kind.part.part…`; every part is a token, so that a permission can be written for one pool,
one client or one worker. Names that people choose are checked once, when they are given to the
cluster (`checked`); free text (a cache hint) becomes a token by its hash (`hashed`).

    job.CLIENT.POOL.JOB.spec      the signed job                      stream JOBS_CLIENT
    job.CLIENT.POOL.JOB.state     its state, changed by compare-and-set
    job.CLIENT.POOL.JOB.cancel    somebody wants it no more
    job.CLIENT.POOL.JOB.lease     an attached client is there (with a time to live)
    log.CLIENT.POOL.JOB.ATTEMPT.PART   its events, in batches         stream LOGS_CLIENT
    blob.CLIENT.DIGEST.N          pieces of files, by content         stream BLOBS_CLIENT
    sub.CLIENT.POOL.u|n           tickets that wait, urgent or not    stream QUEUE_POOL (work queue)
    run.POOL.WORKER.u|n           tickets that wait for one worker
    worker.POOL.WORKER            it is there (with a time to live)   stream STATE_POOL
    known.POOL.WORKER             it was there once
    pause.POOL.WORKER             an administrator paused it
    fair.POOL.CLIENT              its rate and virtual time
    hint.POOL.HASH                who has the cache of it, and what it cost
    pool.POOL                     the pool: its platform, its key     stream CLUSTER
    client.CLIENT                 the client: its keys
    issued.KIND.POOL.NAME         the keys of a worker; of a viewer, without a pool: -
    ctl.POOL.WORKER.VERB          what a worker is told               not stored
    ask.POOL.WORKER.VERB          what a worker is asked
    bell.POOL                     one of the idle workers is to look at the queue
"""

import hashlib
import re
import secrets
import time

from obuilder.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", re.ASCII)
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def checked(kind: str, name: str) -> str:
    """A name that somebody chose for a `kind` of thing, if it can be one. UsageError."""
    if _NAME.fullmatch(name):
        return name
    raise UsageError(
        f"{name!r} can't be the name of a {kind}",
        hint="take up to 63 letters, digits, - and _, a letter or digit first",
    )


def hashed(text: str) -> str:
    """A token for any text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def new_job() -> str:
    """A name for a job: 26 characters, the later the greater, and never given twice."""
    number = int(time.time() * 1000) << 80 | secrets.randbits(80)
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


# --- streams -------------------------------------------------------------------------------------

CLUSTER = "CLUSTER"
"""The stream of pools and clients."""


def jobs_of(client: str) -> str:
    """The stream of a client's jobs."""
    return f"JOBS_{client}"


def logs_of(client: str) -> str:
    """The stream of their logs."""
    return f"LOGS_{client}"


def blobs_of(client: str) -> str:
    """The stream of files that go with them."""
    return f"BLOBS_{client}"


def queue_of(pool: str) -> str:
    """The stream of tickets that wait in a pool."""
    return f"QUEUE_{pool}"


def state_of(pool: str) -> str:
    """The stream of what else is known of a pool."""
    return f"STATE_{pool}"


# --- consumers of a pool's queue -----------------------------------------------------------------


def waiting(client: str, *, urgent: bool) -> str:
    """The consumer of a client's tickets."""
    return f"c_{client}_{'u' if urgent else 'n'}"


def running(worker: str, *, urgent: bool) -> str:
    """The consumer of tickets that wait for one worker."""
    return f"w_{worker}_{'u' if urgent else 'n'}"


# --- subjects ------------------------------------------------------------------------------------


def job(client: str, pool: str, job: str, part: str) -> str:
    """A part of a job: spec, state, cancel, lease; * for any."""
    return f"job.{client}.{pool}.{job}.{part}"


def log(client: str, pool: str, job: str, attempt: int | str = "*", part: str = "*") -> str:
    """The log of a job: of one attempt at it, and one part of that (`logs.py` says which)."""
    return f"log.{client}.{pool}.{job}.{attempt}.{part}"


def blob(client: str, digest: str, number: int | str = "*") -> str:
    """A piece of a file; `end`: that all its pieces are there."""
    return f"blob.{client}.{digest}.{number}"


def ticket(client: str, pool: str, *, urgent: bool) -> str:
    """Where a client's tickets are put."""
    return f"sub.{client}.{pool}.{'u' if urgent else 'n'}"


def forwarded(pool: str, worker: str, *, urgent: bool) -> str:
    """Where tickets for one worker are put."""
    return f"run.{pool}.{worker}.{'u' if urgent else 'n'}"


def worker(pool: str, name: str = "*") -> str:
    """That a worker is there."""
    return f"worker.{pool}.{name}"


def known(pool: str, name: str = "*") -> str:
    """That a worker was there once."""
    return f"known.{pool}.{name}"


def pause(pool: str, name: str = "*") -> str:
    """That a worker is paused by an administrator."""
    return f"pause.{pool}.{name}"


def fair(pool: str, client: str = "*") -> str:
    """What a client has had of a pool."""
    return f"fair.{pool}.{client}"


def hint(pool: str, text: str) -> str:
    """Who has the cache of a hint."""
    return f"hint.{pool}.{hashed(text)}"


def pool(name: str = "*") -> str:
    """A pool."""
    return f"pool.{name}"


def client(name: str = "*") -> str:
    """A client."""
    return f"client.{name}"


def issued(kind: str = "*", pool: str = "*", name: str = "*") -> str:
    """The keys that credentials were made with."""
    return f"issued.{kind}.{pool}.{name}"


def control(pool: str, worker: str, verb: str = "*") -> str:
    """What a worker is told: update, shutdown."""
    return f"ctl.{pool}.{worker}.{verb}"


def bell(pool: str) -> str:
    """Where workers tell one another of tickets; it stays in their account."""
    return f"bell.{pool}"


def question(pool: str, worker: str, verb: str = "*") -> str:
    """What a worker is asked: metrics, ping."""
    return f"ask.{pool}.{worker}.{verb}"
