"""The OCI runtimes against the sandbox's contract, on the real programs."""

import os
import sys

import pytest

from obuilder.system import process
from obuilder.testing.sandbox_suite import CHECKS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.mark.parametrize("runtime", ["crun", "runc"])
@pytest.mark.parametrize("check", CHECKS)
def test_contract(check, runtime, tmp_path):
    # In a process of its own: the sandbox needs a mount namespace that dies with the check.
    status, said = process.capture(
        [sys.executable, "-m", "obuilder.testing.sandbox_suite", check, runtime, str(tmp_path)],
        timeout=60,
    )
    assert status == 0, said.decode(errors="replace")
