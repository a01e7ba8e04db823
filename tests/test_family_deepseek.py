"""DeepSeek-V2 and V3: latent attention, whose keys and values become two tensors per head."""

import numpy as np
import pytest

from gemcut import api
from gemcut.convert.dtypes import values
from gemcut.errors import CheckpointError
from tests.family_checks import check_logits, check_mixtures
from tests.rewriting import Tensors, converted, fused, variant

NAMES = ["deepseek_v2_lite", "deepseek_v3"]
V3 = "deepseek_v3"
PREDICTING = "model.layers.3."
BLOCK = 32  # rows and columns that share a scale
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The digest of what V3's checkpoint becomes as published."""
    return converted(variant(tmp_path_factory.mktemp("published") / V3, V3))[1]


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


def test_fused_experts_become_the_same_file(published, tmp_path):
    assert published == converted(variant(tmp_path / V3, V3, fused))[1]


def test_the_newer_spelling_of_the_config_becomes_the_same_file(published, tmp_path):
    """As transformers saves it, without the kind of gating that its class stands for."""
    rope = {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 128,
        "rope_theta": 10000,
        "rope_type": "yarn",
    }
    gone = ["rope_theta", "rope_scaling", "scoring_func", "topk_method", "moe_layer_freq"]
    fields = {"rope_parameters": rope, **dict.fromkeys(gone)}

    assert published == converted(variant(tmp_path / V3, V3, config=fields))[1]


def test_the_predicting_block_is_left_out_and_said(published, tmp_path):
    """With it or without it the file is the same."""

    def without(tensors: Tensors) -> Tensors:
        return {name: entry for name, entry in tensors.items() if not name.startswith(PREDICTING)}

    whole = api.open_source(variant(tmp_path / "whole" / V3, V3))
    cut = variant(tmp_path / "cut" / V3, V3, without)

    assert published == converted(cut)[1]
    assert ["44 multi-token prediction tensors left out"] == [*whole.notes]


def eights(array: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Any 8-bit floats in a matrix's place, powers of two as their blocks' scales, both in BF16."""
    codes = (array % 255).astype(np.uint8)  # without 255, which is NaN
    codes[codes == 127] = 0  # the other NaN
    exponents = np.arange(-(-len(array) // BLOCK) * -(-array.shape[1] // BLOCK), dtype=np.float32)
    scales = (2.0 ** -(exponents % 7)).reshape(-(-len(array) // BLOCK), -1)
    wide = scales.repeat(BLOCK, 0).repeat(BLOCK, 1)[: len(array), : array.shape[1]]
    products = values("F8_E4M3")[codes] * wide
    return codes, scales, (products.view(np.uint32) >> 16).astype(np.uint16)


def test_8_bit_floats_become_the_file_of_their_values(tmp_path):
    """V3's own form, with blocks that split heads, against the same values in BF16."""
    exact: Tensors = {}

    def encode(tensors: Tensors) -> Tensors:
        scaled: Tensors = {}
        for name, (dtype, array) in tensors.items():
            scaled[name] = exact[name] = dtype, array
            if "proj" in name and not name.startswith(PREDICTING):
                codes, scales, products = eights(array)
                exact[name] = "BF16", products
                scaled[name] = "F8_E4M3", codes
                scaled[f"{name}_scale_inv"] = "F32", scales
        return scaled

    packed = variant(tmp_path / "packed" / V3, V3, encode, {"quantization_config": FP8})
    plain = variant(tmp_path / "plain" / V3, V3, lambda _: exact)

    assert converted(plain)[1] == converted(packed)[1]


def test_experts_in_every_second_block_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="moe_layer_freq is 2, wanted 1"):
        api.open_source(variant(tmp_path / V3, V3, config={"moe_layer_freq": 2}))
