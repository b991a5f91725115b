"""What goes along with images of results: provenance, a list of packages, signatures."""

from collections.abc import Mapping, Sequence

import anyio.to_thread
from msgspec import Struct

from obuilder import __version__
from obuilder.engine.builder import Builder
from obuilder.engine.index import Final, Record
from obuilder.engine.outputs import Wishes
from obuilder.engine.provenance import predicate
from obuilder.errors import NotFound, UsageError
from obuilder.oci.attached import Artifact, Attached, artifact, document
from obuilder.oci.attestation import (
    DSSE,
    IN_TOTO,
    PROVENANCE_TYPE,
    SIGNATURE,
    SIMPLE_SIGNING,
    SPDX,
    SPDX_TYPE,
    envelope,
    signed,
    simple_signing,
    statement,
)
from obuilder.oci.manifest import Descriptor
from obuilder.oci.platforms import host_platform
from obuilder.oci.reference import Reference
from obuilder.oci.writers import Finished
from obuilder.values import Key

_PREDICATE = "in-toto.io/predicate-type"
_COSIGNS = "predicateType"


class Papers(Struct, frozen=True):
    """What is told of one result, each as JSON; nothing if that is not wanted."""

    provenance: bytes = b""
    sbom: bytes = b""


async def papers(builder: Builder, key: Key, final: Final, wishes: Wishes) -> Papers:
    """What is wanted of what can be told of a result. UsageError, StoreError."""
    return Papers(
        provenance(builder, key, final, wishes) if wishes.provenance else b"",
        await sbom(builder, key, wishes) if wishes.sbom else b"",
    )


def provenance(builder: Builder, key: Key, final: Final, wishes: Wishes) -> bytes:
    """How a result came to be. UsageError if that was not noted."""
    if final.origin is None:
        raise UsageError(
            f"nobody noted how {key[:12]} was built",
            hint="only of what a build came to that is noted: build it again, which runs nothing",
        )
    chain = _chain(builder, key)
    platform = final.base.platform if final.base.platform.architecture else host_platform()
    steps = [(record, builder.log(record.key)) for record in chain]
    return predicate(
        final.origin, platform, steps,
        builder=wishes.builder_id, reproducible=wishes.reproducible,
    )  # fmt: skip


async def sbom(builder: Builder, key: Key, wishes: Wishes) -> bytes:
    """The packages of a result. StoreError."""
    from obuilder.inventory.scan import take
    from obuilder.inventory.spdx import document as spdx

    async with builder.files(key) as root:
        inventory = await anyio.to_thread.run_sync(take, root)
    return spdx(
        inventory, name=f"obuilder-{key[:12]}", version=key, tool=f"obuilder-{__version__}",
        created=wishes.made(builder.record(key).created),
    )  # fmt: skip


def _chain(builder: Builder, key: Key) -> list[Record]:
    """A result and what it was made from, as far as that is there."""
    found = [builder.record(key)]
    while found[-1].base is not None:
        try:
            found.append(builder.record(found[-1].base))
        except UsageError:
            break
    return found


def attached(
    made: Finished, told: Sequence[Papers], wishes: Wishes, names: Sequence[str]
) -> tuple[Attached, ...]:
    """What goes along with images, and with the index of them, where they go by `names`."""
    title = _title(made.names[0])
    found = [
        _of(image.manifest.descriptor, said, wishes, names, title)
        for image, said in zip(made.images, told, strict=True)
    ]
    if made.index is not None and wishes.signer is not None:
        found.append(_of(made.index.descriptor, Papers(), wishes, names, title))
    return tuple(found)


def _of(
    subject: Descriptor, said: Papers, wishes: Wishes, names: Sequence[str], title: str
) -> Attached:
    artifacts: list[Artifact] = []
    statements: list[tuple[str, bytes]] = []
    for kind, data in ((PROVENANCE_TYPE, said.provenance), (SPDX_TYPE, said.sbom)):
        if not data:
            continue
        stated = statement(title, subject.digest, kind, data)
        statements.append((kind, stated))
        if kind == SPDX_TYPE:
            artifacts.append(artifact(subject, SPDX, data, {}))
        else:
            artifacts.append(artifact(subject, IN_TOTO, stated, {_PREDICATE: kind}))
    key = wishes.signer
    if key is None:
        return Attached(subject, tuple(artifacts))
    payloads = [simple_signing(_signed_name(name), subject.digest) for name in names]
    return Attached(
        subject,
        tuple(artifacts),
        tuple(document(SIMPLE_SIGNING, data, annotations=signed(data, key)) for data in payloads),
        tuple(
            document(DSSE, envelope(stated, key), annotations=_marks(kind))
            for kind, stated in statements
        ),
    )


def _marks(kind: str) -> Mapping[str, str]:
    return {SIGNATURE: "", _COSIGNS: kind}


def _signed_name(name: str) -> str:
    """A name as a signature has it: whole, or a tag of a layout alone."""
    return str(Reference.parse(name)) if _is_whole(name) else name


def _title(name: str) -> str:
    """What statements call an image: its name without a tag."""
    if not _is_whole(name):
        return name
    found = Reference.parse(name)
    return f"{found.registry}/{found.repository}"


def _is_whole(name: str) -> bool:
    if "/" not in name and ":" not in name:
        return False
    try:
        Reference.parse(name)
    except NotFound:
        return False
    return True
