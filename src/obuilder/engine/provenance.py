"""What is told of how a result came to be: a predicate of SLSA's provenance, version 1."""

import hashlib
import time
from collections.abc import Iterable
from typing import Any

import msgspec

from obuilder import __version__
from obuilder.backends.fetchers import git, is_remote
from obuilder.backends.fetchers.url import split as split_url
from obuilder.engine.index import Record
from obuilder.engine.origin import Copied, Material, Origin
from obuilder.inventory.model import made_purl
from obuilder.oci.reference import Reference
from obuilder.plan.keys import KEY_VERSION
from obuilder.values import Platform

BUILD_TYPE = "urn:obuilder:build:v1"
_MANIFEST = "application/vnd.obuilder.manifest.v1"


def predicate(
    origin: Origin, platform: Platform, steps: Iterable[tuple[Record, bytes | None]], *,
    builder: str, reproducible: bool,
) -> bytes:  # fmt: skip
    """The provenance of a result, made by `steps`, the last first, each with its log.

    `builder` is the URI of who built it. With `reproducible`, nothing is told that another build of
    the same would tell differently: no times, no logs.
    """
    found = list(steps)
    last = found[0][0]
    source = origin.source
    outside: dict[str, Any] = {
        "frontend": source.frontend,
        "source": {"name": source.name, "text": source.text},
        "platform": str(platform),
        "buildArguments": dict(source.arguments),
        "target": source.target,
        "secrets": origin.secrets,
        "agents": origin.agents,
    }
    inside = {
        "result": last.key, "keyVersion": KEY_VERSION, "networks": origin.networks,
        "caches": origin.caches,
    }  # fmt: skip
    run: dict[str, Any] = {"builder": {"id": builder, "version": {"obuilder": __version__}}}
    if not reproducible:
        ran = [record for record, _ in found if record.kind != "layer"] or [last]
        run["metadata"] = {
            "invocationId": f"urn:obuilder:result:{last.key}:{last.created:.6f}",
            "startedOn": _time(min(record.created - record.seconds for record in ran)),
            "finishedOn": _time(last.created),
        }
        run["byproducts"] = [
            {
                "name": f"log of {record.key}", "mediaType": "text/plain",
                "digest": {"sha256": hashlib.sha256(log).hexdigest()},
            }
            for record, log in reversed(found)
            if log is not None and record.kind != "layer"
        ]  # fmt: skip
    said = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {key: value for key, value in outside.items() if value},
            "internalParameters": {key: value for key, value in inside.items() if value},
            "resolvedDependencies": [
                *map(_material, origin.materials), *map(_copied, origin.copied)
            ],
        },
        "runDetails": run,
    }  # fmt: skip
    return msgspec.json.encode(said)


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _material(found: Material) -> dict[str, Any]:
    """A base image by its package URL, what has a URL by that, what is on this machine by its kind
    and last name: where it lies is nobody else's business.
    """
    algorithm, _, value = found.digest.partition(":")
    kind, _, rest = found.name.partition(":")
    digest = {algorithm: value}
    if is_remote(found.name):
        name = Reference.parse(found.name)
        place = name.repository if name.registry == "docker.io" else _whole(name)
        namespace, _, last = place.rpartition("/")
        more = {"digest": found.digest, "platform": found.platform}
        return {"uri": made_purl("docker", namespace, last, name.tag, more), "digest": digest}
    if kind in ("http", "https"):
        return {"uri": split_url(found.name)[0], "digest": digest}
    if kind == "git":
        url, ref, directory, _ = git.split(found.name)
        where = f"git+{url}" if "://" in url else f"git+ssh://{url.replace(':', '/', 1)}"
        kinds = {40: "gitCommit", 64: "sha256"}
        uri = f"{where}@{ref or value}" + (f"#subdirectory={directory}" if directory else "")
        return {"uri": uri, "digest": {kinds.get(len(value), algorithm): value}}
    name_ = f"{kind}:{rest.rstrip('/').rpartition('/')[2]}" if rest else kind
    return {"name": name_, "digest": digest}


def _whole(name: Reference) -> str:
    """A repository with its registry."""
    return f"{name.registry}/{name.repository}"


def _copied(found: Copied) -> dict[str, Any]:
    return {
        "name": "context",
        "mediaType": _MANIFEST,
        "digest": {"sha256": found.digest},
        "annotations": {"sources": found.sources, "destination": found.destination},
    }
