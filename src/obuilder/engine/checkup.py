"""What an open builder can do, found by building something."""

import os
import time
from typing import Literal

from msgspec import Struct

from obuilder.backends.protocols import Usage
from obuilder.engine.builder import Builder
from obuilder.errors import BackendUnavailable, ObuilderError, StepFailed
from obuilder.spec.model import Run, Shell, Spec
from obuilder.system.namespaces import whose_ids

_SCARCE = 0.05
"""Less free space than this part of the disk is worth a warning."""


class Finding(Struct, frozen=True):
    """What one check came to; `hint` says what to do about it."""

    check: str
    status: Literal["ok", "warning", "failed"]
    detail: str
    hint: str | None = None


async def look_over(builder: Builder) -> list[Finding]:
    """Run a step that was never run before, and look at what it saw. BackendUnavailable."""
    await builder.sandbox.check()
    ids, hint = whose_ids(builder.store.idmap)
    return [
        Finding("store", "ok", builder.settings.named_store),
        Finding("sandbox", "ok", await builder.sandbox.describe()),
        Finding("identity", "warning" if builder.store.idmap.single else "ok", ids, hint),
        *await _steps(builder),
        _limits(builder),
        await _space(builder),
    ]


async def _steps(builder: Builder) -> list[Finding]:
    """Build, and look at the log: that the step ran, and what it saw of the network."""
    mark = os.urandom(8).hex()
    look = f"echo {mark}; ls /sys/class/net"
    # Where a root is not all that a step sees, programs are the machine's.
    base = "micro" if builder.sandbox.features.holds("/") else "scratch"
    spec = Spec(base=base, ops=(Shell(("/bin/sh", "-c")), Run(look)))
    began = time.monotonic()
    try:
        result = await builder.build(spec, builder.store.directory)
    except StepFailed as error:
        said = error.tail.decode(errors="replace").strip()
        return [Finding("step", "failed", f"{error.message}: {said}" if said else error.message)]
    except BackendUnavailable:
        raise
    except ObuilderError as error:
        return [Finding("step", "failed", error.message, error.hint)]
    taken = time.monotonic() - began
    log = (builder.log(result.key) or b"").decode(errors="replace").split()
    await builder.delete(result.key)
    if log[:1] != [mark]:
        return [Finding("step", "failed", f"its output is wrong: {' '.join(log)!r}")]
    found = [Finding("step", "ok", f"ran in {taken:.2f} s")]
    features = builder.sandbox.features
    if not features.isolation:
        told = (
            "none: steps can do all that this user can"
            if features.warning
            else "in part: a step sees what users of this machine see"
        )
        found.append(Finding("isolation", "warning", told))
    elif log[1:] != ["lo"]:
        found.append(Finding("isolation", "failed", f"a step sees the network: {log[1:]}"))
    else:
        found.append(Finding("isolation", "ok", "a step sees no network but its own loopback"))
    return found


def _limits(builder: Builder) -> Finding:
    missing = sorted({"memory", "cpus", "pids", "seconds"} - builder.sandbox.features.limits)
    if missing:
        return Finding("limits", "warning", f"a step can't be limited in {', '.join(missing)}")
    return Finding("limits", "ok", "memory, cpus, pids and seconds")


async def _space(builder: Builder) -> Finding:
    usage = await builder.usage()
    scarce = usage.free < usage.total * _SCARCE
    return Finding("space", "warning" if scarce else "ok", space(usage))


def space(usage: Usage) -> str:
    """How much room there is, for people."""
    free, total = (size / (1 << 30) for size in (usage.free, usage.total))
    return f"{free:.1f} of {total:.1f} GiB free"
