"""What several integration tests share."""

import subprocess  # the script is no part of the program

import pytest

from program import REPO


@pytest.fixture(scope="session")
def debian() -> str:
    """The archive of a Debian base with a C compiler and Python, made once for the checkout.

    Tests that use it are in the xdist group `debian`, so that one store of one worker has it.
    """
    made = subprocess.run(
        [REPO / "scripts/debian-base"], stdout=subprocess.PIPE, text=True, check=True
    )
    return made.stdout.strip()
