"""A tokenizer's GGUF metadata, read from tokenizer.json without transformers.

Token kinds are llama.cpp's: control tokens are those that tokenizer_config.json names as special
tokens (that is how transformers decides, too), bytes are `<0x00>` to `<0xFF>`, the rest is text.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import gguf

from gemcut.convert.checkpoint import Checkpoint
from gemcut.convert.derived import derived
from gemcut.errors import CheckpointError
from gemcut.gguf_file import Value

NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6  # llama.cpp's token types

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_NO_SCORE = -1000.0  # BPE needs merges, not scores; llama.cpp wants one for every token


def gemma_vocabulary(visible: frozenset[str]) -> Callable[[Checkpoint, int], dict[str, Value]]:
    """A reader for Gemma 4's tokenizer: BPE over text with ▁ for spaces, falling back to bytes.

    Args:
        visible: control tokens that are to be written as text when they are generated.
    """

    def read(checkpoint: Checkpoint, size: int) -> dict[str, Value]:
        document = checkpoint.json("tokenizer.json")
        settings = checkpoint.json("tokenizer_config.json", {})
        model = _gemma_model(checkpoint, document)
        added = {token["content"]: token["id"] for token in document.get("added_tokens", [])}
        tokens = _tokens(checkpoint, model["vocab"] | added, size)
        special = _special_tokens(settings)
        text = visible | (added.keys() - special - model["vocab"].keys())

        def kind(token: str) -> int:
            if token in text:
                return USER_DEFINED
            if _BYTE.fullmatch(token):
                return BYTE
            return CONTROL if token in special else NORMAL

        return {
            "tokenizer.ggml.model": Value("str", "gemma4"),
            "tokenizer.ggml.tokens": Value("[str]", tokens),
            "tokenizer.ggml.scores": Value("[f32]", [_NO_SCORE] * size),
            "tokenizer.ggml.token_type": Value("[i32]", [kind(token) for token in tokens]),
            **_special(checkpoint),
            "tokenizer.ggml.add_space_prefix": Value("bool", False),
            "tokenizer.ggml.add_bos_token": Value("bool", True),
        }

    return read


def _gemma_model(checkpoint: Checkpoint, document: Mapping[str, Any]) -> Mapping[str, Any]:
    model = document.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise CheckpointError(f"{checkpoint.folder / 'tokenizer.json'}: no model with a vocab")
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        raise CheckpointError(
            f"{checkpoint.folder / 'tokenizer.json'}: a {model.get('type')} tokenizer with "
            f"byte_fallback {model.get('byte_fallback')}; wanted Gemma's: BPE with byte_fallback"
        )
    return model


def _tokens(checkpoint: Checkpoint, vocabulary: Mapping[str, int], size: int) -> list[str]:
    by_id = {number: token for token, number in vocabulary.items()}
    if sorted(by_id) != list(range(size)):
        raise CheckpointError(
            f"{checkpoint.folder / 'tokenizer.json'}: {len(by_id)} tokens numbered "
            f"{min(by_id, default=0)} to {max(by_id, default=0)}; the embedding has {size} rows"
        )
    return [by_id[number] for number in range(size)]


def _special_tokens(settings: Mapping[str, Any]) -> set[str]:
    named = [value for key, value in settings.items() if key.endswith("_token")]
    for key in ("extra_special_tokens", "additional_special_tokens"):
        extra = settings.get(key) or []
        named += extra.values() if isinstance(extra, dict) else extra
    return {content for value in named if (content := _content(value)) is not None}


def _content(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _special(checkpoint: Checkpoint) -> dict[str, Value]:
    """Merges, ids of special tokens and chat template, as gguf-py reads them."""

    def write(writer: gguf.GGUFWriter) -> None:
        gguf.SpecialVocab(checkpoint.folder, load_merges=True).add_to_gguf(writer, quiet=True)

    found = derived(checkpoint, "tokenizer", "tokenizer.", write)
    if "tokenizer.ggml.merges" not in found:
        raise CheckpointError(f"{checkpoint.folder / 'tokenizer.json'}: no merges")
    return found
