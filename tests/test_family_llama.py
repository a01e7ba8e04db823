"""Families with Llama's plain attention: Mixtral, OLMoE and Qwen3-MoE."""

from functools import cache

import pytest

from tests.family_checks import check_converted, check_logits, check_mixtures

# llama.cpp's converter gives a SentencePiece vocabulary out of tokenizer.json one score for all
# tokens, and text is cut into characters then; the order of the merges gives the true scores.
KNOWN = {"mixtral": ("metadata tokenizer.ggml.scores",)}
NAMES = ["mixtral", "olmoe", "qwen3_moe"]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Makes a recording's file in a type, once."""

    @cache
    def make(name: str, kind: str):
        return check_converted(name, kind, tmp_path_factory.mktemp(name), KNOWN.get(name, ()))

    return make


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_the_file_is_llama_cpps_converters(name, kind, converted):
    converted(name, kind)


@pytest.mark.parametrize("name", NAMES)
def test_logits_agree_with_transformers(name, converted):
    check_logits(name, converted(name, "f32"))


@pytest.mark.parametrize("name", NAMES)
def test_mixtures_are_llama_cpps(name, converted):
    check_mixtures(converted(name, "bf16"))
