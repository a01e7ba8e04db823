"""A server that is attacked: what must not stop it, fill its memory or be counted wrongly."""

import json
import socket
from threading import Event

import pytest
from pydantic import ValidationError

from gemcut.llama import constraint
from gemcut.runtime.server import serving
from gemcut.runtime.server.failures import Failure
from gemcut.runtime.server.schemas import ChatRequest, CompletionRequest, EmbeddingRequest
from gemcut.runtime.server.service import Service
from tests.serving import ASKED, CHAT, Parrot, Serving, Working, connected, parroting, wait

CALLS = [{"function": {"name": "f"}}] * 100
PATIENCE = 60  # seconds, for machines that are busy


def test_who_never_asks_is_not_waited_for(model, monkeypatch):
    """A connection without a request, or with half a head; asking as late as that is fine."""
    monkeypatch.setattr(serving, "_HEAD", 0.2)
    with parroting(model, "x") as server:
        assert 200 == server.web.get("/health").status_code
        for begun in (b"", b"GET /health HTTP/1.1\r\nHost: local"):
            with socket.create_connection(server.address, timeout=60) as silent:
                silent.sendall(begun)
                assert silent.recv(100) == b""


def test_the_first_fault_of_a_list_is_enough():
    """Millions of them would take gigabytes to be told."""
    many = 1000
    for kind, body in (
        (CompletionRequest, {"prompt": [-1] * many}),
        (CompletionRequest, {"prompt": [""] * 10 + [1] * many}),
        (CompletionRequest, {"prompt": [[-1] * many] * 10}),
        (EmbeddingRequest, {"input": [[]] * 1000 + [1] * many}),
        (ChatRequest, {"messages": [1] * many}),
        (ChatRequest, {"messages": [{"role": "user", "content": [{}] * many}]}),
        (ChatRequest, {"messages": [{"role": "user", "tool_calls": [{}] * many}]}),
        (ChatRequest, {"messages": ASKED, "tools": [{}] * many}),
        (ChatRequest, {"messages": ASKED, "stop": [1] * many}),
        (ChatRequest, {"messages": ASKED, "logit_bias": {str(i): "x" for i in range(many)}}),
    ):
        with pytest.raises(ValidationError) as refused:
            kind.model_validate_json(json.dumps(body))
        assert refused.value.error_count() < 10, body


def test_a_fault_of_the_server_is_counted_as_one(model, monkeypatch):
    """500, for the client and in the metrics."""
    with parroting(model, "x") as server:
        monkeypatch.setattr(server.service, "description", lambda: 1 // 0)
        broken = server.web.get("/v1/models", headers={"Connection": "close"})
        assert (500, "server_error") == (broken.status_code, broken.json()["error"]["type"])
        text = server.web.get("/metrics").text
        assert 'requests_total{path="/v1/models",status="500"} 1' in text


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"chat_template_kwargs": {"a": [[]] * (1 << 18)}}, "brackets"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}] * 5001}] * 2}, "10000 parts"),
        ({"messages": [{"role": "assistant", "tool_calls": CALLS}] * 101}, "10000 parts and calls"),
    ],
)
def test_what_takes_long_to_read_is_bounded(body, why):
    """Over the whole body: while it is read nobody else is answered."""
    with pytest.raises(Failure, match=why) as refused:
        ChatRequest.read(json.dumps({"messages": ASKED} | body).encode())
    assert 400 == refused.value.status


class Slow(Parrot):
    """Takes as long to let a job in as its grammar takes to read."""

    def __init__(self, model):
        super().__init__(model, "fine")
        self.entered, self.ready = Event(), Event()

    def submit(self, job, deliver):
        """Wait, then answer."""
        self.entered.set()
        assert self.ready.wait(PATIENCE)
        return super().submit(job, deliver)


def test_nobody_waits_for_anothers_grammar(model):
    """It is read in a thread of its own; an answer that is given up meanwhile is cancelled."""
    slow = Slow(model)
    with Serving(Service("slow", model, 512, slow, timeout=PATIENCE)) as server:
        with connected(server, CHAT, {"messages": ASKED}) as connection:
            assert slow.entered.wait(PATIENCE)
            assert 200 == server.web.get("/health").status_code
            slow.ready.set()
            assert connection.recv(100).startswith(b"HTTP/1.1 200")

        slow.ready.clear()
        slow.entered.clear()
        slow._finish = None
        with connected(server, CHAT, {"messages": ASKED}) as connection:
            assert slow.entered.wait(PATIENCE)
            server.service.abort()
            slow.ready.set()
            assert connection.recv(100).startswith(b"HTTP/1.1 503")
        wait(lambda: slow.cancelled == 1)


def test_nobody_waits_for_the_records(model):
    """They are written to a file, which others may have locked."""
    told, written = Event(), Event()

    def record(timing):
        told.set()
        assert written.wait(PATIENCE)

    service = Service("parrot", model, 512, Parrot(model, "fine"), record=record)
    with Serving(service) as server:
        assert 200 == server.web.post(CHAT, json={"messages": ASKED}).status_code
        assert told.wait(PATIENCE)
        assert 200 == server.web.get("/health").status_code
        written.set()


@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar_that_takes_too_long_is_the_clients_fault(model, monkeypatch, stream):
    """Its answer ends with 400; the others go on."""
    with Working(model, n_seq=2) as server:
        fine = {"messages": ASKED, "max_tokens": 4, "grammar": 'root ::= "a"+'}
        assert 200 == server.web.post(CHAT, json=fine).status_code
        monkeypatch.setattr(constraint, "_MOST_SECONDS", 0.0)
        refused = server.web.post(CHAT, json=fine | {"stream": stream})
        assert (200 if stream else 400) == refused.status_code
        assert "invalid_request_error" in refused.text and "too ambiguous" in refused.text
        plain = server.web.post(CHAT, json={"messages": ASKED, "max_tokens": 4})
        assert 200 == plain.status_code
