"""gpt-oss: MXFP4 experts whose bytes are kept, or unquantized ones with rows for columns."""

import numpy as np
import pytest

from gemcut import api
from gemcut.errors import CheckpointError, PlanError
from tests import families, rewriting
from tests.family_checks import check_logits, check_mixtures

NAMES = ["gpt_oss", "gpt_oss_bf16"]

FOURS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)  # E2M1, the codes from 8 on negative
FOURS = np.concatenate([FOURS, -FOURS])


@pytest.fixture
def packed(tmp_path):
    """The recorded checkpoint with MXFP4, to be changed."""
    return families.build(tmp_path / "checkpoint", "gpt_oss")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_the_file_is_llama_cpps_converters(name, kind, made):
    """Byte for byte, MXFP4's blocks among them."""
    made(name, kind)


def test_logits_agree_with_transformers(made):
    check_logits("gpt_oss_bf16", made("gpt_oss_bf16", "f32"))


def test_logits_with_decoded_experts_agree_with_transformers(packed, tmp_path):
    """In F32, since ggml rounds activations to 8 bits before it multiplies MXFP4 with them."""
    output = tmp_path / "exact.gguf"
    api.convert_checkpoint(api.open_source(packed, requantize=True), output, "f32", threads=1)

    check_logits("gpt_oss", output)


def test_logits_with_mxfp4_are_close(made):
    """As far off as the rounding of activations brings it."""
    check_logits("gpt_oss", made("gpt_oss", "bf16"), mean=1e-2, same=0.8)


def test_mixtures_are_llama_cpps(made):
    check_mixtures(made("gpt_oss_bf16", "bf16"))


def test_mixtures_keep_mxfp4(packed, tmp_path):
    """Cut to Q8_0, the experts keep their bytes; a plan that says otherwise is refused."""
    model = api.open_source(packed)
    plan = api.make_plan(model, api.Target("Q8_0"))

    kinds = {name: entry.type for name, entry in plan.tensors.items()}

    assert {"mxfp4"} == {kind for name, kind in kinds.items() if name.endswith("_exps.weight")}
    assert "q8_0" == kinds["blk.0.attn_q.weight"]
    with pytest.raises(PlanError, match="stays mxfp4"):
        again = api.make_plan(api.open_source(packed, requantize=True), api.Target("Q8_0"))
        api.quantize_model(model, tmp_path / "x.gguf", api.Target(plan=again))


def newer_spelling(config):
    config["rope_parameters"] = config.pop("rope_scaling") | {
        "rope_theta": config.pop("rope_theta")
    }


def without_layer_types(config):
    del config["layer_types"]


@pytest.mark.parametrize("change", [newer_spelling, without_layer_types])
def test_configs_that_mean_the_same(change, packed, tmp_path):
    """Rope in two spellings, and windows in every other block unless said otherwise."""
    original = families.build(tmp_path / "original", "gpt_oss")
    rewriting.reconfigure(packed, change)

    rewriting.assert_same(packed, original)


def test_other_windows_are_written(packed):
    """llama.cpp has every other block built in, the first one with a window."""
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    rewriting.reconfigure(packed, lambda config: config.update(layer_types=kinds))

    settings, _ = rewriting.contents(packed)

    key = "gpt-oss.attention.sliding_window_pattern"
    assert [False, True, True, False] == settings[key].data


@pytest.mark.parametrize("field", ["swiglu_limit", "swiglu_alpha"])
def test_what_llama_cpp_has_built_in_must_be_so(field, packed):
    rewriting.reconfigure(packed, lambda config: config.update({field: 5.0}))

    with pytest.raises(CheckpointError, match=f"{field} is 5.0; llama.cpp has"):
        api.open_source(packed)


def test_a_lost_bias_is_missed(packed):
    """llama.cpp would load the file without it and compute something else."""
    tensors = rewriting.read(packed)
    del tensors["model.layers.1.self_attn.k_proj.bias"]
    rewriting.write(packed, tensors)

    with pytest.raises(CheckpointError, match="no tensor layers.1.self_attn.k_proj.bias"):
        api.open_source(packed)


def test_square_experts_are_not_mistaken(tmp_path):
    """Where inputs and outputs are as many, MXFP4 still means [outputs, inputs].

    As in the published models, whose experts are 2880 x 2880.
    """
    folder = families.build(tmp_path / "checkpoint", "gpt_oss")
    tensors = rewriting.read(folder)
    for name, (dtype, array) in tensors.items():
        if ".mlp.experts." in name:  # from a width of 96 to 64, the hidden size
            cut = array[:, :128] if "gate_up" in name else array
            cut = cut[:, :, :2] if "down_proj_" in name and array.ndim > 2 else cut
            tensors[name] = dtype, np.ascontiguousarray(cut)
    rewriting.write(folder, tensors)
    rewriting.reconfigure(folder, lambda config: config.update(intermediate_size=64))
    blocks, scales = (
        tensors[f"model.layers.0.mlp.experts.down_proj_{part}"][1] for part in ("blocks", "scales")
    )

    _, made = rewriting.contents(folder)

    pairs = np.stack([FOURS[blocks & 15], FOURS[blocks >> 4]], axis=-1).reshape(8, 64, 2, 32)
    wanted = pairs * np.exp2(scales.astype(np.float32) - 127)[..., None]
    np.testing.assert_array_equal(wanted.reshape(8, 64, 64), made["blk.0.ffn_down_exps.weight"])
