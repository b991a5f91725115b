"""What several integration tests share."""

import subprocess  # the script is no part of the program
from collections.abc import Iterator
from pathlib import Path

import pytest

import people
from people import Person
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


@pytest.fixture(scope="session")
def owner() -> Iterator[Person]:
    """A user with subordinate ids, whose the clone is."""
    with people.place() as place, people.with_subordinate_ids(place) as person:
        yield person


@pytest.fixture(scope="session")
def clone(owner: Person, debian: str) -> Path:
    """A fresh clone that was set up, with the Debian base, which takes so long to make."""
    people.clone_for(owner)
    for suffix in ("", ".packages"):
        people.lend(debian + suffix, owner.clone / f".cache/debian-12.tar{suffix}")
    done = owner.run("bash", "-euc", ". scripts/setup", cwd=owner.clone)
    assert done.status == 0, done
    return owner.clone
