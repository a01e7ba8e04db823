"""The error tree. Every error says what, where, wanted and got, and what to do next.

GemcutError
├── UsageError         a word or number given to gemcut cannot be understood
├── CheckpointError    a source cannot be read or is not what its config says
├── GGUFError          a file is not a (whole, sane) GGUF
├── SensitivityError   a sensitivity is none, or was measured on something else
├── PlanError          a plan or a choice of types does not fit the tensors
├── BudgetError        no choice fits the budget
├── ProfileError       a machine's profile is none, or damaged
├── OutputError        a result cannot be written
├── ReportError        a comparison that was kept is none, or damaged
├── TextError          a text cannot be read or is too short
└── EngineError        ggml or llama.cpp is missing, too old, or refused
    ├── OutOfMemory    there was no memory for what it was to hold
    ├── ContextFull    a prompt leaves no room for an answer
    └── QueueFull      too many jobs wait already
"""

_STRANGE = "\N{REPLACEMENT CHARACTER}"
_LONGEST = 4000  # characters of a message; names out of foreign files may have megabytes


def printable(text: str) -> str:
    """The text on one line, whatever names out of foreign files are in it: terminals obey some."""
    return "".join(c if c.isprintable() else _STRANGE for c in text)


class GemcutError(Exception):
    """Something a user can act on; shown as one line, without a traceback."""

    def __init__(self, message: str = "") -> None:
        """Keep the message on one line, and of one that is too long the beginning and the end."""
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
        super().__init__(printable(message))


class UsageError(GemcutError):
    """A word or number given to gemcut cannot be understood."""


class CheckpointError(GemcutError):
    """A checkpoint cannot be read, is incomplete, or disagrees with its own config."""


class GGUFError(GemcutError):
    """A file is not a GGUF, or is truncated or inconsistent."""


class SensitivityError(GemcutError):
    """A sensitivity is damaged, or was measured on another model or importance."""


class PlanError(GemcutError):
    """A plan, or a choice of types, does not fit the tensors it is for."""


class BudgetError(GemcutError):
    """No choice of types fits the budget."""


class ProfileError(GemcutError):
    """A machine's profile is none, damaged, or of another version."""


class OutputError(GemcutError):
    """A result cannot be written where it was asked for."""


class ReportError(GemcutError):
    """A comparison that was kept is none, damaged, or of another version."""


class TextError(GemcutError):
    """A text cannot be read or is too short to be scored."""


class EngineError(GemcutError):
    """ggml or llama.cpp is missing, of another version, or refused what it was asked."""


class OutOfMemory(EngineError):
    """llama.cpp could not have the memory for weights, caches or a computation.

    device: the buffer's name, as "CUDA0" or "CPU"; None where the log does not say.
    wanted: bytes of the buffer that there was no memory for; 0 where the log does not say.
    """

    def __init__(self, message: str = "", device: str | None = None, wanted: int = 0) -> None:
        """Keep what the log says."""
        super().__init__(message)
        self.device, self.wanted = device, wanted


class QueueFull(EngineError):
    """Too many jobs wait for the model already: later there will be room."""


class ContextFull(EngineError):
    """A prompt of so many tokens leaves no room in the context for an answer."""

    def __init__(self, n_prompt: int, n_ctx: int, least: bool = False) -> None:
        """Say so, with what helps; `least`: it may have more tokens."""
        super().__init__(
            f"the prompt has {n_prompt} tokens{' or more' * least}, the context {n_ctx}, and an "
            "answer needs 1 at least: shorten it, start a new conversation, or take a larger "
            "context"
        )
        self.n_prompt, self.n_ctx = n_prompt, n_ctx
