"""Sending answers for as long as somebody listens: streamed as server-sent events, or whole."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from gemcut.errors import GemcutError
from gemcut.runtime.server.answers import Answers, Part
from gemcut.runtime.server.failures import Failure, failure_of
from gemcut.runtime.server.replies import Reply

_UNREAD = 60.0  # seconds that a client may lag behind the end of its answer
_ALIVE = b": still here\n\n"  # a comment, which readers of events skip
Release = Callable[[], None]
T = TypeVar("T")


class EventStream(StreamingResponse):
    """Answers as they come. Nothing is computed any more once the client has left.

    Args:
        release: called at the end, in any case.
    """

    media_type = "text/event-stream"

    def __init__(self, reply: Reply, answers: Answers, release: Release, timeout: float) -> None:
        super().__init__(_events(reply, answers), headers={"Cache-Control": "no-store"})
        self._release, self._longest = release, timeout + _UNREAD

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        try:
            async with asyncio.timeout(self._longest):
                await unless_gone(receive, self.stream_response(send))
        except TimeoutError:
            pass  # it does not read: the connection is closed
        finally:
            self._release()


async def send_whole(
    request: Request, reply: Reply, answers: Answers, release: Release
) -> Response:
    """All answers in one document.

    Raises:
        Failure: they did not come to a good end.
    """
    try:
        parts = await unless_gone(request.receive, _collected(answers))
    finally:
        release()
    if parts is None:
        return Response(status_code=499)
    # A long prompt's probabilities take a while to write.
    return await asyncio.to_thread(lambda: JSONResponse(reply.whole(answers, parts)))


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """What the work returns; None if the client leaves first, the work is then cancelled."""
    tasks = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _collected(answers: Answers) -> list[list[Part]]:
    parts: list[list[Part]] = [[] for _ in answers.choices]
    async for told in answers.parts():
        if told:
            parts[told[0]].append(told[1])
    return parts


async def _events(reply: Reply, answers: Answers) -> AsyncIterator[bytes]:
    try:
        for number in range(len(answers.choices)):
            for document in reply.opening(number):
                yield _event(document)
        async for told in answers.parts():
            yield _event(reply.chunk(*told)) if told else _ALIVE
        if reply.with_usage:
            yield _event(reply.usage_chunk(answers))
        yield b"data: [DONE]\n\n"
    except Failure as failure:
        yield _event(failure.document())
    except GemcutError as error:
        yield _event(failure_of(error).document())


def _event(document: dict[str, Any]) -> bytes:
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
