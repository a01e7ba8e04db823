"""Servers in a thread, and a scheduler that says what it is told to."""

import json
import socket
import time
from contextlib import contextmanager
from threading import Thread
from typing import Any

import httpx
import openai

from gemcut.closing import Closing
from gemcut.engine import ContextOptions
from gemcut.llama import Context
from gemcut.runtime.batching.jobs import Drawn, Ended, Stats
from gemcut.runtime.batching.scheduler import Scheduler
from gemcut.runtime.chat.timing import Timing
from gemcut.runtime.server.app import make_app
from gemcut.runtime.server.service import Service, conversation_limit
from gemcut.runtime.server.serving import Listener, bind, url

CHAT = "/v1/chat/completions"
ASKED = [{"role": "user", "content": "hello"}]


class Serving(Closing):
    """A service that listens on a free port."""

    def __init__(self, service, access=None, grace=5.0):
        self.service, self._socket = service, bind("127.0.0.1", 0, False)
        self.url, self.address = url(self._socket), self._socket.getsockname()[:2]
        self.listener = Listener(make_app(service, access), service, grace)
        self._thread = Thread(target=self.listener.run, kwargs={"sockets": [self._socket]})
        self._thread.start()
        wait(lambda: self.listener.started)
        # Certificates, which take long to load, are not wanted.
        self.web = httpx.Client(base_url=self.url, verify=False, timeout=60)

    def client(self, **options):
        """OpenAI's own client, as a context manager."""
        web = httpx.Client(verify=False, timeout=60)
        given: dict[str, Any] = {"api_key": "none", "max_retries": 0, "http_client": web, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", **given)

    def end(self):
        """Tell it to end, as a signal does."""
        self.listener.should_exit = True

    def close(self):
        """End it."""
        self.web.close()
        self.end()
        self._thread.join(60)
        assert not self._thread.is_alive()


class Working(Serving):
    """A model at work behind a server."""

    def __init__(self, model, n_seq, queue=64, access=None, **options):
        n_ctx = 512 if n_seq == 1 else 1536
        shape = ContextOptions(
            n_ctx, 128, 128, n_seq, threads=1, n_outputs=n_seq, kv_unified=n_seq > 1
        )
        self.context = Context(model, shape)
        self.scheduler = Scheduler(self.context, queue)
        n_ctx = conversation_limit(self.context)
        service = Service("demo", model, n_ctx, self.scheduler, **options)
        super().__init__(service, access)

    def close(self):
        """End everything but the model."""
        super().close()
        self.scheduler.close()
        self.context.close()


class Parrot(Scheduler):
    """In a scheduler's place: answers every job with the same text.

    finish: how answers end; None: not before they are cancelled.
    """

    def __init__(self, model, text="", finish="stop", error=None):
        self._model, self._text, self._finish, self._error = model, text, finish, error
        self.jobs, self.cancelled = [], 0  # what it was asked, and how often it was told to stop

    def submit(self, job, deliver) -> Any:
        """Answer at once."""
        self.jobs.append(job)
        tokens = self._model.tokenize(self._text, add_special=False, parse_special=True).tolist()
        for token in tokens:
            deliver(Drawn(token, -0.5, ((token, -0.5),)))
        if self._finish:
            deliver(Ended(self._finish, Timing(1, 2, 0.5, len(tokens), 0.5), self._error))
        return _Ticket(self, deliver, bool(self._finish))

    def stats(self):
        """Nothing of interest."""
        return Stats(0, 0, 0, 0, 0, {}, 0, 0.0, 0, 0)


class _Ticket:
    def __init__(self, parrot, deliver, ended):
        self._parrot, self._deliver, self._ended = parrot, deliver, ended

    def cancel(self):
        if not self._ended:
            self._ended = True
            self._parrot.cancelled += 1
            self._deliver(Ended("cancelled", Timing()))


@contextmanager
def parroting(model, text="", finish="stop", error=None, access=None, timeout=60, grace=5.0):
    """A server that answers every chat with a text."""
    parrot = Parrot(model, text, finish, error)
    service = Service("parrot", model, 512, parrot, timeout=timeout)
    with Serving(service, access, grace) as server:
        yield server


def post(server, body, path=CHAT, **headers):
    """The answer to a request; a body that is no bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return server.web.post(path, content=content, headers=headers)


@contextmanager
def connected(server, path, body):
    """A connection on which a request was sent; it is closed in the end, whatever was answered."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    host, port = server.address
    head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.create_connection((host, port), timeout=60) as connection:
        connection.sendall(head.encode() + data)
        yield connection


def wait(ready, seconds=60):
    """Until something is so."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
