"""A GGUF as a source: cut as llama-quantize cuts it, whatever its architecture."""

import numpy as np
import pytest

from gemcut import api, ggml
from gemcut.errors import GGUFError, PlanError
from gemcut.gguf_file import GGUFFile, TensorInfo, Value
from gemcut.gguf_layout import header
from gemcut.gguf_writer import GGUFWriter
from gemcut.llama import Model
from tests import oracle

SOURCES = ["bf16", "f32", "q8_0"]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("mixture", ["q4_k_m", "q8_0", "q2_k"])
def test_a_gguf_is_cut_as_llama_quantize_does(source, mixture, request, tmp_path):
    """Metadata and every byte; from Q8_0, llama-quantize must be told that it may."""
    path = request.getfixturevalue(source)

    api.quantize_model(api.open_source(path), tmp_path / "ours.gguf", api.Target(mixture))

    oracle.quantize(path, tmp_path / "theirs.gguf", mixture, requantize=True)
    oracle.assert_same(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


def test_a_low_bit_file_is_cut_again_only_when_asked_for(q4_k_m, tmp_path):
    with pytest.raises(GGUFError, match="is in q6_k already.*--allow-requantize"):
        api.open_source(q4_k_m)

    model = api.open_source(q4_k_m, requantize=True)
    api.quantize_model(model, tmp_path / "ours.gguf", api.Target("q3_k_m"))

    assert any("in q4_k: cut again" in note for note in model.notes)
    oracle.quantize(q4_k_m, tmp_path / "theirs.gguf", "q3_k_m", requantize=True)
    oracle.assert_same(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


def test_the_checkpoint_and_its_gguf_give_one_file(checkpoint, bf16, tmp_path):
    """But for the order of the metadata, cutting needs no 16-bit file in between."""
    for name, source in (("a", checkpoint), ("b", bf16)):
        api.quantize_model(api.open_source(source), tmp_path / name, api.Target("iq4_xs"))
    with GGUFFile(tmp_path / "a") as a, GGUFFile(tmp_path / "b") as b:
        assert dict(a.metadata) == dict(b.metadata)
        assert all(np.array_equal(a.rows(name), b.rows(name)) for name in a.tensors)


@pytest.fixture
def foreign(tmp_path):
    """A file of an architecture that nobody knows, with metadata of every kind."""
    random = np.random.default_rng(0)
    metadata = {
        "general.architecture": Value("str", "nobody"),
        "general.file_type": Value("u32", 1),
        "general.alignment": Value("u32", 64),
        "nobody.block_count": Value("u32", 1),
        "nobody.odd": Value("[i8]", [-1, 2]),
        "nobody.text": Value("[str]", ["a", ""]),
        "nobody.long": Value("u64", 1 << 40),
    }
    arrays = {
        "token_embd.weight": random.standard_normal((16, 256), np.float32),
        "blk.0.ffn_gate_exps.weight": random.standard_normal((3, 4, 256), np.float32),
        "blk.0.attn_norm.weight": random.standard_normal(256, np.float32),
        "blk.0.ffn_gate_inp.weight": random.standard_normal((3, 256), np.float32),
        "blk.0.table": np.arange(32, dtype=np.int32).reshape(4, 8),
        "blk.0.thin.weight": random.standard_normal((1, 256), np.float32),
    }
    path = tmp_path / "foreign.gguf"
    kinds = {name: "i32" if array.dtype == np.int32 else "f32" for name, array in arrays.items()}
    infos = [TensorInfo(n, a.shape, ggml.type_named(kinds[n])) for n, a in arrays.items()]
    with GGUFWriter(path, metadata, infos) as writer:
        for info in infos:
            rows = arrays[info.name].reshape(info.rows, -1)
            writer.write(info.name, 0, np.ascontiguousarray(rows).view(np.uint8))
    return path


def test_an_unknown_architecture_is_cut_and_the_rest_is_carried_over(foreign, tmp_path):
    api.quantize_model(api.open_source(foreign), tmp_path / "a.gguf", api.Target("q4_k", pure=True))

    with GGUFFile(tmp_path / "a.gguf") as cut, GGUFFile(foreign) as source:
        types = {name: str(info.type) for name, info in cut.tensors.items()}
        assert types == {
            "token_embd.weight": "q4_k",
            "blk.0.ffn_gate_exps.weight": "q4_k",
            "blk.0.attn_norm.weight": "f32",
            "blk.0.ffn_gate_inp.weight": "f32",
            "blk.0.table": "i32",
            "blk.0.thin.weight": "f32",
        }
        own = {k: v for k, v in source.metadata.items() if k.startswith("nobody.")}
        assert own.items() <= cut.metadata.items()
        for name, kind in types.items():
            if kind != "q4_k":
                assert np.array_equal(cut.rows(name), source.rows(name))


def test_a_missing_part_of_a_split_file_is_named(bf16, tmp_path):
    part = tmp_path / "a-00001-of-00002.gguf"
    with GGUFFile(bf16) as file:
        extra = {"split.count": Value("u16", 2), "split.no": Value("u16", 0)}
        info = file.tensors["output_norm.weight"]
        with GGUFWriter(part, {**file.metadata, **extra}, [info]) as writer:
            writer.write(info.name, 0, file.rows(info.name))

    with pytest.raises(GGUFError, match="2 parts belong together, and 1 are here"):
        api.open_source(part)


def test_what_is_cut_from_a_gguf_runs(bf16, tmp_path):
    api.quantize_model(api.open_source(bf16), tmp_path / "a.gguf", api.Target(bpw=5.0))
    with Model.load(tmp_path / "a.gguf") as model:
        assert len(model.tokenize("def f():")) > 1


def rewritten(path, target, **metadata):
    """A file with other metadata, by keys with __ for each full stop; None leaves one out."""
    changed = {key.replace("__", "."): value for key, value in metadata.items()}
    with GGUFFile(path) as file:
        values = {**file.metadata, **changed}
        kept = {key: value for key, value in values.items() if value is not None}
        with GGUFWriter(target, kept, file.tensors.values()) as writer:
            for name in file.tensors:
                writer.write(name, 0, file.rows(name))
    return target


def test_parts_that_were_merged_are_one_file(bf16, tmp_path):
    """llama.cpp's gguf-split says so by a count of 0."""
    merged = rewritten(bf16, tmp_path / "merged.gguf", split__count=Value("u16", 0))

    assert len(api.open_source(merged).tensors) == len(api.open_source(bf16).tensors)


@pytest.mark.parametrize("count", [Value("str", "2"), Value("[u32]", [2]), Value("f32", 2.0)])
def test_a_count_of_parts_that_is_none_is_refused(count, bf16, tmp_path):
    damaged = rewritten(bf16, tmp_path / "a.gguf", split__count=count)

    with pytest.raises(GGUFError, match="damaged: split.count is .*2.*, wanted a number"):
        api.open_source(damaged)


@pytest.mark.parametrize("heads", [None, Value("u32", 0), Value("[i32]", [0, 2])])
def test_blocks_without_key_value_heads_are_cut(heads, foreign, tmp_path):
    """Recurrent ones have none, and the first block may be one."""
    source = rewritten(foreign, tmp_path / "a.gguf", nobody__attention__head_count_kv=heads)

    plan = api.make_plan(api.open_source(source), api.Target("q4_k_m"))

    assert plan.tensors["blk.0.ffn_gate_exps.weight"].type == "q4_k"


def test_a_count_that_is_no_number_is_refused(foreign, tmp_path):
    source = rewritten(foreign, tmp_path / "a.gguf", nobody__block_count=Value("str", "x"))

    with pytest.raises(PlanError, match="nobody.block_count is 'x', wanted a number"):
        api.make_plan(api.open_source(source), api.Target("q4_k_m"))


def test_a_table_of_integers_is_carried_over_whatever_its_name(tmp_path):
    """Even where the name is that of a matrix to be cut."""
    metadata = {"general.architecture": Value("str", "nobody")}
    info = TensorInfo("blk.0.ids.weight", (4, 8), ggml.type_named("i32"))
    rows = np.arange(32, dtype=np.int32).reshape(4, 8)
    with GGUFWriter(tmp_path / "a.gguf", metadata, [info]) as writer:
        writer.write(info.name, 0, rows.view(np.uint8))

    api.convert_checkpoint(api.open_source(tmp_path / "a.gguf"), tmp_path / "b.gguf")

    with GGUFFile(tmp_path / "b.gguf") as file:
        assert str(file.tensors[info.name].type) == "i32"
        assert np.array_equal(file.rows(info.name).view(np.int32), rows)


def test_a_vocabulary_alone_is_refused(bf16, tmp_path):
    with GGUFFile(bf16) as file:
        (tmp_path / "vocabulary.gguf").write_bytes(header(file.metadata, []))

    with pytest.raises(GGUFError, match="vocabulary.gguf: holds no tensors"):
        api.open_source(tmp_path / "vocabulary.gguf")


def test_what_was_said_of_the_sources_own_types_is_left_behind(bf16, tmp_path):
    """The importance matrix that it was cut with is not this file's."""
    told = Value("str", "other.imatrix")
    source = rewritten(bf16, tmp_path / "a.gguf", quantize__imatrix__file=told)

    assert "quantize.imatrix.file" not in api.open_source(source).metadata
