"""Padded widths, and gate and up apart: llama.cpp computes the same from such a file."""

from dataclasses import replace

import numpy as np
import pytest

from gemcut import api, ggml
from gemcut.api import Target
from gemcut.convert.lazy import Encoded, Stored
from gemcut.engine import ContextOptions
from gemcut.errors import PlanError
from gemcut.gguf_file import GGUFFile, TensorInfo
from gemcut.gguf_writer import GGUFWriter
from gemcut.llama import Context, Model
from gemcut.plan import Entry, Plan
from gemcut.quantize.reshape import Padded, shaped, shaped_importance
from gemcut.quantize.widths import paddings, splits
from tests import families

# Every architecture of the tables, and which widths each recording has.
RECORDED = {
    "deepseek_v2_lite": {"dense", "experts"},
    "deepseek_v3": {"dense", "experts"},
    "gemma4_26b": {"dense", "experts"},
    "gemma4_12b": {"dense"},
    "glm4_moe": {"dense", "experts"},
    "glm4_moe_lite": {"dense", "experts"},
    "llama4": {"experts"},
    "llama4_text": {"dense", "experts"},
    "mixtral": {"experts"},
    "olmoe": {"experts"},
    "qwen3_5_moe": {"experts", "shared"},
    "qwen3_moe": {"experts"},
    "qwen3_next": {"experts", "shared"},
}
FUSED = ["deepseek_v3", "gemma4_26b", "qwen3_5_moe", "qwen3_next"]
TOKENS = 24
SLOW = {"iq1_s", "iq1_m", "iq2_s"}  # ggml needs up to half a minute for their tables


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A function: a recording's checkpoint as an F32 GGUF."""
    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = folder / "plain.gguf"
            source = families.build(folder / "checkpoint", name)
            api.convert_checkpoint(api.open_source(source), made[name], "f32", threads=1)
        return made[name]

    return make


def logits(path, window):
    exact = ContextOptions(
        len(window), flash_attention=False, type_k="f32", type_v="f32", threads=1
    )
    with Model.load(path) as model, Context(model, exact) as context:
        return context.decode(window, outputs="all").copy()  # which ends with the context


def assert_computes_the_same(ours, theirs, window):
    """But for the order in which sums are taken."""
    got, wanted = logits(ours, window), logits(theirs, window)
    assert np.abs(got - wanted).max() < 2e-4 * np.abs(wanted).max()


def plan_of(model, kind="f32", add=32, only=None, split=()):
    """A plan with wider feed-forwards, and fused tensors apart."""
    wider = {}
    for what, padding in paddings(model).items():
        if add and (only is None or what in only):
            wider |= {n: f * (padding.width + add) for n, f in padding.tensors.items()}
    entries = {}
    for tensor in model.tensors:
        entry = Entry(tensor.kept or kind, padded_to=wider.get(tensor.name))
        if tensor.name in split:
            entries |= {n: replace(entry, split=True) for n in splits(model)[tensor.name]}
        else:
            entries[tensor.name] = entry
    return Plan(model.architecture, model.weights, 1, {}, {}, entries)


def fused(source, output):
    """A GGUF with gate and up of all experts in one tensor."""
    with GGUFFile(source) as file:
        infos, rows = [], {}
        for name, info in file.tensors.items():
            data = file.rows(name).reshape(*info.shape[:-1], -1)
            if ".ffn_up_exps" in name:
                continue
            if ".ffn_gate_exps" in name:
                up = file.rows(name.replace("gate", "up")).reshape(data.shape)
                data = np.concatenate([data, up], axis=1)
                name = name.replace("gate", "gate_up")
                info = TensorInfo(name, (*data.shape[:-1], info.shape[-1]), info.type)
            infos.append(info)
            rows[name] = data.reshape(-1, data.shape[-1])
        with GGUFWriter(output, file.metadata, infos) as writer:
            for name, data in rows.items():
                writer.write(name, 0, data)
    return output


def cut(source, output, plan):
    api.quantize_model(api.open_source(source), output, Target(plan=plan), threads=2)
    return output


@pytest.mark.parametrize("name", RECORDED)
def test_every_recorded_width_may_grow(name, plain, tmp_path):
    """The file is larger, says so in its metadata, and computes what it did."""
    source = plain(name)
    model = api.open_source(source)
    known = paddings(model)
    window = families.expected(name)[0][:TOKENS]

    assert RECORDED[name] == known.keys()
    for what, padding in known.items():
        made = cut(source, tmp_path / f"{what}.gguf", plan_of(model, only=[what]))
        with GGUFFile(made) as file:
            assert file.get(padding.key) == padding.width + 32
        assert_computes_the_same(made, source, window)


def test_every_architecture_that_may_be_padded_or_split_is_recorded(plain):
    """Nothing stands in the tables without a proof."""
    from gemcut.quantize import widths

    recorded: dict[str, set[str]] = {}
    for name, known in RECORDED.items():
        recorded.setdefault(api.open_source(plain(name)).architecture, set()).update(known)

    assert {name: known.keys() for name, known in widths._PADDED.items()} == recorded
    assert widths._LOADED_APART == {api.open_source(plain(name)).architecture for name in FUSED}


@pytest.mark.parametrize("add", [0, 32])
@pytest.mark.parametrize("name", FUSED)
def test_gate_and_up_are_written_apart_in_some_blocks(name, add, plain, tmp_path):
    """Beside blocks where they are not; padded or as they are."""
    source = fused(plain(name), tmp_path / "fused.gguf")
    model = api.open_source(source)
    assert len(splits(model)) > 1
    first = list(splits(model))[::2]

    made = cut(source, tmp_path / "apart.gguf", plan_of(model, add=add, split=first))

    assert_computes_the_same(made, source, families.expected(name)[0][:TOKENS])


def test_the_demo_may_be_padded_and_split(checkpoint, bf16, tmp_path):
    """With its own tokens' logits, in BF16, and from the checkpoint itself."""
    model = api.open_source(checkpoint)
    plan = plan_of(model, "bf16", 16, split=list(splits(model))[:1])

    api.quantize_model(model, tmp_path / "a.gguf", Target(plan=plan), threads=2)

    assert {"experts", "dense"} == paddings(model).keys()
    assert_computes_the_same(tmp_path / "a.gguf", bf16, np.arange(5, 60, dtype=np.int32))


def test_widths_that_differ_or_have_biases_do_not_grow(plain):
    """Gemma 4 E2B's dense widths change in the middle; gpt-oss adds to every unit."""
    for name in ("gemma4_e2b", "gpt_oss_bf16"):
        assert {} == paddings(api.open_source(plain(name)))
        assert {} == splits(api.open_source(plain(name)))


def test_a_shape_is_taken_on_once(plain):
    """What has the shape already is given back, and so is what is asked for none."""
    model = api.open_source(plain("gemma4_26b"))
    plan = plan_of(model, split=list(splits(model)))

    made = shaped(model, plan)

    assert shaped(made, plan) is made
    assert shaped(model, plan_of(model, add=0)) is model
    assert {tensor.name for tensor in made.tensors} == plan.tensors.keys()


def test_rows_are_the_sources_with_zeros(plain):
    """Read in any tiles: a fused tensor's zeros follow each of its halves."""
    model = api.open_source(plain("gemma4_26b"))
    tensors = {tensor.name: tensor for tensor in model.tensors}
    for new in shaped(model, plan_of(model)).tensors:
        old = tensors[new.name].read(0, tensors[new.name].rows)
        halves = 2 if "gate_up" in new.name else 1
        groups = new.matrices * halves
        whole = np.zeros((groups, new.rows // groups, new.columns), np.float32)
        old = old.reshape(groups, -1, old.shape[-1])
        whole[:, : old.shape[1], : old.shape[2]] = old
        height = new.rows // new.matrices
        for start, stop in ((0, height), (height // 2, height), (height - 1, height)):
            np.testing.assert_array_equal(
                new.read(start, stop), whole.reshape(new.rows, -1)[start:stop]
            )


@pytest.mark.parametrize("name", sorted(ggml.types()))
def test_zeros_are_zeros_in_every_type(name):
    """Encoded rows of them, with and without importance, and bytes that are zero."""
    kind, columns = ggml.type_named(name), 512
    rows = np.zeros((2, columns), np.float32)
    blank = np.zeros((2, kind.row_bytes(columns)), np.uint8)

    assert not ggml.dequantize(kind, blank, columns).any()
    for importance in [] if name in SLOW else given(kind, columns):
        assert not ggml.dequantize(kind, ggml.quantize(kind, rows, importance), columns).any()


@pytest.mark.parametrize("name", sorted(ggml.types().keys() - SLOW))
def test_padding_without_importance_does_not_spoil_a_row(name):
    """A row that ends within a block keeps its own weights as well as one that does not."""
    kind, columns, own = ggml.type_named(name), 768, 704
    rows = np.random.default_rng(3).standard_normal((4, columns)).astype(np.float32)
    padded = rows * (np.arange(columns) < own)
    for importance in given(kind, columns):
        weights = None if importance is None else importance * (np.arange(columns) < own)
        back = [ggml.dequantize(kind, ggml.quantize(kind, rows, importance), columns)]
        back += [ggml.dequantize(kind, ggml.quantize(kind, padded, weights), columns)]
        errors = [float(np.square((each - rows)[:, :own]).sum()) for each in back]
        assert errors[1] <= 1.1 * errors[0] + 1e-9


def given(kind, columns):
    """Importances that a type can be encoded with."""
    ones = np.ones(columns, np.float32)
    return [ones] if ggml.needs_importance(kind) else [ones, None]


def test_rows_that_are_encoded_already_are_passed_on_where_blocks_stay_whole():
    """Q8_0 rows get blocks of zeros behind them; where they cannot, they are decoded."""
    kind, rows = ggml.type_named("q8_0"), np.arange(96, dtype=np.float32).reshape(3, 32)
    base = Encoded(ggml.quantize(kind, rows), kind, 32)

    whole, odd = Padded(base, 4, 64), Padded(base, 3, 40)

    assert ("q8_0", "bf16") == (whole.type, odd.type)
    raw = whole.raw(slice(0, 4))
    assert raw is not None
    np.testing.assert_array_equal(ggml.dequantize(kind, raw, 64), whole.read(slice(0, 4)))
    assert odd.raw(slice(0, 3)) is None
    assert (3, 40) == odd.read(slice(0, 3)).shape


def test_rows_can_be_asked_for_by_number():
    base = Stored(np.arange(12, dtype=np.float32).reshape(4, 3))
    numbers = np.array([5, 2, 0, 3])

    found = Padded(base, 6, 3, parts=2).read(numbers)

    np.testing.assert_array_equal(found, [[0, 0, 0], [0, 0, 0], [0, 1, 2], [6, 7, 8]])


def test_importance_follows_the_shapes(plain):
    """Both halves have the whole's, and columns that are added have none."""
    model = api.open_source(plain("gemma4_26b"))
    importance = {
        t.name: np.full((t.matrices, t.columns), 2, np.float32) for t in model.tensors if not t.kept
    }
    plan = plan_of(model, split=list(splits(model)))

    found = shaped_importance(importance, model, plan)

    for tensor in shaped(model, plan).tensors:
        if not tensor.kept:
            assert (tensor.matrices, tensor.columns) == found[tensor.name].shape
    down = found["blk.0.ffn_down_exps.weight"]
    assert (down[:, :96] == 2).all() and not down[:, 96:].any()
    assert found["blk.0.ffn_gate_exps.weight"] is found["blk.0.ffn_up_exps.weight"]


def changed(plan, **entries):
    """The plan with other entries; a double underscore stands for a dot, None removes."""
    tensors = dict(plan.tensors)
    for key, entry in entries.items():
        name = key.replace("__", ".") + ".weight"
        if entry is None:
            del tensors[name]
        else:
            tensors[name] = entry
    return replace(plan, tensors=tensors)


def test_what_cannot_be_padded_or_split_is_refused(plain):
    """Each with the tensor's name, and what would do."""
    model = api.open_source(plain("gemma4_26b"))
    plan = plan_of(model)
    wide = Entry("f32", padded_to=128)
    for edited, words in [
        (changed(plan, blk__0__attn_q=wide), "blk.0.attn_q.weight.*cannot be padded"),
        (changed(plan, blk__1__ffn_down_exps=Entry("f32")), "96 units.*128: llama.cpp reads one"),
        (changed(plan, blk__1__ffn_down_exps=replace(wide, padded_to=64)), "64 units; wanted 96"),
        (changed(plan, blk__1__ffn_down=replace(wide, padded_to=10**12)), "wanted 160 to 416"),
        (
            changed(plan, blk__0__ffn_gate_up_exps=None, blk__0__ffn_gate_exps=wide),
            "blk.0.ffn_gate_up_exps.weight: a plan that splits it has",
        ),
        (
            changed(
                plan,
                blk__0__ffn_gate_up_exps=None,
                blk__0__ffn_gate_exps=wide,
                blk__0__ffn_up_exps=wide,
            ),
            "marked as split",
        ),
    ]:
        with pytest.raises(PlanError, match=words):
            api.quantize_model(model, plain("gemma4_26b").with_name("x.gguf"), Target(plan=edited))


def test_a_shared_experts_width_grows_by_its_own_step(plain):
    """DeepSeek's holds several of the experts' widths."""
    model = api.open_source(plain("deepseek_v2_lite"))
    experts = paddings(model)["experts"]
    shared = next(name for name in experts.tensors if "_shexp" in name)
    plan = plan_of(model)
    odd = replace(plan.tensors[shared], padded_to=2 * 128 - 1)

    assert 2 == experts.tensors[shared]
    with pytest.raises(PlanError, match="255 units; wanted 192 to 704, in steps of 2"):
        shaped(model, replace(plan, tensors={**plan.tensors, shared: odd}))
