"""Where results go: one word for each place, as skopeo has them and base images are named.

Pure, so that what can't be is refused before a build begins.
"""

import re
from typing import Literal, get_args

from msgspec import Struct

from obuilder.errors import NotFound, UsageError
from obuilder.oci.reference import Reference

TYPE_CHECKING = False
if TYPE_CHECKING:  # most results are not signed
    from obuilder.oci.signing import PrivateKey

Kind = Literal[
    "directory", "tar", "oci", "oci-archive", "docker-archive", "docker-daemon", "registry"
]
Compression = Literal["gzip", "zstd"]
COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)

_FORMS = (
    "DIR or directory:DIR", "tar:FILE", "oci:DIR[:TAG]", "oci-archive:FILE[:TAG]",
    "docker-archive:FILE[:NAME]", "docker-daemon:NAME", "docker://NAME",
)  # fmt: skip
FORMS = ", ".join(_FORMS) + "; a FILE of - is standard output, and - alone a tar to it"
"""For messages."""
LOCAL_BUILDER = "urn:obuilder:local"
"""Who builds, if nobody says more."""
_TAG = re.compile(r"[A-Za-z0-9_][\w.-]{0,127}", re.ASCII)
_ANNOTATION = re.compile(r"[!-<>-~]+", re.ASCII)


class Output(Struct, frozen=True):
    """A place: the path of a file or directory, and the tag or name of an image there."""

    kind: Kind
    path: str = ""
    name: str = ""

    @property
    def piped(self) -> bool:
        """Whether it goes to standard output."""
        return self.path == "-"

    @property
    def is_image(self) -> bool:
        """Whether an image is written, and not files alone."""
        return self.kind not in ("directory", "tar")

    @property
    def holds_indexes(self) -> bool:
        """Whether one name can stand for images of several platforms there."""
        return self.kind in ("oci", "oci-archive", "registry")


class Wishes(Struct, frozen=True):
    """How results are taken out. What concerns images alone is refused for files."""

    names: tuple[str, ...] = ()
    """More names for the image."""
    squash: bool = False
    """One layer for all steps."""
    compression: Compression = "gzip"
    epoch: int | None = None
    """Seconds since 1970 that an image says it was made at; None: when its last step was."""
    reproducible: bool = False
    """No time of a file is later than `epoch`, 0 if there is none."""
    annotations: tuple[tuple[str, str], ...] = ()
    provenance: bool = False
    sbom: bool = False
    """These go along with an image, and so does a signature, if there is who signs."""
    signer: "PrivateKey | None" = None
    builder_id: str = LOCAL_BUILDER
    """Who built it: a URI."""

    @property
    def papers(self) -> bool:
        """Whether anything goes along with an image."""
        return self.provenance or self.sbom or self.signer is not None

    def made(self, created: float) -> float:
        """When something says that it was made which was made then, in seconds since 1970."""
        if self.epoch is not None:
            return self.epoch
        return 0 if self.reproducible else created

    @property
    def latest(self) -> int | None:
        """The latest time that files may have."""
        return (self.epoch or 0) if self.reproducible else None


def parse_output(text: str) -> Output:
    """The place that a word names. UsageError."""
    if text == "-":
        return Output("tar", "-")
    kind, colon, rest = text.partition(":")
    if not colon and text:
        return Output("directory", text)
    if kind == "docker" and rest.startswith("//"):
        name = rest[2:]
        return Output("registry", name=name and whole_name(name))
    if colon and rest:
        if kind in ("directory", "tar"):
            return Output(kind, rest)  # type: ignore[arg-type] # one of the two
        if kind == "docker-daemon":
            return Output("docker-daemon", name=whole_name(rest))
        path, _, name = rest.partition(":")
        if path and kind in ("oci", "oci-archive"):
            if name and not _TAG.fullmatch(name):
                raise UsageError(f"{name!r} is no tag", hint=f"write {kind}:PATH:TAG")
            return Output(kind, path, name)  # type: ignore[arg-type] # one of the two
        if path and kind == "docker-archive":
            return Output("docker-archive", path, name and whole_name(name))
    raise UsageError(f"can't export to {text!r}", hint=f"write {FORMS}")


def whole_name(text: str) -> str:
    """The name of an image with a tag, which is `latest` if it has none. UsageError."""
    try:
        found = Reference.parse(text)
    except NotFound as error:
        raise UsageError(error.message, hint=error.hint) from error
    if found.digest:
        raise UsageError(f"{text}: an image is pushed under a tag, not a digest")
    _, _, tail = text.rpartition("/")
    return text if ":" in tail else f"{text}:{found.tag}"


def parse_annotation(text: str) -> tuple[str, str]:
    """KEY=VALUE. UsageError."""
    key, sign, value = text.partition("=")
    if not sign or not _ANNOTATION.fullmatch(key):
        raise UsageError(f"{text!r} is no annotation", hint="write --annotation KEY=VALUE")
    return key, value


def parse_epoch(text: str | None) -> int | None:
    """What SOURCE_DATE_EPOCH says. UsageError."""
    if not text:
        return None
    if not (text.isascii() and text.isdecimal()) or len(text) > 11:
        raise UsageError(
            f"SOURCE_DATE_EPOCH is {text!r}", hint="it is a number of seconds since 1970"
        )
    return int(text)


def check(outputs: list[Output], wishes: Wishes, *, platforms: int = 1) -> None:
    """UsageError: these can't be had together."""
    if sum(output.piped for output in outputs) > 1:
        raise UsageError("only one thing can go to standard output")
    if wishes.papers:
        _check_papers(outputs, wishes)
    if outputs and not any(output.is_image for output in outputs):
        for given, option in (
            (wishes.names, "--tag"), (wishes.squash, "--squash"),
            (wishes.annotations, "--annotation"), (wishes.compression != "gzip", "--compression"),
        ):  # fmt: skip
            if given:
                raise UsageError(f"{option} is for images, and no image is exported")
    for output in outputs:
        if output.kind == "registry" and not output.name and not wishes.names:
            raise UsageError("docker:// needs a name", hint="docker://HOST/NAME:TAG, or --tag NAME")
        if platforms > 1 and not output.holds_indexes:
            raise UsageError(
                f"{output.kind} can't hold images for {platforms} platforms",
                hint="oci:DIR, oci-archive:FILE and docker://NAME can",
            )


def _check_papers(outputs: list[Output], wishes: Wishes) -> None:
    """UsageError: what is to go along with an image has nowhere to go."""
    given = (
        ("--provenance", wishes.provenance), ("--sbom", wishes.sbom),
        ("--sign", wishes.signer is not None),
    )  # fmt: skip
    option = next(option for option, wanted in given if wanted)
    hint = "oci:DIR, oci-archive:FILE and docker://NAME can"
    if wishes.signer is None:
        hint += "; `obuilder provenance ID` and `obuilder sbom ID` print it"
    for output in outputs:
        if output.is_image and not output.holds_indexes:
            raise UsageError(f"{output.kind} can't hold what {option} adds", hint=hint)
    if not any(output.holds_indexes for output in outputs):
        raise UsageError(f"{option} is for images, and no image is exported", hint=hint)
