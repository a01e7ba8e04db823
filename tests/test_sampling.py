"""The next token: drawn as llama.cpp draws, from numbers only, within a grammar."""

import json
from dataclasses import replace

import numpy as np
import pytest

from gemcut.engine import ContextOptions, Sampling, Thought
from gemcut.errors import EngineError, UsageError
from gemcut.llama import Context, Sampler, constraint
from gemcut.llama.candidates import Candidates

OPTIONS = ContextOptions(n_ctx=256, n_ubatch=64, threads=1)
GREEDY = Sampling(temperature=0)
HOT = Sampling(temperature=5, top_k=0, top_p=1, min_p=0, seed=7)
FIVE = 'root ::= "{" [0-9]{5} "}"'


@pytest.fixture(scope="module")
def context(model):
    with Context(model, OPTIONS) as context:
        yield context


@pytest.fixture(scope="module")
def tokens(model):
    return model.tokenize("def add(first, second):\n    return first + second\n")


def draws(context, sampling, count=30) -> list[int]:
    """Tokens drawn one after another from the last row of logits."""
    with Sampler(context.model, sampling) as sampler:
        return [sampler.sample(context) for _ in range(count)]


def write(context, sampling, prompt="x = ", most=60) -> str:
    """A whole answer, tokens written out."""
    model, tokens = context.model, context.model.tokenize(prompt)
    context.decode(tokens, outputs="last")
    text = b""
    with Sampler(model, sampling) as sampler:
        for held in range(len(tokens), len(tokens) + most):
            token = sampler.sample(context)
            if model.is_end(token):
                break
            text += model.piece(token, special=True)
            context.decode([token], start=held, outputs="last")
    return text.decode(errors="replace")


# --- drawing ---


def test_temperature_zero_takes_the_best(model, context, tokens):
    """Of any row of the last decode; without logits there is nothing to draw from."""
    with Sampler(model, GREEDY) as sampler:
        best = context.decode(tokens[:10]).argmax(axis=1)
        assert [best[-1], best[0], best[3]] == [sampler.sample(context, i) for i in (-1, 0, 3)]
        with pytest.raises(EngineError, match="row 10 of logits"):
            sampler.sample(context, 10)
        context.decode(tokens[:10], outputs="none")
        with pytest.raises(EngineError, match="the last decode left 0"):
            sampler.sample(context)


@pytest.mark.parametrize("sampling", [Sampling(), GREEDY, HOT, replace(HOT, presence_penalty=1)])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_logits_that_are_not_numbers_are_not_sampled(model, context, tokens, sampling, wrong):
    """llama.cpp's sorting would not survive them; a broken file must not end the process."""
    with Sampler(model, sampling) as sampler:
        context.decode(tokens[:5])[2, 7] = wrong
        assert 0 <= sampler.sample(context) < model.n_vocab
        with pytest.raises(EngineError, match="not numbers"):
            sampler.sample(context, 2)


def test_a_seed_repeats_the_draws(model, context, tokens):
    """Same seed, same draws; `reset` begins them again. Without one, it goes on otherwise."""
    context.decode(tokens[:10])
    hot = replace(HOT, repeat_penalty=1.1)
    with Sampler(model, hot) as first:
        once = [first.sample(context) for _ in range(20)]
        assert once == draws(context, hot, 20)
        first.reset()
        assert once == [first.sample(context) for _ in range(20)]
        assert len(set(once)) > 1
    with Sampler(model, replace(hot, seed=None)) as free:
        once = [free.sample(context) for _ in range(20)]
        free.reset()
        assert once != [free.sample(context) for _ in range(20)]


@pytest.mark.parametrize(
    ("top_k", "temperature", "xtc"), [(1, 2, 0), (40, 0.8, 0), (7, 1.3, 0), (300, 3, 0.5)]
)
def test_picking_the_best_first_changes_no_draw(model, context, tokens, top_k, temperature, xtc):
    """The same seed draws the same, whether llama.cpp sees all tokens or only the likely ones."""
    best = context.decode(tokens[:10])[-1].argsort()[::-1]
    sampling = Sampling(temperature, top_k, seed=3, xtc_probability=xtc)
    for changed in ({}, {"presence_penalty": 1.5}, {"repeat_penalty": 1.3, "repeat_last_n": -1},
                    {"logit_bias": tuple((int(t), -3.0) for t in best[:5])}):  # fmt: skip
        some = replace(sampling, **changed)
        # A bias that raises a token that is never drawn: every token could matter then.
        every = (*some.logit_bias, (int(best[-1]), 1e-9))
        assert draws(context, replace(some, logit_bias=every), 100) == draws(context, some, 100)


def test_top_k_finds_as_many_as_there_are(model, context, tokens):
    """Rows where fewer tokens than top_k have any probability are drawn from, too."""
    row = context.decode(tokens[:4])[-1]
    row[:] = -np.inf
    row[[5, 9]] = 3.0, -60.0

    assert {5} == set(draws(context, Sampling(seed=1)))


def test_a_bias_forbids_and_forces(model, context, tokens):
    """It is added to the logit, also where the best token is simply taken."""
    best = int(context.decode(tokens[:10])[-1].argmax())

    for sampling in (GREEDY, HOT):
        without = replace(sampling, logit_bias=((best, -np.inf),))
        only = replace(sampling, logit_bias=((17, 1e5),))
        assert best not in draws(context, without)
        assert {17} == set(draws(context, only))
    with pytest.raises(EngineError, match=f"token {model.n_vocab}, the vocabulary has"):
        Sampler(model, Sampling(logit_bias=((model.n_vocab, 1.0),)))


def test_nothing_left_to_draw_is_an_error(model, context, tokens):
    """A bias against the only token there is: llama.cpp would draw it all the same."""
    row = context.decode(tokens[:4])[-1]
    row[:] = -np.inf
    row[5] = 1

    with pytest.raises(UsageError, match="no token has a probability"):
        draws(context, Sampling(logit_bias=((5, -np.inf),)))


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty", "repeat_penalty"])
def test_penalties_keep_from_repeating(model, context, tokens, name):
    """What was drawn once is not the best any more, until it is forgotten."""
    row = context.decode(tokens[:10])[-1]
    row[:] = 0
    row[:8] = np.arange(30, 38)
    strong = replace(GREEDY, **{name: 30.0})

    assert [7, 6, 5, 4] == draws(context, strong, 4)
    assert [7, 6, 7, 6] == draws(context, replace(strong, repeat_last_n=1), 4)
    assert [7, 7] == draws(context, replace(strong, repeat_last_n=0), 2)
    assert [7, 6, 5, 4] == draws(context, replace(strong, repeat_last_n=-1), 4)


def test_xtc_passes_over_the_best(model, context, tokens):
    """Of the tokens above the threshold only the least likely stays."""
    row = context.decode(tokens[:10])[-1]
    row[:] = -10
    row[[3, 4, 5]] = 5.0, 4.9, 4.8

    chosen = Sampling(temperature=0.1, seed=1, xtc_probability=1, xtc_threshold=0.1)
    assert {5} == set(draws(context, chosen))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("inf")},
        {"top_p": 2},
        {"min_p": -0.1},
        {"repeat_penalty": 0},
        {"repeat_last_n": 1 << 30},
        {"presence_penalty": float("inf")},
        {"frequency_penalty": -float("inf")},
        {"xtc_probability": 1.5},
    ],
)
def test_sampling_has_bounds(wrong):
    """Also against NaN, which compares with nothing."""
    for value in (*wrong.values(), float("nan")):
        with pytest.raises(EngineError, match=f"{next(iter(wrong))} is .* wanted from"):
            Sampling(**dict.fromkeys(wrong, value))
    for biases in (((1, float("nan")),), ((1, float("inf")),), ((1, 1.0),) * 5000):
        with pytest.raises(EngineError, match="logit_bias"):
            Sampling(logit_bias=biases)


# --- grammars ---


@pytest.mark.parametrize("sampling", [GREEDY, HOT, Sampling(seed=2), replace(HOT, top_k=40)])
def test_an_answer_keeps_to_its_grammar(context, sampling):
    """However it is drawn; it ends where the grammar ends, and `reset` begins it anew."""
    answer = write(context, replace(sampling, grammar=FIVE))

    assert len(answer) == 7
    assert isinstance(json.loads(answer[1:-1].lstrip("0") or "0"), int)


def test_a_grammar_starts_again_after_reset(model, context):
    """Both in the middle of an answer and at its end."""
    context.decode(model.tokenize("x = "), outputs="last")
    with Sampler(model, replace(GREEDY, grammar=FIVE)) as sampler:
        first = [sampler.sample(context) for _ in range(3)]
        sampler.reset()
        assert first == [sampler.sample(context) for _ in range(3)]
        assert model.piece(first[0]).startswith(b"{")


def test_characters_of_several_bytes_are_kept_to(context):
    """A grammar is about characters, tokens may be parts of them."""
    answer = write(context, replace(HOT, grammar='root ::= "\U0001f9ff"{2} "é" [а-я]{3}'))

    assert answer.startswith("\U0001f9ff\U0001f9ffé")
    assert len(answer) == 6


def test_a_dead_end_is_an_error(model, context):
    """No token of the vocabulary goes on: the process lives, and so do model and context."""
    context.decode(model.tokenize("x"), outputs="last")
    biases = tuple((t, -np.inf) for t in range(model.n_vocab) if b"7" in model.piece(t))

    with pytest.raises(UsageError, match="the grammar allows no token.*a dead end"):
        draws(context, replace(HOT, grammar='root ::= "7"', logit_bias=biases))
    assert draws(context, GREEDY)


def test_a_grammar_that_doubles_is_stopped(model, context, monkeypatch):
    """Each x leaves twice as many ways to end: an error, before they fill time and memory."""
    monkeypatch.setattr(constraint, "_MOST_SECONDS", 0.03)
    grammar = 'root ::= "x" root "y" | "x" root "z" | "x"'
    letter = int(model.tokenize("x", add_special=False)[-1])

    with Sampler(model, replace(GREEDY, grammar=grammar)) as sampler:
        with pytest.raises(UsageError, match="too ambiguous"):
            for _ in range(40):
                force(context, model, sampler, letter)


def test_a_grammar_is_stopped_within_a_token(model, context, monkeypatch):
    """Not when it has been asked about the whole vocabulary, each token of which may take long."""
    parts, by_parts = [], Candidates.apply_by_parts
    monkeypatch.setattr(constraint, "_MOST_SECONDS", 0.0)
    monkeypatch.setattr(constraint, "_PART", 16)

    def counted(*arguments):
        for each in by_parts(*arguments):
            parts.append(each)
            yield each

    monkeypatch.setattr(Candidates, "apply_by_parts", counted)
    context.decode(model.tokenize("x"), outputs="last")
    with Sampler(model, replace(HOT, grammar='root ::= "7"')) as sampler:
        with pytest.raises(UsageError, match="too ambiguous"):
            sampler.sample(context)
    assert len(parts) == 1 < model.n_vocab // 16


def test_a_grammar_waits_for_the_thought_to_end(model, context):
    """The thought is free, what follows its mark is not; an open prompt begins within it."""
    mark = "b = 2\n"
    pieces = [int(t) for t in model.tokenize(f"a = 1\n{mark}", add_special=False)]
    with Sampler(model, replace(GREEDY, grammar=FIVE, thought=Thought(mark, begun=True))) as s:
        for token in pieces:
            force(context, model, s, token)
        answer = "".join(model.piece(s.sample(context)).decode() for _ in range(3))
    assert answer.startswith("{")


def test_an_answer_may_begin_with_a_thought(model, context):
    """Or without: then the grammar holds from the first token on."""
    opening = int(model.tokenize("<|channel>", add_special=False, parse_special=True)[0])
    other = int(model.tokenize("<|turn>", add_special=False, parse_special=True)[0])
    sampling = replace(GREEDY, grammar=FIVE, thought=Thought("<channel|>", "<|channel>"))

    for drawn, free in ((opening, True), (other, False)):
        with Sampler(model, sampling) as sampler:
            context.decode(model.tokenize("x"), outputs="last")
            context.logits[-1][drawn] = 1e4
            assert (drawn == sampler.sample(context)) is free
            context.decode(model.tokenize("import os"), outputs="last")
            best = int(context.logits[-1].argmax())
            assert (best == sampler.sample(context)) is free


def force(context, model, sampler, token) -> None:
    """Have a certain token drawn."""
    context.decode(model.tokenize("x"), outputs="last")
    context.logits[-1][token] = 1e4
    assert token == sampler.sample(context)
