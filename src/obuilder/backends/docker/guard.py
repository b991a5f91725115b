"""Ends the steps of a builder that died: an engine's containers would go on without it.

    python guard.py SOCKET LABEL=VALUE

It waits for the end of its standard input, which its builder holds open, and then kills the
containers with that label; also such as come to be started just then. It needs nothing but Python.
"""

import http.client
import json
import socket
import sys
import time
from urllib.parse import quote

_PATIENCE = 5.0


def _ask(path: str, method: str, target: str) -> bytes:
    connection = http.client.HTTPConnection("docker")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_PATIENCE)
        sock.connect(path)
        connection.sock = sock
        connection.request(method, target)
        return connection.getresponse().read()


def _kill(path: str, label: str) -> None:
    """Kill what runs with the label, until the engine has had time to start what it was told to."""
    filters = quote(json.dumps({"label": [label]}))
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        for container in json.loads(_ask(path, "GET", f"/containers/json?filters={filters}")):
            _ask(path, "POST", f"/containers/{container['Id']}/kill")
        time.sleep(0.1)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    _kill(sys.argv[1], sys.argv[2])
