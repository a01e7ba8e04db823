"""Who may ask, and how much: what stands before the routes.

* Without a key only this machine may ask, and only by the names of this machine: a web page whose
  name is made to point here (DNS rebinding) is refused by the `Host` it was asked by, and one that
  posts across sites by its `Origin`. Programs send no `Origin`; the page at `/` sends our own.
* With a key, everything but the page and the health asks for it, and nothing else matters.
* A body may be so large and take so long. Both are checked while it comes in, not after.
"""

import asyncio
import hmac
import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gemcut.runtime.server.failures import Failure

_OPEN = frozenset({"/", "/health"})  # without a key, too: they tell nothing


class Guard:
    """Refuses requests without the key, or, where there is none, from anywhere but this machine.

    Args:
        keys: any of them opens; empty: no key is wanted.
        origins: other sites whose pages may ask ("https://example.org"); "*" for all.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], origins: Sequence[str] = ()) -> None:
        self._app, self._origins = app, frozenset(origins)
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        failure = self._refusal(scope) if scope["type"] == "http" else None
        await (failure.response() if failure else self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Failure | None:
        headers = dict(scope["headers"])
        if self._keys:
            known = scope["path"] in _OPEN or self._opens(headers)
            return None if known else Failure(401, "wrong or missing API key", "invalid_api_key")
        host = headers.get(b"host", b"").decode("latin-1")
        if not is_loopback(_name(host)):
            return Failure(
                403, f"this server is not {host!r}: ask for localhost, or set an API key"
            )
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and not self._welcome(origin, host):
            return Failure(403, f"pages of {origin!r} may not ask: start the server with --cors")
        return None

    def _opens(self, headers: dict[bytes, bytes]) -> bool:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            given = headers.get(b"x-api-key", b"")
        # All are compared, each in constant time: how long it takes tells nothing.
        return any([hmac.compare_digest(given.strip(), key) for key in self._keys])

    def _welcome(self, origin: str, host: str) -> bool:
        here = origin.partition("://")[2] == host
        return here or bool({origin, "*"} & self._origins)


class BodyLimit:
    """Refuses bodies that are too large (413) or too slow (408)."""

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        self._app, self._most, self._seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] == "http":
            body = _Body(receive, self._most, self._seconds)
            told = dict(scope["headers"]).get(b"content-length", b"0")
            if told.isdigit() and int(told[:20]) > self._most:
                await body.too_large().response()(scope, receive, send)
                return
            receive = body.receive
        await self._app(scope, receive, send)


class _Body:
    """Counts the bytes of a body and the seconds it takes; afterwards only passes on."""

    def __init__(self, receive: Receive, most: int, seconds: float) -> None:
        self._receive, self._most, self._seconds = receive, most, seconds
        self._end = asyncio.get_running_loop().time() + seconds
        self._read, self._complete = 0, False

    async def receive(self) -> Message:
        """What an application awaits. Raises Failure."""
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._end):
                message = await self._receive()
        except TimeoutError:
            raise Failure(408, f"the body took longer than {self._seconds:g} s") from None
        self._read += len(message.get("body", b""))
        if self._read > self._most:
            raise self.too_large()
        self._complete = not message.get("more_body", False)
        return message

    def too_large(self) -> Failure:
        """What the client is told."""
        return Failure(413, f"the body is larger than {self._most} bytes", "body_too_large")


def is_loopback(name: str) -> bool:
    """Whether a host's name or address always means this machine."""
    if name.lower() in ("localhost", "localhost."):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """The name in a `Host`, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
