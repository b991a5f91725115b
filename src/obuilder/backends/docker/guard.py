"""Ends the steps of a builder that died: an engine's containers would go on without it.

    python guard.py SOCKET LABEL=VALUE

It waits for the end of its standard input, which its builder holds open, and then removes the
containers with that label, also such as did not start yet. It needs nothing but Python.
"""

import http.client
import json
import socket
import sys
from urllib.parse import quote

_PATIENCE = 10.0


def _ask(path: str, method: str, target: str) -> bytes:
    connection = http.client.HTTPConnection("docker")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_PATIENCE)
        sock.connect(path)
        connection.sock = sock
        connection.request(method, target)
        return connection.getresponse().read()


def _end(path: str, label: str) -> None:
    filters = quote(json.dumps({"label": [label]}))
    for container in json.loads(_ask(path, "GET", f"/containers/json?all=1&filters={filters}")):
        _ask(path, "DELETE", f"/containers/{container['Id']}?force=1&v=1")


if __name__ == "__main__":
    sys.stdin.buffer.read()
    _end(sys.argv[1], sys.argv[2])
