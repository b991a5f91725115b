"""Jobs of a cluster while its server and its workers are killed: a small run of bench/chaos.py."""

import os
import subprocess
import sys

import pytest

CHAOS = os.path.join(os.path.dirname(__file__), "..", "..", "bench", "chaos.py")


@pytest.mark.needs("root", "overlay", "crun")
@pytest.mark.xdist_group("nats")
def test_every_job_ends_once_and_none_is_lost(seed: int) -> None:
    """It checks each job's state, result and log, and that no ticket is left."""
    argv = [sys.executable, CHAOS, "--nodes", "1", "--workers", "3", "--fake", "50", "--real", "10"]
    argv += ["--seconds", "8", "--patience", "150", "--seed", str(seed)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ended 60" in done.stdout
    assert "worker killed:" in done.stdout, "jobs of a worker that was killed ran elsewhere"
