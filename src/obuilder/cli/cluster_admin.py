"""The verbs of `obuilder cluster` for administrators: their options, and who comes and goes."""

import argparse
import os
import sys
from collections.abc import Awaitable, Callable, Mapping

from obuilder.cli import cluster_show, cluster_workers
from obuilder.cli.administration import Told, answer, as_admin
from obuilder.cli.options import add_cluster, add_messages, add_verb, positive, seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from obuilder.cluster.admin import Admin
    from obuilder.cluster.credentials import Credentials

_POOL = ("show", "pause", "unpause", "drain", "update", "forget", "exec", "set-rate")
_WORKER = ("show", "pause", "unpause", "drain", "update", "forget")


def add_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The verbs and their options."""
    subs = {name: add_verb(verbs, name, summary) for name, (summary, _) in _VERBS.items()}
    _add_places(subs)
    _add_names(subs)
    pausing = subs["pause"]
    pausing.add_argument("--reason", metavar="TEXT", default="", help="what `show` says")
    pausing.add_argument("--wait", action="store_true", help="until the jobs of each have ended")
    for name in ("pause", "unpause"):
        subs[name].add_argument("--all", action="store_true", help="every worker that is known")
    pausing.add_argument(
        "--auto-create", action="store_true", help="also a worker that was never there"
    )
    subs["show"].add_argument(
        "--terse", action="store_true", help="names alone, or the worker's state"
    )
    subs["update"].add_argument(
        "--patience", type=seconds, default=600.0, metavar="TIME",
        help="for a worker to come back: seconds, or with m, h",
    )  # fmt: skip
    subs["doctor"].add_argument(
        "--fix", action="store_true", help="put right what can be put right"
    )
    for sub in subs.values():
        sub.add_argument("--json", action="store_true", help="a record, for programs")
        add_cluster(sub)
        add_messages(sub)


def _add_places(subs: Mapping[str, argparse.ArgumentParser]) -> None:
    for name in _POOL:
        optional = "?" if name == "show" else None
        subs[name].add_argument("pool", metavar="POOL", nargs=optional, help="a pool")
    for name in _WORKER:
        subs[name].add_argument("worker", metavar="WORKER", nargs="?", help="one of its workers")
    subs["exec"].add_argument(
        "command", metavar="COMMAND", nargs=argparse.REMAINDER,
        help="run here once for each worker that is known, its name in place of {}; after --",
    )  # fmt: skip
    subs["set-rate"].add_argument("client", metavar="CLIENT", help="whose")
    subs["set-rate"].add_argument("rate", metavar="RATE", type=positive, help="1 for who has none")


def _add_names(subs: Mapping[str, argparse.ArgumentParser]) -> None:
    for kind in ("pool", "client", "viewer", "worker"):
        for verb in ("add", "remove"):
            sub = subs[f"{verb}-{kind}"]
            sub.add_argument("name", metavar=kind.upper(), help="its name")
            if kind == "worker":
                sub.add_argument("--pool", required=True, metavar="POOL", help="its pool")
            if verb == "add" and kind != "pool":
                sub.add_argument(
                    "-o", "--output", metavar="FILE",
                    help="the credentials file to write, mode 0600; standard output if not given",
                )  # fmt: skip
    subs["add-pool"].add_argument(
        "--platform", metavar="OS/ARCH", default="",
        help="what its workers must be; anything if not given",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Do what a verb of administrators asks for."""
    return answer(args, _VERBS[args.action][1](args))


def is_ours(action: str) -> bool:
    """Whether a verb of `obuilder cluster` is one of administrators."""
    return action in _VERBS


def _deliver(args: argparse.Namespace, work: "Callable[[Admin], Awaitable[Credentials]]") -> Told:
    """Write new credentials where they are wanted; to standard output they go as they are."""
    from obuilder.cluster.credentials import save_credentials

    made = as_admin(args, work)
    record = {"kind": made.kind, "name": made.name, "pool": made.pool, "key": made.key.public}
    if args.output:
        path = os.path.abspath(args.output)
        save_credentials(made, path)
        return Told({**record, "file": path})
    if args.json:
        import msgspec

        return Told({**record, "credentials": msgspec.to_builtins(made)})
    sys.stdout.write(made.as_text())
    return Told(record)


def _add_client(args: argparse.Namespace) -> Told:
    return _deliver(args, lambda admin: admin.add_client(args.name))


def _add_viewer(args: argparse.Namespace) -> Told:
    return _deliver(args, lambda admin: admin.add_viewer(args.name))


def _add_worker(args: argparse.Namespace) -> Told:
    return _deliver(args, lambda admin: admin.add_worker(args.pool, args.name))


def _remove_client(args: argparse.Namespace) -> Told:
    count = as_admin(args, lambda admin: admin.remove_client(args.name))
    text = f"{args.name} is cut off; {count} of its jobs that waited are cancelled"
    return Told({"client": args.name, "cancelled": count}, [text])


def _remove_viewer(args: argparse.Namespace) -> Told:
    as_admin(args, lambda admin: admin.remove_viewer(args.name))
    return Told({"viewer": args.name}, [f"{args.name} is cut off"])


def _remove_worker(args: argparse.Namespace) -> Told:
    count = as_admin(args, lambda admin: admin.remove_worker(args.pool, args.name))
    text = f"{args.name} is cut off; {count} jobs that waited for it go to others"
    return Told({"pool": args.pool, "worker": args.name, "moved": count}, [text])


def _add_pool(args: argparse.Namespace) -> Told:
    made = as_admin(args, lambda admin: admin.add_pool(args.name, args.platform))
    return Told({"name": made.name, "platform": made.platform})


def _remove_pool(args: argparse.Namespace) -> Told:
    count = as_admin(args, lambda admin: admin.remove_pool(args.name))
    text = f"{args.name} is removed; {count} jobs that waited in it are cancelled"
    return Told({"name": args.name, "cancelled": count}, [text])


def _set_rate(args: argparse.Namespace) -> Told:
    as_admin(args, lambda admin: admin.set_rate(args.pool, args.client, args.rate))
    return Told({"pool": args.pool, "client": args.client, "rate": args.rate})


_VERBS: dict[str, tuple[str, Callable[[argparse.Namespace], Told]]] = {
    "show": ("list pools; tell of one, or of one of its workers", cluster_show.pools),
    "clients": ("list clients", cluster_show.clients),
    "viewers": ("list viewers", cluster_show.viewers),
    "add-pool": ("make a pool", _add_pool),
    "remove-pool": ("remove a pool that no worker is in, and its queue", _remove_pool),
    "add-client": ("make a client's credentials", _add_client),
    "remove-client": ("cut a client off, and cancel its jobs that wait", _remove_client),
    "add-worker": ("make a worker's credentials", _add_worker),
    "remove-worker": ("cut a worker off, and give its jobs to others", _remove_worker),
    "add-viewer": ("make credentials that may look at all and change nothing", _add_viewer),
    "remove-viewer": ("cut a viewer off", _remove_viewer),
    "set-rate": ("say how much of a pool a client gets beside others", _set_rate),
    "pause": ("have workers take no more jobs", cluster_workers.pause),
    "unpause": ("let workers take jobs again", cluster_workers.unpause),
    "drain": ("pause workers and wait until their jobs have ended", cluster_workers.drain),
    "update": (
        "restart workers as new programs: one first, then the others",
        cluster_workers.update,
    ),
    "forget": ("forget a worker that is gone for good", cluster_workers.forget),
    "exec": ("run a command here for each worker of a pool", cluster_workers.execute),
    "doctor": ("look for what is wrong in the cluster", cluster_show.doctor),
}
