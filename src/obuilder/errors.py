"""Every exception obuilder raises on purpose, with its machine-readable code and exit status.

    ObuilderError
    ├── UsageError 2           SpecError · ConfigError · UnknownBackend · BackendMismatch · Unsupported
    ├── StepFailed 1           StepTimedOut · LimitHit
    ├── BackendUnavailable 3
    ├── StoreError 4           SnapshotMissing · StoreFull · StoreDamaged · StoreBusy ·
    │                          SandboxError · CopyError
    ├── FetchError 5           NotFound · Denied · DigestMismatch · Unreachable · BadImage
    └── ClusterError 6         Refused · NoSuchPool · Incompatible

A non-zero exit of a command is a value; a broken sandbox is an exception; cancelling is cancelling
(exit status 130). Clean-up errors are notes on the first error (`add_note`), never in its place.
"""

import errno

from obuilder.values import Key, Span, shown


class ObuilderError(Exception):
    """Something a person should read: what went wrong, where, and what to do about it."""

    code = "error"
    exit_status = 70

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ObuilderError):
    """The request itself can't be carried out as it stands."""

    code = "usage"
    exit_status = 2


class SpecError(UsageError):
    """A fault in a build spec, with its place. `span` is None when there is no one place.

    `excerpt` is the line (or what fits of it) before the place, at it, and after it.
    """

    code = "spec"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        span: Span | None = None,
        file: str = "",
        excerpt: tuple[str, str, str] = ("", "", ""),
    ) -> None:
        super().__init__(message, hint=hint)
        self.span = span
        self.file = file
        self.excerpt = excerpt


class SpecErrors(SpecError):
    """All the faults found in one spec, in the order of the text."""

    def __init__(self, errors: "list[SpecError]") -> None:
        first = errors[0]
        super().__init__(
            first.message,
            hint=first.hint,
            span=first.span,
            file=first.file,
            excerpt=first.excerpt,
        )
        self.errors = errors


class ConfigError(UsageError):
    """A fault in a config file or an OBUILDER_* variable."""

    code = "config"


class UnknownBackend(UsageError):
    """No store, sandbox or fetcher goes by that name."""

    code = "unknown-backend"


class BackendMismatch(UsageError):
    """The store produces a kind of root that the sandbox does not accept."""

    code = "backend-mismatch"


class Unsupported(UsageError):
    """The spec needs a feature this sandbox does not have; refused before anything runs."""

    code = "unsupported"


def not_text(text: str) -> Unsupported:
    """The error for bytes where a sandbox takes text only."""
    return Unsupported(
        f"this sandbox takes UTF-8 only, which '{shown(text)[:60]}' is not",
        hint=r"let the command make such bytes itself, as with printf '\377'",
    )


class StepFailed(ObuilderError):
    """A command of the spec ended with another status than 0 (or by a signal)."""

    code = "step-failed"
    exit_status = 1

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        key: Key | None = None,
        heading: str = "",
        status: int | None = None,
        tail: bytes = b"",
    ) -> None:
        super().__init__(message, hint=hint)
        self.key = key
        self.heading = heading
        self.status = status
        self.tail = tail


class StepTimedOut(StepFailed):
    """The step was killed at its time limit."""

    code = "step-timed-out"


class LimitHit(StepFailed):
    """The step was killed at its memory limit, or refused more processes."""

    code = "limit-hit"


class BackendUnavailable(ObuilderError):
    """A back end can't work here: what is missing, why it is needed, how to get it."""

    code = "backend-unavailable"
    exit_status = 3


class StoreError(ObuilderError):
    """The store, or what stands on it, did not do its part."""

    code = "store"
    exit_status = 4


class SnapshotMissing(StoreError):
    """The index promised a snapshot that the store does not have."""

    code = "snapshot-missing"


class StoreFull(StoreError):
    """No space, or no inodes, left on the store's file system."""

    code = "store-full"


def of_disk(what: str, error: OSError, other: type[ObuilderError] = StoreError) -> ObuilderError:
    """What it means that a file of the store can't be had: StoreFull for no room, else `other`."""
    message = f"{what}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(message, hint="`obuilder prune` makes room")
    return other(message)


class StoreDamaged(StoreError):
    """What is on disk is not what was put there."""

    code = "store-damaged"


class StoreBusy(StoreError):
    """Something still holds what was to be published or removed."""

    code = "store-busy"


class SandboxError(StoreError):
    """The sandbox itself failed, not the command in it."""

    code = "sandbox"


class CopyError(StoreError):
    """Files could not be copied as asked: missing, changed meanwhile, of a kind that can't be."""

    code = "copy"


class FetchError(ObuilderError):
    """A base image could not be had."""

    code = "fetch"
    exit_status = 5


class NotFound(FetchError):
    """There is no such image."""

    code = "image-not-found"


class Denied(FetchError):
    """The image is there, but not for us."""

    code = "image-denied"


class DigestMismatch(FetchError):
    """What came is not what was promised."""

    code = "digest-mismatch"


class Unreachable(FetchError):
    """The source of the image did not answer."""

    code = "unreachable"


class BadImage(FetchError):
    """The image or archive is malformed, or asks for something no image may ask for."""

    code = "bad-image"


class ClusterError(ObuilderError):
    """The cluster did not do its part."""

    code = "cluster"
    exit_status = 6


class Refused(ClusterError):
    """The cluster does not let us do that."""

    code = "refused"


class NoSuchPool(ClusterError):
    """There is no pool of that name."""

    code = "no-such-pool"


class Incompatible(ClusterError):
    """The other side, or the engine, is of a version that this one can't speak with."""

    code = "incompatible"
