"""`obuilder cluster`: a cluster on this machine, the configuration of one on several; administration."""

import argparse
import os
import sys

import anyio

from obuilder.cli import cluster_admin
from obuilder.cli.options import add_messages, add_verb
from obuilder.cli.session import in_loop
from obuilder.errors import ClusterError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from obuilder.cluster.server import Local


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    verbs = parser.add_subparsers(dest="action", required=True, metavar="VERB")
    up = add_verb(verbs, "up", "start a cluster on this machine, and stay with it")
    up.add_argument("--port", type=_port, metavar="PORT", help="on 127.0.0.1; any if not given")
    up.add_argument(
        "-d", "--detach", action="store_true", help="leave it running in the background"
    )
    down = add_verb(verbs, "down", "end the cluster of this machine; what it has stored stays")
    for sub in (up, down):
        _add_state(sub)
        add_messages(sub)
    config = add_verb(verbs, "config", "write the configuration of a cluster on three machines")
    config.add_argument(
        "directory", metavar="DIR", help="a new directory, kept safe: it holds keys"
    )
    config.add_argument(
        "--server", action="append", required=True, metavar="HOST[,HOST]",
        help="names or addresses of the machines: three, or one to try it",
    )  # fmt: skip
    config.add_argument("--port", type=_port, default=4222, metavar="PORT", help="for clients")
    config.add_argument(
        "--cluster-port", type=_port, default=6222, metavar="PORT", help="between the servers"
    )
    config.add_argument(
        "--state", default="/var/lib/obuilder-nats", metavar="DIR",
        help="where each server keeps what it stores",
    )  # fmt: skip
    add_messages(config)
    cluster_admin.add_verbs(verbs)


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    if cluster_admin.is_ours(args.action):
        return cluster_admin.run(args)
    if args.action == "config":
        return _config(args)
    from obuilder.cluster.credentials import state_directory
    from obuilder.cluster.server import Local

    local = Local(args.state or state_directory())
    return in_loop(lambda: _up(args, local) if args.action == "up" else _down(args, local))


def _add_state(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state", metavar="DIR",
        help="where it keeps all it has; /var/lib/obuilder-cluster for root, else in"
        " ~/.local/state, if not given",
    )  # fmt: skip


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and 0 < int(text) < 1 << 16:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no port: take a number from 1 to 65535")


def _say(args: argparse.Namespace, text: str) -> None:
    if not args.quiet:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


async def _up(args: argparse.Namespace, local: "Local") -> int:
    if local.pid() is not None:
        return _is_up(args, local)
    authority = local.prepare(args.port)
    started = local.start(authority)
    stays = False
    try:
        await local.ready(authority, started)
        _say(
            args, f"the cluster is up at {authority.urls[0]}, in {local.directory}\n{_next(local)}"
        )
        if args.detach:
            stays = True
            return 0
        while started.running:
            await anyio.sleep(0.2)
        if started.status == 0:
            return 0  # it was told to, by `down`
        raise ClusterError(
            f"nats-server ended: {local.last_words()}",
            hint=f"{local.path('server.log')} tells more; `obuilder cluster up` starts it again",
        )
    finally:
        if not stays:
            with anyio.CancelScope(shield=True):
                await local.stop()
                started.discard()
            _say(args, "the cluster is down")


def _is_up(args: argparse.Namespace, local: "Local") -> int:
    (url,) = local.prepare().urls
    if args.port is not None and not url.endswith(f":{args.port}"):
        raise ClusterError(
            f"a cluster runs already in {local.directory}, at {url}",
            hint="`obuilder cluster down` ends it; then it can have another port",
        )
    _say(args, f"a cluster runs already at {url}, in {local.directory}\n{_next(local)}")
    return 0


async def _down(args: argparse.Namespace, local: "Local") -> int:
    stopped = await local.stop()
    _say(args, "the cluster is down" if stopped else f"no cluster runs in {local.directory}")
    return 0


def _next(local: "Local") -> str:
    """What to do now."""
    from obuilder.cluster.credentials import state_directory

    named = os.path.abspath(state_directory()) != local.directory
    worker, client, admin = (
        f" --cluster {local.path(f'{kind}.json')}" if named else ""
        for kind in ("worker", "client", "admin")
    )
    return (
        f"  obuilder worker{worker}          builds what is submitted\n"
        f"  obuilder submit{client} SPEC     submits a build\n"
        f"  obuilder cluster show{admin}    says what is there"
    )


def _config(args: argparse.Namespace) -> int:
    from obuilder.cluster.production import write_configuration

    hosts = [host.strip() for each in args.server for host in each.split(",") if host.strip()]
    if len(hosts) not in (1, 3, 5):
        raise UsageError(
            f"a cluster has three servers (or five, or one to try it), not {len(hosts)}",
            hint="--server a.example.org,b.example.org,c.example.org",
        )
    written = write_configuration(
        args.directory, hosts, port=args.port, cluster_port=args.cluster_port, state=args.state
    )
    _say(args, f"{written}: read README.md there")
    return 0
