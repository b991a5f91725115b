"""Cache hints of who gives none: builds with the same one begin with the same steps. Pure."""

import hashlib

from obuilder.cluster.messages import Context, GitContext
from obuilder.spec.encode import heading
from obuilder.spec.model import Add, Copy, Spec
from obuilder.spec.stages import needed


def of_spec(spec: Spec, context: Context) -> str:
    """By the base images, what is done before anything of the context is copied, and the repository."""
    parts = []
    for stage in needed(spec):
        base = stage.spec.base
        parts.append(base if isinstance(base, str) else base.name)
        for op in stage.spec.ops:
            if isinstance(op, Copy | Add) and op.build is None:
                break
            parts.append(heading(op))
    return _named(parts[0] if parts else "", parts, context)


def of_dockerfile(text: bytes, context: Context) -> str:
    """By what stands before the first COPY or ADD, and the repository."""
    parts = []
    for line in text.decode("utf-8", "replace").splitlines():
        words = line.split()
        if words[:1] and words[0].upper() in ("COPY", "ADD"):
            break
        parts.append(" ".join(words))
    bases = [part.split()[-1] for part in parts if part.upper().startswith("FROM ")]
    return _named(bases[0] if bases else "dockerfile", parts, context)


def of_file(name: str, context: Context) -> str:
    """By the file's name, where what is in it is not known here, and the repository."""
    return _named(name, [name], context)


def _named(name: str, parts: list[str], context: Context) -> str:
    where = context.url if isinstance(context, GitContext) else ""
    text = "\0".join([where, *parts]).encode("utf-8", "surrogateescape")
    shown = name.encode("utf-8", "backslashreplace").decode()[:80]
    return f"{shown}-{hashlib.sha256(text).hexdigest()[:12]}"
