"""A type for every single expert: written as a plan says, and back to stacks of one type."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemcut import api, ggml
from gemcut.api import Target
from gemcut.api.base import source_gguf
from gemcut.errors import GGUFError, PlanError
from gemcut.gguf_experts import expert_name, stack_of
from gemcut.gguf_file import GGUFFile, TensorInfo, Value
from gemcut.gguf_parts import GGUFParts
from gemcut.gguf_writer import GGUFWriter
from gemcut.llama import Model
from gemcut.plan import METADATA_KEY, Entry, Plan
from gemcut.quantize import tiles, writer
from gemcut.quantize.export import server_arguments, tensor_types
from gemcut.quantize.reshape import shaped
from gemcut.quantize.single_experts import singled
from gemcut.quantize.widths import splits
from tests import checkpoints
from tests.shell import refused, run
from tests.test_reshape import plan_of

STOCK = ("q4_k", "q2_k", "q6_k")  # of padded rows of 256
PLAIN = ("q4_0", "q8_0", "iq4_nl")  # of rows of 64
DOWN, FUSED = "blk.0.ffn_down_exps.weight", "blk.0.ffn_gate_up_exps.weight"
EXPERTS = 4


@pytest.fixture(scope="module")
def model(checkpoint, tmp_path_factory):
    """A small random checkpoint with gate and up in one tensor."""
    folder = tmp_path_factory.mktemp("random") / "model"
    return api.open_source(checkpoints.build(folder, checkpoint))


@pytest.fixture(scope="module")
def importance(model):
    random = np.random.default_rng(0)
    return {
        t.name: random.lognormal(0, 1, (t.matrices, t.columns)).astype(np.float32)
        for t in model.tensors
        if not t.kept
    }


def plan_for(model, kind, wide):
    """Stacks of one type; padded so that every type's blocks divide the rows, and split, if wide.

    All else is in Q4_0, since the dense feed-forward's rows are short.
    """
    add, split = (192, splits(model)) if wide else (0, ())
    plan = plan_of(model, "q4_0", add, {"experts"}, split)
    entries = {n: replace(e, type=kind) for n, e in plan.tensors.items() if "_exps.weight" in n}
    return replace(plan, tensors={**plan.tensors, **entries})


def mixed(plan, kinds, start=0):
    """The plan with its stacks' experts in these types, one after the other, round and round."""
    entries, number = dict(plan.tensors), start
    for name in [name for name in entries if "_exps.weight" in name]:
        each = tuple(kinds[(number + n) % len(kinds)] for n in range(EXPERTS))
        entries[name] = replace(entries[name], type=each[0], experts=each)
        number += 1
    return replace(plan, tensors=entries)


@pytest.fixture(scope="module")
def cut(model, importance, tmp_path_factory):
    """A function: a file of a plan, the same one for the same name."""
    folder, made = tmp_path_factory.mktemp("cut"), {}

    def make(name, plan):
        if name not in made:
            made[name] = folder / f"{name}.gguf"
            api.quantize_model(model, made[name], Target(plan=plan), importance, threads=2)
        return made[name]

    return make


@pytest.fixture(scope="module", params=["wide", "plain"])
def pair(request, model, cut):
    """A file with types per expert; and a function: the stock file in one type."""
    wide = request.param == "wide"
    kinds = STOCK if wide else PLAIN
    plan = mixed(plan_for(model, kinds[0], wide), kinds)
    return cut(f"mixed-{request.param}", plan), lambda kind: cut(
        f"{request.param}-{kind}", plan_for(model, kind, wide)
    )


@pytest.fixture(scope="module")
def single(model, cut):
    """A file with types per expert of the plain widths."""
    return cut("mixed-plain", mixed(plan_for(model, PLAIN[0], False), PLAIN))


def test_every_expert_is_what_a_stock_file_of_its_type_holds(pair):
    """Byte for byte, with the same importance, also of padded and divided stacks."""
    path, stock_of = pair
    with GGUFFile(path) as file:
        assert file.per_expert and len(file.stacks) in (4, 6)
        for name, stack in file.stacks.items():
            assert len(set(stack.types)) == 3 and len(stack.experts) == EXPERTS
            for number, info in enumerate(stack.experts):
                with GGUFFile(stock_of(info.type.name)) as stock:
                    assert stock.tensors[name].shape == stack.shape
                    rows = stock.rows(name).reshape(EXPERTS, info.rows, -1)[number]
                    assert np.array_equal(file.rows(info.name), rows)
        with GGUFFile(stock_of(stack.types[0].name)) as stock:
            for name in stock.tensors.keys() - file.stacks.keys():
                assert np.array_equal(file.rows(name), stock.rows(name))


def test_all_of_one_type_is_the_stock_file_rearranged(model, cut):
    """Every byte of data, in the same order; the metadata differs in the marks and the plan."""
    plan = plan_for(model, "q4_0", False)
    ours, theirs = cut("one", mixed(plan, ("q4_0",))), cut("plain-q4_0", plan)
    with GGUFFile(ours) as a, GGUFFile(theirs) as b:
        assert a.path.read_bytes()[a.data_offset :] == b.path.read_bytes()[b.data_offset :]
        assert {**a.metadata, METADATA_KEY: 0} == {**b.metadata, METADATA_KEY: 0}
        assert a.tensor_bytes == b.tensor_bytes and a.weights == b.weights


def test_the_file_carries_its_plan_and_is_as_large_as_was_said(model, single):
    plan = mixed(plan_for(model, PLAIN[0], False), PLAIN)
    with GGUFFile(single) as file:
        carried = Plan.from_json(file.get(METADATA_KEY), "x")
        assert carried.tensors == plan.tensors
        assert carried.size == file.tensor_bytes
        assert [*file.tensors][-EXPERTS - 1 :] != sorted(file.tensors)  # in the model's order
    assert api.planned_size(model, carried) == single.stat().st_size
    assert api.make_plan(model, Target(plan=plan)).size == carried.size


def test_it_may_be_split_and_begins_again(model, importance, single, tmp_path, monkeypatch):
    """In files that divide stacks, continued after an interruption: the same bytes."""
    monkeypatch.setattr(writer, "RELEASE", 1 << 16)
    plan = mixed(plan_for(model, PLAIN[0], False), PLAIN)
    target, told, left = Target(plan=plan), [], [12]

    def stop(_):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    go = (model, tmp_path / "x.gguf", target, importance)
    how = {"threads": 1, "split_size": 100_000, "tell": told.append}
    with pytest.raises(KeyboardInterrupt):
        api.quantize_model(*go, progress=stop, **how)
    api.quantize_model(*go, **how)

    assert "is kept" in told[0] and "continuing at" in told[1]
    first = min(tmp_path.glob("x-*.gguf"))
    with GGUFParts(first) as parts, GGUFFile(single) as whole:
        assert parts.count > 3 and parts.per_expert and parts.stacks.keys() == whole.stacks.keys()
        assert any(set(file.tensors) & set(whole.tensors) for file in parts.files[1:])
        for file in parts.files:
            for name in file.tensors:
                assert np.array_equal(file.rows(name), whole.rows(name))
    assert api.open_source(first, restack=True).weights == model.weights


def test_what_is_written_lets_go_of_its_stack(model):
    plan = mixed(plan_for(model, "q4_k", True), STOCK)
    base = shaped(model, plan)
    made = singled(base, plan)
    expert = next(t for t in made.tensors if stack_of(t.name))
    expert.read(0, 1)
    opened = [t for t in (*base.tensors, expert) if "_array" in vars(t)]
    assert len(opened) == 2
    made.release(expert.rank + 1)
    assert not any("_array" in vars(each) for each in opened)


def entry(name=DOWN, **changes):
    return lambda plan: {name: replace(plan.tensors[name], **changes)}


FOUR = ("q4_0", "q8_0", "q4_0", "q4_0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (entry(experts=FOUR[:3]), "3 types for 4 experts"),
        (entry(experts=()), "0 types for 4 experts"),
        (entry(experts=("q4_0", "q9_9", "q4_0", "q4_0")), "q9_9"),
        (entry(type="q9_9", experts=FOUR), "says q9_9, which none of its experts has"),
        (entry(experts=("q4_0", "q4_k", "q4_0", "q4_0")), "exps.1.weight: rows of 64 do not"),
        (entry(experts=FOUR, device="gpu0"), "types per expert on gpu0.*wanted them on the cpu"),
        (entry("blk.0.attn_q.weight", experts=FOUR), "blk.0.attn_q.weight: .*no stack"),
        (entry("blk.0.ffn_gate_inp.weight", experts=FOUR), "ffn_gate_inp.weight: .*no stack"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(change, message, model, tmp_path):
    plan = plan_for(model, "q4_0", False)
    plan = replace(plan, tensors={**plan.tensors, **change(plan)})
    with pytest.raises(PlanError, match=message):
        api.quantize_model(model, tmp_path / "x.gguf", Target(plan=plan))
    assert not [*tmp_path.iterdir()]


def test_an_expert_may_need_importance(model, importance, tmp_path):
    plan = plan_for(model, "q8_0", False)
    kinds = ("q8_0", "q8_0", "iq2_xxs", "q8_0")
    plan = replace(plan, tensors={**plan.tensors, **entry(FUSED, experts=kinds)(plan)})
    with pytest.raises(PlanError, match="gate_up_exps.2.weight: iq2_xxs needs an importance"):
        api.quantize_model(model, tmp_path / "x.gguf", Target(plan=plan))


def test_a_kept_stack_has_no_types_per_expert(model, tmp_path):
    kept = [replace(t, kept="mxfp4") if t.name == DOWN else t for t in model.tensors]
    plan = plan_for(model, "q4_0", False)
    plan = replace(plan, tensors={**plan.tensors, **entry(experts=FOUR)(plan)})
    with pytest.raises(PlanError, match="ffn_down_exps.weight: .*this tensor stays mxfp4"):
        api.make_plan(replace(model, tensors=tuple(kept)), Target(plan=plan))


def encoded(kind, file, info):
    """An expert's rows in another type, from what they are."""
    values = ggml.dequantize(info.type, file.rows(info.name), info.shape[-1])
    return ggml.quantize(kind, values)


def test_back_to_a_stock_file_that_llama_cpp_loads(pair, tmp_path):
    """Of each stack the largest type: who has it keeps every bit, and so does all else."""
    path, _ = pair
    model = api.open_source(path, restack=True)
    api.convert_checkpoint(model, tmp_path / "stock.gguf")

    assert len(model.notes) == 1 and "get the largest" in model.notes[0]
    with GGUFFile(path) as ours, GGUFFile(tmp_path / "stock.gguf") as stock:
        assert not stock.per_expert and ours.stacks.keys() <= stock.tensors.keys()
        for name, stack in ours.stacks.items():
            kind = max(stack.types, key=lambda kind: kind.bpw)
            assert stock.tensors[name].type == kind
            rows = stock.rows(name).reshape(EXPERTS, stack.shape[1], -1)
            for each, info in zip(rows, stack.experts, strict=True):
                same = info.type == kind
                wanted = ours.rows(info.name) if same else encoded(kind, ours, info)
                assert np.array_equal(each, wanted)
        for name in stock.tensors.keys() - ours.stacks.keys():
            assert stock.tensors[name].type == ours.tensors[name].type
            assert np.array_equal(stock.rows(name), ours.rows(name))
    with Model.load(tmp_path / "stock.gguf"):
        pass


def test_it_is_a_source_like_any_other(model, single, tmp_path):
    """Not cut again unless that is asked for; an expert that has its type keeps its bits."""
    with pytest.raises(GGUFError, match="already, and cutting it again.*--allow-requantize"):
        api.open_source(single)

    source = api.open_source(single, requantize=True)
    assert source_gguf(source) is None  # no reference: it is not what stock files are made from
    assert any("in q4_0: cut again" in note for note in source.notes)
    assert {t.name: t.shape for t in source.tensors} == {t.name: t.shape for t in model.tensors}
    api.quantize_model(source, tmp_path / "x.gguf", Target("q4_0", pure=True))
    with GGUFFile(single) as old, GGUFFile(tmp_path / "x.gguf") as new:
        rows = new.rows(DOWN).reshape(EXPERTS, -1, new.tensors[DOWN].row_bytes)
        for each, info in zip(rows, old.stacks[DOWN].experts, strict=True):
            same = info.type.name == "q4_0"
            wanted = old.rows(info.name) if same else encoded(ggml.type_named("q4_0"), old, info)
            assert np.array_equal(each, wanted)


@pytest.mark.parametrize("split_size", [None, 100_000])
def test_cut_once_more_by_its_own_plan_it_is_the_same_file(single, split_size, tmp_path):
    """All rows pass through as they are, also where a stack lies in two files."""
    with GGUFFile(single) as file:
        plan = Plan.from_json(file.get(METADATA_KEY), "x")
    target = Target(plan=plan)
    parts = tmp_path / "parts.gguf"
    source = api.open_source(single, requantize=True)
    api.quantize_model(source, parts, target, split_size=split_size)
    first = min(tmp_path.glob("parts*.gguf"))
    again = tmp_path / "again.gguf"
    api.quantize_model(api.open_source(first, requantize=True), again, target, threads=2)
    assert again.read_bytes() == single.read_bytes()


def test_no_row_of_a_stack_is_read_twice(single, tmp_path, monkeypatch):
    """But for those that are checked afterwards; and never more than a tile at once."""
    seen: Counter[tuple[str, int]] = Counter()
    real = tiles.encode

    def counting(tensor, kind, start, stop, weights=None):
        seen.update((tensor.name, row) for row in range(start, stop))
        assert (stop - start) * tensor.columns <= 4096
        return real(tensor, kind, start, stop, weights)

    monkeypatch.setattr(writer, "TILE", 4096)
    monkeypatch.setattr(tiles, "encode", counting)
    source = api.open_source(single, requantize=True)
    api.quantize_model(source, tmp_path / "x.gguf", Target("q5_0", pure=True, fallback=True))
    assert set(seen.values()) == {1}
    assert len(seen) == sum(tensor.rows for tensor in source.tensors)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model of nothing but a stack, in BF16: many files of it are made in a second."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    kind = ggml.type_named("bf16")
    info = TensorInfo(DOWN, (5, 3, 64), kind)
    values = np.random.default_rng(1).standard_normal((15, 64), np.float32)
    known = {"general.architecture": Value("str", "x"), "x.expert_count": Value("u32", 5)}
    with GGUFWriter(path, known, [info]) as file:
        file.write(DOWN, 0, ggml.quantize(kind, values))
    return path


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kinds=st.lists(st.sampled_from(PLAIN + ("bf16", "f32")), min_size=5, max_size=5))
def test_any_types_there_and_back(kinds, tiny, tmp_path):
    """Each expert is encoded alone, and put back into its place."""
    source = api.open_source(tiny)
    entries = {DOWN: Entry(kinds[0], experts=tuple(kinds))}
    plan = Plan("x", source.weights, 1, {}, {}, entries)
    api.quantize_model(source, tmp_path / "x.gguf", Target(plan=plan), threads=1)
    api.convert_checkpoint(
        api.open_source(tmp_path / "x.gguf", requantize=True), tmp_path / "y.gguf", "f32", threads=1
    )
    with GGUFFile(tiny) as first, GGUFFile(tmp_path / "y.gguf") as last:
        values = ggml.dequantize(ggml.type_named("bf16"), first.rows(DOWN), 64).reshape(5, 3, 64)
        found = last.rows(DOWN).view(np.float32).reshape(5, 3, 64)
    for kind, before, after in zip(map(ggml.type_named, kinds), values, found, strict=True):
        wanted = ggml.dequantize(kind, ggml.quantize(kind, before), 64)
        assert np.array_equal(wanted, after)


def test_an_expert_is_on_its_stacks_lattice(tmp_path):
    """One that was not trained for Q4_0, among many that were, is encoded as in a stock file."""
    random, shape = np.random.default_rng(2), (20, 16, 64)
    values = random.integers(-8, 8, shape).astype(np.float32)
    values[..., ::32] = -8
    values[3] = random.standard_normal(shape[1:], np.float32)
    info = TensorInfo(DOWN, shape, ggml.type_named("f32"))
    known = {"general.architecture": Value("str", "x"), "x.expert_count": Value("u32", 20)}
    with GGUFWriter(tmp_path / "s.gguf", known, [info]) as file:
        file.write(DOWN, 0, values.reshape(-1, 64).view(np.uint8))
    source = api.open_source(tmp_path / "s.gguf")
    assert source.tensors[0].is_trained_for_q4_0

    data = []
    for entry in (Entry("q4_0"), Entry("q4_0", experts=("q4_0",) * 20)):
        plan = Plan("x", source.weights, 1, {}, {}, {DOWN: entry})
        api.quantize_model(source, tmp_path / "x.gguf", Target(plan=plan), threads=1)
        with GGUFFile(tmp_path / "x.gguf") as file:
            data.append((tmp_path / "x.gguf").read_bytes()[file.data_offset :])
    assert data[0] == data[1]


def test_llama_cpps_own_tools_are_not_told_of_such_plans(model):
    plan = mixed(plan_for(model, "q4_0", False), PLAIN)
    with pytest.raises(PlanError, match="has types within"):
        tensor_types(plan)
    with pytest.raises(PlanError, match="llama-server cannot load.*gemcut serve"):
        server_arguments(plan, "x.gguf")


def test_the_command_line_there_and_back(checkpoint, tmp_path):
    """quantize --plan, inspect, convert; the plan that --save-plan keeps has the types."""
    source = api.open_source(checkpoints.build(tmp_path / "model", checkpoint))
    mixed(plan_for(source, "q4_0", False), PLAIN).write(tmp_path / "p.json")
    ours, stock = str(tmp_path / "x.gguf"), str(tmp_path / "stock.gguf")

    text = run("quantize", tmp_path / "model", "-o", ours, "--plan", tmp_path / "p.json").stderr
    assert "experts_down, each" in text and "x iq4_nl" in text
    found = run("inspect", ours).stdout
    assert "types of their own: 4 of 4 stacks have several" in found
    assert f"{DOWN.removesuffix('.weight')} " in found
    document = json.loads(run("inspect", ours, "--json").stdout)
    assert [each["experts"] for each in document["stacks"]] == [EXPERTS] * 4
    assert sum(document["stacks"][0]["types"].values()) == EXPERTS
    assert document["architecture"] == "gemma4"

    assert "already" in refused(run("quantize", ours, "-o", stock, "--type", "q4_0"))
    assert "what is cut stays" in run("convert", ours, "-o", stock).stderr
    document = json.loads(run("inspect", stock, "--json").stdout)
    assert document["stacks"] == [] and document["weights"] == source.weights
    with GGUFFile(tmp_path / "stock.gguf") as file:
        assert not any(expert_name(DOWN, 0) == name for name in file.tensors)
        assert file.tensors[DOWN].type.name == "q8_0"
