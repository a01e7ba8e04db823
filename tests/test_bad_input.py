"""What is wrong with a source or an output is said in one line; nothing is written or touched."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemcut import api, ggml
from gemcut.convert.files import read_at
from gemcut.convert.safetensors_file import read_header
from gemcut.errors import CheckpointError, EngineError, GemcutError, OutputError
from gemcut.gguf_file import GGUFFile
from tests import checkpoints, families
from tests.checkpoints import Recipe


@pytest.fixture(scope="module")
def plain(checkpoint, tmp_path_factory) -> Path:
    """A small random checkpoint in the plainest form."""
    return checkpoints.build(tmp_path_factory.mktemp("plain") / "model", checkpoint)


def edit_config(**changes):
    def damage(folder):
        path = folder / "config.json"
        merged = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in merged.items() if v is not ...}))

    return damage


def edit_header(change):
    def damage(folder):
        path = folder / "model.safetensors"
        entries, data = checkpoints.read_safetensors(path)
        change(entries)
        checkpoints.write_safetensors(path, entries, data)

    return damage


def rename(old, new):
    return edit_header(lambda entries: entries.__setitem__(new, entries.pop(old)))


def overwrite(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def remove(name):
    return lambda folder: (folder / name).unlink()


def truncate(name, by):
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - by)


def reshape(entries):
    entries["model.layers.0.experts.down_proj"]["shape"] = [4, 64, 256]


def retype(entries):
    entries["model.layers.1.mlp.up_proj.weight"]["dtype"] = "I16"


def wrong_span(entries):
    entries["model.norm.weight"]["data_offsets"][1] += 2


DENSE = "self_attn.k_proj.weight"
EMPTY = {"dtype": "BF16", "shape": [0], "data_offsets": [0, 0]}
DAMAGES = {
    "no weights": (remove("model.safetensors"), "model: no weights; wanted model.safetensors"),
    "truncated": (
        truncate("model.safetensors", 2),
        "model.safetensors: truncated: .* ends at byte",
    ),
    "empty": (overwrite("model.safetensors", b""), "truncated or not a safetensors file"),
    "no header": (overwrite("model.safetensors", b"\xff" * 64), "truncated or not a safetensors"),
    "no JSON": (overwrite("model.safetensors", b"\x08" + b"\0" * 7 + b"{" * 8), "damaged header"),
    "bytes and shape": (
        edit_header(wrong_span),
        "norm.weight: 514 bytes for shape .256. of BF16, wanted 512",
    ),
    "unknown dtype": (
        edit_header(lambda e: e["model.norm.weight"].update(dtype="Q9")),
        "model.norm.weight: unknown type Q9",
    ),
    "unsupported dtype": (
        edit_header(retype),
        "model.layers.1.mlp.up_proj.weight is I16, wanted floats",
    ),
    "missing tensor": (
        edit_header(lambda e: e.pop(f"model.layers.1.{DENSE}")),
        f"no tensor layers.1.{DENSE}, which gemma4_text has",
    ),
    "extra tensor": (rename("model.norm.weight", "model.nrm.weight"), "norm.weight"),
    "unsupported tensor": (
        edit_header(lambda e: e.update({"model.layers.2.x": EMPTY})),
        "unsupported tensor model.layers.2.x; --ignore PATTERN leaves out",
    ),
    "overlapping tensors": (
        edit_header(lambda e: e.update({"model.layers.2.x": e["model.norm.weight"]})),
        "damaged header: model.(norm.weight|layers.2.x) and .* overlap",
    ),
    "wrong shape": (
        edit_header(reshape),
        r"layers.0.experts.down_proj has shape \[4, 64, 256\]; config.json makes it \[4, 256, 64\]",
    ),
    "no config": (remove("config.json"), "config.json: there is no such file"),
    "config is no JSON": (overwrite("config.json", b"{,}"), "config.json: not JSON"),
    "config is deep": (overwrite("config.json", b"[" * 100_000), "config.json: not JSON"),
    "config is a list": (overwrite("config.json", b"[1]"), "a JSON list, wanted an object"),
    "config is binary": (overwrite("config.json", b"\xff\xfe\0"), "config.json: not JSON"),
    "architecture": (
        edit_config(architectures=["LlamaForCausalLM"]),
        "unknown architecture LlamaForCausalLM; gemcut converts Gemma4ForCausalLM, Gemma4For",
    ),
    "no architecture": (
        edit_config(architectures=..., model_type="gemma7"),
        "unknown architecture gemma7; gemcut converts",
    ),
    "dense model": (
        edit_config(enable_moe_block=False),
        "unsupported tensor model.layers.0.experts.down_proj and 15 more",
    ),
    "missing field": (
        edit_config(top_k_experts=...),
        "no field 'top_k_experts', which gemma4_text",
    ),
    "missing size": (
        edit_config(global_head_dim=...),
        "neither global_head_dim nor per_layer_config",
    ),
    "wrong field": (edit_config(hidden_size="x"), "hidden_size is 'x', wanted a positive number"),
    "negative field": (edit_config(num_experts=-4), "num_experts is -4, wanted a positive number"),
    "too few kinds": (
        edit_config(layer_types=["full_attention"]),
        "1 entries, wanted num_hidden_la",
    ),
    "kinds are no list": (edit_config(layer_types=7), "layer_types is 7, wanted a list"),
    "infinite field": (
        edit_config(rope_parameters={"full_attention": {"partial_rotary_factor": float("inf")}}),
        "config.json or a tokenizer file is damaged: .*",
    ),
    "no rope": (edit_config(rope_parameters={}), "rope_parameters has no full_attention"),
    "shared keys": (edit_config(num_kv_shared_layers=1), "1 blocks with keys of their own"),
    "no tokenizer": (remove("tokenizer.json"), "tokenizer.json: there is no such file"),
    "model card": (overwrite("README.md", b"---\n: [\n---\n"), "README.md|model card"),
}


def contents(folder):
    return {p: hashlib.sha256(p.read_bytes()).digest() for p in folder.rglob("*") if p.is_file()}


def check_refused(folder, words, tmp_path):
    """The error is one line that names the source; nothing is written, the source is untouched."""
    before, output = contents(folder), tmp_path / "out"
    output.mkdir()
    with pytest.raises(CheckpointError, match=words) as caught:
        api.convert_checkpoint(api.open_source(folder), output / "a.gguf", "bf16")
    assert "\n" not in str(caught.value)
    assert any(str(path.name) in str(caught.value) for path in (folder, *folder.iterdir())) or (
        "config.json" in str(caught.value)
    )
    assert [] == list(output.iterdir())
    assert before == contents(folder)


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_refused(damage, words, plain, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(plain, folder)
    damage(folder)

    check_refused(folder, words, tmp_path)


SHARD = "model-00002-of-00003.safetensors"


def edit_index(change):
    def damage(folder):
        checkpoints.edit(folder / checkpoints.INDEX, lambda index: change(index["weight_map"]))

    return damage


SHARD_DAMAGES = {
    "missing": (remove(SHARD), f"model.safetensors.index.json: names {SHARD}, which is missing"),
    "truncated": (truncate(SHARD, 100), f"{SHARD}: truncated"),
    "not in it": (edit_index(lambda m: m.update(x=SHARD)), f"{SHARD}: x is not in it"),
    "elsewhere": (edit_index(lambda m: m.update(x="../a")), "'../a' is not a file name"),
    "no map": (overwrite(checkpoints.INDEX, b"{}"), "no weight_map of names to files"),
    "not in index": (edit_index(lambda m: m.pop("model.norm.weight")), "no tensor norm.weight"),
}


@pytest.mark.parametrize(("damage", "words"), SHARD_DAMAGES.values(), ids=SHARD_DAMAGES)
def test_damaged_shards_are_refused(damage, words, checkpoint, tmp_path):
    folder = checkpoints.build(tmp_path / "model", checkpoint, Recipe(shards=3))
    damage(folder)

    check_refused(folder, words, tmp_path)


@given(st.data())
@settings(max_examples=200)
def test_a_damaged_header_is_a_checkpoint_error_or_still_reads(tmp_path_factory, data):
    """Cut off anywhere, any bytes overwritten: nothing else is raised, nothing is huge."""
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    shapes = {"a.weight": (2, 3), "b.weight": (4,)}
    checkpoints.write_safetensors(path, checkpoints.header(shapes, "BF16"), bytes(20))
    sound = path.read_bytes()
    broken = bytearray(sound[: data.draw(st.integers(0, len(sound)))])
    for at in data.draw(st.lists(st.integers(0, len(sound)), max_size=3)):
        raw = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"9999", b"-1", b"{"]))
        broken[at : at + len(raw)] = raw
    path.write_bytes(broken)

    try:
        found = read_header(lambda n, at: read_at(path, n, at), path.name, path.stat().st_size)
    except CheckpointError as error:
        assert path.name in str(error) and "\n" not in str(error)
        return
    for tensor in found.values():
        assert tensor.offset + tensor.nbytes <= path.stat().st_size


def test_a_source_that_is_no_model_is_refused(plain, tmp_path):
    for source, words in [
        (tmp_path / "none", "none: does not exist; wanted a checkpoint's folder"),
        (plain / "config.json", "config.json: not a GGUF: begins with"),
        (tmp_path / "none.gguf", "none.gguf: cannot be read as a GGUF: No such file"),
    ]:
        with pytest.raises(GemcutError, match=words):
            api.open_source(source)


def test_an_output_that_cannot_be_is_refused(plain, tmp_path):
    model = api.open_source(plain)
    for output, words in [
        (tmp_path, "is a folder; wanted a file name"),
        (tmp_path / "none" / "a.gguf", "a.gguf: cannot be written: make the folder"),
        (plain / "model.safetensors", "is read or written here, too"),
        (plain / "tokenizer.json", "is read or written here, too"),
    ]:
        with pytest.raises(OutputError, match=words):
            api.convert_checkpoint(model, output)
    assert [] == list(tmp_path.iterdir())


def test_a_full_disk_leaves_what_was_there(plain, tmp_path, monkeypatch):
    def full(fd, offset, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    (tmp_path / "a.gguf").write_text("before")

    with pytest.raises(OutputError, match="a.gguf: No space left on device; 0.00 GB are needed"):
        api.convert_checkpoint(api.open_source(plain), tmp_path / "a.gguf")
    assert ["before"] == [path.read_text() for path in tmp_path.iterdir()]


def overwritten(folder, name, value):
    """A checkpoint's copy with one weight of a tensor set to a BF16 value."""
    path = folder / "model.safetensors"
    entries, data = checkpoints.read_safetensors(path)
    begin = entries[f"model.{name}"]["data_offsets"][0]
    bits = int(np.float32(value).view(np.uint32)) >> 16
    edited = data[: begin + 2] + bits.to_bytes(2, "little") + data[begin + 4 :]
    checkpoints.write_safetensors(path, entries, edited)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["bf16", "f16", "f32", "q8_0", "q4_k_m"])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("norm.weight", "output_norm.weight"),
        ("layers.0.experts.down_proj", "blk.0.ffn_down_exps.weight"),
    ],
)
def test_nan_and_infinite_weights_are_refused_by_name(source, target, kind, value, plain, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(plain, folder)
    overwritten(folder, source, value)

    with pytest.raises(EngineError, match=f"^{target}: the weights hold NaN"):
        api.quantize_model(api.open_source(folder), tmp_path / "a.gguf", api.Target(kind))
    assert ["model"] == [path.name for path in tmp_path.iterdir()]


def test_nonfinite_weights_pass_where_they_may(plain, tmp_path):
    """Into float types; a quantized type has no code for them."""
    folder = tmp_path / "model"
    shutil.copytree(plain, folder)
    overwritten(folder, "layers.0.experts.down_proj", np.inf)

    model = api.open_source(folder, nonfinite=True)
    for kind in ("bf16", "f16", "f32"):
        api.quantize_model(model, tmp_path / "a.gguf", api.Target(kind))
        with GGUFFile(tmp_path / "a.gguf") as file:
            info = file.tensors["blk.0.ffn_down_exps.weight"]
            rows = ggml.dequantize(info.type, file.rows(info.name), info.shape[-1])
            assert np.isinf(rows.flat[1]) and np.isfinite(rows.flat[2:]).all()
    with pytest.raises(EngineError, match="^blk.0.ffn_down_exps.weight: the weights hold NaN"):
        api.quantize_model(model, tmp_path / "b.gguf", api.Target("q8_0"))


def test_what_is_not_known_may_be_ignored(plain, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(plain, folder)
    edit_header(lambda e: e.update({"model.extra.0.x": EMPTY, "model.extra.1.x": EMPTY}))(folder)

    with pytest.raises(CheckpointError, match="model.extra.0.x and 1 more; --ignore PATTERN"):
        api.open_source(folder)
    model = api.open_source(folder, ignore=["model.extra.*"])
    assert ("2 ignored tensors left out",) == model.notes


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("llama4_text", {"num_hidden_layers": 10**12}, "1000000000000 blocks .* of .* tensors"),
        ("qwen3_next", {"num_hidden_layers": 10**12}, "1000000000000 blocks .* of .* tensors"),
        ("deepseek_v3", {"num_nextn_predict_layers": 10**12}, "wanted 0 to 64"),
        ("deepseek_v3", {"num_nextn_predict_layers": float("inf")}, "damaged: OverflowError"),
        ("mixtral", {"num_local_experts": 10**12}, "config.json makes it .1000000000000, "),
        ("mixtral", {"vocab_size": 10**12}, "config.json makes it .1000000000000, "),
    ],
)
def test_an_absurd_number_is_refused_at_once(family, changes, words, tmp_path):
    """Before anybody makes a list of that length."""
    folder = families.build(tmp_path / "model", family)
    edit_config(**changes)(folder)

    with pytest.raises(CheckpointError, match=words):
        api.open_source(folder)


def test_absurdly_many_experts_are_not_counted(tmp_path):
    """Where no tensor of another kind tells their number first."""
    folder = families.build(tmp_path / "model", "mixtral")
    router = "block_sparse_moe.gate.weight"
    edit_config(num_local_experts=10**12)(folder)
    edit_header(lambda e: [e.pop(name) for name in [*e] if name.endswith(router)])(folder)

    with pytest.raises(CheckpointError, match=r"no tensor layers.0.*experts.8\.w1.weight"):
        api.open_source(folder)


def test_the_same_weights_in_two_layouts_are_refused(tmp_path):
    """Nobody knows which are right; one of them may be left out."""
    folder = families.build(tmp_path / "model", "mixtral")
    one, other = (f"model.layers.0.{part}.gate.weight" for part in ("block_sparse_moe", "mlp"))
    path = folder / "model.safetensors"
    entries, data = checkpoints.read_safetensors(path)
    size = entries[one]["data_offsets"][1] - entries[one]["data_offsets"][0]
    entries[other] = {**entries[one], "data_offsets": [len(data), len(data) + size]}
    checkpoints.write_safetensors(path, entries, data + bytes(size))

    with pytest.raises(CheckpointError, match=f"{one} and {other} are the same weights"):
        api.open_source(folder)
    assert api.open_source(folder, ignore=[other]).notes == ("1 ignored tensor left out",)


def test_a_name_that_is_in_a_header_twice_is_found_at_once():
    """However many there are: a header of 100 MB has millions."""
    entry = json.dumps(EMPTY)
    names = [*range(50_000), 49_999]
    raw = ("{" + ",".join(f'"{name}": {entry}' for name in names) + "}").encode()
    data = len(raw).to_bytes(8, "little") + raw

    with pytest.raises(CheckpointError, match="a.safetensors: .*: 49999 is in it twice"):
        read_header(lambda n, at: data[at : at + n], "a.safetensors", len(data))


def test_a_file_that_becomes_shorter_is_noticed(plain, tmp_path):
    """When a tensor is looked at; reading past the end would end the process."""
    folder = tmp_path / "model"
    shutil.copytree(plain, folder)
    first, *_, last = api.open_source(folder).tensors[:-1]
    first.read(0, 1)
    os.truncate(folder / "model.safetensors", 5000)

    with pytest.raises(CheckpointError, match="model.safetensors: changed while it was converted"):
        last.read(0, 1)


def test_a_result_beside_its_checkpoint_can_be_written_again(plain, tmp_path):
    """A GGUF in the checkpoint's folder is none of its files."""
    folder = tmp_path / "model"
    shutil.copytree(plain, folder)
    for kind in ("bf16", "f16"):
        api.convert_checkpoint(api.open_source(folder), folder / "a.gguf", kind)
    with GGUFFile(folder / "a.gguf") as file:
        assert file.get("general.file_type") == 1
