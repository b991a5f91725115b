"""A program of steps that do all they can to each other, and of the test that shows it would work.

    hostile.py victim NAME MARK FOLDER PLACE…   has things of its own, and tells of them in FOLDER
    hostile.py step NAME MARK FOLDER PLACE…     starts a victim, and attacks those of the others
    hostile.py alone FOLDER                     attacks a victim from which nothing keeps it

Every attack says whether it reached its victim: it has read the victim's own token, or the kernel has
done to the victim's process what was asked. It uses the standard library only, as it stands alone in
a step. MARK is a number of the test's own, which keys of System V objects are made from.
"""

import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
SEIZE = 0x4206
NEWNS, NEWUSER = 0x20000, 0x10000000
IPC_CREAT, IPC_RMID, IPC_NOWAIT = 0o1000, 0, 0o4000

Told = dict[str, Any]


def wait_for(path: str) -> None:
    end = time.monotonic() + 60
    while not os.path.exists(path):
        if time.monotonic() > end:
            sys.exit(f"{path} did not come")
        time.sleep(0.02)


def tell(path: str, what: object) -> None:
    with open(f"{path}.new", "w") as file:
        json.dump(what, file)
    os.rename(f"{path}.new", path)


# --- the victim ----------------------------------------------------------------------------------


def victim(name: str, mark: str, folder: str, places: list[str]) -> None:
    token = f"secret-of-{name}-{os.urandom(8).hex()}"
    if os.environ.get("TOKEN") is None:  # the environment of a process is what it was started with
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "TOKEN": token})
    token = os.environ["TOKEN"]
    files = [f"{place}/of-{name}" for place in places]
    for path in files:
        with open(path, "w") as file:
            file.write(token)
        os.chmod(path, 0o666)  # what keeps others off is not its mode
    suid = f"{folder}/{name}.id"
    shutil.copy("/usr/bin/id", suid)
    os.chmod(suid, 0o4755)
    hidden = os.open(f"{folder}/{name}.hidden", os.O_RDWR | os.O_CREAT)
    os.write(hidden, token.encode())
    os.unlink(f"{folder}/{name}.hidden")
    kept = ctypes.create_string_buffer(token.encode())
    key = int(mark) * 16 + int(name)
    memory = libc.shmget(key, 4096, IPC_CREAT | 0o666)
    ctypes.memmove(libc.shmat(memory, None, 0), kept, len(kept))
    queue = libc.msgget(key, IPC_CREAT | 0o666)
    libc.msgsnd(queue, struct.pack("l", 1) + token.encode(), len(token), 0)
    semaphores = libc.semget(key, 1, IPC_CREAT | 0o666)
    os.umask(0)
    posix = libc.mq_open(f"/{mark}-{name}".encode(), os.O_CREAT | os.O_RDWR, 0o666, None)
    libc.mq_send(posix, token.encode(), len(token), 0)
    abstract, port = socket.socket(socket.AF_UNIX), socket.socket()
    abstract.bind(f"\0{mark}-{name}")
    port.bind(("127.0.0.1", 0))
    for listener in (abstract, port):
        listener.listen()
        threading.Thread(target=serve, args=(listener, token.encode()), daemon=True).start()
    told = {
        "name": name, "mark": mark, "token": token, "files": files, "suid": suid, "hidden": hidden,
        "address": ctypes.addressof(kept), "length": len(token), "key": key, "memory": memory,
        "queue": queue, "semaphores": semaphores, "port": port.getsockname()[1],
        "uid": os.getuid(), "gid": os.getgid(), "pids": [os.getpid()], "spools": [],
    }  # fmt: skip
    tell(f"{folder}/{name}.json", told)
    time.sleep(600)


def serve(listener: socket.socket, data: bytes) -> None:
    while True:
        with listener.accept()[0] as connection:
            connection.sendall(data)


# --- attacks -------------------------------------------------------------------------------------

ATTACKS: dict[str, Callable[[Told], bool]] = {}


def attack(action: Callable[[Told], bool]) -> Callable[[Told], bool]:
    ATTACKS[action.__name__] = action
    return action


def in_child(action: Callable[[], bool]) -> bool:
    """Whether `action`, for which the process gives something up, comes to something."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(not action())
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def tried(action: Callable[[Any], bool], things: list[Any]) -> bool:
    """Whether it comes to something for any of the things."""
    came = False
    for thing in things:
        with contextlib.suppress(OSError):
            came = action(thing) or came
    return came


def reads(told: Told, path: str) -> bool:
    with open(path) as file:
        return told["token"] in file.read(10_000)


def changes(path: str) -> bool:
    with open(path, "r+") as file:
        file.seek(0, os.SEEK_END)
        file.write("changed")
    return True


def through_processes(told: Told, paths: list[str]) -> list[str]:
    ways = [f"/proc/{pid}/{way}" for pid in told["pids"] for way in ("root", "cwd")]
    return [f"{way}/{path}" for way in ways for path in paths]


@attack
def reads_files(told: Told) -> bool:
    return tried(lambda path: reads(told, path), told["files"])


@attack
def changes_files(told: Told) -> bool:
    return tried(changes, told["files"])


@attack
def removes_files(told: Told) -> bool:
    def moves(path: str) -> bool:
        os.rename(path, f"{path}.moved")
        os.rename(f"{path}.moved", path)
        return True

    return tried(moves, told["files"])


@attack
def reads_files_through_processes(told: Told) -> bool:
    return tried(lambda path: reads(told, path), through_processes(told, told["files"]))


@attack
def changes_files_through_processes(told: Told) -> bool:
    return tried(changes, through_processes(told, told["files"]))


@attack
def reads_files_in_namespaces_of_its_own(told: Told) -> bool:
    """As their root, it takes away whatever is mounted over the victim's files."""

    def uncovered() -> bool:
        me = os.getuid()
        if libc.unshare(NEWUSER | NEWNS) == 0:  # where others may do that at all
            with open("/proc/self/uid_map", "w") as table:
                table.write(f"0 {me} 1")
        covers = {os.path.dirname(path) for path in told["files"]} | {"/proc", "/dev", "/run"}
        for path in sorted(covers, key=len, reverse=True):
            while path != "/":
                while libc.umount2(path.encode(), 2) == 0:
                    pass
                path = os.path.dirname(path)  # noqa: PLW2901
        paths = told["files"] + through_processes(told, told["files"])
        return tried(lambda path: reads(told, path), paths)

    return in_child(uncovered)


@attack
def reads_the_environment(told: Told) -> bool:
    return tried(lambda pid: reads(told, f"/proc/{pid}/environ"), told["pids"])


@attack
def reads_open_files(told: Told) -> bool:
    paths = [f"/proc/{pid}/fd/{told['hidden']}" for pid in told["pids"]]
    return tried(lambda path: reads(told, path), paths)


@attack
def reads_memory(told: Told) -> bool:
    def shown(pid: int) -> bool:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
            return os.pread(file.fileno(), told["length"], told["address"]) == (
                told["token"].encode()
            )

    return tried(shown, told["pids"])


@attack
def traces(told: Told) -> bool:
    def seized(pid: int) -> bool:
        return in_child(lambda: libc.ptrace(SEIZE, pid, None, None) == 0)

    return tried(seized, told["pids"])


@attack
def signals(told: Told) -> bool:
    def signalled(pid: int) -> bool:
        os.kill(pid, signal.SIGCONT)
        return True

    return tried(signalled, told["pids"])


@attack
def signals_by_descriptor(told: Told) -> bool:
    def signalled(pid: int) -> bool:
        signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGCONT)
        return True

    return tried(signalled, told["pids"])


@attack
def signals_the_group(told: Told) -> bool:
    def signalled(pid: int) -> bool:
        os.killpg(pid, signal.SIGCONT)
        return True

    return tried(signalled, told["pids"])


@attack
def slows_processes_down(told: Told) -> bool:
    def slowed(pid: int) -> bool:
        os.setpriority(os.PRIO_PROCESS, pid, 5)
        return True

    return tried(slowed, told["pids"])


@attack
def limits_processes(told: Told) -> bool:
    def limited(pid: int) -> bool:
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
        return True

    return tried(limited, told["pids"])


@attack
def slows_the_user_down(told: Told) -> bool:
    def slowed(uid: int) -> bool:
        os.setpriority(os.PRIO_USER, uid, 6)
        return True

    return tried(slowed, [told["uid"]])


@attack
def takes_shared_memory(told: Told) -> bool:
    def shown(number: int) -> bool:
        at = libc.shmat(number, None, 0o10000)  # read-only
        return at != ctypes.c_void_p(-1).value and ctypes.string_at(at, told["length"]) == (
            told["token"].encode()
        )

    return tried(shown, [libc.shmget(told["key"], 0, 0), told["memory"]])


@attack
def takes_messages(told: Told) -> bool:
    def taken(number: int) -> bool:
        found = ctypes.create_string_buffer(8 + 1000)
        return (
            libc.msgrcv(number, found, 1000, 0, IPC_NOWAIT) > 0
            and found.raw[8 : 8 + told["length"]] == told["token"].encode()
        )

    return tried(taken, [libc.msgget(told["key"], 0), told["queue"]])


@attack
def takes_posix_messages(told: Told) -> bool:
    name = f"/{told['mark']}-{told['name']}".encode()
    queue, found = (
        libc.mq_open(name, os.O_RDONLY | os.O_NONBLOCK),
        ctypes.create_string_buffer(8192),
    )
    return queue >= 0 and libc.mq_receive(queue, found, 8192, None) > 0


@attack
def removes_semaphores(told: Told) -> bool:
    number = libc.semget(told["key"], 0, 0)
    return number >= 0 and libc.semctl(number, 0, IPC_RMID) == 0


def heard(told: Told, address: Any) -> bool:
    with socket.socket(
        socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    ) as connection:
        connection.settimeout(2)
        connection.connect(address)
        return connection.recv(1000) == told["token"].encode()


@attack
def connects_to_a_socket(told: Told) -> bool:
    return tried(lambda address: heard(told, address), [f"\0{told['mark']}-{told['name']}"])


@attack
def connects_to_a_port(told: Told) -> bool:
    return tried(lambda address: heard(told, address), [("127.0.0.1", told["port"])])


@attack
def becomes_the_user(told: Told) -> bool:
    def became() -> bool:
        os.setresuid(told["uid"], told["uid"], told["uid"])
        return os.geteuid() == told["uid"]

    return in_child(became)


@attack
def becomes_the_user_by_a_setuid_program(told: Told) -> bool:
    def became(path: str) -> bool:
        done = subprocess.run([path, "-u"], capture_output=True, text=True, check=False)
        return done.stdout.strip() == str(told["uid"])

    return tried(became, [told["suid"]])


@attack
def becomes_root_by_a_setuid_program(told: Told) -> bool:
    def became(path: str) -> bool:
        done = subprocess.run([path, "-u"], capture_output=True, text=True, check=False)
        return done.stdout.strip() == "0"

    return tried(became, [told["root_suid"]])


@attack
def leaves_jobs_for_later(told: Told) -> bool:
    """For cron and at, which carry out as a user what they find in a file of the user's name."""

    def left(spool: str) -> bool:
        with open(f"{spool}/{told['user']}", "w") as file:
            file.write("* * * * * true\n")
        return True

    return tried(left, told["spools"])


@attack
def ends_processes(told: Told) -> bool:
    """The last one: none of those before would work after it."""

    def ended(pid: int) -> bool:
        os.kill(pid, signal.SIGKILL)
        return True

    return tried(ended, told["pids"])


def attacked(told: Told) -> dict[str, bool]:
    """Which of all attacks reach it."""
    return {name: action(told) for name, action in ATTACKS.items()}


def end_all() -> None:
    """End every process that this one can end."""
    if os.getuid() == 0:
        sys.exit("not as the machine's root")
    os.kill(-1, signal.SIGKILL)


# --- who attacks ---------------------------------------------------------------------------------


def step(name: str, mark: str, folder: str, places: list[str]) -> None:
    command = [sys.executable, __file__, "victim", name, mark, folder, *places]
    own = subprocess.Popen(command, start_new_session=True)
    wait_for(f"{folder}/targets")
    with open(f"{folder}/targets") as file:
        targets = json.load(file)
    assert all(os.access(told["root_suid"], os.X_OK) for told in targets)
    reached = {told["name"]: attacked(told) for told in targets if told["name"] != name}
    tell(f"{folder}/{name}.attacked", reached)
    if name == "0":
        wait_for(f"{folder}/rage")
        end_all()
        assert own.wait() == -signal.SIGKILL
        tell(f"{folder}/{name}.raged", None)
    wait_for(f"{folder}/leave")
    (told,) = (told for told in targets if told["name"] == name)
    kept = all(reads(told, f"{place}/of-{name}") for place in places)
    print(f"{name}: survives" if kept else f"{name}: is robbed", flush=True)


def alone(folder: str) -> None:
    command = [sys.executable, __file__, "victim", "0", "1", folder, folder]
    results = []
    for _ in range(2):
        own = subprocess.Popen(command, start_new_session=True)
        wait_for(f"{folder}/0.json")
        with open(f"{folder}/0.json") as file:
            told = json.load(file)
        os.unlink(f"{folder}/0.json")
        told |= {
            "user": "somebody",
            "root_suid": f"{folder}/root.id",
            "spools": ["/var/spool/cron"],
        }
        if not results:
            results.append(attacked(told))
        else:
            end_all()
        assert own.wait() == -signal.SIGKILL
    print(json.dumps(results[0]), flush=True)


if __name__ == "__main__":
    _what, *_words = sys.argv[1:]
    if _what == "alone":
        alone(*_words)
    else:
        {"victim": victim, "step": step}[_what](_words[0], _words[1], _words[2], _words[3:])
