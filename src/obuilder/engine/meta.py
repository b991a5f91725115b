"""What every result carries with it in the store, so that the index can be made anew."""

import os
import time

import msgspec

from obuilder.engine.database import boot_id
from obuilder.engine.index import Record
from obuilder.values import Key


class Meta(msgspec.Struct, frozen=True):
    """A record as it stands in the store; `volume` is the name of the volume it belongs to.

    `boot` is the boot of the machine it was published in: until the next group sync a power cut
    may take what it stands for. `unused`: who made it did not keep it.
    """

    key: str
    kind: str
    heading: str
    stage: str
    base: str | None
    created: float
    seconds: float
    boot: str = ""
    volume: bytes | None = None
    unused: bool = False


def written(record: Record, *, volume: str | None = None) -> bytes:
    """A record, to be kept with what it tells of."""
    return msgspec.json.encode(
        Meta(
            key=record.key, kind=record.kind, heading=record.heading, stage=record.stage,
            base=record.base, created=record.created, seconds=record.seconds, boot=boot_id(),
            volume=None if volume is None else os.fsencode(volume), unused=record.used == 0,
        )
    )  # fmt: skip


def read(data: bytes) -> Meta | None:
    """What was kept; None if it is nothing that this version wrote."""
    try:
        return msgspec.json.decode(data, type=Meta)
    except msgspec.MsgspecError:
        return None


def recorded(meta: Meta) -> Record:
    """The record of a result that was found in the store, used now unless nobody kept it."""
    return Record(
        key=Key(meta.key), kind=meta.kind, heading=meta.heading, stage=meta.stage,
        base=None if meta.base is None else Key(meta.base), created=meta.created,
        used=0.0 if meta.unused else time.time(), seconds=meta.seconds, pinned=meta.kind == "volume",
    )  # fmt: skip
