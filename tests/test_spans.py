"""Several sequences in one batch, and what a context keeps, gives up and takes back of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemcut import api
from gemcut.engine import ContextOptions
from gemcut.errors import EngineError
from gemcut.llama import Context, Model, Span
from tests import families

TEXT = "def add(first, second):\n    return first + second\n\n\nclass Point:\n    pass\n" * 20


def small(**changes) -> ContextOptions:
    return ContextOptions(**{"n_ctx": 1024, "n_batch": 64, "n_ubatch": 64, "threads": 1, **changes})


def alike(first, second) -> bool:
    """Equal but for rounding: another batch shape adds in another order."""
    return first.shape == second.shape and np.abs(first - second).max() < 0.05


@pytest.fixture(scope="module")
def model(f32):
    with Model.load(f32) as model:
        yield model


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    """A model with recurrent states beside attention."""
    folder = tmp_path_factory.mktemp("hybrid")
    source = families.build(folder / "checkpoint", "qwen3_5_moe")
    path = folder / "hybrid.gguf"
    api.convert_checkpoint(api.open_source(source), path, "f32", threads=1)
    with Model.load(path) as model:
        yield model


@pytest.fixture(scope="module")
def tokens(model):
    return np.tile(model.tokenize(TEXT), 4)


def read(context, tokens, seq=0, start=0):
    """Read tokens in batches, without logits."""
    for begin in range(0, len(tokens), context.n_batch):
        part = tokens[begin : begin + context.n_batch]
        context.decode(part, start=start + begin, seq=seq, outputs="none")


# --- batches ---


def test_a_decode_is_a_batch_of_one_span(model, tokens):
    """Bit for bit, rows of several sequences included."""
    rows = tokens[:60].reshape(3, 20)
    with Context(model, small(n_seq=3)) as context:
        decoded = context.decode(rows, outputs="last").copy()
        context.forget()
        spans = [Span(seq, 0, row) for seq, row in enumerate(rows)]

        assert np.array_equal(decoded, context.run(spans))


@pytest.mark.parametrize("unified", [False, True])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_mix_of_sequences_reads_as_each_would_alone(model, tokens, unified, data):
    """Answers and parts of prompts in one batch: the logits asked for, in the spans' order."""
    texts = [tokens[30 * seq : 30 * seq + 60] for seq in range(4)]
    order = data.draw(st.permutations(range(4)))
    begins = [data.draw(st.integers(0, 40)) for _ in order]
    counts = [data.draw(st.integers(1, 15)) for _ in order]
    kinds = [data.draw(st.sampled_from(["all", "last", "none", "odd"])) for _ in order]
    with Context(model, small(n_seq=4, kv_unified=unified)) as context:
        spans, wanted = [], []
        for seq in order:
            begin, end = begins[seq], begins[seq] + counts[seq]
            alone = context.decode(texts[seq][:end], seq=seq)
            odd = np.arange(begin, end) % 2 == 1
            rows = {"all": alone[begin:], "last": alone[-1:], "none": alone[:0]}
            wanted.append(rows.get(kinds[seq], alone[begin:][odd]).copy())
            outputs = odd if kinds[seq] == "odd" else kinds[seq]
            spans.append(Span(seq, begin, texts[seq][begin:end], outputs))

        assert alike(np.concatenate(wanted), context.run(spans))
        assert [b + c for b, c in zip(begins, counts, strict=True)] == [
            context.held(seq) for seq in range(4)
        ]


def test_logits_are_seen_where_they_are(model, tokens):
    """llama.cpp's buffer moves when more rows are asked for; one after many is the right one."""
    with Context(model, small()) as context:
        few = context.decode(tokens[:4], outputs="last").copy()
        context.decode(tokens[:40])
        context.forget()
        many = context.decode(tokens[:4], outputs="last")

        assert np.array_equal(few, many)
        assert many is context.logits


@pytest.mark.parametrize(
    ("spans", "why"),
    [
        ([], "no sequence has tokens"),
        ([Span(0, 0, [1]), Span(0, 1, [1])], "reads twice"),
        ([Span(0, 0, [1]), Span(2, 0, [1])], "sequence 2 asked for, n_seq is 2"),
        ([Span(0, 0, [1] * 40), Span(1, 0, [1] * 25)], "65 tokens at once, n_batch is 64"),
        ([Span(0, 0, [1]), Span(1, 0, [1, 2], np.ones(3, bool))], r"shape \(3,\), the tokens"),
        ([Span(0, 0, [1] * 5, "all"), Span(1, 0, [1] * 4, "all")], "9 outputs, n_outputs is 8"),
        ([Span(0, 0, [1]), Span(1, 3, [1])], "sequence 1 holds 0 tokens"),
        ([Span(0, 0, [1]), Span(1, 511, [1, 1])], "513 tokens in a sequence"),
        ([Span(0, 0, [1]), Span(1, 0, [1 << 40])], "the vocabulary has 0 to"),
    ],
)
def test_an_impossible_batch_is_refused(model, spans, why):
    """Checked before llama.cpp; what the sequences held is still there."""
    with Context(model, small(n_seq=2, n_outputs=8)) as context:
        context.decode([3], seq=0)
        with pytest.raises(EngineError, match=why):
            context.run(spans)
        assert (1, 0) == (context.held(0), context.held(1))


# --- going back ---


def test_a_context_says_how_far_back_it_reaches(model, tokens):
    """What `reaches` says is what `forget` does; a window reaches back by what it does not need."""
    with Context(model, small()) as context:
        read(context, tokens[:640])
        reached = [start for start in range(641) if context.reaches(0, start)]

        assert [0, *range(reached[1], 641)] == reached and 400 < reached[1] < 640
        assert not context.reaches(0, 641) and not context.goes_back
        assert 0 == context.forget(0, reached[1] - 1)
        read(context, tokens[:640])
        assert reached[1] == context.forget(0, reached[1])


def test_the_farthest_reach_has_all_it_needs(model, tokens):
    """Continued from the first position that is reached, logits are those of a fresh context."""
    with Context(model, small()) as context:
        read(context, tokens[:640])
        first = next(start for start in range(1, 641) if context.reaches(0, start))
        context.forget(0, first)
        again = context.decode(tokens[first : first + 8], start=first).copy()
        context.forget()
        read(context, tokens[:first])

        assert alike(context.decode(tokens[first : first + 8], start=first), again)


@pytest.mark.parametrize("kind", ["model", "hybrid"])
@pytest.mark.parametrize("unified", [False, True])
def test_a_checkpoint_brings_a_sequence_back(kind, unified, request, tokens):
    """After a window has passed or a state went on, and beside another sequence."""
    model = request.getfixturevalue(kind)
    text = tokens[:900] % model.n_vocab
    with Context(model, small(n_ctx=4096, n_seq=2, kv_unified=unified)) as context:
        read(context, text[:100], seq=0)
        read(context, text[:300], seq=1)
        checkpoint = context.checkpoint(1)
        wanted = context.decode(text[300:310], start=300, seq=1).copy()
        read(context, text[310:], seq=1, start=310)
        assert not context.goes_back and not context.reaches(1, 300)

        assert 300 == context.rewind(1, checkpoint) == context.held(1)
        assert alike(wanted, context.decode(text[300:310], start=300, seq=1))
        assert 100 == context.held(0)
        context.forget(1)
        with pytest.raises(EngineError, match="fewer tokens than at the checkpoint"):
            context.rewind(1, checkpoint)


# --- shifting ---


def test_a_shift_closes_the_gap(model, tokens):
    """What is left reads on much as a context that never held what was dropped."""
    text = tokens[:700]
    kept = np.concatenate([text[:4], text[304:]])
    with Context(model, small(swa_full=True)) as context:
        read(context, kept[:-1])
        fresh = context.decode(kept[-1:], start=len(kept) - 1).copy()
        context.forget()
        read(context, text[:-1])
        assert len(kept) - 1 == context.shift(0, 4, 300) == context.held()
        with pytest.raises(EngineError, match="decode a token first"):
            context.checkpoint(0)
        shifted = context.decode(kept[-1:], start=len(kept) - 1).copy()
        context.forget()
        unrelated = context.decode(kept[-1:])

        assert np.abs(shifted - fresh).mean() < np.abs(unrelated - fresh).mean() / 4
        context.checkpoint(0)


def test_a_shift_that_would_be_wrong_is_refused(model, hybrid, tokens):
    """More than there is, a window that keeps the latest tokens alone, a recurrent state."""
    with Context(model, small(swa_full=True)) as context:
        read(context, tokens[:100])
        for keep, drop in ((-1, 5), (0, 0), (90, 11)):
            with pytest.raises(EngineError, match="100 are held"):
                context.shift(0, keep, drop)
    with Context(model, small()) as context, pytest.raises(EngineError, match="cannot shift"):
        read(context, tokens[:100])
        context.shift(0, 4, 50)
    with Context(hybrid, small()) as context, pytest.raises(EngineError, match="recurrent"):
        read(context, tokens[:100] % hybrid.n_vocab)
        context.shift(0, 4, 50)
