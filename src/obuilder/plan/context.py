"""What the ops of a stage change for those after them: directory, user, shell, variables, config."""

from obuilder.plan.model import FinalContext
from obuilder.spec.image import DEFAULT_PATH, SCRATCH, SHELL, ImageConfig, begun, changed, user_of
from obuilder.spec.model import Ambient, Arg, Cmd, Env, Inherit, Op, SetUser, Shell, Workdir
from obuilder.values import ROOT, User


def normalise(path: str, cwd: str = "/") -> str:
    """An absolute path without `.`, `..`, doubled or final slashes; relative ones start at `cwd`."""
    parts: list[str] = []
    for part in (path if path.startswith("/") else f"{cwd}/{path}").split("/"):
        if part == "..":
            if parts:
                parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


class Context:
    """Where a stage stands. It begins as OBuilder's do, whatever the image says, but for variables."""

    def __init__(self, image: str, config: ImageConfig, shell: tuple[str, ...]) -> None:
        if image == "scratch" and config == ImageConfig():
            config = SCRATCH
        self.cwd, self.shell = "/", shell
        self.user: User = ROOT
        self.env = {"PATH": DEFAULT_PATH, **dict(config.env)}
        self.ambient: dict[str, str] = {}
        self.config = begun(config)
        self._own_cmd = False

    def child(self) -> "Context":
        """The context of a stage that begins where this one ended."""
        other = Context("", ImageConfig(), self.shell)
        other.cwd, other.user = self.cwd, self.user
        other.env, other.ambient = dict(self.env), dict(self.ambient)
        other.config = begun(self.config)
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
                self.cwd = normalise(self.config.workdir or "/")
                self.user = user_of(self.config.user)
                self.shell = self.config.shell or SHELL
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
