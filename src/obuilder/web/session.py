"""Who may change things: whoever knows the token. A cookie says so, and a form proves that it is ours.

There are no accounts and nothing is stored: a session is a random name and a time, signed with the
token, so it outlives the program, and another token ends all sessions.
"""

import base64
import hashlib
import hmac
import secrets

import anyio
from msgspec import Struct

LASTS = 12 * 3600.0
"""Seconds from logging in until it has to be done again."""
_LEAST = 16
_WRONG = 1.0
"""Seconds that a wrong token takes."""
_AT_ONCE = 4
"""Wrong tokens that are taken at one time: so many guesses there are in a second."""
TOO_MANY = "Too many wrong tokens came just now: wait a moment."


class Session(Struct, frozen=True):
    """Somebody who gave the token; `form` goes into each of their forms."""

    name: str
    until: float
    form: str


class Gate:
    """Knows the token; without one, nobody comes in."""

    def __init__(self, token: bytes | None) -> None:
        self._token = token
        self._refusing = 0
        self._key = hashlib.sha256(b"obuilder web session\0" + token).digest() if token else b""

    @property
    def exists(self) -> bool:
        """Whether anybody can come in."""
        return self._token is not None

    def admits(self, token: str) -> bool:
        """Whether that is the token. It takes the same time for all that are not."""
        given = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        return self._token is not None and hmac.compare_digest(
            given, hashlib.sha256(self._token).digest()
        )

    async def refuse(self) -> bool:
        """Take a wrong token's time; False, and at once: too many others do."""
        if self._refusing >= _AT_ONCE:
            return False
        self._refusing += 1
        try:
            await anyio.sleep(_WRONG)
        finally:
            self._refusing -= 1
        return True

    def begin(self, now: float) -> str:
        """A new session's cookie."""
        name, until = secrets.token_urlsafe(16), f"{now + LASTS:.0f}"
        return f"{name}.{until}.{self._sign('cookie', name, until)}"

    def session(self, cookie: str, now: float) -> Session | None:
        """The session of a cookie, if it is one of ours and not over."""
        name, _, rest = cookie.partition(".")
        until, _, signature = rest.partition(".")
        if self._token is None or not until.isascii() or not until.isdecimal() or len(until) > 12:
            return None
        if not hmac.compare_digest(signature.encode(), self._sign("cookie", name, until).encode()):
            return None
        if float(until) <= now:
            return None
        return Session(name=name, until=float(until), form=self._sign("form", name, until))

    def proves(self, session: Session, form: str) -> bool:
        """Whether a form is one that we gave to this session."""
        return hmac.compare_digest(form.encode(), session.form.encode())

    def _sign(self, *parts: str) -> str:
        signature = hmac.new(self._key, "\0".join(parts).encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(signature[:24]).decode()


def checked(token: bytes) -> bytes:
    """A token as it stands in a file. ValueError where it is too short to be one."""
    token = token.strip()
    if len(token) < _LEAST:
        raise ValueError(f"a token has at least {_LEAST} bytes")
    return token
