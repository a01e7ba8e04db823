"""Which experts files choose, and how far they agree."""

import pickle
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut import api
from gemcut.engine import ContextOptions
from gemcut.errors import EngineError
from gemcut.eval.files import select
from gemcut.eval.routing import capture as module
from gemcut.eval.routing.agreement import Agreement, agreement, compare
from gemcut.eval.routing.capture import Choices, capture
from gemcut.eval.routing.route import route, spread
from gemcut.eval.scoring.column import FLOOR, REFERENCE, Column
from gemcut.eval.texts.chunks import Chunk, cut, half_scored, scored
from gemcut.gguf_file import GGUFFile
from gemcut.llama import Context, Model
from gemcut.quantize.calibration import calibration_text
from tests import families
from tests.rpc import beside_a_device

N_CTX, N_SCORED = 64, 31
BLOCKS, EXPERTS, USED = 6, 16, 4


@pytest.fixture(scope="module")
def chunks(model):
    tokens = model.tokenize(calibration_text(size=4000))
    return half_scored(cut(tokens, N_CTX, 6, model.bos, "text"))


def noise(model, count=2) -> list[Chunk]:
    """Chunks of random tokens, for models whose vocabulary knows no text."""
    random = np.random.default_rng(0)
    rows = random.integers(3, model.n_vocab - 1, (count, N_CTX)).astype(np.int32)
    return [Chunk(row, scored(N_CTX)) for row in rows]


def options(n_ubatch=N_CTX) -> ContextOptions:
    return ContextOptions(n_ctx=N_CTX, n_ubatch=n_ubatch, threads=1, n_outputs=N_SCORED)


def results(model, chunk, *names, n_ubatch=N_CTX) -> dict[str, np.ndarray]:
    """What was computed under these names for the scored tokens: [n_scored, ...]."""
    found = {}

    def wants(name, tensor):
        base, _, block = name.rpartition("-")
        return base in names and block.isdecimal()

    def on_tensor(name, tensor):
        found.setdefault(name, []).append(tensor.read()[0, 0])

    with Context(model, options(n_ubatch), on_tensor, wants) as context:
        context.decode(chunk.tokens, outputs=chunk.outputs)
    whole = {name: np.concatenate(parts) for name, parts in found.items()}
    return {k: v[chunk.outputs] if len(v) == N_CTX else v for k, v in whole.items()}


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def best(scores, count):
    """The columns of the highest scores of every row: [rows, count]."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :count]


def as_sets(ids):
    return [set(row) for row in ids.tolist()]


def by_expert(choices, gates):
    """Gates in the order of the experts' numbers, each token's adding up to one."""
    ordered = np.take_along_axis(gates, np.argsort(choices, axis=1), axis=1)
    return ordered / ordered.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("n_ubatch", [N_CTX, 24])
def test_the_demo_sends_a_token_to_its_highest_logits(model, chunks, n_ubatch):
    """In every block, whether a chunk is computed at once or in parts; the gates are softmax."""
    found = capture(model, options(n_ubatch), chunks[:2])

    assert list(range(BLOCKS)) == list(found)
    logits = [results(model, chunk, "ffn_moe_logits", n_ubatch=n_ubatch) for chunk in chunks[:2]]
    for block, choices in found.items():
        own = np.concatenate([each[f"ffn_moe_logits-{block}"] for each in logits])
        ids = best(own, USED)
        shares = np.take_along_axis(softmax(own), ids, axis=1)
        assert EXPERTS == choices.n_experts
        assert as_sets(ids) == as_sets(choices.ids), block
        gates = by_expert(choices.ids, choices.gates)
        np.testing.assert_allclose(gates, by_expert(ids, shares), rtol=1e-4)


def test_what_no_router_sees_is_not_computed(model, chunks, monkeypatch):
    """Of one token, to know the last block that routes; what is found is the same as by chunk."""
    asked, wants = [], module._Watcher.wants

    def noted(self, name, tensor):
        asked.append(name)
        return wants(self, name, tensor)

    monkeypatch.setattr(module._Watcher, "wants", noted)
    found = capture(model, options(), chunks[:3])
    alone = [capture(model, options(), [chunk]) for chunk in chunks[:3]]

    ends = [name for name in asked if name == "result_output"]
    assert 4 == len(ends)  # of one token, for each of the four captures
    for block, choices in found.items():
        assert (choices.ids == np.concatenate([each[block].ids for each in alone])).all()
        assert (choices.gates == np.concatenate([each[block].gates for each in alone])).all()


def grouped(scores, groups, used):
    """Scores outside the groups with the best two scores together: -inf (DeepSeek-V3)."""
    parts = scores.reshape(len(scores), groups, -1)
    kept = best(np.sort(parts, axis=2)[:, :, -2:].sum(axis=2), used)
    mask = np.full(parts.shape, -np.inf)
    np.put_along_axis(mask, kept[:, :, None], 0, axis=1)
    return (parts + mask).reshape(scores.shape)


def chosen_by_hand(name, path, block, computed):
    """Ids [n, used] and gates, from router logits, as each family's paper has it."""
    logits = computed[f"ffn_moe_logits-{block}"].astype(np.float64)
    with GGUFFile(path) as file:

        def weight(part):
            return file.rows(f"blk.{block}.{part}").view(np.float32).ravel()

        if name == "gpt_oss_bf16":  # the softmax is over the chosen ones
            logits = logits + weight("ffn_gate_inp.bias")
            ids = best(logits, 2)
            return ids, softmax(np.take_along_axis(logits, ids, axis=1))
        if name == "llama4_text":  # sigmoid, and the gates weigh what the experts read
            ids = best(logits, computed[f"ffn_moe_topk-{block}"].shape[1])
            return ids, np.take_along_axis(sigmoid(logits), ids, axis=1)
        if name in ("deepseek_v3", "glm4_moe"):  # the bias chooses, but is not in the gates
            scores = sigmoid(logits) + weight("exp_probs_b.bias")
            ids = best(grouped(scores, 2, 1) if name == "deepseek_v3" else scores, 2)
            return ids, np.take_along_axis(sigmoid(logits), ids, axis=1)
    ids = best(logits, 2)
    return ids, np.take_along_axis(softmax(logits), ids, axis=1)


def converted(folder: Path, name: str) -> Path:
    path = folder / f"{name}.gguf"
    source = families.build(folder / name, name)
    api.quantize_model(api.open_source(source), path, api.Target("f32"))
    return path


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("deepseek_v3", [1, 2]),
        ("glm4_moe", [1, 2]),
        ("gpt_oss_bf16", [0, 1, 2, 3]),
        ("llama4_text", [1, 3]),
        ("olmoe", [0, 1]),
    ],
)
def test_every_way_to_choose_is_read(tmp_path, name, blocks):
    path = converted(tmp_path, name)
    with Model.load(path) as model:
        chunk = noise(model, 1)[0]
        found = capture(model, options(), [chunk])
        computed = results(model, chunk, "ffn_moe_logits", "ffn_moe_topk")

    assert blocks == list(found)
    for block, choices in found.items():
        ids, gates = chosen_by_hand(name, path, block, computed)
        assert as_sets(ids) == as_sets(choices.ids)
        own = by_expert(choices.ids, choices.gates)
        np.testing.assert_allclose(own, by_expert(ids, gates), rtol=1e-4)


def test_smaller_experts_beside_the_others_are_not_taken_for_them(tmp_path):
    """GroveMoE routes twice in a block: adjugate experts, a group's each, follow the chosen."""
    path = tmp_path / "grove.gguf"
    plain = gguf.GGUFReader(converted(tmp_path, "qwen3_moe"))
    writer = gguf.GGUFWriter(path, "grovemoe")
    for key, field in plain.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            key = key.replace("qwen3moe.", "grovemoe.")
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1])
    for tensor in plain.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
        if "_exps." in tensor.name:
            adjugate = tensor.name.replace("_exps.", "_chexps.")
            writer.add_tensor(adjugate, np.array(tensor.data)[::2])
    width = plain.get_tensor(next(i for i, t in enumerate(plain.tensors) if "up_exps" in t.name))
    writer.add_uint32("grovemoe.expert_chunk_feed_forward_length", int(width.shape[1]))
    writer.add_uint32("grovemoe.experts_per_group", 2)
    writer.add_float32("grovemoe.expert_group_scale", 0.05)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with Model.load(path) as model:
        chunk = noise(model, 1)[0]
        found = capture(model, options(24), [chunk])
        logits = results(model, chunk, "ffn_moe_logits", n_ubatch=24)

    for block, choices in found.items():
        assert 8 == choices.n_experts
        assert as_sets(best(logits[f"ffn_moe_logits-{block}"], 2)) == as_sets(choices.ids)


def columns_of(reference, *files) -> list[Column]:
    base, *others = select(files, reference)
    floor = Column(base, FLOOR, n_ubatch=24, flash_attention=False)
    return [Column(base, REFERENCE), floor, *map(Column, others)]


def test_a_file_agrees_with_itself_and_less_with_what_was_cut_from_it(bf16, q8_0, q4_k_m, chunks):
    reference, *others = columns_of(bf16, q8_0, q4_k_m)
    told = []

    found = route(
        [reference, replace(reference, role="candidate"), *others],
        chunks,
        {},
        threads=1,
        progress=lambda done, total: told.append((done, total)),
    )

    itself, floor, fine, coarse = found.values()
    assert all(isinstance(each, Agreement) for each in found.values())
    assert (4 * N_SCORED, USED, EXPERTS) == (itself.n_tokens, itself.n_used, itself.n_experts)
    for each in (itself, *itself.layers):
        assert (1, 1, 0) == (each.same.value, each.overlap.value, each.moved.value)
        assert (1, 1) == (each.same.low, each.same.high)
    assert 0 < floor.moved.value < coarse.moved.value < 0.1
    assert fine.moved.value < coarse.moved.value
    assert 0.8 < coarse.same.value < coarse.overlap.value < 1
    assert coarse.same.value == pytest.approx(np.mean([x.same.value for x in coarse.layers]))
    assert list(range(BLOCKS)) == [layer.block for layer in coarse.layers]
    assert [(done, 20) for done in range(1, 21)] == told


def test_one_damaged_file_does_not_lose_the_others(bf16, q4_k_m, chunks, tmp_path):
    """Each says why; nothing can be said without the reference."""
    gone = tmp_path / "gone.gguf"
    gone.write_bytes(q4_k_m.read_bytes())
    reference, floor, lost, kept = columns_of(bf16, gone, q4_k_m)
    gone.unlink()

    one = np.zeros(len(chunks), np.int64)  # cluster: then its chunks are told apart
    found = route([reference, floor, lost, kept], chunks, {}, threads=1, owners=one, limit=2)
    without = route([lost, kept], chunks, {}, threads=1, limit=2)

    assert "gone.gguf" in str(found[lost])
    assert isinstance(found[kept], Agreement)
    assert isinstance(found[floor], Agreement)
    why = str(without[kept])
    assert why.startswith("the reference's routing could not be read") and "gone.gguf" in why


def test_a_dense_reference_has_nothing_to_agree_with(tmp_path):
    dense = converted(tmp_path, "gemma4_12b")
    columns = columns_of(dense)
    with Model.load(dense) as model:
        text = noise(model)

    assert {} == route(columns, text, {}, threads=1)


CLIENT = """
import pickle
import sys
from pathlib import Path
from gemcut.engine import ContextOptions, ModelOptions
from gemcut.eval.routing.capture import capture
from gemcut.llama import Model
endpoint, path, given, taken = sys.argv[1:]
chunks = pickle.loads(Path(given).read_bytes())
split = (("[024].ffn_.*_exps", "CPU"),)
with Model.load(path, ModelOptions(rpc=(endpoint,), overrides=split)) as model:
    options = ContextOptions(n_ctx=64, threads=1, n_outputs=31)
    found = capture(model, options, chunks)
Path(taken).write_bytes(pickle.dumps(dict(found)))
"""


def test_experts_on_another_device_are_watched_as_well(model, bf16, chunks, tmp_path):
    """A second process stands in for the GPU; some experts stay on the CPU."""
    given, taken = tmp_path / "chunks", tmp_path / "choices"
    given.write_bytes(pickle.dumps(chunks[:2]))

    beside_a_device(CLIENT, bf16, given, taken)

    there = pickle.loads(taken.read_bytes())
    here = capture(model, options(), chunks[:2])
    result = agreement(here, there, np.repeat([0, 1], N_SCORED))
    assert BLOCKS == len(result.layers)
    assert result.same.value > 0.95


def choices(random, tokens=20, experts=8, used=3) -> Choices:
    ids = np.argsort(random.random((tokens, experts)), axis=1)[:, :used].astype(np.uint16)
    return Choices(experts, ids, random.random((tokens, used), np.float32))


@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 8))
def test_comparing_is_what_its_words_say(seed, used, other_used):
    """Against sets and dictionaries, token by token; both ways round; within bounds."""
    random = np.random.default_rng(seed)
    one, other = choices(random, used=used), choices(random, used=other_used)

    same, overlap, moved = compare(one, other)

    np.testing.assert_array_equal([same, overlap, moved], compare(other, one))
    assert ((overlap >= 0) & (overlap <= 1) & (moved >= 0) & (moved <= 1)).all()
    for token in range(len(one.ids)):
        a, b = (dict(zip(each.ids[token], each.gates[token], strict=True)) for each in (one, other))
        common = len(a.keys() & b.keys())
        distance = sum(
            abs(a.get(e, 0) / sum(a.values()) - b.get(e, 0) / sum(b.values()))
            for e in a.keys() | b.keys()
        )
        assert same[token] == (a.keys() == b.keys())
        assert overlap[token] == common / max(len(a), len(b))
        assert moved[token] == pytest.approx(distance / 2, abs=1e-6)


@given(st.integers(0, 2**32))
def test_order_and_scale_of_gates_do_not_matter(seed):
    """An architecture may scale its gates, and llama.cpp sorts experts by score."""
    random = np.random.default_rng(seed)
    one = choices(random)
    order = np.argsort(random.random(one.ids.shape), axis=1)
    ids, gates = (np.take_along_axis(x, order, axis=1) for x in (one.ids, one.gates))

    same, overlap, moved = compare(one, Choices(one.n_experts, ids, np.multiply(gates, 2.5)))

    assert 1 == same.min() == overlap.min()
    assert moved.max() < 1e-6


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda r: {k: replace(v, n_experts=6) for k, v in r.items()}, "block 1 has 6 experts"),
        (lambda r: {1: r[1]}, "only the reference has experts in block 2"),
        (lambda r: {**r, 4: r[1]}, "only the file has experts in block 4"),
        (lambda r: {}, "the file has no experts"),
    ],
)
def test_other_experts_are_not_compared(change, complaint):
    """Pruned ones have new numbers: nobody knows which of the reference's they are."""
    random = np.random.default_rng(0)
    reference = {1: choices(random), 2: choices(random)}

    with pytest.raises(EngineError, match=complaint):
        agreement(reference, change(reference), np.repeat([0, 1], 10))


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 12))
def test_chunks_are_spread_evenly(has_scored, limit):
    """All of them if there are few, else gaps that differ by one; none without scored tokens."""
    mask = np.zeros(4, np.bool_)
    lines = [Chunk(np.zeros(4, np.int32), mask | each) for each in has_scored]

    numbers = spread(lines, limit)

    usable = np.flatnonzero(has_scored).tolist()
    assert min(limit, len(usable)) == len(numbers)
    assert set(numbers) <= set(usable)
    places = [usable.index(number) for number in numbers]
    gaps = np.diff(places)
    assert not len(gaps) or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)
