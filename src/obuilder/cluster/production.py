"""The files of a cluster on several machines: servers that keep all on three disks, TLS, systemd units.

DIR/README.md           what to do with the rest
DIR/admin.json          credentials of an administrator, with the master secret
DIR/ca.pem ca.key       the authority that the servers' certificates are checked with
DIR/NAME/…              for each server: nats.conf, its certificate and key, its unit
DIR/units/…             units for workers and for the web page
"""

import os
from collections.abc import Sequence

from msgspec import Struct

from obuilder.cluster.certificates import make_authority, make_server
from obuilder.cluster.credentials import Authority, save_credentials
from obuilder.cluster.server import settings
from obuilder.errors import ConfigError, UsageError


class Node(Struct, frozen=True):
    """A server: its name in the cluster, where it is, its ports for clients and servers."""

    name: str
    host: str
    port: int
    cluster_port: int


def parse_nodes(texts: Sequence[str], port: int, cluster_port: int) -> list[Node]:
    """Servers from HOST, HOST:PORT or HOST:PORT:PORT. UsageError."""
    nodes: list[Node] = []
    for number, text in enumerate(texts, 1):
        host, *ports = text.split(":")
        if not host or len(ports) > 2 or not all(p.isascii() and p.isdigit() for p in ports):
            raise UsageError(
                f"{text!r} is no server", hint="write HOST, HOST:PORT or HOST:PORT:CLUSTERPORT"
            )
        own = [*map(int, ports), *(port, cluster_port)[len(ports) :]]
        nodes.append(Node(f"node{number}", host, own[0], own[1]))
    return nodes


def write_configuration(
    directory: str, servers: Sequence[str], *, port: int, cluster_port: int, state: str
) -> str:
    """Write everything into a directory that is not there yet: its path. UsageError, ConfigError."""
    nodes = parse_nodes(servers, port, cluster_port)
    authority = make_authority()
    urls = tuple(f"tls://{node.host}:{node.port}" for node in nodes)
    minter = Authority(master=os.urandom(32), urls=urls, ca=authority.certificate.decode())
    routes = "\n".join(f'    "nats://{node.host}:{node.cluster_port}"' for node in nodes)
    try:
        os.mkdir(directory, 0o700)
        for node in nodes:
            own = os.path.join(directory, node.name)
            os.mkdir(own, 0o700)
            issued = make_server(authority, node.host)
            more = _TLS + (
                _CLUSTER.format(port=node.cluster_port, routes=routes) if nodes[1:] else ""
            )
            text = settings(
                minter, name=node.name, host="0.0.0.0", port=node.port, directory=state, more=more  # noqa: S104
            )  # fmt: skip
            _write(own, "nats.conf", text.encode())
            _write(own, "server.pem", issued.certificate)
            _write(own, "server.key", issued.key)
            _write(own, "ca.pem", authority.certificate)
            _write(own, "obuilder-nats.service", _SERVER_UNIT.format(state=state).encode())
        units = os.path.join(directory, "units")
        os.mkdir(units, 0o700)
        _write(units, "obuilder-worker@.service", _WORKER_UNIT.encode())
        _write(units, "obuilder-web.service", _WEB_UNIT.encode())
        _write(directory, "ca.pem", authority.certificate)
        _write(directory, "ca.key", authority.key)
        save_credentials(minter.admin(), os.path.join(directory, "admin.json"))
        listed = "\n".join(
            f"- `{n.name}/`: {n.host}, ports {n.port} and {n.cluster_port}" for n in nodes
        )
        _write(directory, "README.md", _README.format(nodes=listed, state=state).encode())
    except FileExistsError:
        raise UsageError(
            f"{directory} is there already", hint="name a new directory: no key is ever overwritten"
        ) from None
    except OSError as error:
        raise ConfigError(f"can't write {error.filename or directory}: {error.strerror}") from error
    return directory


def _write(directory: str, name: str, content: bytes) -> None:
    path = os.path.join(directory, name)
    with open(path, "xb", opener=lambda p, flags: os.open(p, flags, 0o600)) as file:
        file.write(content)


_TLS = """tls {
  cert_file: "server.pem"
  key_file: "server.key"
  ca_file: "ca.pem"
  timeout: 5
}
"""
_CLUSTER = """cluster {{
  name: obuilder
  listen: "0.0.0.0:{port}"
  routes: [
{routes}
  ]
  tls {{
    cert_file: "server.pem"
    key_file: "server.key"
    ca_file: "ca.pem"
    verify: true
    timeout: 5
  }}
}}
"""
_SERVER_UNIT = """[Unit]
Description=NATS server of an obuilder cluster
After=network-online.target
Wants=network-online.target

[Service]
User=obuilder-nats
WorkingDirectory=/etc/obuilder-nats
ExecStart=/usr/local/bin/nats-server -c nats.conf
ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec=1
LimitNOFILE=65536
ReadWritePaths={state}
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
NoNewPrivileges=yes
CapabilityBoundingSet=

[Install]
WantedBy=multi-user.target
"""
_WORKER_UNIT = """[Unit]
Description=obuilder worker %i
After=network-online.target
Wants=network-online.target

[Service]
ExecStart=/usr/local/bin/obuilder worker --cluster /etc/obuilder/worker-%i.json
# It ends its jobs before it goes; what it can't end is done elsewhere.
KillMode=mixed
TimeoutStopSec=1h
Restart=always
RestartSec=2
Delegate=yes
LimitNOFILE=65536

[Install]
WantedBy=multi-user.target
"""
_WEB_UNIT = """[Unit]
Description=web page of an obuilder cluster
After=network-online.target

[Service]
DynamicUser=yes
LoadCredential=viewer.json:/etc/obuilder/viewer.json
ExecStart=/usr/local/bin/obuilder web --cluster %d/viewer.json
Restart=always
RestartSec=2
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
NoNewPrivileges=yes
CapabilityBoundingSet=

[Install]
WantedBy=multi-user.target
"""
_README = """# An obuilder cluster

Keep this directory safe and in a second place: `admin.json` holds the secret that every key of the
cluster comes from, `ca.key` the one that makes servers' certificates.

{nodes}

1. On each server: a user `obuilder-nats` and `nats-server` 2.12 or later in `/usr/local/bin`; the
   content of its directory in `/etc/obuilder-nats` (owner `obuilder-nats`, mode 0600), and a directory
   `{state}` of that user, on a disk of its own if there is one. Then put `obuilder-nats.service` into
   `/etc/systemd/system`, and `systemctl enable --now obuilder-nats`.
2. Where you administrate: `export OBUILDER_CLUSTER=admin.json`, then
   `obuilder cluster add-pool linux-x86_64` and `obuilder cluster doctor`.
3. For each worker: `obuilder cluster add-worker NAME --pool linux-x86_64 -o worker-NAME.json`, put into
   `/etc/obuilder` there, `units/obuilder-worker@.service` into `/etc/systemd/system`, and
   `systemctl enable --now obuilder-worker@NAME`.
4. For each client: `obuilder cluster add-client NAME -o NAME.json`, given to it alone.
5. The web page: `units/obuilder-web.service`, and in `/etc/obuilder` the `viewer.json` that
   `obuilder cluster add-viewer web -o viewer.json` writes. It looks, and changes nothing.

One server of three may be lost at any time, and nothing that was acknowledged is. Give them power of
their own: what several lose at once is what was not on disk, and they write every message through.
"""
