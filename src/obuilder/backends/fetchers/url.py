"""A file of the web as a root that holds it alone: what a Dockerfile's ADD of a URL copies from.

`https://host/path/file`, or the same with `@sha256:…` behind it, which says what must come. Without
that, the file is fetched to learn what it is, and once more when it is needed.
"""

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime

from obuilder.backends.fetchers import LocalFetcher, directory_of, in_thread
from obuilder.backends.protocols import Progress, Root
from obuilder.errors import Denied, DigestMismatch, NotFound, Unreachable
from obuilder.plan.model import Base, Layer
from obuilder.values import IdMap, Platform

_DIGEST = re.compile(r"(.*)@(sha256:[0-9a-f]{64})")
_BLOCK = 1 << 20
_PATIENCE = 60
_UNNAMED = "__unnamed__"


class UrlFetcher(LocalFetcher):
    """See `Fetcher`."""

    async def resolve(self, name: str, platform: Platform) -> Base:
        """What the URL gives. NotFound, Denied, Unreachable if that is not said by the name."""
        url, digest = split(name)
        if not digest:
            found = hashlib.sha256()
            with _opened(url) as answer:
                while data := _read(answer, url):
                    found.update(data)
            digest = f"sha256:{found.hexdigest()}"
        layer = hashlib.sha256(f"{file_name(url)}\0{digest}".encode("utf-8", "surrogateescape"))
        return Base(
            name, digest, platform, (Layer(f"sha256:{layer.hexdigest()}", f"{url}@{digest}"),)
        )

    async def fetch(
        self,
        base: Base,
        index: int,
        *,
        into: Root,
        idmap: IdMap,
        output: Callable[[bytes], None],
        progress: Progress | None = None,
    ) -> None:
        """Download the file. DigestMismatch if it is another one than was said."""
        source, root = base.layers[index].source, directory_of(into)
        await in_thread(lambda _: _download(source, root, idmap), output)


def split(name: str) -> tuple[str, str]:
    """The URL, and the digest behind it."""
    found = _DIGEST.fullmatch(name)
    return (found.group(1), found.group(2)) if found else (name, "")


def file_name(url: str) -> str:
    """What the file is called: the last part of the URL's path."""
    path = re.sub(r"[?#].*", "", url.partition("://")[2]).rstrip("/")
    return (path.rpartition("/")[2] if "/" in path else "") or _UNNAMED


def _download(source: str, root: str, idmap: IdMap) -> None:
    url, digest = split(source)
    place = os.path.join(root, file_name(url))
    found = hashlib.sha256()
    with _opened(url) as answer, open(place, "xb") as file:
        while data := _read(answer, url):
            found.update(data)
            file.write(data)
        changed = answer.headers.get("Last-Modified")
    if f"sha256:{found.hexdigest()}" != digest:
        raise DigestMismatch(
            f"{url} is not what it was said to be: it is sha256:{found.hexdigest()}",
            hint="is the checksum right, or has the file changed?",
        )
    os.chmod(place, 0o600)
    if not idmap.single:
        os.chown(place, idmap.to_disk(0), idmap.to_disk(0))
    try:
        time = parsedate_to_datetime(changed or "").timestamp()
    except (TypeError, ValueError):
        return
    os.utime(place, (time, time))


@contextmanager
def _opened(url: str) -> Iterator[http.client.HTTPResponse]:
    try:
        quoted = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]", errors="surrogateescape")
        with urllib.request.urlopen(quoted, timeout=_PATIENCE) as answer:  # noqa: S310 # http(s) only
            yield answer
    except urllib.error.HTTPError as error:
        error.close()
        kinds = {401: Denied, 403: Denied, 404: NotFound, 410: NotFound}
        raise kinds.get(error.code, Unreachable)(f"{url}: {error.code} {error.reason}") from error
    except (urllib.error.URLError, OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise Unreachable(f"can't get {url}: {reason}") from error


def _read(answer: http.client.HTTPResponse, url: str) -> bytes:
    try:
        return answer.read(_BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"{url} broke off: {error}") from error
