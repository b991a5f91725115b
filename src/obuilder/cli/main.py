"""The command line: finds the verb, loads its module alone, and turns errors into exit statuses."""

import gc
import os
import signal
import sys
from typing import NoReturn

if "typing_extensions" not in sys.modules:
    # msgspec asks it, where it is installed, for what typing has had since Python 3.11. Loading it
    # takes as long as all else that a cached build loads: whoever wants it loads it later.
    sys.modules["typing_extensions"] = None  # type: ignore[assignment] # "there is none"
    import msgspec  # noqa: F401

    del sys.modules["typing_extensions"]

from obuilder.cli.verbs import VERBS
from obuilder.errors import ObuilderError


def _usage() -> str:
    lines = ["usage: obuilder VERB …", "", "verbs:"]
    lines += [f"  {name:12} {summary}" for name, summary in VERBS.items()]
    return "\n".join([*lines, "", "obuilder VERB --help tells more."]) + "\n"


def run(argv: list[str]) -> int:
    """Carry out one command line. The exit status; ObuilderError for what a person should read."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(_usage())
        return 0 if argv else 2
    if argv[0] in ("--version", "version"):
        from obuilder import __version__

        sys.stdout.write(f"obuilder {__version__}\n")
        return 0
    verb = argv[0]
    if verb not in VERBS:
        from difflib import get_close_matches

        from obuilder.errors import UsageError

        close = get_close_matches(verb, list(VERBS), n=1)
        raise UsageError(
            f"there is no verb {verb!r}",
            hint=f"did you mean {close[0]!r}?" if close else "obuilder --help lists them",
        )
    from importlib import import_module

    from obuilder.cli.options import parser_for

    module = import_module(f"obuilder.cli.{verb}")
    status: int = module.run(parser_for(verb, module).parse_args(argv[1:]))
    return status


def main() -> NoReturn:
    """The `obuilder` program: ends the process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.disable()  # a short run makes little garbage; a session turns it on again
    status = 0
    try:
        status = run(sys.argv[1:])
        sys.stdout.flush()
    except ObuilderError as error:
        from obuilder.ui.messages import complain

        complain(error)
        status = error.exit_status
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        status = 141
    except OSError as error:
        from obuilder.errors import StoreError
        from obuilder.ui.messages import complain

        place = f": {error.filename}" if error.filename else ""
        complain(StoreError(f"{error.strerror or error}{place}"))
        status = StoreError.exit_status
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            continue  # whoever read it is gone
    # All is closed by now: the interpreter's own end would only take its time.
    os._exit(status)


if __name__ == "__main__":
    main()
