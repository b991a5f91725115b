"""Keys: the SHA-256 of what decides a step's result, and of nothing else.

In: argv, environment, user, working directory, network, ids and targets of secrets, the base, the
manifest of copied files, the domain of a sandbox that does not isolate. Out: values of secrets,
cache volumes, limits, comments, where it ran.
A golden test holds the keys: when one changes, KEY_VERSION must.
"""

import hashlib

import msgspec

from obuilder.plan.model import Base, CopyAction, LayerAction, RunAction, Step
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


def run_key(action: RunAction, base: Key | None) -> Key:
    """A command."""
    return _key(
        action="run",
        base=base,
        argv=_texts(action.argv),
        cwd=_text(action.cwd),
        user=_user(action.user),
        env=[[_text(name), _text(value)] for name, value in action.env],
        network=_texts(action.network),
        secrets=sorted([_text(secret.id), _text(secret.target)] for secret in action.secrets),
        **({"domain": action.domain} if action.domain else {}),
    )


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


def effective(step: Step, base: Key | None, manifest: str | None) -> Key:
    """The key by content: with the base's own content key, and a copy's manifest digest."""
    action = step.action
    if isinstance(action, LayerAction):
        return layer_key(action, base)
    if isinstance(action, RunAction):
        return run_key(action, base)
    if manifest is None:
        raise ValueError("a copy's content key needs its manifest")
    return copy_key(action, base, manifest)


def failed_key(key: Key) -> Key:
    """Where the root of a failed attempt at `key` is kept."""
    return _key(action="failed", key=key)
