"""Jobs of a cluster while its server and its workers are killed: a small run of bench/chaos.py."""

import os
import re
import subprocess
import sys

import pytest

CHAOS = os.path.join(os.path.dirname(__file__), "..", "..", "bench", "chaos.py")


@pytest.mark.needs("root", "overlay", "crun")
@pytest.mark.xdist_group("nats")
def test_every_job_ends_once_and_none_is_lost(seed: int) -> None:
    """It checks each job's state, result and log, and that no ticket is left."""
    argv = [sys.executable, CHAOS, "--nodes", "1", "--workers", "2", "--fake", "30", "--real", "6"]
    argv += ["--seconds", "6", "--nap", "4", "--patience", "150", "--seed", str(seed)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    assert "ended 36" in done.stdout
    assert "server killed" in done.stdout
    # A worker that is started again lets go what the killed one had: nobody waits for half a minute.
    found = re.search(r"worker killed.* jobs were elsewhere .*: [\d.]+, ([\d.]+), ", done.stdout)
    assert found, "jobs of a worker that was killed ran elsewhere"
    assert float(found[1]) < 20, done.stdout
