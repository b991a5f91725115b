"""The `obuilder` program, and `python -m obuilder`."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # while modules load, an interrupt ends without words

from obuilder.cli.main import main  # noqa: E402

if __name__ == "__main__":
    main()
