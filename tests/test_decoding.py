"""Decoding with llama.cpp: rows of logits, sequences, windows, and tensors at work."""

import numpy as np
import pytest

from gemcut.engine import ContextOptions, ModelOptions
from gemcut.errors import EngineError
from gemcut.llama import Context, Model, Tensor
from tests.decoding import TEXT, alike, small


@pytest.fixture(scope="module")
def tokens(model):
    return np.tile(model.tokenize(TEXT), 4)


def test_outputs_choose_rows(model, tokens):
    """all, last and a mask are rows of one another; none has none."""
    with Context(model, small()) as context:
        every = context.decode(tokens[:50]).copy()
        mask = np.arange(50) % 7 == 0
        last = context.decode(tokens[:50], outputs="last").copy()
        masked = context.decode(tokens[:50], outputs=mask).copy()
        none = context.decode(tokens[:50], outputs="none")

        for found, wanted in ((last, every[-1:]), (masked, every[mask]), (none, every[:0])):
            assert found.shape == wanted.shape
            assert alike(found, wanted)


def test_logits_are_not_copied(model, tokens):
    """They are llama.cpp's memory: the next decode writes there."""
    with Context(model, small()) as context:
        first = context.decode(tokens[:9])
        kept = first.copy()
        second = context.decode(tokens[9:18])

        assert np.shares_memory(first, second)
        assert not np.array_equal(first, kept)


def test_a_text_may_be_read_in_parts(model, tokens):
    """Parts continue each other; going back replaces what came after."""
    with Context(model, small()) as context:
        whole = context.decode(tokens[:60]).copy()
        context.decode(tokens[:20])
        context.decode(tokens[5:25], start=20)
        rest = context.decode(tokens[20:60], start=20)

        assert 60 == context.held()
        assert alike(rest, whole[20:])


def test_a_step_is_a_decode_of_one_token(model, tokens):
    """The same logits to the last bit, on from where the cache is, and back where it is not."""
    with Context(model, small(n_seq=2)) as context:
        context.decode(tokens[:20], outputs="none")
        wanted = [context.decode(tokens[n : n + 1], n).copy() for n in range(20, 30)]
        context.forget(0, 20)
        found = [context.step(int(tokens[n]), n).copy() for n in range(20, 30)]
        again = context.step(int(tokens[25]), 25).copy()

        assert np.array_equal(found, wanted)
        assert np.array_equal(again, wanted[5])
        assert (26, 0) == (context.held(0), context.held(1))
        assert context.step(int(tokens[0]), 0, seq=1).shape == (1, model.n_vocab)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((-1, 0), "the vocabulary has 0 to"),
        ((1 << 40, 0), "the vocabulary has 0 to"),
        ((1, 3), "holds 0 tokens: cannot go on at 3"),
        ((1, -1), "start is -1"),
        ((1, 1 << 20), "tokens in a sequence, its context is 256"),
        ((1, 0, 1), "sequence 1"),
    ],
)
def test_an_impossible_step_is_refused(model, arguments, why):
    """Before llama.cpp sees it, and the context works on."""
    with Context(model, small()) as context:
        with pytest.raises(EngineError, match=why):
            context.step(*arguments)
        assert context.step(1, 0).shape == (1, model.n_vocab)


@pytest.mark.parametrize("unified", [False, True])
def test_sequences_do_not_see_each_other(model, tokens, unified):
    """Several texts in one batch get the logits each has alone, in the order given."""
    rows = tokens[:160].reshape(4, 40)
    with Context(model, small()) as context:
        alone = [context.decode(row).copy() for row in rows]
    with Context(model, small(n_ctx=1024, n_seq=4, kv_unified=unified)) as context:
        together = context.decode(rows).reshape(4, 40, -1)
        assert alike(together, alone)
        last = context.decode(rows[:2], seq=1, outputs="last")
        assert alike(last, [alone[0][-1], alone[1][-1]])
        assert [40] * 4 == [context.held(seq) for seq in range(4)]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"tokens": []}, "wanted integers"),
        ({"tokens": [0.5]}, "wanted integers"),
        ({"tokens": [[[1]]]}, "wanted integers"),
        ({"tokens": [-1]}, "the vocabulary has 0 to"),
        ({"tokens": [1 << 40]}, "the vocabulary has 0 to"),
        ({"tokens": [1] * 65, "outputs": "last"}, "65 tokens at once, n_batch is 64"),
        ({"tokens": [1] * 9}, "9 outputs, n_outputs is 8"),
        ({"tokens": [1], "start": 256}, "257 tokens in a sequence, its context is 256"),
        ({"tokens": [1], "start": 3}, "holds 0 tokens: cannot go on at 3"),
        ({"tokens": [1], "start": -1}, "start is -1"),
        ({"tokens": [1], "seq": 1}, "n_seq is 1"),
        ({"tokens": [[1], [1]]}, "n_seq is 1"),
        ({"tokens": [1], "outputs": [True, True]}, "outputs have shape"),
        ({"tokens": [1], "outputs": "some"}, "wanted all, last"),
    ],
)
def test_an_impossible_batch_is_refused(model, arguments, why):
    """Checked before llama.cpp, which would end the process; the context lives on."""
    with Context(model, small(n_batch=64, n_outputs=8)) as context:
        with pytest.raises(EngineError, match=why):
            context.decode(**arguments)
        assert (1, model.n_vocab) == context.decode([2]).shape


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"type_v": "q8_0", "flash_attention": False}, "quantized V cache requires"),
        ({"type_k": "q9_9"}, "no cache type 'q9_9'"),
        ({"n_seq": 4, "n_outputs": 3}, "n_outputs is 3, wanted 4"),
        ({"n_seq": 1000}, "n_seq_max must be"),
    ],
)
def test_an_impossible_context_is_refused(model, changes, why):
    """In llama.cpp's words where it has some."""
    with pytest.raises(EngineError, match=why):
        Context(model, small(**changes))


@pytest.mark.parametrize("name", ["n_ctx", "n_batch", "n_ubatch", "n_seq", "threads", "n_outputs"])
@pytest.mark.parametrize("value", [0, -1, 1 << 31])
def test_sizes_are_positive(name, value):
    """llama.cpp would take them modulo 2^32."""
    with pytest.raises(EngineError, match=f"{name} is {value}"):
        ContextOptions(**{name: value})


def fill(context, tokens):
    """Read tokens in batches."""
    for start in range(0, len(tokens), context.n_batch):
        context.decode(tokens[start : start + context.n_batch], start=start, outputs="none")


def test_a_window_that_passed_is_not_reused(model, tokens):
    """The sliding-window cache goes back a little; further back everything is dropped."""
    options = small(n_ctx=1024, n_batch=64, n_outputs=64)
    with Context(model, options) as context:
        fill(context, tokens[:640])
        assert 630 == context.forget(0, 630)
        resumed = context.decode(tokens[630:650], start=630).copy()
        with pytest.raises(EngineError, match="cannot go back to token 100"):
            context.decode(tokens[100:110], start=100)
        fill(context, tokens[:630])
        assert alike(resumed, context.decode(tokens[630:650], start=630))
        assert (0, 0) == (context.forget(0, 100), context.held())
    with Context(model, small(n_ctx=1024, n_batch=64, swa_full=True)) as context:
        fill(context, tokens[:640])
        assert (100, 100) == (context.forget(0, 100), context.held())


def test_forgetting_everything(model, tokens):
    """Every sequence is empty after it; more than there is cannot be kept."""
    with Context(model, small(n_ctx=512, n_seq=2)) as context:
        context.decode(tokens[:40].reshape(2, 20))
        assert (20, 5) == (context.forget(0, 99), context.forget(-1, 5))
        assert (0, 0, 0) == (context.forget(), context.held(0), context.held(1))


# --- tensors at work ---


def test_results_are_shown_as_they_are_computed(model, tokens):
    """Every result in order, the last one being the logits; a filter leaves the rest out."""
    shown, asked = {}, []

    def keep(name, tensor):
        shown[name] = tensor.read()

    def wanted(name, tensor):
        asked.append(name)
        return name in ("ffn_moe_topk-1", "result_output")

    with Context(model, small(), keep, wanted) as context:
        logits = context.decode(tokens[:10])

        assert ["ffn_moe_topk-1", "result_output"] == list(shown)
        assert len(asked) > 100
        assert np.array_equal(logits, shown["result_output"][0, 0])
        # A view into the sorted experts of every token: read with its strides.
        experts = shown["ffn_moe_topk-1"][0, 0]
        assert (10, 4) == experts.shape
        assert all(len(set(row)) == 4 and 0 <= min(row) <= max(row) < 16 for row in experts)


def test_a_tensor_knows_its_operation(model, tokens):
    """Name, operation, type, shape and sources: the weight comes first."""
    seen = {}

    def note(name, tensor):
        if tensor.op == "MUL_MAT_ID":
            weight, values, experts = tensor.sources
            seen[weight.name] = (weight.shape, weight.op, weight.nbytes, values.shape)
            assert (np.float32, np.int32) == (values.read().dtype, experts.read().dtype)

    with Context(model, small(), note) as context:
        context.decode(tokens[:10])

    assert 2 * model.n_layer == len(seen)
    shape, op, nbytes, values = seen["blk.0.ffn_down_exps.weight"]
    assert (1, 16, model.n_embd) == shape[:3]
    assert ("NONE", 2 * np.prod(shape)) == (op, nbytes)
    assert (1, 10, 4, shape[3]) == values


def test_what_the_callback_raises_comes_out_of_decode(model, tokens):
    """The cache is empty then, and the context can be used again."""
    fail = True

    def check(name, tensor):
        if fail:
            raise LookupError(name)

    with Context(model, small(), check) as context:
        with pytest.raises(LookupError):
            context.decode(tokens[:10])
        fail = False
        assert 0 == context.held()
        with Context(model, small()) as plain:
            assert alike(context.decode(tokens[:10]), plain.decode(tokens[:10]))


def collect_weights(found):
    """A `wants` that computes nothing extra and remembers the weights it comes across."""

    def wants(name, tensor):
        for source in tensor.sources:
            if source.name.endswith(".weight"):
                found[source.name] = source
        return False

    return wants


def test_weights_can_be_swapped(bf16, tokens):
    """New bytes change the logits; the old ones restore them bit for bit."""
    found: dict[str, Tensor] = {}
    name = "blk.1.ffn_down_exps.weight"
    options = ModelOptions(load_mode="none", repack=False)
    with (
        Model.load(bf16, options) as model,
        Context(model, small(), lambda name, tensor: None, collect_weights(found)) as context,
    ):
        before = context.decode(tokens[:20]).copy()
        old = found[name].read_bytes()
        assert np.isfinite(found[name].read()).all()
        found[name].write_bytes(np.zeros_like(old))
        changed = context.decode(tokens[:20]).copy()
        assert not found[name].read().any()
        found[name].write_bytes(old)

        assert np.abs(changed - before).max() > 0.01
        assert np.array_equal(before, context.decode(tokens[:20]))
        with pytest.raises(EngineError, match="3 bytes to write, wanted"):
            found[name].write_bytes(old[:3])


def test_weights_out_of_reach_are_refused(bf16, q4_k_m, tokens):
    """Mapped memory is read-only; repacked weights are not in their type's layout."""
    for path, what, why in ((bf16, "CPU_Mapped", "mapped"), (q4_k_m, "CPU_REPACK", "repack=False")):
        found: dict[str, Tensor] = {}
        with Model.load(path) as model:
            if what not in model.memory.weights:
                continue  # this CPU repacks nothing
            seen = collect_weights(found)
            with Context(model, small(), lambda name, tensor: None, seen) as context:
                context.decode(tokens[:20])
                tensor = next(t for t in found.values() if t.buffer == what)
                with pytest.raises(EngineError, match=why):
                    tensor.write_bytes(np.zeros(tensor.nbytes, np.uint8))
