"""Servers and workers of a cluster as processes that can be killed, in networks that can be cut.

For a process that is the first of namespaces of its own (`unshare --net --mount --pid`).
"""

import os
import subprocess  # noqa: TID251 # servers and workers are started, and killed, by hand
import sys
from contextlib import suppress

from obuilder.cluster import server
from obuilder.cluster.credentials import load_credentials
from obuilder.cluster.production import write_configuration

NETWORK = "10.213.0"
KINDS = """
[obuilder.jobs]
nap = obuilder.testing.jobs:sleep
"""


def run(*words):
    subprocess.run(words, check=True)


class Network:
    """A bridge, and on it a network for each of those who are named; one and the same without it."""

    def __init__(self, everybody):
        self.everybody = everybody
        run("ip", "link", "set", "lo", "up")
        if not everybody:
            return
        os.makedirs("/run/netns", exist_ok=True)
        run("mount", "-t", "tmpfs", "names", "/run/netns")
        run("ip", "link", "add", "bridge", "type", "bridge")
        run("ip", "addr", "add", f"{NETWORK}.254/24", "dev", "bridge")
        run("ip", "link", "set", "bridge", "up")
        for name in everybody:
            run("ip", "netns", "add", name)
            pair = ["type", "veth", "peer", "name", "eth0", "netns", name]
            run("ip", "link", "add", f"to-{name}", *pair)
            run("ip", "link", "set", f"to-{name}", "master", "bridge", "up")
            run("ip", "-n", name, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
            for link in ("eth0", "lo"):
                run("ip", "-n", name, "link", "set", link, "up")

    def address(self, name):
        return f"{NETWORK}.{self.everybody.index(name) + 1}"

    def inside(self, name):
        """What a program is started with that is to be in a network."""
        return ["nsenter", f"--net=/run/netns/{name}"] if self.everybody else []

    def cut(self, name):
        run("ip", "link", "set", f"to-{name}", "down")

    def join(self, name):
        run("ip", "link", "set", f"to-{name}", "up")

    def deafen(self, name):
        """Of what goes over the link, nothing is lost in the other direction."""
        run(*self.inside(name), "iptables", "-w", "-A", "INPUT", "-i", "eth0", "-j", "DROP")

    def heal(self, name):
        run(*self.inside(name), "iptables", "-w", "-F", "INPUT")


class Servers:
    """Of one node as `cluster up` makes it, or of three as `cluster config` does."""

    def __init__(self, directory, nodes, network):
        self.directory, self.network, self.running = directory, network, {}
        if len(nodes) == 1:
            server.Local(directory).prepare()
            self.config = f"{directory}/nats.conf"
        else:
            hosts = [network.address(name) for name in nodes]
            write_configuration(directory, hosts, port=4222, cluster_port=6222, state=".")
            self.config = "nats.conf"
        for name in nodes:
            self.start(name)

    def start(self, name):
        own = os.path.join(self.directory, name)
        os.makedirs(own, exist_ok=True)
        argv = [server.find_server(), "-c", self.config, "-l", f"{own}/log"]
        self.running[name] = subprocess.Popen(self.network.inside(name) + argv, cwd=own)

    def kill(self, name):
        self.running[name].kill()
        self.running.pop(name).wait()

    async def admin(self):
        if len(self.running) == 1:
            local = server.Local(self.directory)
            return await local.ready(local.prepare())
        return load_credentials(f"{self.directory}/admin.json")


class Workers:
    """Real workers, each a process."""

    def __init__(self, directory, network):
        self.directory, self.network, self.running = directory, network, {}
        self.log = open(f"{directory}/workers.log", "ab")  # noqa: SIM115 # for as long as we live
        kinds = f"{directory}/kinds/chaos-0.dist-info"
        os.makedirs(kinds)
        for name, text in (
            ("METADATA", "Metadata-Version: 2.1\nName: chaos\nVersion: 0\n"),
            ("entry_points.txt", KINDS),
        ):
            with open(f"{kinds}/{name}", "w") as file:
                file.write(text)
        paths = [os.path.dirname(kinds), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.env = {**os.environ, "PYTHONPATH": ":".join(paths)}

    def start(self, name):
        own = f"{self.directory}/{name}"
        argv = [
            *self.network.inside(name), sys.executable, "-m", "obuilder", "worker",
            "--cluster", f"{own}.json", "--store", f"overlayfs:{own}", "--capacity", "8",
            "--health-every", "0", "--free", "0",
        ]  # fmt: skip
        self.running[name] = subprocess.Popen(
            argv, env=self.env, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL
        )

    def kill(self, name):
        self.running[name].kill()
        self.running.pop(name).wait()

    def restart(self):
        """Start those again that ended by themselves, as their service manager would: how many."""
        ended = [name for name, process in self.running.items() if process.poll() is not None]
        for name in ended:
            self.start(name)
        return len(ended)

    def end(self):
        """Let all of them end by themselves."""
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
