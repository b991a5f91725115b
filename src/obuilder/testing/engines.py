"""Engines of others that tests start for themselves, out of the way of whatever else runs."""

import os
import tempfile

from obuilder.system.files import remove_tree
from obuilder.system.process import capture

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
# What the engine puts into /run, whatever it is told, is gone with it.
_DOCKER = """
mount -t tmpfs obuilder-test /run
echo '{}' > "$1/daemon.json"
exec dockerd --config-file "$1/daemon.json" --host "unix://$1/docker.sock" --pidfile "$1/pid" \
    --data-root "$1/data" --exec-root "$1/exec" --cgroup-parent "/${1##*/}" \
    --bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false
"""
_FORGET = """
find /sys/fs/cgroup -depth -type d '(' -path "*/${1##*/}" -o -path "*/${1##*/}/*" ')' \
    -exec rmdir '{}' +
"""
_TRIAL = """
"$@" > "$0/log" 2>&1 &
while kill -0 $! 2> /dev/null; do
    if [ -S "$0/docker.sock" ]; then
        kill -9 $(cat "/proc/$!/task/$!/children")
        wait $!
        exit 0
    fi
    sleep 0.05
done
tail -n 2 "$0/log"
exit 1
"""


def docker_command(directory: str) -> list[str]:
    """What starts a Docker engine with all its files below `directory`, whose name must be unique.

    It listens at `docker.sock` there, and has no network but the host's; its cgroups are named like
    the directory. All of it is in a process namespace, which is gone when the process started is,
    and that is killed when its parent thread ends, however it does.
    """
    return in_namespaces(_DOCKER, directory)


def in_namespaces(script: str, *arguments: str) -> list[str]:
    """What runs a shell's script where an engine finds control groups, and ends with who started it.

    Its mounts are its own, and all its processes are gone when the process started is.
    """
    return [
        "setpriv", "--pdeathsig", "KILL",
        "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
        "sh", "-ec", _CGROUPS + script, "sh", *arguments,
    ]  # fmt: skip


def forget_docker(directory: str) -> None:
    """Remove all that such an engine, which is gone, left: its files and its cgroups."""
    capture(["unshare", "--mount", "sh", "-ec", _CGROUPS + _FORGET, "sh", directory], timeout=30)
    remove_tree(directory)


def try_docker() -> str | None:
    """Start such an engine and end it. Why it can't be; None if it can."""
    directory = tempfile.mkdtemp(prefix="obuilder-docker-", dir="/var/tmp")
    try:
        command = docker_command(directory)
        status, said = capture(["sh", "-c", _TRIAL, directory, *command], timeout=30)
        if status == 0:
            return None
        return f"no Docker engine can be started: {os.fsdecode(said).strip()}"
    finally:
        forget_docker(directory)
