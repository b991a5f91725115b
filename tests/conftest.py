"""Every test may say what it needs of the machine: see obuilder.testing.needs."""

from obuilder.testing.needs import pytest_runtest_setup

__all__ = ["pytest_runtest_setup"]
