"""Engines of others that tests start for themselves, out of the way of whatever else runs."""

import os
import tempfile
from typing import Literal

import msgspec

from obuilder.backends.docker.api import DockerEngine
from obuilder.backends.docker.names import SESSION
from obuilder.system.files import remove_tree
from obuilder.system.process import capture

Kind = Literal["docker", "podman"]

# In a mount namespace of its own, so that nothing stays mounted. Where controllers stand in
# hierarchies of version 1, the engine wants to see them all, but this process may see version 2 only.
_CGROUPS = """
hierarchies=$(awk 'NR > 1 && $2 > 0 { names[$2] = names[$2] "," $1 }
    END { for (number in names) print substr(names[number], 2) }' /proc/cgroups)
if [ -n "$hierarchies" ]; then
    mount -t tmpfs obuilder-test /sys/fs/cgroup
    for names in $hierarchies; do
        mkdir "/sys/fs/cgroup/$names"
        mount -t cgroup -o "$names" obuilder-test "/sys/fs/cgroup/$names"
    done
fi
"""
# What an engine puts into /run, whatever it is told, is gone with it.
_START = {
    "docker": """
mount -t tmpfs obuilder-test /run
echo '{}' > "$1/daemon.json"
exec dockerd --config-file "$1/daemon.json" --host "unix://$1/engine.sock" --pidfile "$1/pid" \
    --data-root "$1/data" --exec-root "$1/exec" --cgroup-parent "/${1##*/}" \
    --bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false
""",
    # Its locks would be in memory that it shares with the machine's own. The shell waits for whoever
    # loses their parent, too.
    "podman": """
mount -t tmpfs obuilder-test /run
printf '[engine]\nlock_type = "file"\n' > "$1/containers.conf"
if [ -e /usr/bin/dpkg ]; then  # which it asks at length, each time that it tells of itself
    mount --bind /bin/false /usr/bin/dpkg
fi
export CONTAINERS_CONF="$1/containers.conf"
cd "$1"  # where its monitor notes that memory ran out
podman --root "$1/data" --runroot "$1/run" --tmpdir "$1/tmp" --volumepath "$1/volumes" \
    --network-config-dir "$1/networks" --storage-driver overlay --cgroup-manager cgroupfs \
    --events-backend none --runtime runc system service --time 0 "unix://$1/engine.sock" &
wait $!
""",
}
_MEMORY = """
mkdir -p "$1/data"
mount -t tmpfs -o size=2g obuilder-test "$1/data"
"""
_FORGET = """
names="${1##*/} $(ls "$1/data/overlay-containers" 2> /dev/null | sed 's|^|libpod_parent/libpod-|')"
for name in $names; do
    find /sys/fs/cgroup -depth -type d '(' -path "*/$name" -o -path "*/$name/*" ')' -exec rmdir '{}' +
done
find /sys/fs/cgroup -depth -type d -name libpod_parent -exec rmdir '{}' +  # stays while others use it
"""
_TRIAL = """
"$@" > "$0/log" 2>&1 &
while kill -0 $! 2> /dev/null; do
    if [ -S "$0/engine.sock" ]; then
        kill -9 $(cat "/proc/$!/task/$!/children")
        wait $!
        exit 0
    fi
    sleep 0.05
done
tail -n 2 "$0/log"
exit 1
"""


def engine_command(kind: Kind, directory: str, *, memory: bool = False) -> list[str]:
    """What starts an engine with all its files below `directory`, whose name must be unique.

    It listens at `engine.sock` there, and has no network but the host's. `memory`: what it keeps is
    on memory, and nobody else sees it, which podman's volumes have to be. All of it is in a process
    namespace, which is gone when the process started is, and that is killed when its parent thread
    ends, however it does.
    """
    return in_namespaces(_MEMORY * memory + _START[kind], directory)


def in_namespaces(script: str, *arguments: str) -> list[str]:
    """What runs a shell's script where an engine finds control groups, and ends with who started it.

    Its mounts are its own, and all its processes are gone when the process started is.
    """
    return [
        "setpriv", "--pdeathsig", "KILL",
        "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
        "sh", "-ec", _CGROUPS + script, "sh", *arguments,
    ]  # fmt: skip


def forget_engine(directory: str) -> None:
    """Remove all that such an engine, which is gone, left: its files and its cgroups."""
    capture(["unshare", "--mount", "sh", "-ec", _CGROUPS + _FORGET, "sh", directory], timeout=30)
    remove_tree(directory)


def try_engine(kind: Kind) -> str | None:
    """Start such an engine and end it. Why it can't be; None if it can."""
    directory = tempfile.mkdtemp(prefix="obuilder-engine-", dir="/var/tmp")
    try:
        command = engine_command(kind, directory)
        status, said = capture(["sh", "-c", _TRIAL, directory, *command], timeout=30)
        if status == 0:
            return None
        return f"no engine of {kind} can be started: {os.fsdecode(said).strip()}"
    finally:
        forget_engine(directory)


def left_by(session: str) -> list[str]:
    """What a session has in the engine that DOCKER_HOST names."""
    engine = DockerEngine.found()
    filters = msgspec.json.encode({"label": [f"{SESSION}={session}"]}).decode()
    containers = engine.call("GET", "/containers/json", {"all": "1", "filters": filters})
    images = engine.call("GET", "/images/json")
    return [
        *(f"container {found['Id']}" for found in msgspec.json.decode(containers)),
        *(
            f"image {tag}"
            for found in msgspec.json.decode(images)
            for tag in found["RepoTags"] or ()
            if f":{session}." in tag
        ),
    ]
