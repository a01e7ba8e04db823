"""What a client is told when something is wrong: OpenAI's shape of an error, with a status."""

from typing import Any

from fastapi.responses import JSONResponse

from gemcut.errors import ContextFull, EngineError, GemcutError, TextError, UsageError, printable

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
_UNSENT = {"x-should-retry": "false"}  # OpenAI's clients would send it again, to the same end


class Failure(Exception):
    """A request that is answered with an error.

    Args:
        status: of HTTP; from 500 on it is the server's fault.
        code: a word that programs can look for.
        param: the field of the body that is wrong.
        retry_after: seconds after which it may go better; None: it never will.
        numbers: what else programs may want to know.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
        **numbers: int,
    ) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body: dict[str, Any] = {
            "message": printable(message),
            "type": _TYPES.get(status, kind),
            "param": param,
            "code": code,
            **numbers,
        }

    def document(self) -> dict[str, Any]:
        """The error as JSON."""
        return {"error": self.body}

    def response(self) -> JSONResponse:
        """The error as an answer."""
        headers = _UNSENT
        if self.retry_after is not None:
            headers = {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers = headers | {"WWW-Authenticate": "Bearer"}
        return JSONResponse(self.document(), self.status, headers)


def failure_of(error: GemcutError) -> Failure:
    """What an error of the library means to a client: its request is wrong, or the server."""
    if isinstance(error, ContextFull):
        code = "context_length_exceeded"
        return Failure(400, str(error), code, n_prompt_tokens=error.n_prompt, n_ctx=error.n_ctx)
    wrong = isinstance(error, UsageError | TextError | EngineError)
    return Failure(400 if wrong else 500, str(error))
