"""What the zfs store costs: `scripts/bench zfs`, as root, on a machine at rest.

Steps that write one small file, on end, in a pool in a file: by the store, and by hand as one would
without it (a clone for every step, mounted, unmounted and made a snapshot of), in turns. Then what
each of the commands takes that are made of. A ratio is the store's figure over the other's.
"""

import os
import statistics
import subprocess  # noqa: TID251 # what is compared with is started by hand
import tempfile
import time
from collections import defaultdict

import anyio

from obuilder.backends.stores import zfs_command
from obuilder.backends.stores.zfs import ZfsStore
from obuilder.system.namespaces import enter
from obuilder.system.sessions import open_session
from obuilder.testing.store_suite import add, key
from obuilder.testing.zfs_pool import kernel_has_zfs, zfs_pool

STEPS, ROUNDS = 20, 5


def zfs(*words: str) -> None:
    subprocess.run(["zfs", *words], check=True, capture_output=True)


def by_hand(place: str, pool: str, number: int) -> None:
    """A clone of the step before, a file, a snapshot."""
    folder = os.path.join(place, "hand", f"s{number}")
    zfs("clone", f"{pool}/hand/s{number - 1}@done", f"{pool}/hand/s{number}")
    with open(os.path.join(folder, f"f{number}"), "w", encoding="ascii") as file:
        file.write("x")
    zfs("unmount", f"{pool}/hand/s{number}")
    zfs("snapshot", f"{pool}/hand/s{number}@done")


def time_commands() -> defaultdict[str, list[float]]:
    """The milliseconds that each command of the store takes, from now on."""
    times, run = defaultdict[str, list[float]](list), zfs_command.said

    def timed(*words: str) -> str:
        began = time.perf_counter()
        try:
            return run(*words)
        finally:
            times[" ".join(words[:2])].append((time.perf_counter() - began) * 1000)

    zfs_command.said = timed
    return times


async def compare(place: str) -> None:
    pool, commands, steps = os.path.basename(place), time_commands(), defaultdict(list)
    zfs("create", f"{pool}/hand")
    zfs("create", f"{pool}/hand/s0")
    zfs("snapshot", f"{pool}/hand/s0@done")
    directory = os.path.join(place, "state")
    ZfsStore.prepare(directory)
    session = open_session(directory)
    store = await ZfsStore.open(directory, enter(), session=session.name)
    await add(store, 0, None, {})
    commands.clear()
    number = 1
    for _ in range(ROUNDS):
        steps_of_round = range(number, number := number + STEPS)
        began = time.perf_counter()
        for step in steps_of_round:
            await add(store, step, step - 1, {f"f{step}": "x"})
        steps["the store"].append((time.perf_counter() - began) / STEPS * 1000)
        began = time.perf_counter()
        for step in steps_of_round:
            by_hand(place, pool, step)
        steps["by hand"].append((time.perf_counter() - began) / STEPS * 1000)
    ours, theirs = (statistics.median(steps[who]) for who in ("the store", "by hand"))
    used = sum(map(len, commands.values())) / (ROUNDS * STEPS)
    print(f"a step: {ours:.1f} ms, {used:.0f} command; by hand {theirs:.1f} ms, 3 commands", end="")
    print(f"; ratio {ours / theirs:.2f}")
    for what in range(10):  # a branch, a look, a failed step, and deletions of all kinds
        await add(store, 1000 + what, what, {"g": "x"})
        async with store.view(key(1000 + what)):
            pass
        async with store.begin(key(2000), base=key(1000 + what)):
            pass
        await store.delete(key(1000 + what))
    await store.delete(key(number - 1))
    for name, times in sorted(commands.items()):
        print(f"{name}: {statistics.median(times):.1f} ms ({len(times)} times)")
    await store.close()
    session.close()


def main() -> None:
    enter()
    print("the kernel's ZFS" if kernel_has_zfs() else "zfs-fuse")
    with tempfile.TemporaryDirectory(prefix="obuilder-bench.") as folder:
        os.chmod(folder, 0o755)
        with zfs_pool(folder) as place:
            anyio.run(compare, place)


if __name__ == "__main__":
    main()
