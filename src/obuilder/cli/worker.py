"""`obuilder worker`: takes jobs of a pool of the cluster, until it is told to stop."""

import argparse
import fcntl
import gc
import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable

from obuilder.cli.options import (
    add_caches,
    add_cluster,
    add_images,
    add_limits,
    add_sandbox,
    add_store,
    count,
    credentials_of,
    is_quiet,
    positive,
    seconds,
    settings,
    size,
)
from obuilder.cli.tracing import Traced, Tracing
from obuilder.errors import ConfigError, StoreError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from obuilder.cluster.credentials import Credentials
    from obuilder.cluster.messages import Job
    from obuilder.cluster.worker import Worker
    from obuilder.events import Sink


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--name", metavar="NAME", help="the worker that the credentials are of, to be sure"
    )
    parser.add_argument(
        "--pool", metavar="POOL", help="the pool that the credentials are for, to be sure"
    )
    parser.add_argument(
        "--capacity", type=count, metavar="N", help="jobs at a time; one for each core if not given"
    )
    parser.add_argument(
        "--state-dir", metavar="DIR",
        help="where clones and files of jobs are kept; beside the store if not given",
    )  # fmt: skip
    parser.add_argument(
        "--allow-push", action="append", default=[], metavar="REPOSITORY",
        help="let jobs push images to it, HOST/NAME, or HOST/PART/* for all below; one for each time"
        " it is given",
    )  # fmt: skip
    parser.add_argument(
        "--health-every", type=_zero(seconds), default=600.0, metavar="TIME",
        help="from one trial build to the next, and more often after one that failed; 0: at the start"
        " alone",
    )  # fmt: skip
    parser.add_argument(
        "--free", type=_zero(positive), default=10.0, metavar="PERCENT",
        help="of the store's disk that are to be free, by pruning; 0: no matter",
    )  # fmt: skip
    parser.add_argument(
        "--prune", type=count, default=100, metavar="N", help="results that are pruned at a time"
    )
    parser.add_argument(
        "--log-cap", type=size, default=64 << 20, metavar="SIZE",
        help="bytes of output that are kept of a job, or with k, m, g",
    )  # fmt: skip
    parser.add_argument(
        "--update-command", metavar="COMMAND",
        help="run before the worker ends for an update, while its jobs go on; it is started again by"
        " its service manager",
    )  # fmt: skip
    add_cluster(parser)
    add_caches(parser)
    add_images(parser, spec=False)
    add_store(parser)
    add_sandbox(parser)
    add_limits(parser)


def _zero(measure: Callable[[str], float]) -> Callable[[str], float]:
    """A measure that may be 0."""

    def measured(text: str) -> float:
        return 0.0 if text == "0" else measure(text)

    return measured


def run(args: argparse.Namespace) -> int:
    """Work until told to stop: once, and jobs that run are finished; twice, and they are given back."""
    import anyio

    gc.enable()
    credentials = _credentials(args)
    with Tracing() as traced:
        anyio.run(_work, args, credentials, traced)
    return 0


def _credentials(args: argparse.Namespace) -> "Credentials":
    """The worker's credentials. ConfigError, UsageError."""
    found = credentials_of(args, "worker")
    if found.kind != "worker":
        raise ConfigError(
            f"these are the credentials of a {found.kind}, not of a worker",
            hint="an administrator makes some: obuilder cluster add-worker NAME --pool POOL",
        )
    for option, given, real in (
        ("--name", args.name, found.name), ("--pool", args.pool, found.pool),
    ):  # fmt: skip
        if given is not None and given != real:
            raise UsageError(
                f"{option} is {given}, and the credentials are for {real}",
                hint="each worker has its own: obuilder cluster add-worker NAME --pool POOL",
            )
    return found


async def _work(args: argparse.Namespace, credentials: "Credentials", traced: Traced) -> None:
    import anyio

    from obuilder.cluster.blobs import Blobs
    from obuilder.cluster.contexts import Contents
    from obuilder.cluster.engine import Engine
    from obuilder.cluster.git import Repositories
    from obuilder.cluster.health import Care
    from obuilder.cluster.jobs import Shop
    from obuilder.cluster.worker import Means, Worker
    from obuilder.engine.builder import Builder

    chosen = settings(args)
    cores = len(os.sched_getaffinity(0))
    means = Means(
        capacity=args.capacity or cores, memory=_memory(), cpus=float(cores),
        host=socket.gethostname(), log_cap=args.log_cap,
        update=tuple(shlex.split(args.update_command or "")),
    )  # fmt: skip
    every = args.health_every
    care = Care(
        check_every=every, retry=min(60.0, every), space_every=min(30.0, every or 30.0),
        free=args.free, prune=args.prune,
    )  # fmt: skip
    quiet = is_quiet(args)

    def tell(text: str) -> None:
        if not quiet:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def watched(sink: "Sink", job: "Job") -> "Sink":
        named = {"job": job.id, "client": job.client, "pool": job.pool, "worker": credentials.name}
        attributes = {f"obuilder.{name}": value for name, value in named.items()}
        return traced(sink, attributes, parent=job.trace)

    async with Builder.open(chosen) as builder:
        # The builder itself may see its store at another place, which is gone with this process.
        state = args.state_dir or f"{chosen.directory}.worker"
        with _state(state):
            async with Engine.connect(credentials, name=f"worker {credentials.name}") as engine:
                shop = Shop(
                    builder, Repositories(f"{state}/git"), Contents(f"{state}/files"),
                    f"{state}/scratch", lambda client: Blobs(engine, client),
                    tuple(args.allow_push), watched,
                )  # fmt: skip
                worker = Worker(
                    engine, credentials, shop, means=means, care=care, tell=tell, journal=state
                )
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_obey, worker)
                    try:
                        await worker.run()
                    finally:
                        tasks.cancel_scope.cancel()


async def _obey(worker: "Worker") -> None:
    """End at a signal; at the second one, at once."""
    import anyio

    told = 0
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async for _ in signals:
            told += 1
            if told == 1:
                worker.drain("a signal ended it")
            elif told == 2:
                worker.stop()
            else:
                os._exit(130)


class _state:  # noqa: N801 # used as a function
    """The state directory, for one worker alone. StoreError."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        from obuilder.system.files import remove_tree

        try:
            os.makedirs(self._path, mode=0o700, exist_ok=True)
            self._fd = os.open(f"{self._path}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            scratch = f"{self._path}/scratch"
            if os.path.isdir(scratch):
                remove_tree(scratch)
            os.makedirs(scratch, mode=0o700)
        except BlockingIOError as error:
            raise StoreError(
                f"another worker uses {self._path}", hint="name another one with --state-dir"
            ) from error
        except OSError as error:
            raise StoreError(f"can't use {self._path}: {error.strerror}") from error

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _memory() -> int | None:
    """Bytes of this machine's memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None
