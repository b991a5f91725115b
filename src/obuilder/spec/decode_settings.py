"""Reading what a spec says of its result: entrypoint, cmd, labels and their like."""

import re
from collections.abc import Callable

from obuilder.spec.forms import PLAIN, Forms, number
from obuilder.spec.model import (
    Author,
    Cmd,
    Entrypoint,
    Expose,
    Healthcheck,
    Label,
    Onbuild,
    Op,
    StopSignal,
    Volume,
)
from obuilder.spec.sexp import List, Sexp

PORT = re.compile(r"(\d{1,5})(-\d{1,5})?/(tcp|udp|sctp)")
SIGNAL = re.compile(r"\d{1,3}|(SIG)?[A-Z][A-Z0-9+-]{1,15}")
_TIMES = {"ns": 1, "us": 1000, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_WAITS = ("interval", "timeout", "start_period", "start_interval")


class SettingForms(Forms):
    """The forms that only say something of the result."""

    def settings(self) -> dict[str, Callable[[List, list[Sexp]], Op]]:
        """Their readers by name."""
        return {
            "entrypoint": lambda _, found: Entrypoint(self.line(found, "entrypoint")),
            "cmd": lambda _, found: Cmd(self.line(found, "cmd")),
            "label": self.label,
            "expose": self.expose,
            "volume": self.volume,
            "stopsignal": self.stopsignal,
            "healthcheck": self.healthcheck,
            "onbuild": lambda form, found: Onbuild(self.one(form, found)),
            "author": lambda form, found: Author(self.one(form, found)),
        }

    def one(self, form: List, arguments: list[Sexp]) -> str:
        """The one argument."""
        if len(arguments) != 1:
            raise self.fault(form, f"one argument is needed, here {number(len(arguments))}")
        return self.text(arguments[0], "the argument")

    def line(self, arguments: list[Sexp], what: str) -> tuple[str, ...]:
        """A command's words; none takes the base's away."""
        return tuple(self.each(arguments, lambda node: self.text(node, f"each word of {what}")))

    def label(self, form: List, arguments: list[Sexp]) -> Op:
        """A label."""
        if len(arguments) != 2:
            message = f"(label NAME VALUE) takes two arguments, here {number(len(arguments))}"
            raise self.fault(form, message)
        name = self.text(arguments[0], "the name of a label")
        if not name:
            self.fault(arguments[0], "the name of a label can't be empty")
        return Label(name, self.text(arguments[1], "the value of a label"))

    def expose(self, form: List, arguments: list[Sexp]) -> Op:
        """Ports."""
        ports = self.line(arguments, "expose")
        for node, port in zip(arguments, ports, strict=False):
            if not PORT.fullmatch(port):
                self.fault(node, f"a port is NUMBER/tcp, /udp or /sctp, not {port[:40]!r}")
        return Expose(ports)

    def volume(self, form: List, arguments: list[Sexp]) -> Op:
        """Directories outside of containers."""
        paths = self.line(arguments, "volume")
        for node, path in zip(arguments, paths, strict=False):
            if not path:
                self.fault(node, "the path of a volume can't be empty")
        return Volume(paths)

    def stopsignal(self, form: List, arguments: list[Sexp]) -> Op:
        """A signal."""
        signal = self.one(form, arguments)
        if not SIGNAL.fullmatch(signal):
            raise self.fault(
                arguments[0], f"a signal is a name as SIGTERM or a number, not {signal!r}"
            )
        return StopSignal(signal)

    def healthcheck(self, form: List, arguments: list[Sexp]) -> Op:
        """How to see whether a container is well."""
        known = ("shell", "exec", "none", "retries", *_WAITS)
        fields = self.whole(lambda: self.fields(arguments, "healthcheck", known))
        tests = [name for name in ("shell", "exec", "none") if name in fields]
        if len(tests) != 1:
            raise self.fault(form, "a healthcheck is one of (shell LINE), (exec WORD …), (none)")
        words = self.words(fields, tests[0])
        head = {"shell": "CMD-SHELL", "exec": "CMD", "none": "NONE"}[tests[0]]
        if tests == ["none"] and (words or len(fields) > 1):
            raise self.fault(form, "(healthcheck (none)) takes nothing more")
        if (tests == ["shell"] and len(words) != 1) or (tests == ["exec"] and not words):
            raise self.fault(fields[tests[0]], "this is no command")
        retries = 0
        if "retries" in fields:
            retries = int(self.measure(self.single(fields["retries"]), "retries", PLAIN))
        waits = {
            name: int(self.measure(self.single(fields[name]), name, _TIMES))
            for name in _WAITS
            if name in fields
        }
        return Healthcheck((head, *words), retries=retries, **waits)
