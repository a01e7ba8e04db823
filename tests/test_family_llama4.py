"""Llama 4: fused, turned experts in all blocks or some, and much that llama.cpp takes as given."""

import numpy as np
import pytest

from gemcut import api
from gemcut.convert.families import llama4
from gemcut.convert.family import Config
from gemcut.errors import CheckpointError
from tests.family_checks import check_logits, check_mixtures
from tests.rewriting import Tensors, converted, variant

NAMES = ["llama4", "llama4_text"]
# generation_config.json ends a generation with it; llama.cpp does not know it by its name.
KNOWN = dict.fromkeys(NAMES, ("metadata tokenizer.ggml.eom_token_id",))
LLAMA3 = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rope_type": "llama3",
}


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


def single(tensors: Tensors) -> Tensors:
    """Experts as compressed checkpoints have them: one tensor each, and not turned."""
    found: Tensors = {}
    for name, (dtype, array) in tensors.items():
        folder, _, what = name.partition("experts.")
        for expert, matrix in enumerate(array if what else []):
            turned, path = matrix.T, f"{folder}experts.{expert}."
            if what == "down_proj":
                found[f"{path}down_proj.weight"] = dtype, turned
            else:
                half = len(turned) // 2
                found[f"{path}gate_proj.weight"] = dtype, turned[:half]
                found[f"{path}up_proj.weight"] = dtype, turned[half:]
        if not what:
            found[name] = dtype, array
    return found


@pytest.mark.parametrize("name", NAMES)
def test_single_experts_become_the_same_file(name, tmp_path):
    fused = variant(tmp_path / "fused" / name, name)
    apart = variant(tmp_path / "apart" / name, name, single)

    assert converted(fused)[1] == converted(apart)[1]


def test_the_newer_spelling_of_the_config_becomes_the_same_file(tmp_path):
    older = {"rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"}}
    newer = {"rope_parameters": LLAMA3, "rope_scaling": None, "rope_theta": None}

    files = [
        converted(variant(tmp_path / spelling / "llama4", "llama4", config=fields))[1]
        for spelling, fields in (("older", older), ("newer", newer))
    ]

    assert files[0] == files[1]


@pytest.mark.parametrize("high", [1.0, 4.0], ids=["Scout", "Llama 3"])
def test_only_long_waves_are_stretched(high):
    """Against the formula in double precision; with Scout's settings nothing is in between."""
    config = Config(head_dim=128, rope_parameters={**LLAMA3, "high_freq_factor": high})
    waves = 2 * np.pi * 500000.0 ** (np.arange(0, 128, 2) / 128)
    turns = 8192 / waves
    share = np.clip((turns - 1) / (high - 1), 0, 1) if high > 1 else (turns > 1).astype(float)

    factors = llama4.rope_factors(config)["rope_freqs.weight"]

    np.testing.assert_allclose(factors, 1 / ((1 - share) / 8 + share), rtol=1e-5)
    assert {1, 8} <= {*factors}
    assert np.float32 == factors.dtype


def test_other_rotary_settings_have_no_factors():
    assert {} == llama4.rope_factors(Config(head_dim=128, rope_theta=500000.0))


@pytest.mark.parametrize(
    "fields",
    [
        {"attention_chunk_size": 4096},
        {"floor_scale": 1024},
        {"attn_scale": 0.2},
        {"attn_temperature_tuning": False},
        {"use_qk_norm": False},
        {"no_rope_layers": [1, 1, 1, 1]},
        {"layer_types": ["full_attention"] * 4},
        {"moe_layers": [1, 3]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(fields, tmp_path):
    with pytest.raises(CheckpointError, match=f"{next(iter(fields))} is .*llama.cpp computes"):
        api.open_source(variant(tmp_path / "llama4", "llama4", config=fields))
