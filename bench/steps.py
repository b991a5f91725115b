"""What a step costs, beside the runtime by hand: `scripts/bench`, as root, on a machine at rest.

Each round builds 10 trivial steps that were never built, and runs the same command as often by hand in
a bundle of each runtime's own default configuration; then a fully cached plan is replayed beside a bare
Python. Medians of rounds, side by side.
"""

import json
import os
import shutil
import statistics
import subprocess  # noqa: TID251 # the programs compared with are started by hand
import sys
import tempfile
import time

from obuilder.system.namespaces import enter

STEPS, ROUNDS = 10, 7

BUILD = """
import sys, time
import anyio
from obuilder.engine.builder import Builder
from obuilder.engine.settings import Settings
from obuilder.spec.model import Run, Shell, Spec

store, mark, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])

def spec(mark):
    return Spec(base="micro", ops=(Shell(("/bin/sh", "-c")),
                *(Run(f": {mark} {number}") for number in range(steps))))

async def main():
    async with Builder.open(Settings(store=f"overlayfs:{store}")) as builder:
        await builder.build(Spec(base="micro"), "/")
        began = time.perf_counter()
        result = await builder.build(spec(mark), "/")
        print((time.perf_counter() - began) / result.ran * 1000)

anyio.run(main)
"""

REPLAY = """
import sys
from obuilder.engine.cached import replay
from obuilder.engine.settings import Settings
from obuilder.spec.model import Run, Shell, Spec

store, mark, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
spec = Spec(base="micro", ops=(Shell(("/bin/sh", "-c")),
            *(Run(f": {mark} {number}") for number in range(steps))))
assert replay(spec, "/", Settings(store=f"overlayfs:{store}"), lambda _: None) is not None
"""


def timed(argv: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    return (time.perf_counter() - began) * 1000


def by_hand(runtime: str, folder: str, name: str) -> list[str]:
    options = ["--cgroup-manager=disabled"] if runtime == "crun" else []
    return [runtime, *options, "run", "-b", folder, name]


def bundle(runtime: str, place: str) -> str:
    root = os.path.join(place, "rootfs")
    os.makedirs(os.path.join(root, "bin"))
    shutil.copy("/bin/busybox", os.path.join(root, "bin", "sh"))
    subprocess.run([runtime, "spec"], cwd=place, check=True)
    path = os.path.join(place, "config.json")
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    config["process"].update(terminal=False, args=["/bin/sh", "-c", ":"])
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file)
    return place


def build(store: str, mark: str, steps: int) -> float:
    argv = [sys.executable, "-c", BUILD, store, mark, str(steps)]
    return float(subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    enter()  # crun wants a mount namespace without the hybrid cgroups that some machines have
    with tempfile.TemporaryDirectory(prefix="obuilder-bench.", dir="/var/tmp") as place:
        os.chmod(place, 0o711)  # steps run as users who must get to the store
        store = os.path.join(place, "store")
        bundles = {
            name: bundle(name, os.path.join(place, name))
            for name in ("crun", "runc")
            if shutil.which(name)
        }
        for name in [*bundles]:
            argv = by_hand(name, bundles[name], f"bench-{os.getpid()}-probe")
            if subprocess.run(argv, check=False, stdin=subprocess.DEVNULL).returncode != 0:
                print(f"{name} does not run by hand here")
                del bundles[name]
        build(store, "warm", 50)
        ours: list[float] = []
        hand: dict[str, list[float]] = {name: [] for name in bundles}
        for number in range(ROUNDS):
            ours.append(build(store, f"round {number}", STEPS))
            for name, folder in bundles.items():
                spent = [
                    timed(by_hand(name, folder, f"bench-{os.getpid()}-{number}-{step}"))
                    for step in range(STEPS)
                ]
                hand[name].append(statistics.mean(spent))
        step = statistics.median(ours)
        print(f"uncached step      obuilder {step:7.1f} ms")
        for name, spent in hand.items():
            median = statistics.median(spent)
            print(f"  by hand          {name:8} {median:7.1f} ms   ratio {step / median:.2f}")
        cached, bare = [], []
        for _ in range(ROUNDS * 3):
            cached.append(timed([sys.executable, "-c", REPLAY, store, "warm", "50"]))
            bare.append(timed([sys.executable, "-c", "pass"]))
        ratio = statistics.median(cached) / statistics.median(bare)
        print(f"50 cached steps    obuilder {statistics.median(cached):7.1f} ms")
        print(f"  bare             python3  {statistics.median(bare):7.1f} ms   ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
