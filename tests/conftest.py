"""Every test may say what it needs of the machine (obuilder.testing.needs).

Engines and images that many tests use are fixtures here.
"""

from engines import docker_engine
from images import layout
from obuilder.testing.needs import pytest_runtest_setup

__all__ = ["docker_engine", "layout", "pytest_runtest_setup"]
