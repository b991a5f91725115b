"""The command line: finds the verb, loads its module alone, and turns errors into exit statuses."""

import gc
import io
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
from obuilder.errors import BackendUnavailable, ObuilderError

_EXTRAS = {
    "cryptography": "cluster", "nats": "cluster",
    "jinja2": "web", "prometheus_client": "web", "starlette": "web", "uvicorn": "web",
}  # fmt: skip
"""Which of our extras brings what a verb can't be loaded without."""
_USAGE = """usage: obuilder VERB [OPTION]…

verbs:
{verbs}

A verb and the name of an option may be cut short, as long as one only begins so. `obuilder VERB --help`
tells more; `obuilder build` alone builds ./obuilder.spec.

exit status: 0 done, 1 a step failed, 2 the request or the spec is wrong, 3 something is missing on this
machine, 4 the store or the sandbox failed, 5 a base image could not be had, 6 the cluster did not do
its part, 130 interrupted.
"""


def run(argv: list[str]) -> int:
    """Carry out one command line. The exit status; ObuilderError for what a person should read."""
    first, *rest = argv or [""]
    if first == "help" and rest:
        first, rest = rest[0], [*rest[1:], "--help"]
    if first in ("", "-h", "--help", "help"):
        verbs = "\n".join(f"  {name:12} {summary}" for name, summary in VERBS.items())
        sys.stdout.write(_USAGE.format(verbs=verbs))
        return 0 if argv else 2
    if first in ("-V", "--version", "version"):
        from obuilder import __version__

        sys.stdout.write(f"obuilder {__version__}\n")
        return 0
    verb = _verb(first)
    from importlib import import_module

    from obuilder.cli.options import parser_for

    module = import_module(f"obuilder.cli.{verb}")
    status: int = module.run(parser_for(verb, module).parse_args(rest))
    return status


def _verb(word: str) -> str:
    """The verb that a word means. UsageError."""
    if word in VERBS:
        return word
    from difflib import get_close_matches

    from obuilder.errors import UsageError

    if word.startswith("-"):
        raise UsageError(
            f"{word!r} stands before the verb", hint="write options after it: obuilder build -v"
        )
    found = [name for name in VERBS if name.startswith(word)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{word!r} could be {' or '.join(found)}")
    close = get_close_matches(word, list(VERBS), n=1)
    raise UsageError(
        f"there is no verb {word!r}",
        hint=f"did you mean {close[0]!r}?" if close else "obuilder --help lists them",
    )


def main() -> NoReturn:
    """The `obuilder` program: ends the process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.disable()  # a short run makes little garbage; a session turns it on again
    _open_streams()
    status = 0
    try:
        try:
            status = run(sys.argv[1:])
        except SystemExit:  # argparse has shown the help
            status = 0
        sys.stdout.flush()
    except ObuilderError as error:
        status = _complain(error)
    except ModuleNotFoundError as error:
        status = _complain(_not_installed(error))
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        status = 141
    except OSError as error:
        from obuilder.errors import StoreError

        place = f": {error.filename}" if error.filename else ""
        try:
            sys.stdout.flush()
            said = f"{error.strerror or error}{place}"
        except OSError:
            said = f"can't write the output: {error.strerror or error}"
        status = _complain(StoreError(said))
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            continue  # whoever read it is gone
    # All is closed by now: the interpreter's own end would only take its time.
    os._exit(status)


def _not_installed(error: ModuleNotFoundError) -> BackendUnavailable:
    name = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(name)
    if extra is None:
        raise error
    return BackendUnavailable(
        f"this needs {name}, which is not installed", hint=f"pip install 'obuilder[{extra}]'"
    )


def _complain(error: ObuilderError) -> int:
    from obuilder.ui.messages import complain

    complain(error)
    return error.exit_status


def _open_streams() -> None:
    """Give a stream that was closed to nobody, so that no file of ours is taken for it.

    Standard output has a buffer, whatever $PYTHONUNBUFFERED says: without, what is written at once
    may be written in part.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            while os.open(os.devnull, os.O_RDWR) < number:
                pass
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
    out = sys.stdout
    if isinstance(out.buffer, io.RawIOBase):
        sys.stdout = open(1, "w", encoding=out.encoding, errors=out.errors, closefd=False)  # noqa: SIM115 # open to the end


if __name__ == "__main__":
    main()
