"""`obuilder healthcheck`: builds a tiny spec for real, and says what was picked and why."""

import argparse
import os
import sys
import tempfile
import time
from typing import Literal

import msgspec

from obuilder.cli.options import add_sandbox, add_store, human, settings
from obuilder.cli.session import in_session
from obuilder.engine.builder import Builder
from obuilder.errors import ObuilderError
from obuilder.spec.model import Run, Shell, Spec
from obuilder.ui.jsonl import as_json

_SCARCE = 0.05
"""Less free space than this part of the disk is worth a warning."""


class Finding(msgspec.Struct, frozen=True):
    """What one check came to."""

    check: str
    status: Literal["ok", "warning", "failed"]
    detail: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("--json", action="store_true", help="an array of findings, for programs")
    add_store(parser)
    add_sandbox(parser)


def run(args: argparse.Namespace) -> int:
    """Run a step that was never run before, and look at what it saw. 1 if something is wrong."""
    chosen = settings(args)

    async def check(builder: Builder) -> list[Finding]:
        await builder.sandbox.check()
        return [
            Finding("store", "ok", chosen.named_store),
            Finding("sandbox", "ok", await builder.sandbox.describe()),
            *await _steps(builder),
            _limits(builder),
            await _space(builder),
        ]

    found = in_session(chosen, check)
    healthy = all(finding.status != "failed" for finding in found)
    if args.json:
        sys.stdout.buffer.write(as_json(found) + b"\n")
    else:
        for finding in found:
            mark = "" if finding.status == "ok" else f"{finding.status}: "
            sys.stdout.write(f"{finding.check}: {mark}{finding.detail}\n")
        sys.stdout.write("Healthcheck passed\n" if healthy else "Healthcheck failed\n")
    return 0 if healthy else 1


async def _steps(builder: Builder) -> list[Finding]:
    """Build, and look at the log: that the step ran, and what it saw of the network."""
    mark = os.urandom(8).hex()
    look = f"echo {mark}; ls /sys/class/net"
    spec = Spec(base="micro", ops=(Shell(("/bin/sh", "-c")), Run(look)))
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as empty:
            result = await builder.build(spec, empty)
    except ObuilderError as error:
        return [Finding("step", "failed", error.message)]
    taken = time.monotonic() - began
    log = (builder.log(result.key) or b"").decode(errors="replace").split()
    await builder.delete(result.key)
    if log[:1] != [mark]:
        return [Finding("step", "failed", f"its output is wrong: {' '.join(log)!r}")]
    found = [Finding("step", "ok", f"ran in {taken:.2f} s")]
    if not builder.sandbox.features.isolation:
        found.append(Finding("isolation", "warning", "none: steps can do all that this user can"))
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
    detail = f"{human(usage.free)} of {human(usage.total)} free"
    return Finding("space", "warning" if scarce else "ok", detail)
