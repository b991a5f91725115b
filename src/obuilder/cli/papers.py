"""What `obuilder provenance` and `obuilder sbom` share: something is told of one result, and printed."""

import argparse
import sys
from collections.abc import Awaitable, Callable

from obuilder.cli.options import settings
from obuilder.cli.session import in_session
from obuilder.engine.builder import Builder
from obuilder.values import Key


def show(args: argparse.Namespace, tell: Callable[[Builder, Key], Awaitable[bytes]]) -> int:
    """Print what `tell` says of the result that is asked for, which is kept meanwhile."""

    async def told(builder: Builder) -> bytes:
        key = builder.record(args.id).key
        with builder.held(key):
            return await tell(builder, key)

    sys.stdout.buffer.write(in_session(settings(args), told) + b"\n")
    return 0
