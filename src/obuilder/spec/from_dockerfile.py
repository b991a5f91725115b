"""Dockerfile to Spec, as BuildKit understands Dockerfiles.

A stage becomes a nested build, the target the spec itself; what is no stage but is copied from or
looked into (an image, a URL, a piece of the context) becomes a build of its own. Only what the
target needs is looked at. Values of variables depend on what base images say of themselves: first
ask `images` which those are, then give `to_spec` their configs.
"""

import re
from collections.abc import Mapping

from msgspec import Struct

from obuilder.errors import UsageError
from obuilder.spec import dockerfile as text
from obuilder.spec.dockerfile import Dockerfile, Instruction, Stretch, fault
from obuilder.spec.dockerfile_stage import PROXIES, Stage
from obuilder.spec.dockerfile_words import BadWord, expand, word_places
from obuilder.spec.image import SCRATCH, ImageConfig, begun
from obuilder.spec.model import Add, Built, Op, Spec
from obuilder.values import OpPath, Platform

_NAME = re.compile(r"[a-z][a-z0-9-_.]*")
_REMOTE = re.compile(r"(https?|git|ssh)://")


class Options(Struct, frozen=True):
    """What the command line adds to a Dockerfile.

    `platform` is what the build is for, if not this machine, which is `here`. `args` and `contexts`
    by name. A context is a directory (its name is all that is known here),
    `docker-image://NAME`, `oci-layout://DIR[:TAG]`, or a URL of a git repository. `network` is what
    a RUN has that names none.
    """

    here: Platform
    platform: Platform | None = None
    args: tuple[tuple[str, str], ...] = ()
    contexts: tuple[tuple[str, str], ...] = ()
    target: str = ""
    network: tuple[str, ...] = ("host",)


class Converted(Struct, frozen=True):
    """The spec of a Dockerfile's target, and what should be said of it."""

    spec: Spec
    warnings: tuple[str, ...] = ()
    places: dict[OpPath | str, str] = {}
    """Where the instruction stands of each op, and of each base image that no FROM names."""


class _Planned:
    """A FROM with what follows it."""

    def __init__(self, number: int, it: Instruction) -> None:
        self.number, self.it = number, it
        self.body: list[Instruction] = []
        self.name = ""
        self.base = ""
        self.at: Stretch = it.rest


def images(dockerfile: Dockerfile, options: Options) -> dict[str, str]:
    """The base images whose configs `to_spec` needs for the target, with their places. SpecErrors."""
    file = _File(dockerfile, options)
    found: dict[str, str] = {}
    for stage in file.needed():
        kind, value = file.base(stage)
        if kind == "image" and value != "scratch":
            found.setdefault(value, text.place(file.source, stage.at))
    return found


def to_spec(
    dockerfile: Dockerfile, options: Options, configs: Mapping[str, ImageConfig]
) -> Converted:
    """The spec of the target. `configs` has those of `images`. SpecErrors, UsageError."""
    file = _File(dockerfile, options)
    return file.converted(configs)


class _File:
    def __init__(self, dockerfile: Dockerfile, options: Options) -> None:
        self.dockerfile, self.options = dockerfile, options
        self.source = dockerfile.source
        self.given = dict(options.args)
        self.contexts = {name.lower(): value for name, value in options.contexts}
        self.globals = _platforms(options) | {"TARGETSTAGE": options.target or "default"}
        for name in self.given:
            if name.startswith("BUILDKIT_"):
                raise UsageError(f"the build argument {name} can't be honoured here")
        self.asked: set[str] = set()
        self.stages = self._stages()
        self.names: dict[int, str] = {}
        self.children: list[tuple[str, Spec]] = []
        self.places: dict[OpPath | str, str] = {}
        self.taken: set[str] = set()
        self.made: dict[tuple[tuple[Op, ...], str], str] = {}
        self.ends: dict[int, ImageConfig] = {}
        self.variables: dict[int, dict[str, str]] = {}

    # --- stages ------------------------------------------------------------------------------

    def _stages(self) -> list[_Planned]:
        found: list[_Planned] = []
        for it in self.dockerfile.instructions:
            if it.name == "FROM":
                found.append(self._from(len(found), it))
            elif found:
                found[-1].body.append(it)
            elif it.name == "ARG":
                self._global(it)
            else:
                raise fault(
                    self.source, it.whole, f"{it.name} before FROM",
                    hint="only ARG may stand before the first FROM",
                )  # fmt: skip
        if not found:
            raise fault(self.source, self.dockerfile.instructions[-1].whole, "there is no FROM")
        return found

    def _global(self, it: Instruction) -> None:
        for start, end in word_places(it.rest.text, self.dockerfile.escape):
            word = it.rest.part(start, end)
            name, sign, _ = word.text.partition("=")
            self.asked.add(name)
            if name in self.given:
                self.globals[name] = self.given[name]
            elif sign:
                self.globals[name] = self._expand(word.part(len(name) + 1, len(word.text)))

    def _expand(self, at: Stretch) -> str:
        try:
            return expand(at.text, self.globals, self.dockerfile.escape)
        except BadWord as error:
            raise fault(self.source, at, str(error)) from None

    def _from(self, number: int, it: Instruction) -> _Planned:
        stage = _Planned(number, it)
        words = [
            it.rest.part(*match.span()) for match in re.finditer(r"[^\t\v\f\r ]+", it.rest.text)
        ]
        if len(words) not in (1, 3) or (len(words) == 3 and words[1].text.lower() != "as"):
            raise fault(self.source, it.whole, "FROM takes IMAGE, or IMAGE AS NAME")
        if len(words) == 3:
            stage.name = words[2].text.lower()
            if not _NAME.fullmatch(stage.name):
                raise fault(
                    self.source, words[2], f"{words[2].text!r} can't name a stage",
                    hint="a name begins with a letter; then letters, digits, - _ and .",
                )  # fmt: skip
        stage.at = words[0]
        for flag in it.flags:
            name = flag.text.partition("=")[0]
            if name != "--platform":
                raise fault(self.source, flag, f"FROM has no flag {name[:40]}")
            self._platform(flag, self._expand(flag.part(len(name) + 1, len(flag.text))))
        stage.base = self._expand(words[0])
        if not stage.base:
            raise fault(
                self.source, words[0], f"the name of the image is empty: {words[0].text}",
                hint="give the variable a value: ARG NAME=VALUE before FROM, or --build-arg",
            )  # fmt: skip
        return stage

    def _platform(self, at: Stretch, wanted: str) -> None:
        here = self.options.platform or self.options.here
        system, _, rest = wanted.lower().partition("/")
        architecture, _, variant = rest.partition("/")
        if not rest and system != here.os:
            system, architecture = here.os, system
        aliases = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386"}
        architecture = aliases.get(architecture, architecture) or here.architecture
        if (architecture, variant) in (("arm64", "v8"), ("amd64", "v1")):
            variant = ""
        if (system, architecture, variant or here.variant) != (
            here.os, here.architecture, here.variant,
        ):  # fmt: skip
            raise fault(
                self.source, at,
                f"a stage for {wanted or 'no platform'} can't be part of a build for {here}",
                hint="all stages are for one platform, which --platform says",
            )  # fmt: skip

    def target(self) -> _Planned:
        """The stage that is asked for: the last, or the one of a name or number. UsageError."""
        wanted = self.options.target.lower()
        if not wanted:
            return self.stages[-1]
        for stage in reversed(self.stages):
            if stage.name == wanted:
                return stage
        if wanted.isascii() and wanted.isdecimal() and int(wanted) < len(self.stages):
            return self.stages[int(wanted)]
        known = ", ".join(stage.name for stage in self.stages if stage.name)
        raise UsageError(
            f"the Dockerfile has no stage called {self.options.target!r}",
            hint=f"it has: {known}" if known else "its stages have no names, but numbers from 0",
        )

    def find(self, name: str, before: int) -> _Planned | None:
        """The stage that a name stands for, where stage `before` says it."""
        for stage in reversed(self.stages[:before]):
            if stage.name == name.lower():
                return stage
        return None

    def base(self, stage: _Planned) -> tuple[str, str]:
        """What a stage begins from: ("stage", its number), ("context", name) or ("image", name)."""
        return self.origin(stage.base, stage.number, stage.at)

    def origin(self, name: str, before: int, at: Stretch) -> tuple[str, str]:
        """What a name stands for: a context of the command line's, a stage, or an image."""
        if name.lower() in self.contexts:
            value = self.contexts[name.lower()]
            if value.startswith("docker-image://"):
                return "image", value.removeprefix("docker-image://")
            if value.startswith("oci-layout://"):
                return "image", "oci:" + value.removeprefix("oci-layout://")
            if _REMOTE.match(value):
                return "image", f"git:{value}"
            return "context", name.lower()
        found = self.find(name, before)
        if found is not None:
            return "stage", str(found.number)
        if any(stage.name == name.lower() for stage in self.stages[before:]):
            raise fault(
                self.source, at, f"the stage {name!r} does not stand before this one",
                hint="put it higher up",
            )  # fmt: skip
        return "image", name

    def source_of(self, name: str, before: int, at: Stretch) -> tuple[str, str]:
        """The same for what is copied from, where a number is a stage's."""
        kind, value = self.origin(name, before, at)
        if kind == "image" and name.isascii() and name.isdecimal() and len(name) < 6:
            if int(name) >= before:
                raise fault(self.source, at, f"there is no stage {name} before this one")
            return "stage", name
        return kind, value

    def needed(self) -> list[_Planned]:
        """The stages on the way to the target, in their order."""
        found: set[int] = set()
        ahead = [self.target()]
        while ahead:
            stage = ahead.pop()
            if stage.number in found:
                continue
            found.add(stage.number)
            names = [self.base(stage)]
            for it in stage.body:
                names.extend(self.source_of(name, stage.number, at) for name, at in _mentioned(it))
            ahead.extend(self.stages[int(value)] for kind, value in names if kind == "stage")
        return [stage for stage in self.stages if stage.number in found]

    # --- the spec ----------------------------------------------------------------------------

    def converted(self, configs: Mapping[str, ImageConfig]) -> Converted:
        *before, last = self.needed()
        for stage in before:
            name = self.unique(stage.name or f"stage-{stage.number}")
            spec, places = self.spec(stage, configs)
            self.names[stage.number] = name
            self.child(name, spec, places)
        spec, places = self.spec(last, configs)
        self.places |= {(index,): place for index, place in enumerate(places)}
        unused = [name for name in self.given if name not in self.asked | PROXIES]
        return Converted(
            Spec(spec.base, spec.ops, tuple(self.children)),
            tuple(f"no ARG asks for the build argument {name}" for name in unused),
            self.places,
        )

    def child(self, name: str, spec: Spec, places: list[str]) -> None:
        number = len(self.children)
        self.places |= {(number, index): place for index, place in enumerate(places)}
        self.children.append((name, spec))

    def unique(self, name: str) -> str:
        found, number = name, 1
        while found in self.taken:
            number += 1
            found = f"{name}-{number}"
        self.taken.add(found)
        return found

    def spec(self, planned: _Planned, configs: Mapping[str, ImageConfig]) -> tuple[Spec, list[str]]:
        """A stage's spec, and where the instruction of each op stands."""
        kind, value = self.base(planned)
        base: str | Built
        if kind == "stage":
            base, config = Built(self.names[int(value)]), self.ends[int(value)]
        elif kind == "context":
            base, config = "scratch", SCRATCH
        else:
            base, config = value, SCRATCH if value == "scratch" else configs[value]
        stage = Stage(
            self.dockerfile, begun(config), given=self.given, globally=self.globals,
            network=self.options.network,
            built=lambda at: self.built(stage, planned, at), beside=self.beside,
        )  # fmt: skip
        stage.begin(inherit=kind != "stage")
        if kind == "stage":
            stage.env.update(self.variables[int(value)])
        elif kind == "context":
            stage.put(Add(("/",), "/", context=value))
        for trigger in config.onbuild:
            file = f"{self.source.file}: ONBUILD of {planned.base}"
            inner = text.parse(trigger.encode("utf-8", "surrogateescape"), file=file)
            for it in inner.instructions:
                stage.source, stage.escape = inner.source, inner.escape
                stage.take(it)
        stage.source, stage.escape = self.source, self.dockerfile.escape
        for it in planned.body:
            stage.take(it)
        self.asked |= stage.asked
        self.ends[planned.number] = stage.config
        self.variables[planned.number] = stage.env
        return Spec(base, tuple(stage.ops)), stage.places

    def built(self, stage: Stage, planned: _Planned, at: Stretch) -> str:
        """The build that a `from` names, from within a stage."""
        kind, value = self.source_of(at.text, planned.number, at)
        if kind == "stage":
            if int(value) not in self.names:
                raise fault(self.source, at, f"the stage {at.text!r} is not known here")
            return self.names[int(value)]
        if kind == "context":
            return stage.beside(value, (Add(("/",), "/", context=value),), "scratch")
        return stage.beside("image", (), value)

    def beside(self, place: str, name: str, ops: tuple[Op, ...], base: str) -> str:
        """The build of a base and ops that no stage is; one for all that are alike."""
        self.places.setdefault(base, place)
        known = self.made.get((ops, base))
        if known is None:
            known = self.made[ops, base] = self.unique(f"{name}-{len(self.made)}")
            self.child(known, Spec(base, ops), [place] * len(ops))
        return known


def _mentioned(it: Instruction) -> list[tuple[str, Stretch]]:
    """What an instruction copies from or looks into, by name."""
    found = []
    for flag in it.flags:
        if it.name == "COPY" and flag.text.startswith("--from="):
            found.append(flag.part(len("--from="), len(flag.text)))
        elif it.name == "RUN" and flag.text.startswith("--mount="):
            for match in re.finditer(r'(?:^|[,"])from=([^,"]*)', flag.text[len("--mount=") :]):
                shift = len("--mount=")
                found.append(flag.part(match.start(1) + shift, match.end(1) + shift))
    return [(at.text, at) for at in found if at.text]


def _platforms(options: Options) -> dict[str, str]:
    found: dict[str, str] = {}
    for kind, it in (("BUILD", options.here), ("TARGET", options.platform or options.here)):
        found |= {
            f"{kind}PLATFORM": str(it), f"{kind}OS": it.os,
            f"{kind}ARCH": it.architecture, f"{kind}VARIANT": it.variant,
        }  # fmt: skip
    return found
