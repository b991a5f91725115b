"""Hypothesis strategies for specs: every op, any text that a spec can hold."""

from hypothesis import strategies as st

from obuilder.spec.model import (
    Cache,
    Comment,
    Copy,
    Env,
    Op,
    Run,
    Secret,
    SetUser,
    Shell,
    Spec,
    Workdir,
)  # fmt: skip
from obuilder.values import Limits, NamedUser, UnixUser

_text = st.binary(max_size=12).map(lambda data: data.decode("utf-8", "surrogateescape"))
_clean = _text.filter(lambda text: "\0" not in text)
_name = _clean.filter(lambda text: bool(text) and "=" not in text)
_source = _clean.filter(lambda text: ".." not in text.split("/"))
_target = st.sampled_from(["/c", "/home/x/.cache", "/run/secrets/a b", "/é"])
_id = st.integers(0, (1 << 32) - 2)
_options = st.lists(st.tuples(_text, _text), max_size=2).map(tuple)
_limits = st.builds(
    Limits,
    memory=st.none() | st.integers(1, 1 << 40),
    pids=st.none() | st.integers(1, 1 << 20),
    seconds=st.none() | st.integers(1, 100_000).map(float),
)
_mode = st.sampled_from(["private", "locked", "shared", "append", "read-only"])


def _ops(builds: list[str]) -> st.SearchStrategy[Op]:
    origin = st.sampled_from([None, *builds]) if builds else st.none()
    return st.one_of(
        st.builds(Comment, _text),
        st.builds(Workdir, _clean),
        st.builds(Shell, st.lists(_clean, max_size=3).map(tuple)),
        st.builds(SetUser, st.builds(UnixUser, _id, _id) | st.builds(NamedUser, _clean)),
        st.builds(Env, _name, _clean),
        st.builds(
            Run,
            shell=_clean,
            cache=st.lists(st.builds(Cache, _text, _target, _mode, _options), max_size=2).map(
                tuple
            ),
            network=st.lists(_clean, max_size=2).map(tuple),
            secrets=st.lists(st.builds(Secret, _text, _target, _options), max_size=2).map(tuple),
            limits=_limits,
        ),
        st.builds(
            Copy,
            src=st.lists(_source, min_size=1, max_size=3).map(tuple),
            dst=_clean.map(lambda text: text + "/"),
            build=origin,
            exclude=st.lists(_clean, max_size=2).map(tuple),
        ),
    )


@st.composite
def specs(draw: st.DrawFn, *, depth: int = 2, outer: tuple[str, ...] = ()) -> Spec:
    """Any spec, with nested builds whose names are in scope where they are used."""
    scope = list(outer)
    children: list[tuple[str, Spec]] = []
    if depth:
        for _ in range(draw(st.integers(0, 2))):
            name = draw(_text)
            children.append((name, draw(specs(depth=depth - 1, outer=tuple(scope)))))
            scope.append(name)
    ops = draw(st.lists(_ops(scope), max_size=5))
    return Spec(base=draw(_clean), ops=tuple(ops), children=tuple(children))
