"""One host that speaks the registries' protocol: requests, who we are to it, and what goes wrong.

This is the one place that loads the HTTP library, so import this module only where the network is
needed. What may go better at another try is `Passing`; everything else is final.
"""

import email.utils
import ipaddress
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import anyio
import anyio.to_thread
import httpx2
import msgspec
from msgspec import Struct

from obuilder.errors import ConfigError, Denied, NotFound, Unreachable
from obuilder.oci.auth import Challenge, Credentials, challenges, credentials
from obuilder.oci.reference import HUB
from obuilder.values import RegistrySettings

_HUB_ADDRESS = "registry-1.docker.io"
_HOPS = 5
_SAID = 1 << 16
"""Bytes of an error's or a token's document: more is not read."""
_CONNECTING, _WAITING = 15.0, 60.0
_LIFE = 60.0
"""Seconds that a token lives whose server does not say."""
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


class Passing(Unreachable):
    """What may go better at another try, after so many seconds at the least."""

    def __init__(self, message: str, *, hint: str | None = None, after: float = 0.0) -> None:
        super().__init__(message, hint=hint)
        self.after = after


class _Errors(Struct):
    class One(Struct):
        code: str = ""
        message: str = ""

    errors: list[One] = []


class _Token(Struct):
    token: str = ""
    access_token: str = ""
    expires_in: float = _LIFE


Content = Callable[[], AsyncIterator[bytes]]
"""Makes what a request sends."""


class Endpoint:
    """A registry or a mirror of one, by HOST[:PORT] or URL. To be closed."""

    def __init__(self, place: str, settings: Mapping[str, RegistrySettings]) -> None:
        """Nothing is asked yet. ConfigError."""
        scheme, slashes, rest = place.rpartition("://")
        self.host, slash, path = rest.partition("/")
        own = settings.get(self.host, RegistrySettings())
        local = _is_loopback(self.host)
        tls = own.tls or ("off" if local and own.ca is None else "verify")
        if slashes:
            tls = "off" if scheme == "http" else "verify" if tls == "off" else tls
        if scheme not in ("", "http", "https"):
            raise ConfigError(f"a registry can't be asked at {place!r}", hint="write HOST[:PORT]")
        self._plain = tls == "off"
        address = _HUB_ADDRESS if self.host == HUB else self.host
        base = f"{'http' if self._plain else 'https'}://{address}{slash}{path}".rstrip("/")
        try:
            self._base = httpx2.URL(base)
            self._client = httpx2.AsyncClient(
                verify=_trust(tls, own.ca),
                # As everywhere else, what is on this machine is not looked for behind a proxy.
                trust_env=not local,
                timeout=httpx2.Timeout(_WAITING, connect=_CONNECTING, pool=None),
                headers={"User-Agent": "obuilder", "Accept-Encoding": "identity"},
            )
        except httpx2.InvalidURL as error:
            raise ConfigError(f"a registry can't be asked at {place!r}: {error}") from error
        except (ValueError, ImportError) as error:
            raise ConfigError(
                f"the proxy that the environment names can't be used: {error}"
            ) from error
        self._authorizing = anyio.Lock()
        self._known: dict[str, tuple[str, float]] = {}

    async def close(self) -> None:
        """Let go of connections."""
        await self._client.aclose()

    @asynccontextmanager
    async def ask(
        self,
        method: str,
        path: str,
        *,
        scope: str,
        headers: Mapping[str, str] | None = None,
        content: Content | None = None,
    ) -> AsyncIterator[httpx2.Response]:
        """The answer, its content not read yet, to a request below `/v2/`.

        `path` may also be a URL that an answer named, `scope` is what it is for, in the words of
        token servers, `content` makes what is sent, each time anew. Another host is asked without
        saying who we are. NotFound, Denied, Passing, Unreachable.
        """
        with self._translated():
            url = httpx2.URL(f"{self._base}/v2/{path}")
            if path.startswith(("/", "http://", "https://")):
                url = self._base.join(path)
                if url.scheme != "https" and self._base.scheme == "https":
                    raise Unreachable(f"{self.host} names {_shown(url)}, which is not encrypted")
            known, sent = self._authorization(scope), headers or {}
            response, away = await self._follow(method, url, sent, known, content)
            for _ in range(2):
                if response.status_code != 401 or away:
                    break
                asked = challenges(", ".join(response.headers.get_list("www-authenticate")))
                await response.aclose()
                known = await self._authorized(asked, scope, refused=known)
                response, away = await self._follow(method, url, sent, known, content)
            try:
                if response.status_code >= 300:
                    await self._refuse(response, away=away)
                yield response
            finally:
                with anyio.CancelScope(shield=True):
                    await response.aclose()

    async def _follow(
        self,
        method: str,
        url: httpx2.URL,
        headers: Mapping[str, str],
        authorization: str | None,
        content: Content | None,
    ) -> tuple[httpx2.Response, bool]:
        """The answer to a request, and whether it is of another host than this."""
        away = url.origin != self._base.origin
        for _ in range(_HOPS):
            sent = dict(headers)
            if authorization is not None and not away:
                sent["Authorization"] = authorization
            body = None if content is None else content()
            request = self._client.build_request(method, url, headers=sent, content=body)
            response = await self._client.send(request, stream=True)
            if not response.has_redirect_location:
                return response, away
            await response.aclose()
            target = url.join(response.headers["location"])
            if target.scheme not in ("http", "https") or (
                target.scheme == "http" and url.scheme == "https"
            ):
                raise Unreachable(
                    f"{self.host} redirects to {_shown(target)}, which is not encrypted"
                )
            away = away or target.origin != url.origin
            url = target
        raise Unreachable(f"{self.host} redirects round and round")

    # --- who we are ----------------------------------------------------------------------------

    def _authorization(self, scope: str) -> str | None:
        """What was found before: for this scope, or for all."""
        for known in (scope, ""):
            value, until = self._known.get(known, ("", 0.0))
            if until > time.monotonic():
                return value
        return None

    async def _authorized(self, asked: list[Challenge], scope: str, *, refused: str | None) -> str:
        """What to say of ourselves now that this was refused. Denied."""
        async with self._authorizing:
            newer = self._authorization(scope)
            if newer is not None and newer != refused:
                return newer
            who = await anyio.to_thread.run_sync(credentials, self.host)
            for challenge in asked:
                if challenge.scheme == "bearer":
                    token, life = await self._token(challenge.said, scope, who)
                    value, place, until = f"Bearer {token}", scope, time.monotonic() + life
                    break
                if challenge.scheme == "basic" and who is not None and who.user:
                    value, place, until = who.basic(), "", float("inf")
                    break
            else:
                raise self._denied("" if who is None else "it asks for something else")
            if value == refused:
                raise self._denied("it does not take the user and password that we have")
            self._known[place] = value, until
            return value

    async def _token(
        self, said: Mapping[str, str], scope: str, who: Credentials | None
    ) -> tuple[str, float]:
        """A token from the server that a registry names, and for how long it is good. Denied."""
        realm = httpx2.URL(said.get("realm", ""))
        if realm.scheme not in ("http", "https") or not realm.host:
            raise Unreachable(f"{self.host} asks for a token and does not say where to get it")
        query: dict[str, str | list[str]] = {}
        if said.get("service"):
            query["service"] = said["service"]
        if wanted := said.get("scope") or scope:
            query["scope"] = wanted.split()
        if who is not None:
            self._check_secrecy(realm)
        if who is not None and who.identity_token:
            form = {
                **query, "scope": wanted, "grant_type": "refresh_token", "client_id": "obuilder",
                "refresh_token": who.identity_token,
            }  # fmt: skip
            request = self._client.build_request("POST", realm, data=form)
        else:
            headers = {} if who is None else {"Authorization": who.basic()}
            request = self._client.build_request("GET", realm, params=query, headers=headers)
        response = await self._client.send(request, stream=True)
        try:
            data = await read(response, _SAID)
        finally:
            await response.aclose()
        if response.status_code in _BUSY:
            raise self._busy(response, data)
        if response.status_code != 200:
            raise self._denied(f"{_shown(realm)} gives no token: {_reason_of(response, data)}")
        try:
            found = msgspec.json.decode(data, type=_Token)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            found = _Token()
        token = found.token or found.access_token
        if not token or not token.isascii() or not token.isprintable():
            raise Unreachable(f"{_shown(realm)} gives a token that is none")
        # Short ones are used once; of others the last seconds are not relied on.
        return token, max(found.expires_in - 10.0, min(found.expires_in, 1.0))

    def _check_secrecy(self, place: httpx2.URL) -> None:
        """Denied: a password would be sent for everybody to read, who did not ask for that."""
        if place.scheme == "http" and not self._plain and not _is_loopback(place.host):
            raise Denied(f"{self.host} wants our password sent to {_shown(place)}, unencrypted")

    # --- what goes wrong -----------------------------------------------------------------------

    def _denied(self, reason: str) -> Denied:
        return Denied(
            f"{self.host} does not let us in" + (f": {reason}" if reason else ""),
            hint=f"if the name is right: `docker login {self.host}` keeps a user and password for it",
        )

    def _busy(self, response: httpx2.Response, data: bytes) -> Passing:
        return Passing(
            f"{self.host} answers {response.status_code}: {_reason_of(response, data)}",
            hint="it asks for less haste: try again later, or log in to it"
            if response.status_code == 429
            else None,
            after=_retry_after(response.headers.get("retry-after", "")),
        )

    async def _refuse(self, response: httpx2.Response, *, away: bool) -> None:
        """Raise what an answer that is none means."""
        status = response.status_code
        data = b"" if response.request.method == "HEAD" else await read(response, _SAID)
        reason = _reason_of(response, data)
        if status in _BUSY:
            raise self._busy(response, data)
        if away:  # a place that is good for a while only: the next one may be better
            raise Passing(f"{self.host} redirects to {_shown(response.url)}: {status} {reason}")
        if status in (401, 403):
            raise self._denied(reason)
        if status == 404:
            raise NotFound(f"{self.host} has no such image: {reason}")
        hint = None
        if status == 400 and self._base.scheme == "http" and "HTTPS" in reason:
            hint = f'it wants TLS: give [registries."{self.host}"] a line tls = "verify"'
        raise Unreachable(f"{self.host} answers {status}: {reason}", hint=hint)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise self._failure(error) from error
        except httpx2.InvalidURL as error:
            raise Unreachable(f"{self.host} names a place that is none: {error}") from error

    def _failure(self, error: Exception) -> Unreachable:
        causes = list(_causes(error))
        for cause in causes:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return Unreachable(
                    f"{self.host} can't show who it is: {cause.verify_message}",
                    hint=f'if it has a certificate authority of its own, give [registries."{self.host}"]'
                    ' a line ca = "FILE"',
                )
            if isinstance(cause, ssl.SSLError):
                return Unreachable(
                    f"{self.host} speaks no TLS that we understand: {cause.reason or cause}",
                    hint=f'if it speaks plain HTTP, give [registries."{self.host}"] a line tls = "off"',
                )
            if isinstance(cause, socket.gaierror):
                kind = Unreachable if cause.errno == socket.EAI_NONAME else Passing
                return kind(f"there is no host {self.host}: {cause.strerror}")
        if isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError):
            return Unreachable(f"{self.host} can't be asked: {error}")
        if isinstance(error, httpx2.ConnectTimeout | httpx2.ReadTimeout):
            return Passing(f"{self.host} does not answer")
        system = [
            os.strerror(cause.errno) if cause.errno else str(cause)
            for cause in causes
            if isinstance(cause, OSError)
        ]
        reason = system[-1] if system else str(error) or type(error).__name__
        if isinstance(error, httpx2.ProxyError):
            return Passing(f"the proxy on the way to {self.host} does not take us there: {reason}")
        if isinstance(error, httpx2.ConnectError):
            return Passing(f"can't reach {self.host}: {reason}")
        return Passing(f"{self.host} broke off its answer: {reason}")


async def read(response: httpx2.Response, most: int) -> bytes:
    """The content of an answer, and of a longer one the first `most` bytes."""
    data = bytearray()
    async for piece in response.aiter_raw():
        data += piece
        if len(data) > most:
            break
    return bytes(data[:most])


def _trust(tls: str, ca: str | None) -> ssl.SSLContext | bool:
    if tls != "verify":
        return False
    context = httpx2.create_ssl_context()
    if ca is None:
        return context
    try:
        context.load_verify_locations(ca)
    except OSError as error:  # TLS errors are of this kind too
        raise ConfigError(
            f"can't take certificates from {ca}: {error.strerror or error}"
        ) from error
    return context


def _is_loopback(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _shown(url: httpx2.URL) -> str:
    """A URL without what may be secret in it."""
    return f"{url.scheme}://{url.host}" + (f":{url.port}" if url.port else "")


def _reason_of(response: httpx2.Response, data: bytes) -> str:
    """What an answer says in words."""
    try:
        found = msgspec.json.decode(data, type=_Errors).errors
    except (msgspec.MsgspecError, UnicodeDecodeError):
        text = data.decode("utf-8", "replace").strip()
        found = []
        if 0 < len(text) < 200 and text.isprintable() and not set(text) & set("<{"):
            return text
    said = next((one.message or one.code for one in found), "")[:200]
    if said and said.isprintable():
        return said
    return response.reason_phrase or "no reason given"


def _retry_after(text: str) -> float:
    """Seconds that an answer asks to wait: a number, or a date."""
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, IndexError):
        return 0.0


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, the last first."""
    found: BaseException | None = error
    while found is not None:
        yield found
        if isinstance(found, BaseExceptionGroup):
            for inner in found.exceptions:
                yield from _causes(inner)
        found = found.__cause__ or found.__context__
