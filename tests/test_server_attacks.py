"""A server that is attacked: what must not stop it, fill its memory or be counted wrongly."""

import json
import socket

import pytest
from pydantic import ValidationError

from gemcut.runtime.server import serving
from gemcut.runtime.server.schemas import ChatRequest, CompletionRequest, EmbeddingRequest
from tests.serving import parroting

ASKED = [{"role": "user", "content": "hello"}]


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
