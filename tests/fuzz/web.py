"""Targets that come over the network: requests to the server, whole, with a model that answers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from gemcut.llama import Model
from gemcut.llama.embedder import Embedder
from gemcut.runtime.server.app import Access, make_app
from gemcut.runtime.server.service import Service
from gemcut.runtime.server.vectors import Vectors
from tests.fuzz import seeds
from tests.fuzz.mutate import BYTES, JSON, Mutator
from tests.fuzz.target import Run, Target
from tests.serving import Parrot

_ASKED = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
_CHATS: tuple[Mapping[str, Any], ...] = (
    {"messages": _ASKED, "max_tokens": 5, "temperature": 0.5, "stop": ["x"], "seed": 3, "n": 2},
    {
        "messages": _ASKED,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
    },
    {"messages": _ASKED, "tools": [_TOOL], "tool_choice": "auto", "logit_bias": {"5": -3}},
    {
        "messages": _ASKED,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
        "chat_template_kwargs": {"enable_thinking": True},
        "reasoning_effort": "low",
    },
)
_COMPLETIONS: tuple[Mapping[str, Any], ...] = (
    {"prompt": "def f", "max_tokens": 5, "echo": True, "logprobs": 2},
    {"prompt": ["a", "b"], "stream": True, "grammar": 'root ::= "a"'},
    {"prompt": [[1, 2, 3], [4]], "top_k": 5, "min_p": 0.1, "repeat_last_n": 3, "suffix": None},
)
_VECTORS: tuple[Mapping[str, Any], ...] = (
    {"input": "hello", "encoding_format": "float"},
    {"input": ["a", "b"], "encoding_format": "base64", "dimensions": 256},
    {"input": [[5, 6], [7]], "model": "x", "user": "y"},
)
_TOKENS = ({"content": "hello <bos>", "add_special": True, "parse_special": False},)
_HEADERS = {"Host": "127.0.0.1", "Origin": "http://127.0.0.1", "Authorization": "Bearer key"}


class ServerFault(Exception):
    """An answer that says that the server is at fault."""


def _post(path: str, vectors: bool = False) -> Any:
    """Runs a body through a route; an answer of 500 or above is a fault, but for 501 and 503."""

    def begin(folder: Path) -> Run:
        client = _client(vectors)

        def run(data: bytes) -> None:
            answer = client.post(path, content=data)
            answer.read()
            _check(answer.status_code, answer.text)

        return run

    return begin


def _headers(folder: Path) -> Run:
    """Headers of any kind, and paths."""
    client = _client(False, Access(keys=("key",), origins=("http://a",)))

    def run(data: bytes) -> None:
        lines = data.split(b"\n")
        pairs = (line.partition(b":") for line in lines[1:])
        headers = [(name, value) for name, _, value in pairs if name.isalnum() and name.isascii()]
        said = "".join(c for c in lines[0].decode("latin-1") if c.isprintable() and c not in "?#")
        path = "/" + said.lstrip("/")[:500]  # what two strokes begin with is a host to the client
        answer = client.get(path, headers=headers)
        _check(answer.status_code, answer.text)

    return run


def _client(vectors: bool, access: Access | None = None) -> TestClient:
    if vectors:
        model = Model.load(seeds.embedding())
        embedder = Embedder(model, 64, 1)
        service = Service("x", model, 64, None, Vectors(model, embedder))
    else:
        model = Model.load(seeds.q4_k_m())
        service = Service("x", model, 512, Parrot(model, "hello"))
    app = make_app(service, access)
    return TestClient(app, "http://127.0.0.1", raise_server_exceptions=False)


def _check(status: int, text: str) -> None:
    if status >= 500 and status not in (501, 503):
        raise ServerFault(text[:1000])


def _bodies(*bodies: Mapping[str, Any]) -> Any:
    return lambda: [json.dumps(body).encode() for body in bodies]


def _paths(random: Any, data: bytes) -> bytes:
    paths = (b"v1/models/%2e%2e", b"metrics", b"health", b"tokenizer_info", b"v1/models/x", b"//")
    return random.choice(paths) + b"\n" + data.partition(b"\n")[2]


_PATHS: tuple[Mutator, ...] = (_paths, *BYTES)

TARGETS = (
    Target("http-chat", _bodies(*_CHATS), JSON, _post("/v1/chat/completions")),
    Target("http-completions", _bodies(*_COMPLETIONS), JSON, _post("/v1/completions")),
    Target("http-embeddings", _bodies(*_VECTORS), JSON, _post("/v1/embeddings", vectors=True)),
    Target("http-tokenize", _bodies(*_TOKENS), JSON, _post("/tokenize")),
    Target("http-detokenize", _bodies({"tokens": [1, 2, 300]}), JSON, _post("/detokenize")),
    Target(
        "http-headers",
        lambda: [b"health\n" + b"\n".join(f"{k}:{v}".encode() for k, v in _HEADERS.items())],
        _PATHS,
        _headers,
    ),
)
