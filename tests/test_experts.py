"""Files with types per expert at work: stock llama.cpp computes with them through our library."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from gemcut import ggml, llama
from gemcut.engine import ModelOptions
from gemcut.errors import EngineError, GemcutError
from gemcut.gguf_experts import Stack, expert_name
from gemcut.gguf_file import GGUFFile, TensorInfo
from gemcut.gguf_parts import GGUFParts
from gemcut.gguf_writer import GGUFWriter
from gemcut.llama import Context, Model
from gemcut.llama.experts import Experts
from gemcut.llama.stock_view import patterns, stock_view
from gemcut.profile import HOST
from gemcut.runtime.placement.held import Names
from tests import per_expert
from tests.decoding import small
from tests.rpc import beside_a_device

pytestmark = pytest.mark.usefixtures("experts_library")

MIXED = ("q4_0", "q8_0", "iq4_nl")
PLAIN = ModelOptions(repack=False, load_mode="none")
TOKENS = np.random.default_rng(0).integers(5, 1000, 96)


def mixed(_, expert):
    return MIXED[expert % len(MIXED)]


@pytest.fixture(scope="module")
def uniform(q4_k_m, tmp_path_factory):
    """Single experts in their stacks' own types."""
    return per_expert.write(tmp_path_factory.mktemp("experts") / "uniform.gguf", q4_k_m)


@pytest.fixture(scope="module")
def several(f32, tmp_path_factory):
    """Experts in three types."""
    return per_expert.write(tmp_path_factory.mktemp("experts") / "mixed.gguf", f32, mixed)


def logits(path, options=PLAIN, context=None):
    """Of many tokens at once, and of three more one by one."""
    with Model.load(path, options) as model, Context(model, context or small()) as run:
        found = [run.decode(TOKENS).copy()]
        return [*found, *(run.decode(TOKENS[:1], 96 + n).copy() for n in range(3))]


# --- results ---


@pytest.mark.parametrize(("repack", "threads"), [(False, 1), (True, 1), (False, 2)])
def test_experts_of_one_type_are_the_stock_file(q4_k_m, uniform, repack, threads):
    """Bit by bit, with ggml's rearranged weights too, whatever the number of threads."""
    options, context = replace(PLAIN, repack=repack), small(threads=threads)
    for stock, ours in zip(
        logits(q4_k_m, options, context), logits(uniform, options, context), strict=True
    ):
        assert np.array_equal(stock, ours)


def is_first(name, _):
    """Whether a result is the first product of experts."""
    return name == "ffn_moe_gate_up-0"


def products(path, options):
    """Every first product of experts: results, and ids, of many tokens and of one."""
    seen = []

    def note(_, tensor):
        seen.append((tensor.read()[0], tensor.sources[2].read()[0, 0]))

    with Model.load(path, options) as model, Context(model, small(), note, is_first) as run:
        run.decode(TOKENS[:64])
        run.decode(TOKENS[:1], 64)
    return seen


@pytest.mark.parametrize("repack", [False, True])
def test_each_expert_has_the_products_of_its_type(f32, several, tmp_path, repack):
    """Row by row what a stock file computes whose experts are all of this type."""
    options = replace(PLAIN, repack=repack)
    stock = {
        kind: products(per_expert.write_stock(tmp_path / f"{kind}.gguf", f32, kind), options)
        for kind in MIXED
    }
    ours = products(several, options)
    assert len(ours) == 2
    for index, (result, ids) in enumerate(ours):
        for number, kind in enumerate(MIXED):
            rows = ids % len(MIXED) == number
            assert np.array_equal(stock[kind][index][1], ids)
            assert rows.any() or index
            assert np.array_equal(stock[kind][index][0][rows], result[rows])


def test_types_differ_from_floats_by_rounding_only(several, f32, tmp_path):
    """A stock file of the very values that the experts have gives nearly the same logits."""
    with GGUFFile(several) as cut, GGUFFile(f32) as file:
        infos = list(file.tensors.values())
        values = {info.name: np.array(file.rows(info.name)) for info in infos}
        for stack in cut.stacks.values():
            rows = [ggml.dequantize(i.type, cut.rows(i.name), i.shape[-1]) for i in stack.experts]
            values[stack.name] = np.concatenate(rows).view(np.uint8)
        path = tmp_path / "values.gguf"
        with GGUFWriter(path, file.metadata, infos) as writer:
            for name, data in values.items():
                writer.write(name, 0, data)
    ours, floats, before = (logits(each)[0] for each in (several, path, f32))
    assert 0 < np.abs(ours - floats).mean() < np.abs(ours - before).mean() / 4


def test_some_stacks_may_stay_whole(f32, tmp_path):
    """Stock stacks and single experts stand side by side."""
    first = per_expert.write(
        tmp_path / "some.gguf", f32, lambda name, _: "f32" if ".1." in name else None
    )
    with Model.load(first, PLAIN) as model, GGUFParts(first) as parts:
        assert {"CPU", "CPU_EXPERTS"} == model.memory.weights.keys()
        assert all(name.startswith("blk.1.") for name in parts.stacks)
    assert all(map(np.array_equal, logits(first), logits(f32)))


def test_a_file_may_be_split(several, f32, tmp_path):
    """Experts of a stack may even be in different parts."""
    first = per_expert.write(tmp_path / "split.gguf", f32, mixed, split_size=400_000)

    assert len(list(tmp_path.iterdir())) > 3
    assert all(map(np.array_equal, logits(first), logits(several)))


def test_models_work_side_by_side(several, uniform, q4_k_m):
    """Each has its experts, and a stock model beside them is as it was."""
    alone = [logits(path)[0] for path in (several, uniform, q4_k_m)]
    models = [Model.load(path, PLAIN) for path in (several, uniform, q4_k_m, several)]
    contexts = [Context(model, small()) for model in models]
    models.pop().close()
    for index in (2, 0, 1):
        assert np.array_equal(contexts[index].decode(TOKENS), alone[index])
    for model in models:
        model.close()
        model.close()


# --- memory ---


def test_memory_is_that_of_the_experts(several):
    """No byte but alignment more, all of it on the host."""
    with GGUFParts(several) as parts, Model.load(several) as model:
        experts = sum(stack.nbytes for stack in parts.stacks.values())
        assert model.memory.weights["CPU_EXPERTS"] == pytest.approx(experts, rel=0.01)
        assert model.size_bytes == sum(info.nbytes for info in parts.tensors)
        assert (model.options.load_mode, Names().place("CPU_EXPERTS")) == ("none", HOST)


def test_memory_is_planned_without_reading(several, q4_k_m):
    """In a process of its own; caches and computing take what they take for a stock file."""
    assert llama.probe(several, context=small()) == llama.probe(q4_k_m, context=small())


def test_a_stack_has_no_bytes_of_a_type(several):
    """Whoever reads weights is told, instead of getting zeros."""
    with Model.load(several, PLAIN) as model:

        def read(_, tensor):
            tensor.sources[0].read()

        with Context(model, small(), read, is_first) as run:
            with pytest.raises(EngineError, match="lies in CPU_EXPERTS"):
                run.decode(TOKENS)


def test_words_need_no_experts(several):
    with Model.load(several, ModelOptions(vocab_only=True)) as model:
        assert model.tokenize("a text").size


CLIENT = """
import json, sys
import numpy as np
from gemcut.engine import ContextOptions, ModelOptions
from gemcut.llama import Context, Model
endpoint, path, logits = sys.argv[1:]
options = ModelOptions(rpc=(endpoint,), repack=False)
with Model.load(path, options) as model:
    with Context(model, ContextOptions(n_ctx=256, n_ubatch=64, threads=1)) as run:
        np.save(logits, run.decode(np.load(logits)))
    print(json.dumps(model.memory.weights))
"""


def test_experts_stay_on_the_host_beside_a_device(uniform, q4_k_m, tmp_path):
    """All else goes to the device; the logits are those of a stock file on the CPU, but for
    rounding."""
    out = tmp_path / "logits.npy"
    np.save(out, TOKENS)
    endpoint, stdout = beside_a_device(CLIENT, uniform, out)
    weights = json.loads(stdout.splitlines()[-1])

    assert {"CPU", "CPU_EXPERTS", f"RPC0[{endpoint}]"} == weights.keys()
    assert np.abs(np.load(out) - logits(q4_k_m)[0]).mean() < 0.02


# --- the view ---


def test_the_view_is_a_stock_file(several, f32, tmp_path):
    """Header and pieces make a file that holds all but the experts."""
    with GGUFParts(several) as parts:
        view = stock_view(parts)
        data = bytearray(view.size)
        data[: len(view.header)] = view.header
        for start, size, part, offset in view.pieces.tolist():
            with parts.files[part].path.open("rb") as file:
                file.seek(offset)
                data[start : start + size] = file.read(size)
    (tmp_path / "view.gguf").write_bytes(data)
    with GGUFFile(tmp_path / "view.gguf") as seen, GGUFFile(f32) as stock:
        assert not seen.per_expert and seen.metadata == stock.metadata
        assert seen.tensors.keys() == stock.tensors.keys()
        for name, info in stock.tensors.items():
            found = seen.tensors[name]
            assert found.shape == info.shape
            if per_expert.is_stack(info):
                assert found.type.bpw < 5 and not seen.rows(name).any()
            else:
                assert np.array_equal(seen.rows(name), stock.rows(name))


def test_patterns_are_of_the_stacks_alone():
    """One for a projection; with numbers only where a stack of it is a stock one."""
    kind = ggml.type_named("f32")
    stacks = {
        name: Stack(name, (TensorInfo(expert_name(name, 0), (1, 32), kind),))
        for name in ("blk.0.ffn_up_exps.weight", "blk.7.ffn_up_exps.weight")
    }
    single = [info for stack in stacks.values() for info in stack.experts]
    stock = TensorInfo("blk.1.ffn_up_exps.weight", (1, 1, 32), kind)

    assert patterns(stacks, single) == [r"^blk\.([0-9]+)\.ffn_up_exps\.weight$"]
    assert patterns(stacks, [*single, stock]) == [r"^blk\.(0|7)\.ffn_up_exps\.weight$"]


# --- what goes wrong ---


def test_a_failing_read_ends_the_loading(several, tmp_path):
    """A file that shrinks while it is read, by llama.cpp or by us."""
    path = tmp_path / "short.gguf"
    path.write_bytes(several.read_bytes())
    with Experts(path, PLAIN) as experts:
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(EngineError, match="cannot be read: Input/output error|end of file"):
            Model._loaded(path, PLAIN, None, experts)


def test_a_file_that_is_replaced_while_it_is_opened(several, uniform, tmp_path, monkeypatch):
    """Its header would not be that of the bytes that are loaded."""
    path = tmp_path / "file.gguf"
    path.write_bytes(several.read_bytes())
    table = Experts._table

    def replaced(self, parts, options):
        (tmp_path / "new").write_bytes(uniform.read_bytes())
        (tmp_path / "new").replace(path)
        return table(self, parts, options)

    monkeypatch.setattr(Experts, "_table", replaced)
    with pytest.raises(EngineError, match="was changed while it was opened: try again"):
        Experts(path, PLAIN)


def test_ill_weights_are_found_when_asked(several, tmp_path):
    """As llama.cpp does it of its own weights."""
    path = tmp_path / "nan.gguf"
    path.write_bytes(several.read_bytes())
    with GGUFFile(path) as file, path.open("r+b") as out:
        info = file.stacks["blk.0.ffn_down_exps.weight"].experts[4]
        out.seek(file.data_offset + info.offset)
        out.write(b"\xff\xff")
    with Model.load(path):
        pass
    with pytest.raises(EngineError, match=r"ffn_down_exps.weight, expert 4 holds NaN"):
        Model.load(path, ModelOptions(check_tensors=True))


def test_types_that_nobody_computes_are_refused(f32, tmp_path):
    """Before anything is loaded, with what to do instead."""
    path = per_expert.write(tmp_path / "f.gguf", f32, lambda name, n: "f32")
    data = path.read_bytes()
    with GGUFFile(path) as file:
        info = file.stacks["blk.0.ffn_down_exps.weight"].experts[3]
        entry = data.index(info.name.encode()) + len(info.name) + 4 + 2 * 8
    path.write_bytes(data[:entry] + bytes([26]) + data[entry + 1 :])  # I32
    with pytest.raises(EngineError, match=r"expert 3: ggml does not multiply.*type 26.*convert"):
        Model.load(path)


def test_loading_can_be_interrupted(several):
    """What the progress callback raises comes out, and the memory is free again."""
    seen = []

    def progress(fraction):
        seen.append(fraction)
        if fraction > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Model.load(several, PLAIN, progress)
    assert seen[-1] > 0.3
    with Model.load(several, PLAIN, seen.append):
        assert seen[-1] == 1


def test_a_missing_part_is_named(f32, tmp_path):
    first = per_expert.write(tmp_path / "split.gguf", f32, mixed, split_size=400_000)
    sorted(tmp_path.iterdir())[2].unlink()
    with pytest.raises(EngineError, match=r"1 of \d+ parts are missing"):
        Model.load(first)


def test_another_architecture_is_llama_cpps_to_refuse(several, tmp_path):
    path = tmp_path / "other.gguf"
    path.write_bytes(several.read_bytes().replace(b"gemma4", b"gemmaX"))
    with pytest.raises(GemcutError, match="unknown model architecture: 'gemmaX'"):
        Model.load(path)
