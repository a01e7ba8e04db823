"""Files with a type for every single expert: what marks them, and what is found wrong in them."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut import ggml
from gemcut.convert.gguf_source import open_gguf
from gemcut.convert.model import STRICT
from gemcut.errors import GGUFError
from gemcut.gguf_experts import (
    MARK,
    expert_name,
    is_marked,
    marked,
    restored,
    stack_of,
    stacks,
)
from gemcut.gguf_file import GGUFFile, TensorInfo, Value
from gemcut.gguf_layout import header, layouts
from gemcut.gguf_parts import GGUFParts
from gemcut.gguf_writer import GGUFWriter
from tests.child import run_code

STACK = "blk.0.ffn_down_exps.weight"
TYPES = [ggml.type_named(name) for name in ("q4_0", "q8_0", "f16", "q4_0")]
STOCK = {
    "general.architecture": Value("str", "gemma4"),
    "gemma4.block_count": Value("u32", 1),
    "gemma4.expert_count": Value("u32", len(TYPES)),
}

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
counts = st.integers(1, 9)
KEPT = "general.architecture"


@pytest.fixture
def experts():
    """The experts of one stack, and a tensor beside them."""
    infos = [TensorInfo(expert_name(STACK, n), (2, 64), kind) for n, kind in enumerate(TYPES)]
    return [TensorInfo("output_norm.weight", (64,), ggml.type_named("f32")), *infos]


def write(path, infos, metadata=None, split_size=None):
    """Files of zeros; the path of the first."""
    values = marked(STOCK) if metadata is None else metadata
    made = layouts(path, values, infos, split_size)
    for each, layout in made.items():
        with GGUFWriter(each, layout.metadata, layout.tensors) as writer:
            for info in layout.tensors:
                writer.write(info.name, 0, np.zeros((info.rows, info.row_bytes), np.uint8))
    return next(iter(made))


@given(names, st.dictionaries(names, st.integers(0, 9).map(lambda n: Value("u32", n))))
def test_marks_are_taken_off_again(architecture, others):
    stock = {KEPT: Value("str", architecture), **others}
    found = marked(stock)

    assert list(found)[:3] == [KEPT, "gemcut.experts.architecture", "gemcut.experts.version"]
    assert found[KEPT].data == architecture + MARK and is_marked(found)
    assert restored(found, "x") == stock == restored(stock, "x") and not is_marked(stock)
    assert list(restored(found, "x")) == [KEPT, *(key for key in stock if key != KEPT)]


@given(st.integers(0, 999_999_999), st.sampled_from(["gate", "up", "down", "gate_up"]), counts)
def test_an_expert_knows_its_stack(block, projection, number):
    stack = f"blk.{block}.ffn_{projection}_exps.weight"
    assert stack_of(expert_name(stack, number)) == (stack, number)
    assert stack_of(stack) is None


@pytest.mark.parametrize(
    "name",
    [
        "blk.0.ffn_down_exps.01.weight",
        "blk.0.ffn_down_exps.1.bias",
        "blk.0.ffn_down_exps.1000000.weight",
        "blk.0.ffn_down.1.weight",
        "blk.0.ffn_down_shexp.1.weight",
        "blk.0.ffn_down_exps.\u0661.weight",
        "blk.0.ffn_down_exps.1.weight\n",
    ],
)
def test_other_names_are_no_experts(name):
    assert stack_of(name) is None


@given(st.data(), st.lists(counts, min_size=1, max_size=4), counts, counts)
def test_stacks_are_found_in_any_order(data, blocks, rows, units):
    """Every expert in its place, whatever its type, and no other tensor."""
    infos, wanted = [TensorInfo("blk.0.ffn_down.weight", (8, 32), TYPES[0])], {}
    for block, count in enumerate(blocks):
        name = f"blk.{block}.ffn_up_exps.weight"
        kinds = data.draw(st.lists(st.sampled_from(TYPES), min_size=count, max_size=count))
        wanted[name] = kinds
        shape = (rows, 32 * units)
        infos += [TensorInfo(expert_name(name, n), shape, kind) for n, kind in enumerate(kinds)]

    found = stacks(data.draw(st.permutations(infos)), "x")

    assert found.keys() == wanted.keys()
    for name, stack in found.items():
        assert list(stack.types) == wanted[name]
        assert stack.shape == (len(wanted[name]), rows, 32 * units)
        assert stack.weights == len(wanted[name]) * rows * 32 * units
        assert stack.nbytes == sum(rows * kind.row_bytes(32 * units) for kind in wanted[name])


def test_a_file_is_read_as_a_stock_one_but_for_its_experts(experts, tmp_path):
    path = write(tmp_path / "x.gguf", experts)
    with GGUFFile(path) as file, GGUFParts(path) as parts:
        assert dict(file.metadata) == STOCK == dict(parts.metadata)
        assert file.per_expert and parts.per_expert
        assert [*file.tensors] == [info.name for info in experts]
        assert file.stacks == parts.stacks and file.stacks[STACK].types == tuple(TYPES)
        offsets = [info.offset for info in file.stacks[STACK].experts]
        assert all(a < b for a, b in pairwise(offsets))


def test_an_unmarked_file_is_what_it_says(experts, tmp_path):
    """Whatever its tensors are called: nobody said that these are experts."""
    with GGUFFile(write(tmp_path / "x.gguf", experts, STOCK)) as file:
        assert not file.per_expert and not file.stacks
        assert [*file.tensors] == [info.name for info in experts]
        assert dict(file.metadata) == STOCK


def test_a_stack_may_lie_in_several_files(experts, tmp_path):
    first = write(tmp_path / "x.gguf", experts, split_size=200)
    with GGUFParts(first) as parts:
        assert parts.count == len(experts) and parts.per_expert
        assert parts.stacks[STACK].types == tuple(TYPES)
        assert parts.files[0].per_expert and not parts.files[0].stacks
        last = parts.files[-1].path
    last.unlink()
    with GGUFParts(first) as parts:  # said by who needs all of it
        assert parts.missing == 1 and parts.per_expert and not parts.stacks


def test_experts_that_no_part_has_are_missed(experts, tmp_path):
    first = write(tmp_path / "x.gguf", experts[:-1], split_size=200)
    with pytest.raises(GGUFError, match=r"ffn_down_exps.3.weight is missing"):
        GGUFParts(first)


def test_a_part_under_another_name_is_not_whole(experts, tmp_path):
    """It has some of the experts, and nothing tells where the others are."""
    lone = write(tmp_path / "x.gguf", experts, split_size=400).rename(tmp_path / "lone.gguf")
    with GGUFFile(lone) as file:
        assert not file.stacks
    with pytest.raises(GGUFError, match=r"ffn_down_exps.\d.weight is missing"):
        GGUFParts(lone)
    whole = marked(STOCK) | {"split.count": Value("str", "several")}
    with GGUFParts(write(tmp_path / "whole.gguf", experts, whole)) as parts:
        assert parts.stacks.keys() == {STACK}


def test_experts_at_one_place_are_refused(experts, tmp_path):
    """A small file would take the memory of a large one."""
    path = tmp_path / "bomb.gguf"
    path.write_bytes(header(marked(STOCK), experts) + bytes(400))
    with pytest.raises(GGUFError, match="tensors of .* bytes in 400: they overlap"):
        GGUFFile(path)


def _without(number):
    return lambda infos: [i for i in infos if i.name != expert_name(STACK, number)]


def _more(infos):
    return [*infos, TensorInfo(expert_name(STACK, len(TYPES)), (2, 64), TYPES[0])]


def _both(infos):
    return [*infos, TensorInfo(STACK, (len(TYPES), 2, 64), TYPES[0])]


def _shaped(shape):
    return lambda infos: [*infos[:-1], replace(infos[-1], shape=shape)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without(0), "exps.0.weight is missing, though expert 3 is there: .* copy or make"),
        (_without(2), "exps.2.weight is missing"),
        (_without(3), "exps.3.weight is missing, though expert 2"),
        (_more, "exps.4.weight, though experts are 4"),
        (_both, "ffn_down_exps.weight is there, and so are its experts"),
        (_shaped((3, 64)), r"exps.3.weight has the shape \(3, 64\), expert 0 \(2, 64\); wanted"),
        (_shaped((2, 2, 64)), r"exps.3.weight has the shape \(2, 2, 64\)"),
    ],
)
def test_a_table_that_is_not_whole_is_refused(change, message, experts, tmp_path):
    path = write(tmp_path / "x.gguf", change(experts))
    with pytest.raises(GGUFError, match=f"x.gguf: .*{message}"):
        GGUFFile(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("gemcut.experts.version", Value("u32", 2), "version 2, wanted 1: a newer gemcut may"),
        ("gemcut.experts.version", Value("bool", True), "version True, wanted 1"),
        ("gemcut.experts.architecture", Value("u32", 4), "damaged: general.architecture 'gemma4-"),
        ("gemcut.experts.architecture", Value("str", "llama"), "experts.architecture 'llama'"),
        ("general.architecture", Value("str", "gemma4"), "damaged: general.architecture 'gemma4'"),
        ("general.architecture", None, "damaged: general.architecture None"),
        ("gemcut.experts.architecture", None, "gemcut.experts.architecture None, wanted"),
    ],
)
def test_marks_that_cannot_be_right_are_refused(key, value, message, experts, tmp_path):
    metadata = {**marked(STOCK), key: value}
    path = write(tmp_path / "x.gguf", experts, {k: v for k, v in metadata.items() if v})
    with pytest.raises(GGUFError, match=f"x.gguf: .*{message}"):
        GGUFFile(path)


def test_experts_that_cannot_be_decoded_are_refused_at_once(experts, tmp_path):
    """Where others are beside them, so that they would have to be."""
    experts[2] = replace(experts[2], type=ggml.type_named("i8"))
    path = write(tmp_path / "m.gguf", experts)

    with pytest.raises(GGUFError, match="ffn_down_exps.weight has experts in i8, which ggml"):
        open_gguf(path, replace(STRICT, restack=True))


def test_stock_loaders_refuse_it_by_its_architecture(experts, tmp_path):
    """And say so, before they look for tensors; in a process whose log is llama.cpp's own."""
    path = write(tmp_path / "x.gguf", experts)
    code = f"import llama_cpp; llama_cpp.Llama({str(path)!r}, n_gpu_layers=0)"
    done = run_code(code)
    assert done.returncode == 1 and "Failed to load model" in done.stderr
    assert f"unknown model architecture: 'gemma4{MARK}'" in done.stderr
