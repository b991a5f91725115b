"""A command and a policy, written as an OCI runtime's config.json. Pure: the caller makes files."""

import os
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from obuilder.errors import Unsupported
from obuilder.values import IdMap, Policy, UnixUser

INIT = "/dev/.init"
"""Where a step's PID 1 is shown: on /dev's own tmpfs, so that nothing of it is left in the root."""

_CAPABILITIES = [
    f"CAP_{name}"
    for name in (
        "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETFCAP", "SETGID",
        "SETPCAP", "SETUID", "SYS_CHROOT",
    )
]  # fmt: skip

_EVERY = [
    f"CAP_{name}"
    for name in (
        "AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE", "BLOCK_SUSPEND", "CHOWN", "DAC_OVERRIDE",
        "DAC_READ_SEARCH", "FOWNER", "FSETID", "IPC_LOCK", "IPC_OWNER", "KILL", "LEASE",
        "LINUX_IMMUTABLE", "MAC_ADMIN", "MAC_OVERRIDE", "MKNOD", "NET_ADMIN", "NET_BIND_SERVICE",
        "NET_BROADCAST", "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYSLOG", "SYS_ADMIN",
        "SYS_BOOT", "SYS_CHROOT", "SYS_MODULE", "SYS_NICE", "SYS_PACCT", "SYS_PTRACE", "SYS_RAWIO",
        "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "WAKE_ALARM",
    )
]  # fmt: skip

_MASKED = [
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
    "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
    "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
]  # fmt: skip
_READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]

_CA_BUNDLE = "/dev/.ca-certificates.crt"
_CA_VARIABLES = (
    "SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
)  # fmt: skip


class Bind(Struct, frozen=True):
    """A file or directory of the host at a place inside that exists and has no symlink in it."""

    source: str
    target: str
    readonly: bool = False


class Box(Struct, frozen=True, kw_only=True):
    """Everything a configuration is made from. Every path is the host's, but for targets."""

    root: str
    argv: tuple[str, ...]
    cwd: str
    user: UnixUser
    env: tuple[tuple[str, str], ...]
    hostname: str
    idmap: IdMap
    policy: Policy
    host_network: bool
    terminal: os.terminal_size | None
    """How large the person's terminal is that the command gets one of its own for."""
    init: str
    hosts: str
    resolv_conf: str | None
    ca_bundle: str | None
    binds: tuple[Bind, ...]
    seccomp: dict[str, Any]
    """The profile; see `filter_for`."""
    seccomp_bpf: bytes | None
    """The same, compiled, for a runtime that takes it (crun)."""
    open_files: tuple[int, int]
    """This process's own soft and hard limit of open files: more can't be given without power."""
    processes: int | None = None
    """How many processes each user may have."""
    groups: tuple[int, ...] = ()
    """Groups that are the user's besides their own."""
    memory: tuple[tuple[str, int | None], ...] = ()
    """Empty directories on memory, each with its size in bytes."""
    insecure: bool = False
    """With every capability, no filter of system calls, and nothing of /proc hidden."""


def runtime_config(box: Box) -> bytes:
    """The configuration's JSON. Unsupported: something holds bytes that JSON can't."""
    try:
        return msgspec.json.encode(_config(box))
    except UnicodeEncodeError as error:
        raise Unsupported(
            "an OCI runtime takes UTF-8 only, in a step's command, environment and paths",
            hint=f"there are other bytes in {error.object!r}",
        ) from error


def _config(box: Box) -> dict[str, Any]:
    annotations = {}
    if box.seccomp_bpf is not None and not box.insecure:
        annotations["run.oci.seccomp_bpf_data"] = b64encode(box.seccomp_bpf).decode()
    return {
        "ociVersion": "1.0.2",
        "process": _process(box),
        "root": {"path": box.root, "readonly": False},
        "hostname": box.hostname,
        "annotations": annotations,
        "mounts": _mounts(box),
        "linux": {
            "namespaces": _namespaces(box),
            **_mappings(box.idmap, box.user),
            **(
                {}
                if box.insecure
                else {
                    "maskedPaths": _MASKED,
                    "readonlyPaths": _READ_ONLY,
                    "seccomp": box.seccomp,
                }
            ),
        },
    }


def _process(box: Box) -> dict[str, Any]:
    env = dict(box.env)
    if box.ca_bundle is not None:
        for name in _CA_VARIABLES:
            env.setdefault(name, _CA_BUNDLE)
    soft = min(1024, box.open_files[0])
    hard = min(1 << 19, box.open_files[1])
    rlimits = [
        {"type": "RLIMIT_NOFILE", "soft": soft, "hard": max(soft, hard)},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]
    if box.processes is not None:
        rlimits.append({"type": "RLIMIT_NPROC", "soft": box.processes, "hard": box.processes})
    size = {}
    if box.terminal is not None:
        size["consoleSize"] = {"width": box.terminal.columns, "height": box.terminal.lines}
    return {
        "terminal": box.terminal is not None,
        **size,
        "user": {
            "uid": box.user.uid,
            "gid": box.user.gid,
            **({"additionalGids": list(box.groups)} if box.groups else {}),
        },
        # Its parent's death is init's own, and so that of all: nothing outlives the runtime.
        "args": [INIT, "-p", "SIGKILL", "--", *box.argv],
        "env": [f"{name}={value}" for name, value in env.items()],
        "cwd": box.cwd,
        "capabilities": {
            kind: (_EVERY if box.insecure else _CAPABILITIES)
            if kind == "bounding" or box.user.uid == 0
            else []
            for kind in ("bounding", "effective", "permitted", "inheritable")
        },
        "rlimits": rlimits,
        "noNewPrivileges": box.policy.no_new_privileges,
    }


def _namespaces(box: Box) -> list[dict[str, str]]:
    kinds = ["user", "pid", "ipc", "uts", "mount"]
    if not box.host_network:
        kinds.append("network")
    return [{"type": kind} for kind in kinds]


def _mappings(idmap: IdMap, user: UnixUser) -> dict[str, Any]:
    def one(inside: int) -> list[dict[str, int]]:
        start = inside if idmap.single else 0
        return [{"containerID": start, "hostID": idmap.first, "size": idmap.count}]

    return {"uidMappings": one(user.uid), "gidMappings": one(user.gid)}


def _mounts(box: Box) -> list[dict[str, Any]]:
    sealed = ["nosuid", "noexec", "nodev"]
    tty = [] if box.idmap.single else ["gid=5"]
    mounts = [
        _mount("/proc", "proc", "proc", sealed),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount(
            "/dev/pts", "devpts", "devpts",
            ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", *tty],
        ),
        _mount("/dev/shm", "tmpfs", "shm", [*sealed, "mode=1777", "size=65536k"]),  # noqa: S108
        _mount("/dev/mqueue", "mqueue", "mqueue", sealed),
    ]  # fmt: skip
    if box.host_network:
        # The kernel gives a new sysfs only to who owns the network namespace.
        mounts.append(_mount("/sys", "none", "/sys", ["rbind", *sealed, "ro"]))
    else:
        mounts.append(_mount("/sys", "sysfs", "sysfs", [*sealed, "ro"]))
    shown = [Bind(box.init, INIT, readonly=True), Bind(box.hosts, "/etc/hosts", readonly=True)]
    if box.resolv_conf is not None:
        shown.append(Bind(box.resolv_conf, "/etc/resolv.conf", readonly=True))
    if box.ca_bundle is not None:
        shown.append(Bind(box.ca_bundle, _CA_BUNDLE, readonly=True))
    mounts.extend(_bind(bind) for bind in (*shown, *box.binds))
    for target, size in box.memory:
        room = [] if size is None else [f"size={size}"]
        mounts.append(_mount(target, "tmpfs", "tmpfs", ["nosuid", "nodev", "mode=755", *room]))
    return mounts


def _mount(target: str, kind: str, source: str, options: Sequence[str]) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": list(options)}


def _bind(bind: Bind) -> dict[str, Any]:
    options = ["rbind", "nosuid", "nodev", "rprivate", "ro" if bind.readonly else "rw"]
    return _mount(bind.target, "none", bind.source, options)
