"""Listening: a socket bound before the model is loaded, and an orderly end."""

import asyncio
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from gemcut.errors import UsageError
from gemcut.runtime.server.security import is_loopback
from gemcut.runtime.server.service import Service

_CONNECTIONS = 512  # at once; more are told to come again
_HEAD = 30.0  # seconds that the head of a request may take to come
_LAST = 5  # seconds that aborted answers have to say so


def bind(host: str, port: int, keys: bool) -> socket.socket:
    """A socket on the address, not yet listening; port 0 takes a free one.

    Args:
        keys: whether clients need a key.

    Raises:
        UsageError: the address is none or taken, or can be reached from other machines while no
            key is wanted.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {host!r}: {error}") from error
    if not (keys or is_loopback(str(address[0]))):
        raise UsageError(
            f"--host {host}: other machines could ask without a key; set one with --api-key-file "
            "or GEMCUT_API_KEY, or stay on 127.0.0.1"
        )
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise UsageError(f"{host}:{port}: {error.strerror}; choose another --port") from error
    return bound


def url(bound: socket.socket) -> str:
    """Where a socket can be asked."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Connection(H11Protocol):
    """A client's connection; closed if a request does not begin in time.

    Otherwise clients that send nothing, or half a head, would take all the connections there are.
    uvicorn itself only ends connections that stay idle after an answer.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take what comes; each request has its own time."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.cycle and not self.cycle.response_complete:
            self._stop()
        elif self._late is None:
            self._late = self.loop.call_later(_HEAD, self._end)

    def _stop(self) -> None:
        if self._late:
            self._late.cancel()
            self._late = None

    def _end(self) -> None:
        self._late = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class Listener(uvicorn.Server):
    """Serves until it is told to end: `should_exit`, SIGINT or SIGTERM.

    Then it accepts nothing more, gives the answers on their way so many seconds of grace, and
    tells the rest that they are given up. A second SIGINT does not wait.
    """

    def __init__(self, app: FastAPI, service: Service, grace: float = 10.0) -> None:
        self._service, self._grace = service, grace
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=_CONNECTIONS,
                timeout_graceful_shutdown=round(grace) + _LAST,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal; unlike uvicorn's own, the process does not die of it afterwards."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End in order."""
        self._service.drain()
        timer = asyncio.get_running_loop().call_later(self._grace, self._service.abort)
        await super().shutdown(sockets)
        timer.cancel()
