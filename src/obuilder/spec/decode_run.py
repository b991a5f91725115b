"""Reading `run`: its command, and what a step sees of caches, secrets, builds, memory and agents."""

from obuilder.spec.forms import PLAIN, SIZES, TIMES, Bad, Forms, number
from obuilder.spec.model import Bind, Cache, CacheMode, Op, Run, Secret, Ssh, Tmpfs
from obuilder.spec.sexp import Atom, List, Sexp
from obuilder.values import Limits, NamedUser, UnixUser, User

_MODES: tuple[CacheMode, ...] = ("private", "locked", "shared", "append", "read-only")
_FILE = ("owner", "permissions")


class RunForms(Forms):
    """The forms of `run`, and those of users and builds that other ops have as well."""

    sight: dict[str, int]
    """The builds that can be copied from where the decoder is, with how many bear each name."""

    def person(self, form: List, arguments: list[Sexp]) -> User:
        """A user, by number or by name."""
        fields = self.whole(lambda: self.fields(arguments, "user", ("uid", "gid", "name")))
        if set(fields) == {"uid", "gid"}:
            uid = self.part(lambda: self.integer(self.single(fields["uid"]), "the uid"), 0)
            return UnixUser(uid, self.integer(self.single(fields["gid"]), "the gid"))
        if set(fields) == {"name"}:
            return NamedUser(self.text(self.single(fields["name"]), "the user's name"))
        raise self.fault(
            form, "a user is a uid and a gid, or a name",
            hint="write (user (uid 1000) (gid 1000)) or (user (name NAME))",
        )  # fmt: skip

    def seen(self, node: Sexp) -> str:
        """The name of a build that stands before and can be seen here."""
        build = self.atom(node, "the name of a build")
        if build not in self.sight:
            raise self.fault(
                node, f"unknown build {build!r}",
                hint=self.guess(build, self.sight) if self.sight else "no build is in sight here",
            )  # fmt: skip
        return build

    def present(self, fields: dict[str, List], name: str) -> bool:
        """Whether a field that only stands there does."""
        if self.items(fields, name):
            self.fault(fields[name], f"({name}) takes no argument")
        return name in fields

    def owner(self, fields: dict[str, List]) -> UnixUser | None:
        """Who a file is given to, by number."""
        if "owner" not in fields:
            return None
        form = fields["owner"]
        user = self.person(form, form.items[1:])
        if isinstance(user, NamedUser):
            raise self.fault(form, "this owner is told by numbers: (owner (uid 0) (gid 0))")
        return user

    def permissions(self, fields: dict[str, List]) -> int | None:
        """A file's permissions, in octal."""
        if "permissions" not in fields:
            return None
        node = self.single(fields["permissions"])
        text = self.atom(node, "permissions")
        if not text or len(text) > 5 or set(text) - set("01234567") or int(text, 8) > 0o7777:
            raise self.fault(node, "permissions are an octal number up to 7777")
        return int(text, 8)

    def run(self, form: List, arguments: list[Sexp]) -> Op:
        """Every field of a run."""
        known = (
            "cache", "network", "secrets", "limits", "shell", "exec", "binds", "tmpfs", "ssh",
            "insecure",
        )  # fmt: skip
        before = len(self.errors)
        fields = self.fields(arguments, "run", known)
        if "shell" not in fields and "exec" not in fields and len(self.errors) == before:
            self.fault(form, 'run needs its command: (run (shell "…"))')
        if "shell" in fields and "exec" in fields:
            self.fault(fields["exec"], "a run has one command: (shell …) or (exec …)")
        if "exec" in fields and len(fields["exec"].items) == 1:
            self.fault(fields["exec"], "(exec PROGRAM ARGUMENT …) needs a program")
        return Run(
            shell=self.part(lambda: self.command(fields), ""),
            cache=tuple(self.each(self.items(fields, "cache"), self.cache)),
            network=self.words(fields, "network"),
            secrets=tuple(self.each(self.items(fields, "secrets"), self.secret)),
            limits=self.limits(fields),
            exec=self.words(fields, "exec"),
            binds=tuple(self.each(self.items(fields, "binds"), self.bind)),
            tmpfs=tuple(self.each(self.items(fields, "tmpfs"), self.memory)),
            ssh=tuple(self.each(self.items(fields, "ssh"), self.agent)),
            insecure=self.present(fields, "insecure"),
        )

    def command(self, fields: dict[str, List]) -> str:
        """The line for the shell; empty where there is none."""
        form = fields.get("shell")
        if form is None:
            return ""
        if len(form.items) != 2:
            count = len(form.items) - 1
            raise self.fault(
                form, f"the command of run is one string, here {number(count)}",
                hint="put the whole command in double quotes",
            )  # fmt: skip
        return self.text(form.items[1], "a command")

    def target(self, node: Sexp, what: str) -> str:
        """A path inside that something can be shown at."""
        path = self.text(node, f"the target of a {what}")
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if not path.startswith("/") and path[1:3] not in (":/", ":\\"):
            raise self.fault(node, f"the target of a {what} must be an absolute path")
        if ".." in parts:
            raise self.fault(node, f"the target of a {what} can't hold ..")
        if not parts or parts[0] in ("proc", "sys", "dev") or parts == ["etc"]:
            raise self.fault(
                node, f"the target of a {what} can't be {path}",
                hint="/, /etc itself, and all of /proc, /sys and /dev belong to the sandbox",
            )  # fmt: skip
        return path

    def cache(self, node: Sexp) -> Cache:
        """A cache volume."""
        name, form = self.head(node, "a cache")
        known = ("target", "mode", "buildkit_options", *_FILE)
        fields = self.whole(lambda: self.fields(form.items[1:], "cache", known))
        if "target" not in fields:
            raise self.fault(form, "a cache needs its target: (cache (ID (target PATH)))")
        target = self.part(lambda: self.target(self.single(fields["target"]), "cache"), "")
        return Cache(
            name, target, self.mode(fields), self.options(fields),
            self.owner(fields), self.permissions(fields),
        )  # fmt: skip

    def mode(self, fields: dict[str, List]) -> CacheMode:
        """How a cache is shared."""
        if "mode" not in fields:
            return "private"
        node = self.single(fields["mode"])
        word = self.atom(node, "the mode of a cache")
        for known in _MODES:
            if known == word:
                return known
        raise self.fault(node, f"no cache has the mode {word!r}", hint=self.guess(word, _MODES))

    def secret(self, node: Sexp) -> Secret:
        """A secret: a file or a variable."""
        name, form = self.head(node, "a secret")
        known = ("target", "buildkit_options", "optional", "env", *_FILE)
        fields = self.whole(lambda: self.fields(form.items[1:], "secret", known))
        env = ""
        if "env" in fields:
            env = self.text(self.single(fields["env"]), "the name of a variable")
            if not env or "=" in env:
                self.fault(fields["env"], "the name of a variable can't be empty or hold =")
        if "target" in fields:
            target = self.part(lambda: self.target(self.single(fields["target"]), "secret"), "")
        elif env:
            target = ""
        elif not name or "/" in name or "\0" in name or name in (".", ".."):
            raise self.fault(form, "a secret with such a name needs a (target PATH)")
        else:
            target = f"/run/secrets/{name}"
        return Secret(
            name, target, self.options(fields), not self.present(fields, "optional"), env,
            self.owner(fields), self.permissions(fields),
        )  # fmt: skip

    def bind(self, node: Sexp) -> Bind:
        """A build's result, or a part of it, that a step sees."""
        _, form = self.head(node, "a bind")
        known = ("target", "source", "writable")
        fields = self.whole(lambda: self.fields(form.items[1:], "bind", known))
        if "target" not in fields:
            raise self.fault(form, "a bind needs its target: (binds (BUILD (target PATH)))")
        source = "/"
        if "source" in fields:
            source = self.text(self.single(fields["source"]), "the source of a bind")
            if ".." in source.split("/"):
                self.fault(fields["source"], "the source of a bind can't hold ..")
        return Bind(
            self.seen(form.items[0]), self.target(self.single(fields["target"]), "bind"), source,
            self.present(fields, "writable"),
        )  # fmt: skip

    def memory(self, node: Sexp) -> Tmpfs:
        """An empty directory on memory."""
        _, form = self.head(node, "a tmpfs")
        fields = self.whole(lambda: self.fields(form.items[1:], "tmpfs", ("size",)))
        size = None
        if "size" in fields:
            size = max(1, int(self.measure(self.single(fields["size"]), "the size", SIZES)))
        return Tmpfs(self.target(form.items[0], "tmpfs"), size)

    def agent(self, node: Sexp) -> Ssh:
        """An agent of SSH keys."""
        name, form = self.head(node, "an agent")
        known = ("target", "optional", *_FILE)
        fields = self.whole(lambda: self.fields(form.items[1:], "agent", known))
        if "target" not in fields:
            raise self.fault(form, "an agent needs its target: (ssh (ID (target PATH)))")
        return Ssh(
            name, self.target(self.single(fields["target"]), "agent"),
            not self.present(fields, "optional"), self.owner(fields), self.permissions(fields),
        )  # fmt: skip

    def options(self, fields: dict[str, List]) -> tuple[tuple[str, str], ...]:
        """What only BuildKit is told."""
        if "buildkit_options" not in fields:
            return ()
        node = self.single(fields["buildkit_options"])
        hint = "write (buildkit_options ((KEY VALUE) …))"
        if isinstance(node, Atom):
            raise self.fault(node, "buildkit_options are a list of pairs", hint=hint)
        pairs = []
        for item in node.items:
            if isinstance(item, Atom) or len(item.items) != 2:
                raise self.fault(item, "each option for BuildKit is (KEY VALUE)", hint=hint)
            key, value = item.items
            pairs.append((self.atom(key, "an option"), self.atom(value, "an option's value")))
        return tuple(pairs)

    def limits(self, fields: dict[str, List]) -> Limits:
        """What a step may use."""
        known = {"memory": SIZES, "cpus": PLAIN, "pids": PLAIN, "time": TIMES, "log": SIZES}
        found = self.fields(self.items(fields, "limits"), "limits", tuple(known))
        values: dict[str, float] = {}
        for name, field in found.items():
            try:
                values[name] = self.measure(self.single(field), f"the limit {name}", known[name])
            except Bad:
                continue

        def whole(name: str) -> int | None:
            return max(1, int(values[name])) if name in values else None

        return Limits(
            memory=whole("memory"), cpus=values.get("cpus"), pids=whole("pids"),
            seconds=values.get("time"), log=whole("log"),
        )  # fmt: skip
