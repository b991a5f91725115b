"""Two formats of old of rpm's database, as far as it takes to read every header: ndb and Berkeley DB."""

import struct
from collections.abc import Iterator
from typing import BinaryIO

from obuilder.inventory.reading import Unreadable

MOST_HEADER = 64 << 20
"""Bytes of a header."""
_BLOCK = 16
_SLOTS_PAGE = 4096
_HASH_META, _HASH_UNSORTED, _OVERFLOW, _HASH = 8, 2, 7, 13
_HASH_MAGIC = 0x061561
_PAGE_HEADER = 26
_OFFPAGE, _KEYDATA = 3, 1


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    data = file.read(size)
    if len(data) < size:
        raise Unreadable("it ends too early")
    return data


def ndb_values(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The headers in a Packages.db: slots on pages at its start tell where each is. Unreadable."""
    magic, version, _, pages = struct.unpack("<4sIII", _read(file, 0, 16))
    if magic != b"RpmP" or version != 0 or not 0 < pages <= size // _SLOTS_PAGE:
        raise Unreadable("it is no database of the kind ndb")
    for page in range(pages):
        slots = _read(file, page * _SLOTS_PAGE, _SLOTS_PAGE)
        for at in range(2 * _BLOCK if page == 0 else 0, _SLOTS_PAGE, _BLOCK):
            mark, number, start, count = struct.unpack_from("<4sIII", slots, at)
            if mark != b"Slot" or not number:
                continue
            kind, owner, _, length = struct.unpack("<4sIII", _read(file, start * _BLOCK, 16))
            if kind != b"BlbS" or owner != number or length > min(count * _BLOCK, MOST_HEADER):
                raise Unreadable(f"package {number} is damaged")
            yield _read(file, start * _BLOCK + 16, length)


def berkeley_values(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The headers in a hash of Berkeley DB, in the order of its pages. Unreadable."""
    meta = _read(file, 0, 72)
    order = next(
        (sign for sign in "<>" if struct.unpack_from(f"{sign}I", meta, 12)[0] == _HASH_MAGIC), ""
    )
    if not order or meta[25] != _HASH_META:
        raise Unreadable("it is no hash of Berkeley DB")
    (page_size,) = struct.unpack_from(f"{order}I", meta, 20)
    if meta[24]:
        raise Unreadable("it is encrypted")
    if page_size < 512 or page_size > 1 << 16 or page_size & (page_size - 1):
        raise Unreadable(f"its pages have {page_size} bytes")
    budget = size
    for number in range(1, size // page_size):
        page = _read(file, number * page_size, page_size)
        if page[25] not in (_HASH, _HASH_UNSORTED):
            continue
        (entries,) = struct.unpack_from(f"{order}H", page, 20)
        if _PAGE_HEADER + 2 * entries > page_size:
            raise Unreadable(f"page {number} is damaged")
        places = struct.unpack_from(f"{order}{entries}H", page, _PAGE_HEADER)
        for index in range(1, entries, 2):
            place = places[index]
            if place >= page_size:
                raise Unreadable(f"page {number} is damaged")
            if page[place] == _OFFPAGE and place + 12 <= page_size:
                first, length = struct.unpack_from(f"{order}II", page, place + 4)
                value = _overflow(file, order, page_size, first, length)
            elif page[place] == _KEYDATA:
                value = page[place + 1 : places[index - 1]]
            else:
                continue
            budget -= len(value)
            if budget < 0:
                raise Unreadable("its pages are used twice")
            if len(value) > 16:  # the first entry is the number of the next package
                yield value


def _overflow(file: BinaryIO, order: str, page_size: int, first: int, length: int) -> bytes:
    """A value that is on pages of its own, each with the number of the next."""
    if length > MOST_HEADER:
        raise Unreadable("a header is absurdly large")
    value, number = bytearray(), first
    while number and len(value) < length:
        page = _read(file, number * page_size, page_size)
        following, used = (
            struct.unpack_from(f"{order}I", page, 16)[0], struct.unpack_from(f"{order}H", page, 22)[0]
        )  # fmt: skip
        if page[25] != _OVERFLOW or not 0 < used <= page_size - _PAGE_HEADER:
            raise Unreadable(f"page {number} is damaged")
        value += page[_PAGE_HEADER : _PAGE_HEADER + used]
        number = following
    if len(value) < length:
        raise Unreadable("a header is cut short")
    return bytes(value[:length])
