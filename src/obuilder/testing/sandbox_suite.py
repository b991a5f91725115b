"""What every sandbox has to do, tried on the real thing.

Derive a class whose name starts with Test from `SandboxSuite`, say which sandbox it is for, and give
it a fixture `place`: an empty directory that steps, who may be nobody to the host, can pass
through. The checks themselves are in `sandbox_checks`.
"""

import sys
from typing import ClassVar

import anyio
import msgspec
import pytest

from obuilder.system import process
from obuilder.testing.bench import Subject
from obuilder.testing.sandbox_checks import CHECKS, EXCUSED, run_check


class SandboxSuite:
    """The tests: one for each check, in a process of its own where namespaces are at work.

    `excused` names the checks that the sandbox's features spare it, so that a feature that is
    missing by mistake is a failure, and so is an excuse that is not needed.
    """

    subject: ClassVar[Subject]
    excused: ClassVar[frozenset[str]] = frozenset()

    @pytest.mark.parametrize("check", CHECKS)
    def test_contract(self, check: str, place: str) -> None:
        """The check passes, or the sandbox is excused from it and was expected to be."""
        assert self.excused <= set(CHECKS)
        if not self.subject.namespaces:
            ran = anyio.run(run_check, check, place, self.subject)
            assert ran == (check not in self.excused)
            return
        subject = msgspec.json.encode(self.subject).decode()
        argv = [sys.executable, "-m", run_check.__module__, check, place, subject]
        status, said = process.capture(argv, timeout=60)
        expected = EXCUSED if check in self.excused else 0
        assert status == expected, said.decode(errors="replace")
