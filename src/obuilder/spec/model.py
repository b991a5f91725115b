"""The build spec as values. Equal specs are equal values: positions in the text live elsewhere.

A spec is a base image and a list of operations, with nested builds before them:

    Spec(children=(("dev", Spec(...)),), base="debian:12", ops=(Workdir("/src"), Run("make")))
"""

from typing import Literal

from msgspec import Struct

from obuilder.values import Limits, User


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
    """A cache volume and where a `run` sees it."""

    id: str
    target: str
    mode: CacheMode = "private"
    buildkit_options: tuple[tuple[str, str], ...] = ()


class Secret(Struct, frozen=True):
    """A secret, by id, and the file in which a `run` finds its value."""

    id: str
    target: str
    buildkit_options: tuple[tuple[str, str], ...] = ()


class Run(Struct, frozen=True, tag="run"):
    """Runs a command in the sandbox."""

    shell: str
    cache: tuple[Cache, ...] = ()
    network: tuple[str, ...] = ()
    secrets: tuple[Secret, ...] = ()
    limits: Limits = Limits()


class Copy(Struct, frozen=True, tag="copy"):
    """Copies files in: from the build context, or from a nested build (`build` is its name)."""

    src: tuple[str, ...]
    dst: str
    build: str | None = None
    exclude: tuple[str, ...] = ()


Op = Comment | Workdir | Shell | SetUser | Env | Run | Copy


class Spec(Struct, frozen=True):
    """One build: nested builds by name, a base image, operations in order."""

    base: str
    ops: tuple[Op, ...] = ()
    children: tuple[tuple[str, "Spec"], ...] = ()
