"""Which system calls a step may make."""

import os
from functools import cache
from typing import Any

_NEW_NAMESPACES = 0x7E020000
"""All CLONE_NEW* flags of clone(2)."""

_FAMILIES = 46
_BLOCKED_FAMILIES = frozenset({17, 38, 40})
"""AF_PACKET, AF_ALG, AF_VSOCK: raw frames, kernel crypto, the hypervisor."""

_SYNC = ("fsync", "fdatasync", "msync", "sync", "syncfs", "sync_file_range")

_NESTED = (
    "clone", "clone3", "unshare", "setns", "mount", "umount", "umount2", "pivot_root",
    "fsconfig", "fsmount", "fsopen", "fspick", "mount_setattr", "move_mount", "open_tree",
    "sethostname", "setdomainname",
)  # fmt: skip

_ARCHITECTURES = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "s390x": ("SCMP_ARCH_S390X", "SCMP_ARCH_S390"),
    "ppc64le": ("SCMP_ARCH_PPC64LE",),
    "riscv64": ("SCMP_ARCH_RISCV64",),
}


@cache
def _allowed() -> tuple[str, ...]:
    with open(os.path.join(os.path.dirname(__file__), "seccomp_allowed.txt")) as file:
        text = file.read()
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return tuple(name for line in lines for name in line.split())


def filter_for(machine: str, *, nested_userns: bool, fast_sync: bool) -> dict[str, Any]:
    """The `linux.seccomp` of a runtime's configuration, for the kernel's name of a machine.

    `fast_sync`: sync calls succeed without doing anything. `nested_userns`: a step may make
    namespaces of its own; what it can do in them is still its own user's.
    """
    dropped = set(_SYNC) if fast_sync else set()
    rules: list[dict[str, Any]] = [
        _rule([name for name in _allowed() if name not in dropped]),
        *(
            _rule(["socket"], {"index": 0, "value": family, "op": "SCMP_CMP_EQ"})
            for family in range(_FAMILIES)
            if family not in _BLOCKED_FAMILIES
        ),
        *(
            _rule(["personality"], {"index": 0, "value": value, "op": "SCMP_CMP_EQ"})
            for value in (0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
        ),
    ]
    if nested_userns:
        rules.append(_rule(_NESTED))
    else:
        flags = 1 if machine == "s390x" else 0
        rules.append(
            _rule(
                ["clone"],
                {
                    "index": flags,
                    "value": _NEW_NAMESPACES,
                    "valueTwo": 0,
                    "op": "SCMP_CMP_MASKED_EQ",
                },
            )
        )
        # ENOSYS: the C library then falls back to clone, whose flags the filter can read.
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38})
    if fast_sync:
        rules.append({"names": list(_SYNC), "action": "SCMP_ACT_ERRNO", "errnoRet": 0})
    found: dict[str, Any] = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "syscalls": rules,
    }
    if machine in _ARCHITECTURES:
        found["architectures"] = list(_ARCHITECTURES[machine])
    return found


def _rule(names: "list[str] | tuple[str, ...]", *arguments: dict[str, Any]) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": list(names), "action": "SCMP_ACT_ALLOW"}
    if arguments:
        rule["args"] = list(arguments)
    return rule
