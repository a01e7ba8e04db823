"""A tokenizer's GGUF metadata, read from a checkpoint's tokenizer files without transformers.

    document        tokenizer.json and tokenizer_config.json, checked
    structure       how text is cut into words: the table of llama.cpp's pre-tokenizers
    byte_level      BPE over bytes (`gpt2`)
    pieces          BPE over characters with ▁ for spaces, bytes as a last resort (`llama`)
    gemma           the same with merges instead of scores (`gemma4`)
    sentencepiece   SentencePiece's own file
    special         special tokens, and which of them a text begins and ends with
    endings         the tokens that end a generation
    templates       chat templates

A family says `vocabulary=reader("qwen2")`: its names decide where several pre-tokenizers of
llama.cpp's do the same.
"""

from gemcut.convert.vocabulary.gemma import gemma_reader
from gemcut.convert.vocabulary.reader import Reader, reader, vocabulary

__all__ = ["Reader", "gemma_reader", "reader", "vocabulary"]
