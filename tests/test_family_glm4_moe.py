"""GLM-4.5 and GLM-4.7-Flash: shared experts, and a block that predicts one token further."""

from functools import cache

import pytest

from gemcut import api
from gemcut.errors import CheckpointError
from tests.family_checks import check_logits, check_mixtures
from tests.rewriting import Tensors, converted, fused, variant

NAME, LITE = "glm4_moe", "glm4_moe_lite"
NAMES = [NAME, LITE]
PREDICTING = "model.layers.3."


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The digest of what a checkpoint becomes as published."""

    @cache
    def make(name: str):
        return converted(variant(tmp_path_factory.mktemp("published") / name, name))[1]

    return make


def without_predicting(tensors: Tensors) -> Tensors:
    return {name: entry for name, entry in tensors.items() if not name.startswith(PREDICTING)}


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


@pytest.mark.parametrize("name", NAMES)
def test_fused_experts_become_the_same_file(name, published, tmp_path):
    assert published(name) == converted(variant(tmp_path / name, name, fused))[1]


def test_the_newer_spelling_of_the_config_becomes_the_same_file(published, tmp_path):
    rope = {"rope_type": "default", "rope_theta": 1000000, "partial_rotary_factor": 0.5}
    gone = dict.fromkeys(["rope_theta", "rope_scaling", "partial_rotary_factor"])
    fields = {"rope_parameters": rope, **gone}

    assert published(NAME) == converted(variant(tmp_path / NAME, NAME, config=fields))[1]


def test_flash_needs_no_gating_and_no_count_of_dense_blocks(published, tmp_path):
    """The published config lacks the one, and what transformers saves the other."""
    kinds = ["dense", "sparse", "sparse"]
    fields = {"scoring_func": None, "first_k_dense_replace": None, "mlp_layer_types": kinds}

    assert published(LITE) == converted(variant(tmp_path / LITE, LITE, config=fields))[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_may_lack_the_predicting_block(name, published, tmp_path):
    """transformers saves none: the rest is the same, and runs."""
    folder = variant(tmp_path / name, name, without_predicting)
    left = {k: v for k, v in published(name).items() if not k.startswith("tensor blk.3.")}

    found = converted(folder, "bf16")[1]

    label = "metadata general.size_label"
    assert found.pop(label) != left.pop(label)
    assert left == found
    check_logits(name, converted(folder, "f32")[0])


@pytest.mark.parametrize(
    "lost",
    [
        PREDICTING + "mlp.experts.3.up_proj.weight",
        PREDICTING + "enorm.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.mlp.gate.e_score_correction_bias",
        "model.layers.1.self_attn.k_proj.bias",
        "model.layers.1.self_attn.q_norm.weight",
        "lm_head.weight",
    ],
)
def test_what_is_missing_is_named(lost, tmp_path):
    folder = variant(
        tmp_path / NAME, NAME, lambda tensors: {k: tensors[k] for k in {*tensors} - {lost}}
    )

    with pytest.raises(CheckpointError, match=f"no tensor .*{lost.removeprefix('model.')}"):
        api.open_source(folder)
