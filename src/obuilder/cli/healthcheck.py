"""`obuilder healthcheck`: builds a tiny spec for real, and says what was picked and why."""

import argparse
import os
import sys
import tempfile

from obuilder.cli.options import add_sandbox, add_store, settings
from obuilder.cli.session import in_session
from obuilder.engine.builder import Builder
from obuilder.spec.model import Run, Shell, Spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    add_store(parser)
    add_sandbox(parser)


def run(args: argparse.Namespace) -> int:
    """Run a step that was never run before, and look at its output."""
    chosen = settings(args)
    mark = os.urandom(8).hex()
    spec = Spec(base="micro", ops=(Shell(("/bin/sh", "-c")), Run(f"echo healthcheck {mark}")))

    async def check(builder: Builder) -> list[str]:
        await builder.sandbox.check()
        lines = [f"store: {chosen.store}", f"sandbox: {await builder.sandbox.describe()}"]
        with tempfile.TemporaryDirectory() as empty:
            result = await builder.build(spec, empty)
        log = builder.log(result.key) or b""
        lines.append("step: ok" if mark.encode() in log else f"step: wrong output {log!r}")
        await builder.delete(result.key)
        usage = await builder.usage()
        lines.append(f"space: {usage.free} of {usage.total} bytes free")
        return lines

    lines = in_session(chosen, check)
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    healthy = "step: ok" in lines
    sys.stdout.write("Healthcheck passed\n" if healthy else "Healthcheck failed\n")
    return 0 if healthy else 1
