"""The filter that libseccomp makes of a profile, in force: in a child that never comes back."""

import ctypes
import errno
import os
import socket

import pytest

from obuilder.oci.bpf import compiled
from obuilder.oci.seccomp import filter_for
from obuilder.system.linux import CLONE_NEWUSER, machine

_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def under(data, attempt):
    """The errno that `attempt` ends with under the filter; 0 for success."""
    pid = os.fork()
    if pid == 0:
        status = 255
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            program = _Program(len(data) // 8, data)
            assert libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
            assert libc.prctl(_SECCOMP, _FILTER, ctypes.byref(program), 0, 0) == 0
            try:
                attempt()
                status = 0
            except OSError as error:
                status = error.errno
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def sync_nothing():
    os.fsync(9999)


def new_user_namespace():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def an_unknown_call():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(9999) != 0:
        raise OSError(ctypes.get_errno(), "syscall 9999")


@pytest.mark.needs("libseccomp")
@pytest.mark.parametrize(
    ("attempt", "nested", "fast", "expected"),
    [
        (lambda: socket.socket(socket.AF_UNIX), True, True, 0),
        (lambda: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET), True, True, errno.EPERM),
        (lambda: socket.socket(socket.AF_VSOCK), True, True, errno.EPERM),
        (lambda: os.listdir("/"), True, True, 0),
        (sync_nothing, True, True, 0),
        (sync_nothing, True, False, errno.EBADF),
        (new_user_namespace, True, True, 0),
        (new_user_namespace, False, True, errno.EPERM),
        (an_unknown_call, True, True, errno.EPERM),
    ],
)
def test_what_the_filter_lets_pass(attempt, nested, fast, expected, tmp_path):
    profile = filter_for(machine(), nested_userns=nested, fast_sync=fast)
    data = compiled(profile, folder=str(tmp_path), temporary=f"{tmp_path}/new")
    assert data is not None
    assert under(data, attempt) == expected
    (kept,) = tmp_path.iterdir()
    assert kept.read_bytes() == data
    assert compiled(profile, folder=str(tmp_path), temporary=f"{tmp_path}/new") == data
