"""A worker looks after itself: a real disk that fills up, a real sandbox that breaks and is mended."""

import os
import shutil
import subprocess
from collections.abc import AsyncIterator

import anyio
import pytest

import clusters
import program
from clusters import Cluster
from obuilder.cluster import names
from obuilder.cluster.admin import Admin
from obuilder.cluster.credentials import save_credentials
from obuilder.cluster.messages import Build
from places import tmpfs
from workers import yard as a_yard

pytestmark = [
    pytest.mark.anyio, pytest.mark.xdist_group("nats"),
    pytest.mark.needs("root", "overlay", "tmpfs", "crun"),
]  # fmt: skip
STEP = '((from micro) (run (shell "echo {}")))'


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with clusters.running() as ready:
        yield ready


async def test_a_worker_pauses_itself_when_its_disk_or_its_sandbox_fails_and_resumes(
    cluster, tmp_path
) -> None:
    runtime, broken = tmp_path / "bin" / "crun", tmp_path / "broken"
    runtime.parent.mkdir()
    runtime.write_text(
        f"#!/bin/sh\ntest -e {broken} && echo it is broken >&2 && exit 1\n"
        f'exec {shutil.which("crun")} "$@"\n'
    )
    runtime.chmod(0o755)
    with tmpfs("64m") as disk:
        async with a_yard(cluster) as yard, Admin.open(cluster.credentials) as admin:
            path = str(tmp_path / "w.json")
            save_credentials(await cluster.worker("w", yard.pool), path)
            process = program.start(
                "worker", "--cluster", path, "--store", f"overlayfs:{disk}/store", "--capacity", "1",
                "--free", "50", "--health-every", "1", "--runtime", str(runtime),
                cwd=tmp_path,
                streams={"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL},
            )  # fmt: skip

            async def reason() -> str | None:
                """Why it takes no jobs; "" if it does, None if it isn't there."""
                found = (await admin.presences(yard.pool)).get("w")
                return None if found is None else " ".join(f"{k}: {t}" for k, t in found.paused)

            async def becomes(text: str) -> None:
                with anyio.fail_after(90):
                    while (
                        (said := await reason()) is None or text not in said or (said and not text)
                    ):
                        await anyio.sleep(0.1)

            try:
                await becomes("")
                first = await yard.client.submit(Build(text=STEP.format("one")), yard.pool)
                assert (await yard.ended(first)).phase == "done"
                # Something else fills the disk. What can be pruned is, and that is not enough.
                with open(f"{disk}/other", "wb") as file:
                    file.write(bytes(48 << 20))
                await becomes(
                    "disk: 0.0 of 0.1 GiB free, and 50 % should be; nothing is left to prune"
                )
                waits = await yard.client.submit(Build(text=STEP.format("two")), yard.pool)
                await anyio.sleep(1)
                assert (await yard.client.state(waits)).phase == "queued"
                os.unlink(f"{disk}/other")
                await becomes("")
                assert (await yard.ended(waits)).phase == "done"
                # The sandbox breaks while the worker is idle.
                broken.touch()
                await becomes("health: ")
                assert "it is broken" in str(await reason())
                asked = names.question(yard.pool, "w", "metrics")
                assert b"obuilder_worker_unhealthy 1" in await admin.engine.request(asked, b"")
                waits = await yard.client.submit(Build(text=STEP.format("three")), yard.pool)
                await anyio.sleep(1)
                assert (await yard.client.state(waits)).phase == "queued"
                broken.unlink()
                await becomes("")
                assert (await yard.ended(waits)).phase == "done"
                process.terminate()
                assert await anyio.to_thread.run_sync(process.wait) == 0
            finally:
                process.kill()
                process.wait()
