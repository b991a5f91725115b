"""What the ops of a stage change for those after them: directory, user, shell, variables, config."""

from copy import copy

from obuilder.plan.model import Base, FinalContext
from obuilder.spec.image import DEFAULT_PATH, SCRATCH, SHELL, ImageConfig, begun, changed, user_of
from obuilder.spec.model import Ambient, Arg, Cmd, Env, Inherit, Op, SetUser, Shell, Workdir
from obuilder.values import NamedUser, User

DEFAULT_SHELL = ("/usr/bin/env", "bash", "-c")
_WINDOWS_SHELL = ("cmd", "/S", "/C")
_WINDOWS_TOP = "C:/"
_ADMINISTRATOR = NamedUser("ContainerAdministrator")


def normalise(path: str, cwd: str = "/") -> str:
    """An absolute path without `.`, `..`, doubled or final slashes; relative ones start at `cwd`.

    Where `cwd` has a drive, paths are those of Windows.
    """
    drive = ""
    if on_drive(cwd):
        drive, cwd, path = cwd[:2], cwd[2:], path.replace("\\", "/")
        if path[1:2] == ":":
            drive, path = path[:2], "/" + path[2:]
    parts: list[str] = []
    for part in (path if path.startswith("/") else f"{cwd}/{path}").split("/"):
        if part == "..":
            if parts:
                parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return drive + "/" + "/".join(parts)


def on_drive(path: str) -> bool:
    """Whether an absolute path is one of Windows."""
    return path[1:2] == ":" and path[0] != "/"


class Context:
    """Where a stage stands. It begins as OBuilder's do, whatever the image says, but for variables."""

    def __init__(self, base: Base, shell: tuple[str, ...]) -> None:
        config = base.config
        if base.name == "scratch" and config == ImageConfig():
            config = SCRATCH
        self._windows = base.platform.os == "windows"
        self.top = _WINDOWS_TOP if self._windows else "/"
        self.cwd, self.user = self.top, self._user("")
        self.shell = _WINDOWS_SHELL if self._windows and shell == DEFAULT_SHELL else shell
        self.env = ({} if self._windows else {"PATH": DEFAULT_PATH}) | dict(config.env)
        self.ambient: dict[str, str] = {}
        self.config = begun(config)
        self._own_cmd = False

    def _user(self, text: str) -> User:
        """Whom a config names, or means where it names nobody."""
        return _ADMINISTRATOR if self._windows and not text else user_of(text)

    def child(self) -> "Context":
        """The context of a stage that begins where this one ended."""
        other = copy(self)
        other.env, other.ambient = dict(self.env), dict(self.ambient)
        other.config = begun(self.config)
        other._own_cmd = False  # noqa: SLF001 - one of its own kind
        return other

    def take(self, op: Op) -> None:
        """Take in an op's change, if it makes one."""
        match op:
            case Workdir():
                self.cwd = normalise(op.path, self.cwd)
            case Shell():
                self.shell = op.argv
            case SetUser():
                self.user = op.user
            case Env() | Arg():
                self.env[op.name] = op.value
            case Ambient():
                self.ambient[op.name] = op.value
            case Inherit():
                self.cwd = normalise(self.config.workdir, self.top)
                self.user = self._user(self.config.user)
                self.shell = self.config.shell or (_WINDOWS_SHELL if self._windows else SHELL)
            case _:
                pass
        self.config = changed(self.config, op, own_cmd=self._own_cmd, cwd=self.cwd)
        self._own_cmd = self._own_cmd or isinstance(op, Cmd)

    def final(self) -> FinalContext:
        """What is left for whoever enters or exports the result."""
        return FinalContext(
            cwd=self.cwd, user=self.user, env=tuple(sorted(self.env.items())), shell=self.shell,
            config=self.config,
        )  # fmt: skip
