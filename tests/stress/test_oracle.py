"""A hundred random builds of five steps, ten at a time, against a model of what they must come to."""

import json
import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import anyio
import msgspec
import pytest

import oracle
from obuilder import Builder, Spec, errors, events, parse
from oracle import Build
from places import Opened, each_place
from program import Program, cached, finish

COUNT, AT_A_TIME = 100, 10


class Shown(NamedTuple):
    """What one build showed: the keys of its own steps in order, each stage's, and their logs."""

    main: list[str]
    stages: dict[str, list[str]]
    logs: dict[str, str]
    cached: set[str]
    code: str | None


def shown(stream: list[events.Event]) -> Shown:
    main, stages, cached, code = list[str](), defaultdict[str, list[str]](list), set[str](), None
    logs = defaultdict[str, bytes](bytes)
    for event in stream:
        match event:
            case events.StepStarted(key=key, stage=stage):
                steps = stages[stage] if stage else main
                if not steps or steps[-1] != key:  # else it begins anew, after another's failure
                    steps.append(key)
                logs[key] = b""
            case events.Output(key=key, data=data):
                logs[key] += data
            case events.StepCached(key=key):
                cached.add(key)
            case events.BuildEnded(code=why):
                code = why
    return Shown(main, stages, {key: log.decode() for key, log in logs.items()}, cached, code)


class Judge:
    """Compares what builds showed with the model, and with one another."""

    def __init__(self, made: list[Build]) -> None:
        self.made = made
        self.keys: dict[object, str] = {}
        self.runs: dict[str, str] = {}
        self.failed = defaultdict[str, set[str]](set)

    def one(self, build: Build, was: Shown) -> None:
        """One build that ran, or was replayed."""
        assert (was.code is None) != build.fails, was.code
        start, *steps = was.main[-len(build.steps) - 1 :]
        self._named("start", start)
        for depth, (step, key) in enumerate(zip(build.steps, steps, strict=True)):
            self._named(build.steps[: depth + 1], key)
            fails = step.kind == "fail"
            self._log(was.logs[key], lambda uuid, at=depth: build.log(at, uuid), key, fails=fails)
            if step.kind == "stage":
                inner = was.stages[step.name][-1]
                self._named(step.name, inner)
                self._log(was.logs[inner], lambda uuid: f"run {uuid}\n", inner, fails=False)

    def _named(self, what: object, key: str) -> None:
        assert self.keys.setdefault(what, key) == key

    def _log(self, log, expected, key: str, *, fails: bool) -> None:
        found = oracle.uuids(log)
        if not expected(""):
            assert log == ""
            return
        assert len(found) == 1, log
        assert log == expected(found[0])
        if fails:
            self.failed[key].add(found[0])
        else:
            assert self.runs.setdefault(key, found[0]) == found[0], "the step ran twice"

    def everything(self, kinds: Counter[str]) -> None:
        """All that was made, and nothing else."""
        assert len(set(self.keys.values())) == len(self.keys), "two steps with one key"
        made = [build for build in self.made if not build.fails]
        made += [Build(build.steps[:-1]) for build in self.made if build.fails]
        prefixes = oracle.prefixes(made)
        copies = sum(prefix[-1].kind in ("copy", "stage") for prefix in prefixes)
        stages = {step.name for build in self.made for step in build.steps if step.kind == "stage"}
        volumes = {"grow", *(prefix[-1].volume for prefix in oracle.prefixes(self.made))}
        expected = {
            "layer": 1, "copy": copies, "run": 1 + len(prefixes) - copies + len(stages),
            "failed": len(self.failed), "volume": len(volumes & {"grow", "count", "first"}),
        }  # fmt: skip
        assert kinds == Counter(expected)

    def root(self, build: Build, root: str) -> None:
        """The files of a result."""
        last = len(build.steps) - 1
        names = os.listdir(os.path.join(root, "d"))
        found = {name: _text(root, "d", name) for name in names}
        assert found == build.files(last)
        ran = {
            str(depth): self.runs[self.keys[build.steps[: depth + 1]]]
            for depth, step in enumerate(build.steps)
            if step.kind not in ("copy", "stage")
        }
        assert {name: _text(root, "ids", name) for name in os.listdir(f"{root}/ids")} == ran

    def volumes(self, text: str) -> None:
        """What a step that lists the volumes printed."""
        grow, all_names, all_list, count, counted, first = text.split("--\n")
        failed = {uuid for several in self.failed.values() for uuid in several}
        everyone = {*self.runs.values(), *failed}
        assert sorted(oracle.marks(grow)) == sorted(everyone), "append lost something"
        used = defaultdict[str | None, set[str]](set)
        for prefix in oracle.prefixes(self.made):
            step, key = prefix[-1], self.keys[prefix]
            ran = self.failed[key] if step.kind == "fail" else {self.runs.get(key, "")}
            used[step.volume] |= ran
        assert sorted(oracle.marks(all_names)) == sorted(used["all"]), "shared lost something"
        assert sorted(oracle.marks(all_list)) == sorted(used["all"])
        assert sorted(oracle.marks(counted)) == sorted(used["count"]), "locked lost something"
        assert int(count) == len(used["count"])
        kept = oracle.marks(first)
        assert len(kept) == len(set(kept))
        assert set(kept) <= used["first"]
        assert kept


LIST = (
    "ls /v/grow; echo --; ls /v/all | grep -v list; echo --; cat /v/all/list; echo --;"
    "cat /v/count/n; echo --; cat /v/count/list; echo --; cat /v/first/list; true"
)


def _good(made: list[Build], names: list[str]) -> dict[Build, str]:
    return {build: name for build, name in zip(made, names, strict=True) if not build.fails}


def _parse(program: Program, name: str) -> Spec:
    with open(os.path.join(program.context, name), "rb") as file:
        return parse(file.read(), file=name).spec


def _text(root: str, *name: str) -> str:
    with open(os.path.join(root, *name)) as file:
        return " ".join(file.read().split())


def specs(place: Opened, program: Program, seed: int) -> tuple[list[Build], list[str]]:
    """The builds of a seed, fewer where steps are slow, and the names of their specs."""
    for name, text in oracle.FILES.items():
        program.file(name, f"{text}\n".encode())
    made = oracle.builds(seed, -(-COUNT // place.rarely))
    names = {build: f"{number}.spec" for number, build in enumerate(dict.fromkeys(made))}
    for build, name in names.items():
        build.write(program, name)
    return made, [names[build] for build in made]


def list_volumes(program: Program) -> str:
    """What is in the volumes, as a step sees them."""
    program.spec(cached(LIST, **oracle.MODES), name="list.spec")
    return "list.spec"


@each_place
@pytest.mark.needs("root", "crun")
@pytest.mark.anyio
async def test_in_one_process(place: Opened, program: Program, seed: int) -> None:
    made, names = specs(place, program, seed)
    judge = Judge(made)
    parsed = {name: _parse(program, name) for name in names}
    limit = anyio.CapacityLimiter(AT_A_TIME)

    async with Builder.open(msgspec.structs.replace(program.settings, parallel=4)) as builder:

        async def build(spec) -> Shown:
            heard = list[events.Event]()
            try:
                await builder.build(spec, program.context, sink=heard.append)
            except errors.StepFailed:
                assert heard[-1].code == "step-failed"
            return shown(heard)

        async def one(number: int) -> None:
            async with limit:
                results[number] = await build(parsed[names[number]])

        results = dict[int, Shown]()
        async with anyio.create_task_group() as tasks:
            for number in range(len(made)):
                tasks.start_soon(one, number)
        for number, was in results.items():
            judge.one(made[number], was)
        judge.everything(Counter(record.kind for record in builder.records()))
        good = _good(made, names)
        for which, name in good.items():
            again = await build(parsed[name])
            judge.one(which, again)
            assert again.cached >= set(again.main)
        await _compare_roots(judge, builder, good)
        listed = await build(_parse(program, list_volumes(program)))
        judge.volumes(listed.logs[listed.main[-1]])


@each_place
@pytest.mark.needs("root", "crun")
def test_in_ten_processes_at_a_time(place: Opened, program: Program, seed: int) -> None:
    made, names = specs(place, program, seed)
    judge = Judge(made)

    def run(name: str) -> Shown:
        done = finish(program.start("build", "-f", name, "--progress=json", "."))
        was = shown(_events(done.out))
        assert done.status == (0 if was.code is None else errors.StepFailed.exit_status), done
        return was

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        results = list(pool.map(run, names))
        for build, was in zip(made, results, strict=True):
            judge.one(build, was)
        records = json.loads(program.ok("ls", "--all", "--json"))
        judge.everything(Counter(record["kind"] for record in records))
        good = _good(made, names)
        for build, was in zip(good, pool.map(run, good.values()), strict=True):
            judge.one(build, was)
            assert was.cached >= set(was.main)
    anyio.run(_open_and_compare, program, judge, good)
    listed = run(list_volumes(program))
    judge.volumes(listed.logs[listed.main[-1]])


def _events(text: str) -> list[events.Event]:
    _, *lines = text.splitlines()
    return [msgspec.json.decode(line, type=events.Event) for line in lines]


async def _compare_roots(judge: Judge, builder: Builder, good: dict[Build, str]) -> None:
    for build in good:
        async with builder.files(judge.keys[build.steps]) as path:
            judge.root(build, path)


async def _open_and_compare(program: Program, judge: Judge, good: dict[Build, str]) -> None:
    async with Builder.open(program.settings) as builder:
        await _compare_roots(judge, builder, good)
