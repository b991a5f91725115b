"""What administrators do with workers that build, on the real engine; and all verbs, as typed."""

import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from types import SimpleNamespace

import anyio
import pytest
from msgspec.structs import replace

from clusters import Cluster
from obuilder.cli import main
from obuilder.cluster import connection, names, presence
from obuilder.cluster.admin import Admin
from obuilder.cluster.credentials import save_credentials
from obuilder.cluster.messages import Known, Presence, Ticket, encode
from obuilder.cluster.presence import Name
from obuilder.cluster.worker import Means
from obuilder.errors import ClusterError, ObuilderError, Refused, UsageError
from workbench import Workbench
from workers import Yard

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("nats")]


@pytest.fixture
async def admin(cluster: Cluster) -> AsyncIterator[Admin]:
    async with Admin.open(cluster.credentials) as ready:
        yield ready


@pytest.fixture(autouse=True)
def well(monkeypatch) -> None:
    """The fakes' shell is too small for a trial build; test_worker_care makes real ones."""

    async def illness(_) -> None:
        return None

    monkeypatch.setattr("obuilder.cluster.health.illness", illness)


@pytest.fixture
def benches(tmp_path) -> Iterator[dict[str, Workbench]]:
    """What goes on in the steps of each worker."""
    made = {}
    for name in "abc":
        (tmp_path / name).mkdir()
        made[name] = Workbench(str(tmp_path / name))
    return made


class Service:
    """A worker under a service manager, which starts it again when it has ended, while `restarts`."""

    def __init__(self, yard: Yard, name: str, bench: Workbench, **how) -> None:
        self._yard, self._name, self._bench, self._how = yard, name, bench, how
        self.restarts = True
        self.up = anyio.Event()
        self.sessions: list[str] = []

    async def run(self) -> None:
        while True:
            async with self._yard.worker(self._name, self._bench, **self._how) as worker:
                self.sessions.append(worker.session)
                self.up.set()
                await self._yard.until(lambda: worker._ending and not worker._runs, seconds=120)
            if not self.restarts:
                return


@asynccontextmanager
async def services(yard, benches, **how) -> AsyncIterator[dict[str, Service]]:
    """Workers a, b and c."""
    made = {name: Service(yard, name, bench, **how) for name, bench in benches.items()}
    async with anyio.create_task_group() as tasks:
        for service in made.values():
            tasks.start_soon(service.run)
            await service.up.wait()
        yield made
        tasks.cancel_scope.cancel()


async def test_pausing_waits_for_jobs_and_tells_how_many_are_left(yard, admin, benches) -> None:
    bench, told, pool = benches["a"], [], yard.pool
    until = partial(yard.until, seconds=60)
    with pytest.raises(UsageError, match="'a' is not known"):
        await admin.pause(pool, "a")
    assert await admin.pause(pool, "a", "not yet", make=True)  # before it was ever there
    async with yard.worker("a", bench):
        first = [await yard.submit(f"hold {name}") for name in "xy"]
        await until(lambda: _reasons(admin, pool, "a", ("admin", "not yet")))
        assert await admin.unpause(pool, "a")
        assert not await admin.unpause(pool, "a")
        for name in "xy":
            with anyio.fail_after(20):
                await bench.came[name].wait()
        await until(lambda: _running(admin, pool, "a", 2))
        assert await admin.pause(pool, "a", "repairs")
        assert not await admin.pause(pool, "a")
        third = await yard.submit("mark third")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(admin.drain, pool, "a", told.append)
            await until(lambda: told == ["a: Running jobs: 2"])
            bench.free["x"].set()
            await until(lambda: told[1:] == ["a: Running jobs: 1"])
            bench.free["y"].set()
        assert told[2:] == ["a: Running jobs: 0"]
        assert [(await yard.ended(ref)).phase for ref in first] == ["done", "done"]
        assert (await yard.client.state(third)).phase == "queued"
        assert bench.ran == []
        found = (await admin.view(pool)).named("a")
        assert (found.is_paused, found.paused.reason, found.paused.by) == (True, "repairs", "admin")
        with pytest.raises(UsageError, match="still connected"):
            await admin.forget(pool, "a")
        await admin.unpause(pool, "a")
        assert (await yard.ended(third)).phase == "done"
    # A worker that dies has nothing to be waited for; it is known until it is forgotten.
    await admin.pause(pool, "a")
    await admin.drain(pool, "a", told.append)
    assert told[-1] == "a: Disconnected (nothing to drain)"
    ticket = Ticket(id="none", client=yard.client.name, forwarded="a")
    await yard.admin.put(names.forwarded(pool, "a", urgent=False), encode(ticket))
    assert await admin.forget(pool, "a") == 1  # what waited for it alone
    assert [worker for worker in (await admin.view(pool)).workers if worker.name == "a"] == []
    assert list(await yard.admin.pending(names.queue_of(pool), ">")) == [
        names.ticket(yard.client.name, pool, urgent=False)
    ]
    with pytest.raises(UsageError, match="is not known"):
        await admin.forget(pool, "a")


async def test_one_worker_is_updated_first_and_the_others_if_it_comes_back(
    yard, admin, benches
) -> None:
    pool, told = yard.pool, []
    update_all = partial(admin.update_all, pool, told.append)
    assert await update_all() == []
    assert told.pop() == "No workers connected to pool (nothing to do)."
    async with services(yard, benches) as made:
        held = await yard.submit("hold x")
        await yard.until(
            lambda: any(bench.came["x"].is_set() for bench in benches.values()), seconds=60
        )
        last = next(name for name, bench in benches.items() if bench.came["x"].is_set())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(update_all)
            if last != "a":  # the others are not touched before the first is back
                await yard.until(
                    lambda: len(told) >= 2 and len(made["a"].sessions) == 2, seconds=30
                )
            await anyio.sleep(0.1)
            assert len(made[last].sessions) == 1  # its job goes on
            benches[last].free["x"].set()
        assert (await yard.ended(held)).attempt == 1
        assert told[:2] == [
            "Testing update on first worker in pool: a", "Canary updated OK. Updating the others: b, c",
        ]  # fmt: skip
        assert sorted(told[2:]) == ["b restarted OK.", "c restarted OK."]
        assert [len(service.sessions) for service in made.values()] == [2, 2, 2]
        # One of the others does not come back: it is named, the rest are done.
        made["b"].restarts = False
        assert await update_all(patience=2) == ["b"]
        assert any("b did not come back in 2 seconds" in line for line in told)
        assert [len(made[name].sessions) for name in "ac"] == [3, 3]
        # The first does not come back: no other is touched.
        made["a"].restarts = False
        with pytest.raises(ClusterError, match="the worker a did not come back in 1 seconds"):
            await update_all(patience=1)
        assert len(made["c"].sessions) == 3
        with pytest.raises(ClusterError, match="the worker a is not connected"):
            await admin.update(pool, "a")


async def test_a_worker_that_can_not_prepare_an_update_stays_as_it_is(yard, admin, benches) -> None:
    told, means = [], Means(update=("sh", "-c", "echo no such version; exit 3"))
    async with services(yard, {"a": benches["a"], "b": benches["b"]}, means=means) as made:
        with pytest.raises(ClusterError, match="ended with 3: no such version"):
            await admin.update_all(yard.pool, told.append)
        assert told == ["Testing update on first worker in pool: a"]
        assert [len(service.sessions) for service in made.values()] == [1, 1]
        assert (await yard.ended(await yard.submit("mark on"))).phase == "done"


async def test_a_name_whose_worker_is_silent_is_had_by_another(cluster, yard, monkeypatch) -> None:
    monkeypatch.setattr(presence, "TTL", 2.0)
    monkeypatch.setattr(presence, "BEAT", 0.5)
    made = await cluster.worker("n", yard.pool)
    told: list[str] = []

    def look(session: str) -> Presence:
        return Presence(
            pool=yard.pool, name="n", session=session, capacity=1, in_use=0, host="here"
        )

    async with cluster.joined(made, made) as (one, two):
        first, second = (
            Name(engine, yard.pool, "n", session) for engine, session in ((one, "s1"), (two, "s2"))
        )
        await first.take(lambda: look("s1"), told.append)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first.keep, lambda: look("s1"))
            with pytest.raises(Refused, match=r"a worker called n is in the pool .* on here"):
                await second.take(lambda: look("s2"), told.append)
            tasks.cancel_scope.cancel()  # it is killed
        assert told == ["the name n is taken: waiting for its worker to be silent"]
        for _ in range(3):  # its last beat may come only now: then it is refused once more
            with suppress(Refused):
                await second.take(lambda: look("s2"), told.append)
                break
        waits = len(told)
        with anyio.fail_after(10):
            with pytest.raises(Refused, match="another worker called n has come"):
                await first.keep(lambda: look("s1"))
        second._seq = 0  # as where the answer to its last beat was cut off
        await second.leave()
        began = time.monotonic()
        await first.take(lambda: look("s3"), told.append)
        assert len(told) == waits  # nobody had to be waited for
        assert time.monotonic() - began < presence.TTL


def _reasons(admin: Admin, pool: str, worker: str, *reasons: tuple[str, str]):
    async def looked() -> bool:
        found = (await admin.presences(pool)).get(worker)
        return found is not None and found.paused == reasons

    return looked()


def _running(admin: Admin, pool: str, worker: str, count: int):
    async def looked() -> bool:
        found = (await admin.presences(pool)).get(worker)
        return found is not None and found.in_use == count

    return looked()


# --- as typed ------------------------------------------------------------------------------------


@pytest.fixture
def typed(cluster, tmp_path, capsys, monkeypatch):
    """Types a verb as an administrator, in a pool of its own with a worker that is there, and one that
    was: its exit status, output and errors.
    """
    pool = "typed"

    async def prepare() -> dict[str, str]:
        await cluster.pool(pool)
        async with AsyncExitStack() as stack:
            admin = await stack.enter_async_context(Admin.open(cluster.credentials))
            await cluster.client("ann")
            here = Presence(
                pool=pool,
                name="here",
                session="s",
                capacity=3,
                in_use=0,
                version="1",
                at=time.time(),
            )
            await admin.engine.put(names.worker(pool, "here"), encode(here))
            for name in ("here", "gone"):
                await admin.engine.put(names.known(pool, name), encode(Known(first=1, last=2)))
            made = {
                "admin": cluster.credentials, "client": await admin.add_client("ann"),
                "viewer": await admin.add_viewer("eve"),
                "down": replace(cluster.credentials, urls=("nats://127.0.0.1:1",)),
            }  # fmt: skip
        for kind, credentials in made.items():
            save_credentials(credentials, str(tmp_path / f"{kind}.json"))
        return {kind: str(tmp_path / f"{kind}.json") for kind in made}

    files = anyio.run(prepare)
    monkeypatch.setattr(connection, "_UNREACHABLE", 0.5)

    def typed(*words: str, by: str = "admin") -> SimpleNamespace:
        monkeypatch.setenv("OBUILDER_CLUSTER", files[by])
        error = None
        try:
            status = main.run(["cluster", *words])
        except ObuilderError as raised:
            status, error = raised.exit_status, raised
        said = capsys.readouterr()
        return SimpleNamespace(status=status, out=said.out, err=said.err, error=error)

    return typed


VERBS = (
    # what is typed; the lines, or a part of them; the record, or some of it
    ("show", "typed\n", None),
    ("show typed", "capacity: 3\n", {"name": "typed", "capacity": 3}),
    ("show typed here", "here: Running\n", {"name": "here", "connected": True}),
    ("show typed gone --terse", "Disconnected\n", {"name": "gone", "connected": False}),
    ("show typed nobody --terse", "Not found\n", None),
    ("clients", "ann\n", None),
    ("viewers", "eve\n", None),
    ("pause typed here --reason r", "Success.\n", {"pool": "typed", "changed": ["here"]}),
    ("pause typed --all", 'worker "here" is already done)\nUpdated gone', {"unchanged": ["here"]}),
    (
        "drain typed gone",
        "gone: Disconnected (nothing",
        {"drained": ["gone"], "unchanged": ["gone"]},
    ),
    ("show typed here", "here: Paused\n", {"paused": {"reason": "r"}}),
    ("unpause typed --all", "Updated", {"unchanged": []}),
    ("unpause typed here", "Nothing to do.\n", {"changed": [], "unchanged": ["here"]}),
    ("pause typed new --auto-create", "Success.\n", {"changed": ["new"]}),
    ("forget typed new", "Success.\n", {"pool": "typed", "worker": "new", "moved": 0}),
    ("exec typed -- echo at {}", "here: at here\n", None),
    ("set-rate typed ann 2.5", "", {"pool": "typed", "client": "ann", "rate": 2.5}),
    ("add-pool more --platform linux/arm64", "", {"name": "more", "platform": "linux/arm64"}),
    ("add-worker w --pool more -o FILE", "", {"kind": "worker", "name": "w", "pool": "more"}),
    ("remove-worker w --pool more", "w is cut off; 0 jobs", {"worker": "w", "moved": 0}),
    ("remove-pool more", "more is removed; 0 jobs", {"name": "more", "cancelled": 0}),
    ("add-client zoe -o FILE", "", {"kind": "client", "name": "zoe"}),
    ("remove-client zoe", "zoe is cut off; 0 of its jobs", {"client": "zoe", "cancelled": 0}),
    ("add-viewer vic -o FILE", "", {"kind": "viewer", "name": "vic"}),
    ("remove-viewer vic", "vic is cut off\n", {"viewer": "vic"}),
)


@pytest.mark.parametrize("form", ["text", "json"])
def test_every_verb_answers_people_and_programs(typed, tmp_path, form) -> None:
    for words, text, record in VERBS:
        argv = words.replace("FILE", str(tmp_path / "made.json")).split()
        if form == "json":
            argv[1:1] = ["--json"]  # before what `exec` runs
        done = typed(*argv)
        assert done.status == 0, (words, done.error)
        assert "Traceback" not in done.err
        if form == "text":
            assert text in done.out, words
            continue
        found = json.loads(done.out)  # and nothing else, whatever was told meanwhile
        if record is not None:
            for name, value in record.items():
                held = found[name]
                assert held == value or value.items() <= held.items(), words
    file = tmp_path / "made.json"
    assert file.stat().st_mode & 0o777 == 0o600
    if form == "json":
        [each] = [each for each in json.loads(typed("exec", "--json", "typed", "--", "sh", "-c",
                  'echo "$0"; exit 4', "{}").out) if each["worker"] == "here"]  # fmt: skip
        assert each == {"worker": "here", "status": 4, "output": "here\n"}
        faults = json.loads(typed("doctor", "--json").out)
        assert [each["fixed"] for each in faults if "here has obuilder 1" in each["what"]] == [
            False
        ]


WRONG = (
    # what is typed; by whom; the exit status; what it says; what it hints at
    ("show nowhere", "admin", 6, "there is no pool 'nowhere'", "there are: "),
    ("show typed nobody", "admin", 2, "'nobody' is not known in the pool typed", "known are: "),
    ("pause typed", "admin", 2, "which worker?", "gone, here"),
    ("pause typed nobody", "admin", 2, "'nobody' is not known", "known are: "),
    ("pause typed a.b --auto-create", "admin", 2, "can't be the name of a worker", "letters"),
    ("unpause typed nobody", "admin", 2, "'nobody' is not known", ""),
    ("drain nowhere", "admin", 6, "there is no pool", ""),
    ("update typed nobody", "admin", 2, "'nobody' is not known", ""),
    ("update typed gone", "admin", 6, "gone is not connected", ""),
    ("update typed here", "admin", 6, "nobody answers", ""),
    ("forget typed here", "admin", 2, "here is still connected", "stop it"),
    ("forget typed", "admin", 2, "which worker?", "gone: gone"),
    ("exec typed", "admin", 2, "which command?", "ssh"),
    ("exec typed -- /no/such", "admin", 2, "can't run /no/such", ""),
    ("set-rate typed nobody 2", "admin", 2, "there is no client 'nobody'", "cluster clients"),
    ("set-rate nowhere ann 2", "admin", 6, "there is no pool", ""),
    ("set-rate typed ann 0", "admin", 2, "0", ""),
    ("add-pool a/b", "admin", 2, "can't be the name of a pool", ""),
    ("remove-pool typed", "admin", 2, "the pool typed has workers: here", "stop them"),
    ("add-worker w --pool nowhere", "admin", 6, "there is no pool", ""),
    ("add-worker w", "admin", 2, "--pool", ""),
    ("remove-worker nobody --pool typed", "admin", 2, "no credentials were made", "show typed"),
    ("remove-client nobody", "admin", 2, "there is no client", ""),
    ("remove-viewer nobody", "admin", 2, "there is no viewer", "cluster viewers"),
    ("add-client ann -o /no/such/file", "admin", 2, "can't write /no/such/file", ""),
    ("show", "client", 2, "the credentials of a client, and it takes", "--cluster FILE"),
    ("pause typed here", "viewer", 2, "the credentials of a viewer, and it takes", ""),
    ("doctor --fix", "viewer", 2, "the credentials of a viewer, and it takes", ""),
    ("show --cluster /no/such", "admin", 2, "there are no credentials", ""),
    ("show", "down", 6, "can't be reached", "cluster up"),
)  # fmt: skip


def test_what_is_wrong_is_told_in_one_message_with_its_exit_status(typed) -> None:
    for words, by, status, said, hint in WRONG:
        done = typed(*words.split(), by=by)
        assert done.error is not None, words
        assert done.status == status, (words, done)
        assert done.out == ("Updating here…\n" if words == "update typed here" else ""), words
        assert said in done.error.message, (words, done.error.message)
        assert hint in (done.error.hint or ""), (words, done.error.hint)
    assert typed("show", by="viewer").status == 0
