"""The tests' tokenizers: tests/fixtures/tokenizers (see bench/tokenizer_fixtures.py) in use.

Their own vocabularies are learned within words, as published ones are, so that a text that is cut
into words wrongly often gives the right tokens all the same. `crossing` puts in their place one
that was learned without words: its tokens reach across every boundary, and show each wrong one.
"""

import json
import shutil
import struct
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemcut.convert.checkpoint import Checkpoint
from gemcut.convert.vocabulary import reader
from gemcut.gguf_file import Value
from tests.checkpoints import edit

FOLDER = Path(__file__).parent / "fixtures" / "tokenizers"
RECORDED = Path(__file__).parent / "fixtures" / "vocabulary"

# How families read them.
READERS = {
    "gpt-4o": reader("gpt-4o"),
    "qwen2": reader("qwen2"),
    "qwen35": reader("qwen35"),
    "glm4": reader(
        "glm4", bos="[gMASK]", eot="<|user|>", unk="<|endoftext|>", eom="<|observation|>"
    ),
    "olmo": reader("olmo"),
    "llama4": reader("llama4"),
    "deepseek-llm": reader("deepseek-llm"),
    "deepseek-v3": reader("deepseek-v3"),
    "llama-spm": reader(),
}
BYTE_LEVEL = [kind for kind in READERS if kind != "llama-spm"]


def checkpoint(kind: str, folder: Path, size: int | None = None) -> Path:
    """A folder with the tokenizer of a kind, a config and no weights.

    Args:
        size: rows of the embedding; without, the tokens and some more.
    """
    shutil.copytree(FOLDER / kind, folder)
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    config = {"architectures": ["Any"], "vocab_size": size or rows(document)}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    return folder


def rows(document: dict[str, Any]) -> int:
    """Rows of an embedding for a tokenizer's tokens: a multiple of 32, as is common."""
    ids = [*document["model"]["vocab"].values(), *(t["id"] for t in document["added_tokens"])]
    return (max(ids) // 32 + 1) * 32


def read(kind: str, folder: Path, **options: Any) -> dict[str, Any]:
    """The metadata of a folder's tokenizer, as a family would read it, all of it worked out."""
    opened = Checkpoint(folder)
    found = READERS[kind](opened, opened.config["vocab_size"], **options)
    return {key: Value(value.kind, value.data) for key, value in found.items()}


def change_json(folder: Path, change: Any) -> Path:
    """Change a checkpoint's `tokenizer.json` in place."""
    edit(folder / "tokenizer.json", change)
    return folder


def crossing(kind: str, folder: Path) -> Path:
    """A checkpoint's folder with a kind's structure, and tokens that reach across words."""
    checkpoint(kind, folder)
    edit(folder / "tokenizer.json", lambda document: _cross(kind, document))
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    edit(folder / "config.json", lambda config: config.update(vocab_size=rows(document)))
    edit(folder / "tokenizer_config.json", lambda settings: settings.pop("added_tokens_decoder", 0))
    (folder / "generation_config.json").unlink()
    return folder


def _cross(kind: str, document: dict[str, Any]) -> None:
    model, added = document["model"], document["added_tokens"]
    learned = len(model["vocab"])
    first = [token["content"] for token in added if token["id"] < learned]
    alphabet = [token for token in model["vocab"] if len(token) == 1 and token not in first]
    vocab = dict.fromkeys([*first, *alphabet])
    merges = []
    for left, right in json.loads((RECORDED / "merges.json").read_text(encoding="utf-8")):
        refused = kind == "deepseek-llm" and _digits(left, right)
        if left in vocab and right in vocab and not refused:
            merges.append([left, right])
            vocab[left + right] = None
    for token in added:
        if token["id"] >= learned:
            token["id"] += len(vocab) - learned
    model |= {"vocab": {token: number for number, token in enumerate(vocab)}, "merges": merges}
    ids = {token["content"]: token["id"] for token in added}
    for special in _special_tokens(document["post_processor"] or {}):
        special["ids"] = [ids[special["id"]]]


def _special_tokens(processor: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for part in processor.get("processors", [processor]):
        yield from part.get("special_tokens", {}).values()


def _digits(left: str, right: str) -> bool:
    """Whether a merge joins two digits."""
    return (left[-1] + right[0]).isascii() and left[-1].isdigit() and right[0].isdigit()


def differs(kind: str, text: str) -> bool:
    """Whether llama.cpp, by its own limits, may split a text otherwise than the original does.

    It has no normalizer, so that for Qwen and OLMo a text has to be in NFC. For `gpt-4o` (gpt-oss,
    Llama 4) its regex knows no combining marks, and of capital letters only ASCII's. For
    `deepseek-llm` it takes spaces beyond ASCII for an ASCII one, and digits in a row for a word:
    DeepSeek's vocabulary has no token of two digits, nor has `crossing` one of two ASCII digits.
    """
    if kind in ("qwen2", "qwen35", "olmo"):
        return unicodedata.normalize("NFC", text) != text
    if kind in ("gpt-4o", "llama4"):
        kinds = {unicodedata.category(letter) for letter in text if not letter.isascii()}
        return bool(kinds & {"Mn", "Mc", "Me", "Lu", "Lt"})
    pairs = zip(text, text[1:], strict=False)
    numbers = (pair for pair in pairs if not "".join(pair).isascii() and _numeric(*pair))
    spaces = any(letter.isspace() and not letter.isascii() for letter in text)
    return kind == "deepseek-llm" and (spaces or any(numbers))


def _numeric(*letters: str) -> bool:
    return all(unicodedata.category(letter).startswith("N") for letter in letters)


def sentencepiece(folder: Path, **fields: Any) -> Path:
    """Put the SentencePiece model of a `llama-spm` folder's tokenizer.json beside it.

    Args:
        fields: `model` (1 Unigram, 2 BPE), `prefix` (whether a text gets a space in front).
    """
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ordered = sorted(document["model"]["vocab"].items(), key=lambda item: item[1])
    pieces = b"".join(_bytes(1, _piece(token, number)) for token, number in ordered)
    trainer = _number(3, fields.get("model", 2)) + _number(35, 1)  # 35: falls back to bytes
    trainer += _number(40, 0) + _number(41, 1) + _number(42, 2)  # ids of <unk>, <s>, </s>
    spaces = _number(3, int(fields.get("prefix", True))) + _number(4, 0) + _number(5, 1)
    normalizer = _bytes(1, b"identity") + spaces
    data = pieces + _bytes(2, trainer) + _bytes(3, normalizer)
    (folder / "tokenizer.model").write_bytes(data)
    return folder


def _piece(token: str, number: int) -> bytes:
    """SentencePiece's message for a piece: text, score, kind."""
    kind = 2 if number == 0 else 3 if number < 3 else 6 if number < 259 else 1
    score = 0.0 if number < 259 else 259.0 - number
    return _bytes(1, token.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    low = bytes([value & 0x7F | (0x80 if value > 0x7F else 0)])
    return low + (_varint(value >> 7) if value > 0x7F else b"")
