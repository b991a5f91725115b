"""Which architectures this kernel runs: its own, and those that an emulator is registered for.

Emulators are registered with binfmt_misc by the first bytes of the programs that they take. That
table is asked, not a list of names: nobody has to name them alike.
"""

import os

from obuilder.errors import Unsupported
from obuilder.values import Platform

_TABLE = "/proc/sys/fs/binfmt_misc"
_NATIVE = {
    "x86_64": ("amd64", "386"),
    "i686": ("386",),
    "i386": ("386",),
    "aarch64": ("arm64", "arm"),
    "armv8l": ("arm",),
    "armv7l": ("arm",),
    "armv6l": ("arm",),
    "loongarch64": ("loong64",),
}
"""OCI's words for what a machine runs; others call themselves as OCI does."""
_LITTLE, _BIG = 1, 2
_ELF = {
    "386": (1, _LITTLE, 3),
    "amd64": (2, _LITTLE, 62),
    "arm": (1, _LITTLE, 40),
    "arm64": (2, _LITTLE, 183),
    "loong64": (2, _LITTLE, 258),
    "mips64le": (2, _LITTLE, 8),
    "ppc64le": (2, _LITTLE, 21),
    "riscv64": (2, _LITTLE, 243),
    "s390x": (2, _BIG, 22),
}
"""Class, byte order and machine in the header of a program."""


def check_runnable(platform: Platform) -> None:
    """Unsupported: nothing that is made for this platform can be run here."""
    names = os.uname()
    if platform.os not in ("", names.sysname.lower()):
        raise Unsupported(f"steps for {platform} can't run here: this is {names.sysname}")
    if platform.architecture in ("", *_NATIVE.get(names.machine, (names.machine,))):
        return
    reason = _missing(platform.architecture)
    if reason is not None:
        raise Unsupported(
            f"steps for {platform} can't run on this machine ({names.machine}): {reason}",
            hint="install qemu-user-static, which registers emulators; or choose another --platform",
        )


def _missing(architecture: str) -> str | None:
    """Why programs of an architecture can't be emulated; None if they can."""
    if architecture not in _ELF:
        return f"nobody knows what programs for {architecture} look like"
    try:
        entries = os.listdir(_TABLE)
        with open(f"{_TABLE}/status") as file:
            on = file.read().strip() == "enabled"
    except OSError:
        return f"the kernel's table of emulators is not mounted at {_TABLE}"
    if not on:
        return "the kernel's table of emulators is switched off"
    header = _header(*_ELF[architecture])
    for name in entries:
        if name in ("register", "status"):
            continue
        try:
            with open(f"{_TABLE}/{name}") as file:
                entry = _read(file.read())
        except OSError:
            continue
        if not _takes(entry, header):
            continue
        if "F" not in entry.get("flags:", ""):
            # Steps have roots of their own, in which a path of this machine leads nowhere.
            return (
                f"the emulator {name} is registered without the flag F, so that steps don't find it"
            )
        return None
    return f"no emulator for {architecture} is registered"


def _header(bits: int, order: int, machine: int) -> bytes:
    """The first bytes of an executable."""
    kind = "little" if order == _LITTLE else "big"
    numbers = (2).to_bytes(2, kind) + machine.to_bytes(2, kind)  # type: ignore[arg-type] # one of two
    return b"\x7fELF" + bytes((bits, order, 1, 0)) + bytes(8) + numbers + bytes(44)


def _read(text: str) -> dict[str, str]:
    """An entry of the table, by the first word of each line."""
    lines = (line.partition(" ") for line in text.splitlines())
    return {word: rest for word, _, rest in lines}


def _takes(entry: dict[str, str], header: bytes) -> bool:
    """Whether an entry is for programs that begin so."""
    if "enabled" not in entry or "magic" not in entry:
        return False
    start = int(entry.get("offset", "0"))
    magic = bytes.fromhex(entry["magic"])
    mask = bytes.fromhex(entry["mask"]) if "mask" in entry else b"\xff" * len(magic)
    part = header[start : start + len(magic)]
    return len(part) == len(magic) and all(
        byte & bits == wanted & bits for byte, wanted, bits in zip(part, magic, mask, strict=True)
    )
