"""A text to be scored: prose, a conversation or a prompt, with the digest of its bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self

from gemcut import artefact
from gemcut.errors import TextError

MOST_BYTES = 1 << 30  # that are read: a text of 2 GiB llama.cpp would not take

# (role, what is said), as in OpenAI's API: system, user, assistant.
Turn = tuple[str, str]


@dataclass(frozen=True)
class Text:
    """A text with the digest of the bytes it came from.

    content: as plain text; of a conversation its turns, with an empty line between two.
    messages: the turns of a conversation; a prompt is one that ends with the user's. Empty: prose.
    """

    name: str
    content: str
    sha256: str
    n_bytes: int
    domain: str = ""  # what kind of text it is: results are shown for each
    messages: tuple[Turn, ...] = ()

    @classmethod
    def of(cls, name: str, content: str, domain: str = "") -> Self:
        """A text that is not a file. Raises TextError if it is empty, binary or not Unicode."""
        return cls.decoded(name, _encoded(name, content), domain)

    @classmethod
    def conversation(cls, name: str, messages: Sequence[Turn], domain: str = "") -> Self:
        """A conversation or, without an answer at its end, a prompt. Raises TextError as `of`."""
        data = _encoded(name, "\n\n".join(said for _, said in messages))
        return cls.decoded(name, data, domain, tuple(messages))

    @classmethod
    def read(cls, path: Path) -> Self:
        """A text file in UTF-8. Raises TextError: missing, unreadable, empty, binary, too large."""
        return cls.decoded(path.name, read_bytes(path))

    @property
    def is_answered(self) -> bool:
        """Whether it is a conversation in which the model says something."""
        return any(role == "assistant" for role, _ in self.messages)

    @classmethod
    def decoded(
        cls, name: str, data: bytes, domain: str = "", messages: tuple[Turn, ...] = ()
    ) -> Self:
        """The text of some bytes. Raises TextError if they are none in UTF-8, or empty."""
        # Replacing bytes would change the scores without a word, so they are refused instead.
        if b"\0" in data:
            raise TextError(
                f"{name}: not a text: a zero byte at offset {data.index(0)}; name a text in UTF-8"
            )
        try:
            content = data.decode()
        except UnicodeDecodeError as error:
            raise TextError(
                f"{name}: not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}; "
                "convert it first, for instance with iconv"
            ) from error
        if not content.strip():
            raise TextError(f"{name}: the text is empty")
        # llama.cpp drops one last newline of a prompt file.
        content = content.removesuffix("\n")
        return cls(name, content, sha256(data).hexdigest(), len(data), domain, messages)


def read_bytes(path: Path, most: int | None = None, what: str = "text") -> bytes:
    """All of a file, or of a pipe.

    Raises TextError: missing, unreadable, larger than `most` bytes (None: MOST_BYTES).
    """
    most = MOST_BYTES if most is None else most
    try:
        data = artefact.read_bytes(path, most)
    except OSError as error:
        raise TextError(f"{path}: cannot read this {what}: {error.strerror}") from error
    if len(data) > most:
        raise TextError(f"{path}: longer than {most} bytes: name a part of it")
    return data


def _encoded(name: str, content: str) -> bytes:
    try:
        return content.encode()
    except UnicodeEncodeError as error:
        raise TextError(f"{name}: not valid Unicode: {error}") from error
