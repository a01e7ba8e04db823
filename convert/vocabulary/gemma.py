"""Gemma 4's tokenizer: BPE merges over text with ▁ for spaces, bytes as a last resort."""

from collections.abc import Sequence
from functools import partial

from gemcut.convert.checkpoint import Checkpoint
from gemcut.convert.vocabulary import document as files
from gemcut.convert.vocabulary.byte_level import merges
from gemcut.convert.vocabulary.document import (
    BYTE,
    BYTE_TOKEN,
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    Document,
)
from gemcut.convert.vocabulary.reader import Reader, complete, refuse, sound
from gemcut.errors import CheckpointError
from gemcut.gguf_file import Deferred, Value

_NO_SCORE = -1000.0  # BPE needs merges, not scores; llama.cpp wants one for every token


def gemma_reader(visible: frozenset[str]) -> Reader:
    """A reader for Gemma 4's vocabulary.

    Args:
        visible: control tokens that are to be written as text when they are generated.
    """

    def read(checkpoint: Checkpoint, size: int, pre: str | None = None) -> dict[str, Value]:
        with sound(checkpoint):
            return _vocabulary(checkpoint, size, pre, visible)

    return read


def _vocabulary(
    checkpoint: Checkpoint, size: int, pre: str | None, visible: frozenset[str]
) -> dict[str, Value]:
    document = files.read(checkpoint)
    refuse(pre, document.where)
    if not document.model.get("byte_fallback"):
        raise CheckpointError(
            f"{document.where}: byte_fallback {document.model.get('byte_fallback')}; "
            "wanted Gemma's tokenizer: BPE with byte_fallback"
        )
    table = document.table(size)
    tokens = [f"[PAD{number}]" if token is None else token for number, token in enumerate(table)]
    values = {
        "tokenizer.ggml.model": Value("str", "gemma4"),
        "tokenizer.ggml.tokens": Value("[str]", files.distinct(document.where, tokens)),
        "tokenizer.ggml.scores": Value("[f32]", [_NO_SCORE] * size),
        "tokenizer.ggml.token_type": Deferred("[i32]", partial(_kinds, document, visible, table)),
        "tokenizer.ggml.merges": Deferred("[str]", partial(merges, document)),
    }
    return complete(checkpoint, document, values) | {
        "tokenizer.ggml.add_space_prefix": Value("bool", False),
        "tokenizer.ggml.add_bos_token": Value("bool", True),
    }


def _kinds(document: Document, visible: frozenset[str], table: Sequence[str | None]) -> list[int]:
    return [_kind(document, visible, token) for token in table]


def _kind(document: Document, visible: frozenset[str], token: str | None) -> int:
    """llama.cpp's token type: control is what tokenizer_config.json names, as in transformers."""
    if token is None:
        return UNUSED
    if token in visible:
        return USER_DEFINED
    if token[:3] == "<0x" and BYTE_TOKEN.fullmatch(token):
        return BYTE
    if token in document.special_names:
        return CONTROL
    late = token in document.added and token not in document.ids
    return USER_DEFINED if late else NORMAL
