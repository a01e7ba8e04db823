"""Converting gives what llama.cpp's converter gives, from every form of a checkpoint, or says why.

`fixtures/converted.json` is of the demo's checkpoint, made by `bench/converter.py fixture`.
"""

import json
import runpy
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from gemcut import api
from gemcut.convert.files import read_at
from gemcut.convert.safetensors_file import read_header
from gemcut.gguf_file import GGUFFile, Value
from tests import checkpoints
from tests.checkpoints import Recipe

ROOT = Path(__file__).parent.parent
FIXTURE = json.loads((ROOT / "tests" / "fixtures" / "converted.json").read_text())
BENCH = runpy.run_path(str(ROOT / "bench" / "converter.py"))

# Tensors of a block: their names in a checkpoint and in a GGUF.
BLOCK = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "post_feedforward_layernorm_1.weight": "post_ffw_norm_1.weight",
    "pre_feedforward_layernorm_2.weight": "pre_ffw_norm_2.weight",
    "post_feedforward_layernorm_2.weight": "post_ffw_norm_2.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
    "router.proj.weight": "ffn_gate_inp.weight",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
    "layer_scalar": "layer_output_scale.weight",
}


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_the_demo_is_converted_as_llama_cpps_converter_does(kind, checkpoint, tmp_path):
    """Every tensor's type, shape and bytes, and all metadata but the name, the folder's."""
    api.convert_checkpoint(api.open_source(checkpoint), tmp_path / "a.gguf", kind)

    ours = BENCH["digest"](tmp_path / "a.gguf")
    ours.pop(BENCH["NAMED_AFTER_FOLDER"])
    assert [] == list(BENCH["differences"](ours, FIXTURE[kind]))


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
base_model: google/gemma-4-26B-A4B
language:
- en
tags:
- a
---
# Gemma
"""


def test_a_name_and_a_model_card_are_read_as_llama_cpps_converter_does(checkpoint, tmp_path):
    """The values are those of convert_hf_to_gguf.py for such a folder."""
    folder = checkpoints.build(tmp_path / "gemma-4-26B-A4B-it", checkpoint)
    (folder / "README.md").write_text(CARD)

    metadata = api.open_source(folder).metadata

    assert {k: v.data for k, v in metadata.items() if k.startswith("general.")} == {
        "general.architecture": "gemma4",
        "general.type": "model",
        "general.sampling.top_k": 64,
        "general.sampling.top_p": pytest.approx(0.95),
        "general.sampling.temp": pytest.approx(0.7),
        "general.name": "Gemma 4 26B A4B It",
        "general.finetune": "26b-it",
        "general.basename": "gemma-4",
        "general.size_label": "A4B",
        "general.license": "apache-2.0",
        "general.base_model.count": 1,
        "general.base_model.0.name": "Gemma 4 26B A4B",
        "general.base_model.0.organization": "Google",
        "general.base_model.0.repo_url": "https://huggingface.co/google/gemma-4-26B-A4B",
        "general.tags": ["a", "image-text-to-text"],
        "general.languages": ["en"],
    }


@pytest.fixture(scope="module")
def plain(checkpoint, tmp_path_factory) -> Path:
    """A small random checkpoint in the plainest form."""
    return checkpoints.build(tmp_path_factory.mktemp("plain") / "model", checkpoint)


@pytest.fixture(scope="module")
def plain_f32(plain, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("plain") / "f32.gguf"
    api.convert_checkpoint(api.open_source(plain), path, "f32")
    return path.read_bytes()


def test_every_weight_is_kept(plain, plain_f32, tmp_path):
    """Names and values, against a table of this file's own."""
    (tmp_path / "a.gguf").write_bytes(plain_f32)
    arrays = checkpoints.tensors(Recipe())
    names = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
    for layer in range(2):
        names |= {f"layers.{layer}.{k}": f"blk.{layer}.{v}" for k, v in BLOCK.items()}
    del names["layers.1.self_attn.v_proj.weight"]

    with GGUFFile(tmp_path / "a.gguf") as file:
        assert {*names.values(), "rope_freqs.weight"} == set(file.tensors)
        for ours, theirs in names.items():
            rows = file.rows(theirs).view(np.float32)
            expected = arrays[f"model.{ours}"]
            assert expected.shape == file.tensors[theirs].shape
            assert (expected.ravel() == rows.ravel()).all()
        freqs = file.rows("rope_freqs.weight").view(np.float32)
        assert (freqs == [1] * 16 + [np.float32(1e30)] * 48).all()


FORMS = {
    "multimodal": Recipe(multimodal=True),
    "per-layer config": Recipe(per_layer_config=True),
    "shards": Recipe(shards=3),
    "f16": Recipe(dtype="F16"),
    "f32": Recipe(dtype="F32"),
    "all at once": Recipe(multimodal=True, per_layer_config=True, shards=5, dtype="F32"),
}


@pytest.mark.parametrize("recipe", FORMS.values(), ids=FORMS)
def test_every_form_of_a_checkpoint_gives_the_same_file(recipe, plain_f32, checkpoint, tmp_path):
    """Byte for byte, where the same values come in another wrapper, spelling, type or number."""
    folder = checkpoints.build(tmp_path / "model", checkpoint, recipe)

    model = api.open_source(folder)
    api.convert_checkpoint(model, tmp_path / "a.gguf", "f32")

    assert plain_f32 == (tmp_path / "a.gguf").read_bytes()
    towers = ["vision", "audio"] if recipe.multimodal else []
    assert len(towers) == len(model.notes)
    for tower, note in zip(towers, sorted(model.notes, reverse=True), strict=True):
        assert f"2 {tower} tensors left out" in note and "mmproj" in note


def test_other_prefixes_of_the_text_model_are_known(plain, plain_f32, tmp_path):
    """As in checkpoints of other versions of transformers, and a separate but tied output."""
    folder = tmp_path / "model"
    shutil.copytree(plain, folder)
    entries, data = checkpoints.read_safetensors(folder / "model.safetensors")
    renamed = {k.replace("model.", "language_model.model.", 1): v for k, v in entries.items()}
    begin, end = entries["model.embed_tokens.weight"]["data_offsets"]
    span = [len(data), len(data) + end - begin]
    renamed["lm_head.weight"] = entries["model.embed_tokens.weight"] | {"data_offsets": span}
    data += data[begin:end]
    checkpoints.write_safetensors(folder / "model.safetensors", renamed, data)

    api.convert_checkpoint(api.open_source(folder), tmp_path / "a.gguf", "f32")

    assert plain_f32 == (tmp_path / "a.gguf").read_bytes()


def test_headers_are_read_as_safetensors_reads_them(plain):
    with safe_open(plain / "model.safetensors", "numpy") as theirs:
        path = plain / "model.safetensors"
        ours = read_header(partial(read_at, path), path.name, path.stat().st_size)
        assert set(theirs.keys()) == set(ours)
        for name, tensor in ours.items():
            other = theirs.get_slice(name)
            assert (tensor.dtype, list(tensor.shape)) == (other.get_dtype(), other.get_shape())


def test_a_folder_has_its_name_from_within(plain, monkeypatch):
    """Also where it is given as "."."""
    monkeypatch.chdir(plain)

    names = [api.open_source(where).metadata["general.name"] for where in (".", plain)]

    assert names == [Value("str", "Model")] * 2


def test_a_model_card_with_lists_for_words_is_no_obstacle(checkpoint, tmp_path):
    """What is no word is left out, and never spelled out: aliases make it endless."""
    folder = checkpoints.build(tmp_path / "model", checkpoint)
    aliases = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60))]
    card = [*aliases, "author: *a59", "version: 1.5", "tags: [*a59, null, 2024-01-31, text]"]
    (folder / "README.md").write_text("\n".join(["---", *card, "---", ""]))

    metadata = api.open_source(folder).metadata

    assert "general.author" not in metadata
    assert metadata["general.version"] == Value("str", "1.5")
    assert metadata["general.tags"] == Value("[str]", ["2024-01-31", "text"])
