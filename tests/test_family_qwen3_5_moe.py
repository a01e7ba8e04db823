"""Qwen3.5-MoE and Qwen3-Next: delta nets, gated attention, a layer for speculative decoding."""

import re

import numpy as np
import pytest

from gemcut import api
from gemcut.convert.lazy import stored
from gemcut.convert.transforms import tiled, tiled_columns
from gemcut.errors import CheckpointError
from tests import families, rewriting
from tests.family_checks import check_logits, check_mixtures

# llama.cpp's converter takes torch's exp, of which the last bit is wrong in 1 % of all cases.
KNOWN = {"qwen3_next": ("tensor blk.0.ssm_a", "tensor blk.1.ssm_a")}
NAMES = ["qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Qwen3.5-MoE's recorded checkpoint; experts are one by one in it."""
    return families.build(tmp_path_factory.mktemp("original") / "checkpoint", "qwen3_5_moe")


@pytest.fixture
def copy(tmp_path):
    """The same, to be changed."""
    return families.build(tmp_path / "checkpoint", "qwen3_5_moe")


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


def test_fused_experts(original, copy):
    """As published: two tensors for all experts of a block."""
    rewriting.write(copy, rewriting.fused(rewriting.read(copy)))

    rewriting.assert_same(copy, original)


def older_spelling(config):
    text = config["text_config"]
    rope = text.pop("rope_parameters")
    text["rope_theta"], text["partial_rotary_factor"] = rope["rope_theta"], 0.25
    text["rope_scaling"] = {"type": "default", "mrope_section": rope["mrope_section"]}


def without_layer_types(config):
    del config["text_config"]["layer_types"]


def without_mtp(config):
    config["text_config"]["mtp_num_hidden_layers"] = 0


@pytest.mark.parametrize("change", [older_spelling, without_layer_types, without_mtp])
def test_configs_that_mean_the_same(change, original, copy):
    """Rope in two spellings; kinds of blocks by an interval; a layer that only the tensors tell."""
    rewriting.reconfigure(copy, change)

    rewriting.assert_same(copy, original)


def test_without_the_layer_for_speculative_decoding(copy):
    """Nothing of it is left when neither config nor tensors have it."""
    tensors = rewriting.read(copy)
    rewriting.write(copy, {k: v for k, v in tensors.items() if not k.startswith("mtp.")})
    rewriting.reconfigure(copy, without_mtp)

    settings, made = rewriting.contents(copy)

    assert 4 == settings["qwen35moe.block_count"].data
    assert "qwen35moe.nextn_predict_layers" not in settings
    assert [True, False, True, False] == settings["qwen35moe.attention.recurrent_layers"].data
    assert not any(name.startswith("blk.4.") for name in made)


def test_sections_are_always_written(copy):
    """llama.cpp does not load without them; a config may leave them out."""
    rewriting.reconfigure(copy, lambda c: c["text_config"]["rope_parameters"].pop("mrope_section"))

    settings, _ = rewriting.contents(copy)

    assert [11, 11, 10, 0] == settings["qwen35moe.rope.dimension_sections"].data


def test_more_layers_for_speculative_decoding_are_refused(copy):
    """llama.cpp's names have room for the projection of one."""
    rewriting.reconfigure(copy, lambda c: c["text_config"].update(mtp_num_hidden_layers=10**12))

    with pytest.raises(CheckpointError, match="mtp_num_hidden_layers is 1000000000000"):
        api.open_source(copy)


# 8-bit floats (E4M3) whose values BF16 holds: 1, -1.5, 2, 0.875, -0.25
CODES = np.array([0x38, 0xBC, 0x40, 0x36, 0xA8], np.uint8)
VALUES = np.array([1, -1.5, 2, 0.875, -0.25], np.float32)


def test_eight_bit_floats_are_reordered_with_their_scales(tmp_path):
    """The published FP8 checkpoints: blocks of 128 x 128 with a scale each, in delta nets, too."""
    folders = [families.build(tmp_path / each, "qwen3_5_moe") for each in ("plain", "packed")]
    tensors = [rewriting.read(folder) for folder in folders]
    random = np.random.default_rng(0)
    for name, (dtype, array) in tensors[0].items():
        if not re.search(
            r"(in_proj_(qkv|z)|out_proj|experts.*|self_attn.[qkvo]_proj).weight", name
        ):
            continue
        chosen = random.integers(0, len(CODES), array.shape)
        scales = 2.0 ** random.integers(-6, -3, [-(-n // 128) for n in array.shape])
        spread = np.kron(scales, np.ones((128, 128)))[tuple(map(slice, array.shape))]
        values = (VALUES[chosen] * spread).astype(np.float32)
        tensors[0][name] = dtype, (values.view(np.uint32) >> 16).astype("<u2")
        tensors[1][name] = "F8_E4M3", CODES[chosen]
        tensors[1][f"{name}_scale_inv"] = "F32", scales.astype("<f4")
    for folder, each in zip(folders, tensors, strict=True):
        rewriting.write(folder, each)
    method = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    rewriting.reconfigure(folders[1], lambda config: config.update(quantization_config=method))

    rewriting.assert_same(*folders)


def test_value_heads_in_ggmls_order():
    """Two key heads with three value heads of two rows each, after one row of another kind."""
    sizes = {"keys": 2, "values": 6, "size": 2, "before": 1}
    rows = np.arange(13, dtype=np.float32)[:, None] * [1, 1]

    turned = tiled("keys", "values", "size", "before")(stored(rows.astype(np.float32)), sizes)
    vector = tiled("keys", "values", "size", "before")(
        stored(np.arange(13, dtype=np.float32)), sizes
    )
    columns = tiled_columns("keys", "values", "size")(
        stored(np.arange(12, dtype=np.float32)[None]), sizes
    )

    wanted = [0, 1, 2, 7, 8, 3, 4, 9, 10, 5, 6, 11, 12]
    assert wanted == turned.read(0, 13)[:, 0].tolist()
    assert wanted == vector.read(0, 1)[0].tolist()
    assert [n - 1 for n in wanted[1:]] == columns.read(0, 1)[0].tolist()


def test_the_layer_for_speculative_decoding_can_be_left_out(copy):
    """By name, for a smaller file; llama.cpp loads it, as it does the text model's recording."""
    model = api.open_source(copy, ignore=["mtp.*"])

    assert not any(tensor.name.startswith("blk.4.") for tensor in model.tensors)
    assert any("ignored" in note for note in model.notes)
