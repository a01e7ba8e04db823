"""Make the tests' tiny tokenizers: the structure of the published ones, a vocabulary of their own.

    python bench/tokenizer_fixtures.py [KIND ...]          (needs the `train` extra)

Normalizer, regexes, decoder, post-processor, names and kinds of the special tokens are those of
the models that gemcut converts; the merges are learned from the Python standard library.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizer_kinds import DECODER, KINDS, SPM, Json, Kind
from tokenizers import Tokenizer, pre_tokenizers, trainers

from gemcut.demo.text import training_sources

FOLDER = Path("tests/fixtures/tokenizers")
N_LEARNED = 640  # tokens, the 256 bytes among them
N_MODULES = 150


def texts() -> Iterator[str]:
    """Some modules of the standard library."""
    return islice(training_sources(), N_MODULES)


def added(name: str, number: int, normalized: bool) -> Json:
    """One entry of tokenizer.json's added_tokens."""
    text = name.startswith("~")
    return {
        "id": number,
        "content": name.removeprefix("~"),
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": normalized or (text and not name.strip("~ ")),
        "special": not text,
    }


def names(tokens: Sequence[str]) -> list[str]:
    return [token.removeprefix("~") for token in tokens]


def learned(kind: Kind, size: int = N_LEARNED) -> Json:
    """A tokenizer.json with the merges of the standard library, and `size` learned tokens."""
    document: Json = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": kind.normalizer,
        "pre_tokenizer": kind.pre_tokenizer,
        "post_processor": None,
        "decoder": DECODER,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    tokenizer = Tokenizer.from_str(json.dumps(document))
    trainer = trainers.BpeTrainer(
        vocab_size=size + len(kind.first),
        special_tokens=list(kind.first),
        initial_alphabet=sorted({*pre_tokenizers.ByteLevel.alphabet()} - {*names(kind.last)}),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    document["model"] = {**model, "ignore_merges": kind.ignore_merges}
    numbered = [*enumerate(kind.first), *enumerate(kind.last, size + len(kind.first))]
    document["added_tokens"] = [added(name, n, kind.normalized) for n, name in numbered]
    document["post_processor"] = kind.post_processor
    return with_ids(document)


def with_ids(document: Json) -> Json:
    """Put the ids of its tokens into the post-processor."""
    ids = {token["content"]: token["id"] for token in document["added_tokens"]}
    processor = document["post_processor"]
    for part in (processor or {}).get("processors", [processor]):
        for token in (part or {}).get("special_tokens", {}).values():
            token["ids"] = [ids[token["id"]]]
    return document


SPM_NAMES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]


def sentencepiece() -> Json:
    """A tokenizer.json as transformers makes it from a SentencePiece model.

    Special tokens and bytes come first, then the pieces in the order they were learned, then single
    characters. Every way to make a piece out of two others is a merge.
    """
    learner = Tokenizer.from_str(json.dumps({"version": "1.0", "model": {"type": "BPE"} | EMPTY}))
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(texts(), trainers.BpeTrainer(vocab_size=520, show_progress=False))
    found = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    longer = [token for token, _ in found if len(token) > 1]
    single = [token for token, _ in found if len(token) == 1]
    vocab = {token: number for number, token in enumerate([*SPM_NAMES, *longer, *single])}
    splits = [
        sorted(
            (vocab[token[:n]], vocab[token[n:]], token[:n], token[n:])
            for n in range(1, len(token))
            if token[:n] in vocab and token[n:] in vocab
        )
        for token in longer
    ]
    merges = [list(pair[2:]) for pairs in splits for pair in pairs]
    model: Json = {"type": "BPE", "dropout": None, "unk_token": "<unk>"} | EMPTY
    model |= {"fuse_unk": True, "byte_fallback": True, "vocab": vocab, "merges": merges}
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    return with_ids(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [added(name, n, False) for n, name in enumerate(SPM_NAMES[:3])],
            "normalizer": {
                "type": "Sequence",
                "normalizers": [{"type": "Prepend", "prepend": "▁"}, space],
            },
            "pre_tokenizer": None,
            "post_processor": SPM.post_processor,
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
                ],
            },
            "model": model,
        }
    )


EMPTY: Json = {"continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False}
EMPTY |= {"byte_fallback": False, "vocab": {}, "merges": []}


def settings(kind: Kind, document: Mapping[str, Any]) -> Json:
    """tokenizer_config.json."""
    found = dict(kind.settings)
    if kind.listed:
        tokens = [dict(token) for token in document["added_tokens"]]
        found["added_tokens_decoder"] = {str(token.pop("id")): token for token in tokens}
    if kind.template_file is None:
        found["chat_template"] = kind.template
    return found


def write(name: str, kind: Kind, document: Json) -> None:
    """The folder of one kind."""
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    ids = {**document["model"]["vocab"]}
    ids |= {token["content"]: token["id"] for token in document["added_tokens"]}
    assert Tokenizer.from_str(json.dumps(document)).get_vocab() == ids
    files: dict[str, Json] = {"tokenizer.json": document}
    files["tokenizer_config.json"] = settings(kind, document)
    eos = [ids[token] for token in kind.eos]
    files["generation_config.json"] = {"eos_token_id": eos if len(eos) > 1 else eos[0]}
    if kind.template_file == "chat_template.jinja":
        (folder / kind.template_file).write_text(kind.template, encoding="utf-8")
    elif kind.template_file:
        files[kind.template_file] = {"chat_template": kind.template}
    for file, content in files.items():
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        (folder / file).write_text(text + "\n", encoding="utf-8")
    print(f"{name}: {max(ids.values()) + 1} tokens")


def main() -> None:
    """Make all, or those that are named."""
    wanted = sys.argv[1:] or [*KINDS, "llama-spm"]
    for name in wanted:
        if name == "llama-spm":
            write(name, SPM, sentencepiece())
        else:
            write(name, KINDS[name], learned(KINDS[name]))


if __name__ == "__main__":
    main()
