"""Keys: the SHA-256 of what decides a step's result, and of nothing else.

In: argv, environment, user, working directory, network, ids and targets of secrets, the base, the
manifest of copied files, the domain of a sandbox that does not isolate. Out: values of secrets,
cache volumes, limits, comments, where it ran.
A golden test holds the keys: when one changes, KEY_VERSION must.
"""

import hashlib
from collections.abc import Mapping

import msgspec

from obuilder.plan.model import (
    AddAction,
    Base,
    CopyAction,
    LayerAction,
    MkdirAction,
    RunAction,
    SecretMount,
    Step,
)
from obuilder.values import Key, NamedUser, User

KEY_VERSION = 1

_encoder = msgspec.json.Encoder(order="deterministic")


def _key(**record: object) -> Key:
    return Key(hashlib.sha256(_encoder.encode({"v": KEY_VERSION, **record})).hexdigest())


def _text(text: str) -> str:
    r"""Any text as JSON can hold it, one to one: bytes that are not UTF-8 as \\xNN, \\ doubled."""
    try:
        text.encode()
    except UnicodeEncodeError:
        data = text.encode("utf-8", "surrogateescape").replace(b"\\", b"\\\\")
        return "b:" + data.decode("utf-8", "backslashreplace")
    return "b:" + text.replace("\\", "\\\\") if text.startswith("b:") else text


def _texts(texts: "tuple[str, ...]") -> list[str]:
    return [_text(text) for text in texts]


def _user(user: User) -> object:
    if isinstance(user, NamedUser):
        return _text(user.name)
    return [user.uid, user.gid]


def layer_key(action: LayerAction, base: Key | None) -> Key:
    """A layer by its content, whatever image it comes with: images share layers."""
    layer = action.base.layers[action.index]
    return _key(action="layer", base=base, digest=layer.digest, platform=str(action.base.platform))


def layer_keys(base: Base) -> list[Key]:
    """All layers of an image, the lowest first."""
    keys = list[Key]()
    for index in range(len(base.layers)):
        keys.append(layer_key(LayerAction(base, index), keys[-1] if keys else None))
    return keys


def run_key(action: RunAction, base: Key | None, results: Mapping[Key, Key] | None = None) -> Key:
    """A command. `results`: what the stages that it looks into came to, by their keys.

    What OBuilder's runs have not is in the record of those alone that have it.
    """
    more: dict[str, object] = {}
    if action.binds:
        more["binds"] = [
            [(results or {}).get(b.stage, b.stage), _text(b.source), _text(b.target), b.writable]
            for b in action.binds
        ]
    if action.tmpfs:
        more["tmpfs"] = [[_text(tmpfs.target), tmpfs.size] for tmpfs in action.tmpfs]
    if action.ssh:
        more["ssh"] = [[_text(ssh.id), _text(ssh.target)] for ssh in action.ssh]
    if action.insecure:
        more["insecure"] = True
    if action.domain:
        more["domain"] = action.domain
    return _key(
        action="run",
        base=base,
        argv=_texts(action.argv),
        cwd=_text(action.cwd),
        user=_user(action.user),
        env=[[_text(name), _text(value)] for name, value in action.env],
        network=_texts(action.network),
        secrets=sorted(map(_secret, action.secrets)),
        **more,
    )


def _secret(secret: SecretMount) -> list[str]:
    found = [_text(secret.id), _text(secret.target)]
    if secret.env or secret.owner is not None or secret.permissions is not None:
        owner = secret.owner
        found += [
            _text(secret.env),
            "" if owner is None else f"{owner.uid}:{owner.gid}",
            "" if secret.permissions is None else f"{secret.permissions:o}",
        ]
    return found


def copy_key(action: CopyAction, base: Key | None, manifest: str) -> Key:
    """A copy by its content, wherever the files come from."""
    return _key(
        action="copy", base=base, dst=_text(action.dst), user=_user(action.user), manifest=manifest
    )


def copy_definition_key(action: CopyAction, base: Key | None) -> Key:
    """A copy from a stage by its definition, before the stage's content is known."""
    return _key(
        action="copy-from",
        base=base,
        stage=action.stage,
        src=_texts(action.src),
        dst=_text(action.dst),
        into=action.into,
        exclude=_texts(action.exclude),
        user=_user(action.user),
    )


def add_key(action: AddAction, base: Key | None, manifest: str) -> Key:
    """An add by its content, wherever the files come from."""
    return _key(
        action="add", base=base, manifest=manifest, **_placing(action),
        files=[[_text(name), _text(content)] for name, content in action.files],
    )  # fmt: skip


def add_definition_key(action: AddAction, base: Key | None) -> Key:
    """An add from a stage by its definition, before the stage's content is known."""
    return _key(
        action="add-from", base=base, stage=action.stage, src=_texts(action.src),
        exclude=_texts(action.exclude), parents=action.parents, **_placing(action),
        files=[[_text(name), _text(content)] for name, content in action.files],
    )  # fmt: skip


def _placing(action: AddAction) -> dict[str, object]:
    """What decides where an add's files go, and what becomes of them there."""
    return {
        "dst": _text(action.dst), "into": action.into,
        "user": None if action.user is None else _user(action.user),
        "permissions": _text(action.permissions), "link": action.link, "unpack": action.unpack,
    }  # fmt: skip


def mkdir_key(action: MkdirAction, base: Key | None) -> Key:
    """A directory."""
    return _key(action="mkdir", base=base, path=_text(action.path), user=_user(action.user))


def effective(
    step: Step, base: Key | None, manifest: str | None, results: Mapping[Key, Key]
) -> Key:
    """The key by content: with the base's own content key, those of the `results` that a run looks
    into, and a copy's manifest digest.
    """
    action = step.action
    if isinstance(action, LayerAction):
        return layer_key(action, base)
    if isinstance(action, RunAction):
        return run_key(action, base, results)
    if isinstance(action, MkdirAction):
        return mkdir_key(action, base)
    if manifest is None:
        raise ValueError("a copy's content key needs its manifest")
    if isinstance(action, AddAction):
        return add_key(action, base, manifest)
    return copy_key(action, base, manifest)


def failed_key(key: Key) -> Key:
    """Where the root of a failed attempt at `key` is kept."""
    return _key(action="failed", key=key)
