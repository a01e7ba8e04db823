"""BPE over bytes, whose 256 values are spelled as printable characters: llama.cpp's `gpt2`."""

from functools import partial

from gemcut.convert.vocabulary.document import NORMAL, UNUSED, Document, distinct
from gemcut.gguf_file import Deferred, Value


def byte_level(document: Document, size: int, name: str) -> dict[str, Value]:
    """The metadata of tokens and merges; rows without a token get one that is never used.

    Args:
        size: rows of the embedding.
        name: llama.cpp's name of the pre-tokenizer.

    Raises:
        CheckpointError: more tokens than rows, or tokens or merges that contradict one another.
    """
    kinds, texts = [], []
    for number, token in enumerate(document.table(size)):
        added = document.added.get(token) if token is not None else None
        kinds.append(added.kind if added else UNUSED if token is None else NORMAL)
        texts.append(added.text if added else f"[PAD{number}]" if token is None else token)
    return {
        "tokenizer.ggml.model": Value("str", "gpt2"),
        "tokenizer.ggml.pre": Value("str", name),
        "tokenizer.ggml.tokens": Value("[str]", distinct(document.where, texts)),
        "tokenizer.ggml.token_type": Value("[i32]", kinds),
        "tokenizer.ggml.merges": Deferred("[str]", partial(merges, document)),
    }


def merges(document: Document) -> list[str]:
    """Merges as llama.cpp reads them: two tokens and a space, so that they must not hold one."""
    pairs = document.merges
    if any(" " in token for token in document.ids):
        pairs = [(left.replace(" ", "Ġ"), right.replace(" ", "Ġ")) for left, right in pairs]
    return [f"{left} {right}" for left, right in pairs]
