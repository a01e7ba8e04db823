"""How text is cut into words before BPE: recognising llama.cpp's pre-tokenizers.

llama.cpp knows pre-tokenizers by name, and its converter finds the name by hashing the ids of one
test text, which holds for published vocabularies only. Here the name follows from the structure:
normalizer and pre_tokenizer of tokenizer.json, brought to one spelling, are looked up in a table.
Names that llama.cpp treats alike share an entry.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gemcut.convert.vocabulary.document import Document
from gemcut.errors import CheckpointError

Json = Mapping[str, Any]

# The same set of English endings in three spellings; the first is the one of the table.
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_OTHER_ENDINGS = (
    "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    "'(?i:[sdmt]|ll|ve|re)",
)
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = _ENDINGS + _WORD + r"\p{N}{1,3}" + _REST
_QWEN2 = _ENDINGS + _WORD + r"\p{N}" + _REST
_QWEN35 = (
    _ENDINGS
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    + r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(endings: str, digits: str) -> str:
    """Words that end where a capital follows small letters."""
    one = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{endings}"
    two = rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{endings}"
    return one + two + "|" + digits + _REST.replace(r"[\r\n]*", r"[\r\n/]*", 1)


_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
# Letters that have a capital and a small form, and some more.
_LETTERS = (
    "A-Za-z\u00b5À-ÖØ-öø-ƺƼ-ƿ\u01c4-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-\u03f5Ϸ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ"
    "-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼ\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c"
    "-\u213f\u2145-\u2149ⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿ\ufb00-\ufb06\ufb13-\ufb17\uff21-"
    "\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK = (
    r"[\r\n]",
    rf"\s?[{_LETTERS}]+",
    "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
    r"\s+$",
    "[一-龥ࠀ-一가-\ud7ff]+",
    r"\p{N}",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK[4], r"\p{N}")

# The regexes that split text one after the other -> names, the plainest first.
TABLE: Mapping[tuple[str, ...], tuple[str, ...]] = {
    (GPT2,): ("gpt-2", "olmo", "mpt", "jais", "trillion", "phi-2", "exaone4", "roberta-bpe"),
    (r"\p{N}", GPT2): ("starcoder", "smollm", "refact", "command-r", "codeshell", "exaone"),
    (_CL100K,): ("chatglm-bpe", "glm4", "llama-bpe", "dbrx", "smaug-bpe", "glm5", "falcon3"),
    (_QWEN2,): ("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan", "solar-open"),
    (_QWEN35,): ("qwen35",),
    (_cased(_ENDINGS + "?", r"\p{N}{1,3}"),): ("gpt-4o", "llama4", "kanana2", "minimax-m2"),
    (_cased("", r"\p{N}"),): ("tekken",),
    _DEEPSEEK: ("deepseek-llm",),
    _DEEPSEEK_CODER: ("deepseek-coder",),
    _DEEPSEEK3: ("deepseek-v3", "hunyuan-dense", "joyai-llm"),
}
# Those that take a word as it is if it is a token, whatever the merges make of it.
_IGNORE_MERGES = frozenset("glm4 glm5 llama-bpe falcon3 tekken".split())

# Every name that llama.cpp loads with the model `gpt2`.
NAMES = frozenset(
    """a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell cohere2moe
    command-r dbrx deepseek-coder deepseek-llm deepseek-r1-qwen deepseek-v3 default exaone
    exaone-moe exaone4 f2llmv2 falcon falcon-h1 falcon3 gigachat glm4 glm5 gpt-2 gpt-4o
    gpt3-finnish granite-docling granite-embed-multi-97m grok-2 hunyuan hunyuan-dense hy_v4 jais
    jais-2 jina-de jina-es jina-v1-en jina-v2-code jina-v2-de jina-v2-es jina-v5-nano joyai-llm
    kanana2 kormo laguna lfm2 llada-moe llama-bpe llama-v3 llama3 llama4 megrez mellum mellum2
    midm-2.0 minerva-7b minicpm5 minimax-m2 modern-bert mpt olmo phi-2 pixtral poro-chat qwen2
    qwen35 refact roberta-bpe seed-coder smaug-bpe smollm solar-open spark2_5 stablelm2 starcoder
    superbpe talkie tekken tiny_aya trillion ufakzeka viking youtu""".split()
)


class _UnknownError(Exception):
    """A part of a tokenizer that llama.cpp has no counterpart of."""


def pre_tokenizer(document: Document, preferred: Sequence[str] = ()) -> str:
    """llama.cpp's name for how a byte-level tokenizer cuts text into words.

    Args:
        preferred: names that decide where several fit.

    Raises:
        CheckpointError: none is known to do the same.
    """
    try:
        _check_normalizer(document.content.get("normalizer"))
        names = TABLE.get(tuple(_splits(document.content.get("pre_tokenizer"))))
        if names is None:
            raise _UnknownError(f"pre_tokenizer {_short(document.content.get('pre_tokenizer'))}")
    except (_UnknownError, AttributeError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{document.where}: no pre-tokenizer of llama.cpp's is known to do the same as this "
            f"one: {error}; --pre-tokenizer NAME says which to use: {', '.join(sorted(NAMES))}"
        ) from error
    for name in preferred:
        if name in names:
            return name
    whole = bool(document.model.get("ignore_merges"))
    return next((name for name in names if (name in _IGNORE_MERGES) == whole), names[0])


def parts(part: Json | None, listed: str) -> Iterator[Json]:
    """A normalizer's, pre-tokenizer's or post-processor's parts, sequences taken apart."""
    if not part:
        return
    if part.get("type") == "Sequence":
        for inner in part.get(listed) or []:
            yield from parts(inner, listed)
    else:
        yield part


def _check_normalizer(normalizer: Json | None) -> None:
    """llama.cpp has none. NFC is what nearly all text is in already."""
    for part in parts(normalizer, "normalizers"):
        if part.get("type") != "NFC":
            raise _UnknownError(f"normalizer {_short(part)}")


def _splits(tokenizer: Json | None) -> Iterator[str]:
    """The regexes that cut a text, in one spelling; at the end it is turned into bytes."""
    found = list(parts(tokenizer, "pretokenizers"))
    if not found or found[-1].get("type") != "ByteLevel":
        raise _UnknownError(f"pre_tokenizer {_short(tokenizer)}")
    for part in found:
        yield from _split(part)


def _split(part: Json) -> Iterator[str]:
    kind = part.get("type")
    if kind == "Digits":
        yield r"\p{N}" if part.get("individual_digits") else r"\p{N}+"
    elif kind == "Split" and (part["behavior"].lower(), bool(part.get("invert"))) in _ISOLATED:
        yield canonical(part["pattern"]["Regex"])
    elif kind == "ByteLevel" and not part.get("add_prefix_space", True):
        yield from [GPT2] if part.get("use_regex", True) else []
    else:
        raise _UnknownError(f"pre_tokenizer {_short(part)}")


# Every match a word, and what lies between two; or the matches alone, which leave nothing out here.
_ISOLATED = {("isolated", False), ("isolated", True), ("removed", True)}


def canonical(regex: str) -> str:
    """One spelling of regexes that match the same."""
    regex = regex.replace("\r", r"\r").replace("\n", r"\n").replace("{1}", "")
    regex = regex.replace("?+", "?").replace("++", "+")  # possessive, which here is only faster
    for ending in _OTHER_ENDINGS:
        regex = regex.replace(ending, _ENDINGS)
    return regex


def _short(part: Any) -> str:
    """A part of tokenizer.json for a message."""
    text = re.sub(r"\s+", " ", repr(part))
    return text if len(text) <= 300 else text[:300] + "..."
