"""Families with Llama's plain attention: Mixtral, OLMoE and Qwen3-MoE."""

import pytest

from tests.family_checks import check_logits, check_mixtures

# llama.cpp's converter gives a SentencePiece vocabulary out of tokenizer.json one score for all
# tokens, and text is cut into characters then; the order of the merges gives the true scores.
KNOWN = {"mixtral": ("metadata tokenizer.ggml.scores",)}
NAMES = ["mixtral", "olmoe", "qwen3_moe"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_the_file_is_llama_cpps_converters(name, kind, made):
    made(name, kind)


@pytest.mark.parametrize("name", NAMES)
def test_logits_agree_with_transformers(name, made):
    check_logits(name, made(name, "f32"))


@pytest.mark.parametrize("name", NAMES)
def test_mixtures_are_llama_cpps(name, made):
    check_mixtures(made(name, "bf16"))
