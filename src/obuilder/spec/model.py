"""The build spec as values. Equal specs are equal values: positions in the text live elsewhere.

A spec is a base image and a list of operations, with nested builds before them:

    Spec(children=(("dev", Spec(...)),), base="debian:12", ops=(Workdir("/src"), Run("make")))
"""

from typing import Literal

from msgspec import Struct

from obuilder.values import Limits, UnixUser, User


class Comment(Struct, frozen=True, tag="comment"):
    """A remark for the log. Never part of a key."""

    text: str


class Workdir(Struct, frozen=True, tag="workdir"):
    """Changes the working directory; a relative one is joined to the current one."""

    path: str


class Shell(Struct, frozen=True, tag="shell"):
    """The argv prefix of later `run`s; the command is appended to it as one argument."""

    argv: tuple[str, ...]


class SetUser(Struct, frozen=True, tag="user"):
    """Who later `run`s run as and later `copy`s give their files to."""

    user: User


class Env(Struct, frozen=True, tag="env"):
    """Sets a variable of later `run`s."""

    name: str
    value: str


CacheMode = Literal["private", "locked", "shared", "append", "read-only"]


class Cache(Struct, frozen=True):
    """A cache volume and where a `run` sees it.

    `owner` and `permissions` are what its directory gets; else it is the step's user's, 0755.
    """

    id: str
    target: str
    mode: CacheMode = "private"
    buildkit_options: tuple[tuple[str, str], ...] = ()
    owner: UnixUser | None = None
    permissions: int | None = None


class Secret(Struct, frozen=True):
    """A secret, by id, and the file in which a `run` finds its value.

    `env`: it is the value of that variable, and there is no file (`target` is empty). `owner` and
    `permissions` are the file's; else it is the step's user's, 0400. One that is not `required`
    may have no value: there is no file, and no variable, then.
    """

    id: str
    target: str
    buildkit_options: tuple[tuple[str, str], ...] = ()
    required: bool = True
    env: str = ""
    owner: UnixUser | None = None
    permissions: int | None = None


class Bind(Struct, frozen=True):
    """What a `run` sees of a nested build's result; what it writes there, if it may, is lost."""

    build: str
    target: str
    source: str = "/"
    writable: bool = False


class Tmpfs(Struct, frozen=True):
    """An empty directory on memory that a `run` sees at `target`; `size` is its limit in bytes."""

    target: str
    size: int | None = None


class Ssh(Struct, frozen=True):
    """An agent of SSH keys, by id, at the socket `target` (SSH_AUTH_SOCK says it to the step)."""

    id: str
    target: str
    required: bool = True
    owner: UnixUser | None = None
    permissions: int | None = None


NO_NETWORK = ("none",)
"""A run's network, where it is said in so many words that there is none but loopback."""


class Run(Struct, frozen=True, tag="run"):
    """Runs a command in the sandbox: `shell` by the current shell, or `exec` as it stands."""

    shell: str = ""
    cache: tuple[Cache, ...] = ()
    network: tuple[str, ...] = ()
    secrets: tuple[Secret, ...] = ()
    limits: Limits = Limits()
    exec: tuple[str, ...] = ()
    binds: tuple[Bind, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    ssh: tuple[Ssh, ...] = ()
    insecure: bool = False
    """With every power that its user namespace has to give."""


class Copy(Struct, frozen=True, tag="copy"):
    """Copies files in: from the build context, or from a nested build (`build` is its name)."""

    src: tuple[str, ...]
    dst: str
    build: str | None = None
    exclude: tuple[str, ...] = ()


class Add(Struct, frozen=True, tag="add"):
    """Copies files in as a Dockerfile's COPY and ADD do.

    Sources are patterns; a directory stands for what is in it; symlinks named as sources are
    followed; modes are kept. They come from the build context, from the named `context`, or from
    a nested build. `files` are more sources, with their content here. What is made belongs to
    `owner`, else what comes from a build to whom it belongs there, and all other to root;
    `permissions` is a chmod's mode for all of it, octal or symbolic. `exclude` are patterns
    of .dockerignore. `parents` keeps the directories of sources, `link` ignores what is at the
    destination, `unpack` takes archives apart.
    """

    src: tuple[str, ...]
    dst: str
    build: str | None = None
    context: str | None = None
    files: tuple[tuple[str, str], ...] = ()
    owner: User | None = None
    permissions: str = ""
    exclude: tuple[str, ...] = ()
    parents: bool = False
    link: bool = False
    unpack: bool = False


class Mkdir(Struct, frozen=True, tag="mkdir"):
    """Makes a directory for the current user, unless it is there."""

    path: str


class Arg(Struct, frozen=True, tag="arg"):
    """Sets a variable of later `run`s that the result's own config does not have."""

    name: str
    value: str


class Ambient(Struct, frozen=True, tag="ambient"):
    """Sets a variable of later `run`s that is in no key: a proxy's address, say."""

    name: str
    value: str


class Inherit(Struct, frozen=True, tag="inherit"):
    """Takes user, working directory and shell from the base image, as a Dockerfile's FROM does."""


# --- what a result says of itself: in no key of a step ------------------------------------------


class Entrypoint(Struct, frozen=True, tag="entrypoint"):
    """The program that the result's containers run; a cmd that the base brought is forgotten."""

    argv: tuple[str, ...]


class Cmd(Struct, frozen=True, tag="cmd"):
    """The arguments of the entrypoint, or the program where there is none."""

    argv: tuple[str, ...]


class Label(Struct, frozen=True, tag="label"):
    """A label by its name."""

    name: str
    value: str


class Expose(Struct, frozen=True, tag="expose"):
    """Ports, as `80/tcp`."""

    ports: tuple[str, ...]


class Volume(Struct, frozen=True, tag="volume"):
    """Directories that containers keep outside of themselves."""

    paths: tuple[str, ...]


class StopSignal(Struct, frozen=True, tag="stopsignal"):
    """The signal that ends a container, by name or number."""

    signal: str


class Healthcheck(Struct, frozen=True, tag="healthcheck"):
    """How to see whether a container is well. `test` is a command's words behind CMD, a line for
    the shell behind CMD-SHELL, or NONE alone. Times are nanoseconds; 0 leaves what is usual.
    """

    test: tuple[str, ...]
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class Onbuild(Struct, frozen=True, tag="onbuild"):
    """An instruction of a Dockerfile, for Dockerfiles that begin from the result."""

    instruction: str


class Author(Struct, frozen=True, tag="author"):
    """Who made the image."""

    name: str


Setting = Entrypoint | Cmd | Label | Expose | Volume | StopSignal | Healthcheck | Onbuild | Author
"""An op that only says something of the result."""

Op = (
    Comment | Workdir | Shell | SetUser | Env | Run | Copy | Add | Mkdir | Arg | Ambient | Inherit
    | Setting
)  # fmt: skip


class Built(Struct, frozen=True):
    """A nested build as the base of another: its result, with all that its ops left behind."""

    name: str


class Spec(Struct, frozen=True):
    """One build: nested builds by name, a base image, operations in order."""

    base: str | Built
    ops: tuple[Op, ...] = ()
    children: tuple[tuple[str, "Spec"], ...] = ()
