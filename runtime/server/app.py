"""The routes of `gemcut serve`, as OpenAI's API and llama-server have them.

POST /v1/chat/completions   a conversation answered; streamed with `"stream": true`
POST /v1/completions        texts continued as they are
POST /v1/embeddings         texts as vectors, where the model is made for that
GET  /v1/models             the one model there is; /v1/models/NAME
POST /tokenize              texts as tokens, /detokenize: back; vLLM's fields are known, too
GET  /tokenizer_info        the template, and the tokens that begin and end a text, as vLLM has it
GET  /health, /metrics      for those who watch; metrics in Prometheus' format
GET  /                      a page to chat on

`model` in a request may be any name: there is one model. What the model's file recommends holds
where a request says nothing; otherwise llama.cpp's defaults. `echo` with `logprobs` tells the
prompt's own probabilities, read in pieces of what outputs the context has. Thoughts are asked for
with `reasoning_effort` (none and minimal: no thoughts) or `chat_template_kwargs:
{"enable_thinking": true}` and come as `reasoning_content`. `response_format`, `grammar` (GBNF,
llama-server's field) and a forced `tool_choice` shape what comes after the thoughts. Errors have
OpenAI's shape; 503 comes with `Retry-After`.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from gemcut.errors import GemcutError
from gemcut.runtime.server import asking
from gemcut.runtime.server.asking import Asked, Voice
from gemcut.runtime.server.failures import Failure, failure_of
from gemcut.runtime.server.metrics import MEDIA_TYPE, Counted
from gemcut.runtime.server.page import page
from gemcut.runtime.server.replies import ChatReply, Reply, TextReply
from gemcut.runtime.server.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    Generation,
    TokenizeRequest,
)
from gemcut.runtime.server.security import BodyLimit, Guard
from gemcut.runtime.server.service import Service
from gemcut.runtime.server.streams import EventStream, send_whole, unless_gone

Wanted = TypeVar("Wanted", bound=Generation)


@dataclass(frozen=True)
class Access:
    """Who may ask, and how much.

    Attributes:
        keys: any of them opens; empty: none is wanted, and only this machine may ask.
        origins: other sites whose pages may ask; "*" for all.
        body_bytes, body_seconds: how large a body may be, and how long it may take to come.
        page: whether there is a page to chat on.
    """

    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    body_bytes: int = 16 << 20
    body_seconds: float = 60.0
    page: bool = True


def make_app(service: Service, access: Access | None = None) -> FastAPI:
    """The ASGI application."""
    access = access or Access()
    # FastAPI's own pages about an API load scripts from elsewhere.
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    _completions(app, service)
    _texts(app, service)
    _about(app, service)
    if access.page:
        app.get("/")(page)
    _errors(app)
    # The last one added is asked first.
    app.add_middleware(BodyLimit, most=access.body_bytes, seconds=access.body_seconds)
    app.add_middleware(Guard, keys=access.keys, origins=access.origins)
    if access.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=access.origins, allow_methods=["*"], allow_headers=["*"]
        )
    paths = {route.path for route in app.routes if isinstance(route, Route)}
    app.add_middleware(Counted, metrics=service.metrics, paths=paths)
    return app


def _completions(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = ChatRequest.read(await request.body())
        return await _answer(service, request, body, asking.chat, ChatReply)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = CompletionRequest.read(await request.body())
        return await _answer(service, request, body, asking.completion, TextReply)


async def _answer(
    service: Service,
    request: Request,
    body: Wanted,
    ask: Callable[[Wanted, Voice], Sequence[Asked]],
    kind: type[Reply],
) -> Response:
    asked = await asyncio.to_thread(ask, body, service.voice)  # a long text takes a while
    usage = bool(body.stream_options and body.stream_options.include_usage)
    reply, answers = kind(service.model, service.name, usage), await service.start(asked)

    def release() -> None:
        service.finish(answers)

    if body.stream:
        return EventStream(reply, answers, release, service.timeout)
    return await send_whole(request, reply, answers, release)


def _texts(app: FastAPI, service: Service) -> None:
    model = service.model

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        body = EmbeddingRequest.read(await request.body())
        work = service.vectors.answer(body, service.name)
        document = await unless_gone(request.receive, work)
        return JSONResponse(document) if document else Response(status_code=499)

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        body = TokenizeRequest.read(await request.body())
        options = (body.content, body.add_special, body.parse_special)
        tokens = await asyncio.to_thread(model.tokenize, *options)
        return JSONResponse({"tokens": tokens.tolist()})

    @app.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        body = DetokenizeRequest.read(await request.body())
        text = await asyncio.to_thread(asking.text_of, model, body.tokens, "tokens")
        return JSONResponse({"content": text, "prompt": text})

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> Response:
        return JSONResponse(service.tokenizer())


def _about(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [service.description()]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name != service.name:
            raise Failure(404, f"there is no model {name!r}, only {service.name!r}")
        return JSONResponse(service.description())

    @app.get("/health")
    async def health() -> Response:
        if service.draining:
            raise Failure(503, "the server is shutting down", retry_after=30)
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(service.exposition(), media_type=MEDIA_TYPE)


def _errors(app: FastAPI) -> None:
    @app.exception_handler(Failure)
    async def failed(_: Request, failure: Failure) -> Response:
        return failure.response()

    @app.exception_handler(GemcutError)
    async def refused(_: Request, error: GemcutError) -> Response:
        return failure_of(error).response()

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}"
        response = Failure(error.status_code, message).response()
        response.headers.update(error.headers or {})  # what is allowed instead
        return response

    @app.exception_handler(ClientDisconnect)
    async def left(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=499)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        return Failure(500, f"the server failed: {type(error).__name__}").response()
