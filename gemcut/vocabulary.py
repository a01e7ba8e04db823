"""A model's tokenizer and chat template, as far as its metadata tells without running them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemcut.gguf_file import Value

_SPECIAL = {  # our name -> the name in `tokenizer.ggml.*_token_id`, which llama.cpp spells so
    "bos": "bos",
    "eos": "eos",
    "eot": "eot",
    "eom": "eom",
    "unknown": "unknown",
    "separator": "seperator",
    "padding": "padding",
    "mask": "mask",
    "fim_pre": "fim_pre",
    "fim_suf": "fim_suf",
    "fim_mid": "fim_mid",
    "fim_pad": "fim_pad",
    "fim_rep": "fim_rep",
    "fim_sep": "fim_sep",
}
_ALWAYS_END = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")

# Tokens at whose text llama.cpp ends a generation (llama-vocab.cpp), whatever the metadata says.
_END_TEXTS = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> "
    "<|endoftext|> </s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> "
    "<eos> <turn|> <|tool_response> <｜end▁of▁sentence｜> [e~[ "
    "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD] "
    "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> <|file_sep|>".split()
)
# What is none after all where all tokens of one of these sets end a generation, too.
_NO_END: Sequence[tuple[str, frozenset[str]]] = (
    ("<|end|>", frozenset({"<|return|>", "<|call|>"})),
    ("<|end|>", frozenset({"<|return|>", "<|calls|>"})),
    ("<|end|>", frozenset({"<|flush|>", "<|call|>"})),
    ("<|end|>", frozenset({"<|flush|>", "<|calls|>"})),
    ("</s>", frozenset({"<|tool_response>"})),
    ("</s>", frozenset({"<|plamo:eos|>"})),
)


@dataclass(frozen=True)
class Token:
    """A token's number and text."""

    id: int
    text: str


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer: llama.cpp's name of its algorithm and of its pre-tokenizer, and its tokens."""

    model: str
    pre: str | None
    size: int
    special: Mapping[str, Token]  # by what they are for: bos, eos, padding, ...
    ends: tuple[Token, ...]  # that end a generation
    adds_bos: bool | None  # None: llama.cpp's default for the model


@dataclass(frozen=True)
class Template:
    """A chat template: `size` in bytes, and whether its text speaks of tools and of thinking."""

    name: str | None  # None: the default one
    size: int
    tools: bool
    thinking: bool


def vocabulary(metadata: Mapping[str, Value]) -> Vocabulary | None:
    """The tokenizer of a model's metadata; None if there is none in it."""
    model = _data(metadata, "model")
    if model is None:
        return None
    given = metadata.get("tokenizer.ggml.tokens")
    tokens: list[str] = given.data if given and given.kind == "[str]" else []
    special = {}
    for name, key in _SPECIAL.items():
        number = _data(metadata, f"{key}_token_id")
        if isinstance(number, int) and 0 <= number < len(tokens):
            special[name] = Token(number, tokens[number])
    pre, adds_bos = _data(metadata, "pre"), _data(metadata, "add_bos_token")
    return Vocabulary(
        str(model),
        None if pre is None else str(pre),
        len(tokens),
        special,
        _ends(tokens, special),
        None if adds_bos is None else bool(adds_bos),
    )


def templates(metadata: Mapping[str, Value]) -> tuple[Template, ...]:
    """The chat templates in a model's metadata, the default one first."""
    prefix = "tokenizer.chat_template"
    found = []
    for key in sorted(key for key in metadata if key == prefix or key.startswith(prefix + ".")):
        text = str(metadata[key].data)
        name = key.removeprefix(prefix).removeprefix(".") or None
        size = len(text.encode("utf-8", "surrogateescape"))
        thinking = any(word in text for word in ("think", "reasoning"))
        found.append(Template(name, size, "tools" in text, thinking))
    return tuple(found)


def _ends(tokens: Sequence[str], special: Mapping[str, Token]) -> tuple[Token, ...]:
    numbers = {number for number, text in enumerate(tokens) if text in _END_TEXTS}
    numbers |= {special[name].id for name in _ALWAYS_END if name in special}
    texts = {tokens[number] for number in numbers}
    none = {text for text, others in _NO_END if others <= texts}
    return tuple(Token(n, tokens[n]) for n in sorted(numbers) if tokens[n] not in none)


def _data(metadata: Mapping[str, Value], key: str) -> Any:
    value = metadata.get(f"tokenizer.ggml.{key}")
    return None if value is None else value.data
