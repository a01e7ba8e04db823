"""The entry point: which kind of tokenizer a checkpoint has, and its metadata."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from gemcut.convert.checkpoint import Checkpoint
from gemcut.convert.vocabulary import document as files
from gemcut.convert.vocabulary import pieces, sentencepiece, special
from gemcut.convert.vocabulary.byte_level import byte_level
from gemcut.convert.vocabulary.document import Document
from gemcut.convert.vocabulary.endings import endings
from gemcut.convert.vocabulary.structure import NAMES, pre_tokenizer
from gemcut.convert.vocabulary.templates import chat_templates
from gemcut.errors import CheckpointError, UsageError
from gemcut.gguf_file import Value


class Reader(Protocol):
    """What a family has for its vocabulary."""

    def __call__(
        self, checkpoint: Checkpoint, size: int, pre: str | None = None
    ) -> dict[str, Value]: ...


def reader(*names: str, **roles: str) -> Reader:
    """A reader for a family's vocabulary. See `vocabulary`."""
    return partial(vocabulary, names=names, roles=roles)


def vocabulary(
    checkpoint: Checkpoint,
    size: int,
    pre: str | None = None,
    names: Sequence[str] = (),
    roles: Mapping[str, str] | None = None,
) -> dict[str, Value]:
    """A checkpoint's tokenizer and chat template as GGUF metadata.

    tokenizer.json is read if there is one, else SentencePiece's tokenizer.model.

    Args:
        size: rows of the embedding; tokens that are missing up to there are filled in.
        pre: llama.cpp's name of the pre-tokenizer, instead of recognising it.
        names: pre-tokenizers that decide where several do the same.
        roles: roles ("bos", "eot", ...) -> tokens that have them where the files give them none.

    Raises:
        CheckpointError: no tokenizer, a damaged one, or one that llama.cpp has no counterpart of.
        UsageError: `pre` is unknown, or the tokenizer has no pre-tokenizer.
    """
    with sound(checkpoint):
        return _vocabulary(checkpoint, size, pre, names, roles or {})


def _vocabulary(
    checkpoint: Checkpoint,
    size: int,
    pre: str | None,
    names: Sequence[str],
    roles: Mapping[str, str],
) -> dict[str, Value]:
    present = checkpoint.files.names()
    if files.JSON not in present and pieces.MODEL in present:
        return _from_sentencepiece(checkpoint, size, pre)
    document = files.read(checkpoint)
    if document.model.get("byte_fallback"):
        refuse(pre, document.where)
        values = pieces.from_document(document, size)
    else:
        _check_name(pre)
        values = byte_level(document, size, pre or pre_tokenizer(document, names))
    return complete(checkpoint, document, values, roles)


def complete(
    checkpoint: Checkpoint,
    document: Document,
    values: Mapping[str, Value],
    roles: Mapping[str, str] | None = None,
) -> dict[str, Value]:
    """Tokens' metadata together with that of special tokens and chat templates.

    Raises:
        CheckpointError: a role for a token that is missing, or for a damaged id.
    """
    tokens = values["tokenizer.ggml.tokens"].data
    ids, around = special.special_tokens(checkpoint, document, len(tokens))
    ids = special.named(document, roles or {}) | ids
    ids |= endings(checkpoint, tokens, ids)
    if around.get("bos") and "bos" not in ids:
        raise CheckpointError(
            f"{document.where}: a text is to begin with a token (bos) that no file names"
        )
    return {
        **values,
        **special.values(ids, around),
        **chat_templates(checkpoint, document.settings),
    }


@contextmanager
def sound(checkpoint: Checkpoint) -> Iterator[None]:
    """Raise CheckpointError where a tokenizer file has something of another kind than it should."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{checkpoint.folder}: a tokenizer file is damaged: {what}"
        ) from error


def refuse(pre: str | None, where: str) -> None:
    """Raise UsageError if a pre-tokenizer is asked for where llama.cpp has none."""
    if pre is not None:
        raise UsageError(
            f"--pre-tokenizer {pre}: {where} is a SentencePiece tokenizer, which has none: leave "
            "the option out"
        )


def _check_name(pre: str | None) -> None:
    if pre is not None and pre not in NAMES:
        raise UsageError(f"--pre-tokenizer {pre}: llama.cpp knows {', '.join(sorted(NAMES))}")


def _from_sentencepiece(checkpoint: Checkpoint, size: int, pre: str | None) -> dict[str, Value]:
    path = checkpoint.files.path(pieces.MODEL)
    refuse(pre, str(path))
    settings = checkpoint.json(files.SETTINGS, {})
    document = files.without_model(str(path), settings, checkpoint.json("added_tokens.json", {}))
    values = pieces.from_sentencepiece(document, sentencepiece.read(path), size)
    return complete(checkpoint, document, values)
