"""Hypothesis strategies for specs: every op, any text that a spec can hold."""

from hypothesis import strategies as st

from obuilder.spec.model import (
    Add,
    Ambient,
    Arg,
    Author,
    Bind,
    Built,
    Cache,
    Cmd,
    Comment,
    Copy,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    Inherit,
    Label,
    Mkdir,
    Onbuild,
    Op,
    Run,
    Secret,
    SetUser,
    Shell,
    Spec,
    Ssh,
    StopSignal,
    Tmpfs,
    Volume,
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


_owner = st.none() | st.builds(UnixUser, _id, _id)
_permissions = st.none() | st.integers(0, 0o7777)
_words = st.lists(_clean, max_size=3).map(tuple)
_command = st.lists(_clean, min_size=1, max_size=3).map(tuple)
_wait = st.sampled_from([0, 1, 1_000_000, 1_500_000_000, 60 * 10**9])
_file = _clean.filter(lambda text: text not in ("", ".", "..") and "/" not in text)
_settings = st.one_of(
    st.builds(Inherit),
    st.builds(Mkdir, _clean),
    st.builds(Arg, _name, _clean),
    st.builds(Ambient, _name, _clean),
    st.builds(Entrypoint, _words),
    st.builds(Cmd, _words),
    st.builds(Label, _clean.filter(bool), _clean),
    st.builds(Expose, st.lists(st.sampled_from(["80/tcp", "53/udp", "1-9/sctp"])).map(tuple)),
    st.builds(Volume, st.lists(_clean.filter(bool), max_size=2).map(tuple)),
    st.builds(StopSignal, st.sampled_from(["SIGTERM", "KILL", "9"])),
    st.builds(Onbuild, _clean),
    st.builds(Author, _clean),
    st.builds(
        Healthcheck,
        test=_command.map(lambda words: ("CMD", *words)) | st.just(("CMD-SHELL", "true x")),
        interval=_wait,
        start_period=_wait,
        retries=st.integers(0, 9),
    ),
)


def _runs(builds: list[str]) -> st.SearchStrategy[Op]:
    """Runs with all that a Dockerfile can say of one."""
    binds: st.SearchStrategy[list[Bind]] = st.just([])
    if builds:
        one = st.builds(Bind, st.sampled_from(builds), _target, _source, st.booleans())
        binds = st.lists(one, max_size=2)
    return st.builds(
        Run,
        exec=_command,
        cache=st.lists(
            st.builds(Cache, _text, _target, owner=_owner, permissions=_permissions), max_size=1
        ).map(tuple),
        secrets=st.lists(
            st.builds(Secret, _text, _target, required=st.booleans(), env=st.just("") | _name),
            max_size=1,
        ).map(tuple),
        binds=binds.map(tuple),
        tmpfs=st.lists(st.builds(Tmpfs, _target, st.none() | st.just(4096)), max_size=1).map(tuple),
        ssh=st.lists(
            st.builds(Ssh, _text, _target, st.booleans(), _owner, _permissions), max_size=1
        ).map(tuple),
        insecure=st.booleans(),
    )


def _adds(builds: list[str]) -> st.SearchStrategy[Op]:
    build = st.sampled_from([None, *builds])
    return st.builds(
        Add,
        src=st.lists(_source, min_size=1, max_size=3).map(tuple),
        dst=_clean.map(lambda text: text + "/"),
        build=build,
        files=st.lists(st.tuples(_file, _text), max_size=2).map(tuple),
        owner=st.none() | st.builds(UnixUser, _id, _id) | st.builds(NamedUser, _clean),
        permissions=st.sampled_from(["", "0644", "u=rwX,go=rX"]),
        exclude=st.lists(_clean, max_size=2).map(tuple),
        parents=st.booleans(),
        link=st.booleans(),
        unpack=st.booleans(),
    ) | st.builds(Add, st.just(("a",)), _clean, context=_clean)


def _ops(builds: list[str]) -> st.SearchStrategy[Op]:
    origin = st.sampled_from([None, *builds]) if builds else st.none()
    return st.one_of(
        _settings,
        _runs(builds),
        _adds(builds),
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
    base = _clean | st.sampled_from(scope).map(Built) if scope else _clean
    return Spec(base=draw(base), ops=tuple(ops), children=tuple(children))
