"""A seccomp profile compiled to the kernel's own form, by libseccomp, once for all steps.

A runtime that is given a profile compiles it anew for each container, which costs more than all
else it does. crun takes the compiled filter as well, in an annotation.
"""

import ctypes
import hashlib
import os
from functools import cache
from typing import Any

import msgspec

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_OPERATORS = {"SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7}
_UNKNOWN, _EXISTS = -1, -17


class _Version(ctypes.Structure):
    _fields_ = (("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint))


class _Argument(ctypes.Structure):
    _fields_ = (
        ("index", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("value_two", ctypes.c_uint64),
    )


@cache
def _library() -> ctypes.CDLL | None:
    try:
        found = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return None
    context = ctypes.c_void_p
    found.seccomp_version.restype = ctypes.POINTER(_Version)
    found.seccomp_init.restype = context
    found.seccomp_init.argtypes = [ctypes.c_uint32]
    found.seccomp_release.argtypes = [context]
    found.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    found.seccomp_arch_add.argtypes = [context, ctypes.c_uint32]
    found.seccomp_rule_add_array.argtypes = [
        context, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_Argument),
    ]  # fmt: skip
    found.seccomp_export_bpf.argtypes = [context, ctypes.c_int]
    return found


def compiled(profile: dict[str, Any], *, folder: str, temporary: str) -> bytes | None:
    """The filter of a `linux.seccomp` as `seccomp(2)` takes it. None without libseccomp.

    It is kept in `folder`, which must be nobody else's, and written at `temporary` first. As in
    the runtimes, names that this libseccomp does not know are left out. OSError if it refuses
    the rest.
    """
    library = _library()
    if library is None:
        return None
    version = library.seccomp_version().contents
    made_by = f"libseccomp {version.major}.{version.minor}.{version.micro}\n".encode()
    digest = hashlib.sha256(made_by + msgspec.json.encode(profile)).hexdigest()
    path = os.path.join(folder, f"seccomp-{digest}.bpf")
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        data = _compile(library, profile)
    with open(temporary, "xb") as file:
        file.write(data)
    os.rename(temporary, path)
    return data


def _compile(library: ctypes.CDLL, profile: dict[str, Any]) -> bytes:
    context = library.seccomp_init(_ERRNO | profile["defaultErrnoRet"])
    try:
        for name in profile.get("architectures", ()):
            token = library.seccomp_arch_resolve_name(
                name.removeprefix("SCMP_ARCH_").lower().encode()
            )
            _check(library.seccomp_arch_add(context, token), name)
        for rule in profile["syscalls"]:
            _add(library, context, rule)
        file = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        try:
            _check(library.seccomp_export_bpf(context, file), "export")
            return os.pread(file, os.fstat(file).st_size, 0)
        finally:
            os.close(file)
    finally:
        library.seccomp_release(context)


def _add(library: ctypes.CDLL, context: int, rule: dict[str, Any]) -> None:
    allowed = rule["action"] == "SCMP_ACT_ALLOW"
    action = _ALLOW if allowed else _ERRNO | rule["errnoRet"]
    found = [
        _Argument(arg["index"], _OPERATORS[arg["op"]], arg["value"], arg.get("valueTwo", 0))
        for arg in rule.get("args", ())
    ]
    arguments = (_Argument * len(found))(*found)
    for name in rule["names"]:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number != _UNKNOWN:
            _check(
                library.seccomp_rule_add_array(context, action, number, len(found), arguments), name
            )


def _check(result: int, what: str) -> None:
    if result not in (0, _EXISTS):
        raise OSError(-result, f"libseccomp refuses {what}: {os.strerror(-result)}")
