"""A prompt's own probabilities, as those who score texts with a server ask for them."""

from threading import Event

import numpy as np
import openai
import pytest

from gemcut.cli.placing import Wanted
from gemcut.cli.serve import with_outputs
from gemcut.engine import ContextOptions, Sampling
from gemcut.llama import Context, Model
from gemcut.runtime.batching.jobs import Drawn, Ended, Job, Read
from gemcut.runtime.batching.scheduler import Scheduler
from gemcut.runtime.placement.given import Given
from gemcut.runtime.placement.workload import CHAT
from gemcut.score import log_softmax
from tests.jobs import GREEDY, TEXT, WAIT, Listener
from tests.serving import Working

# Two decodes differ by the shape of their batches: by 0.003 where it was measured.
NOISE = 0.05
ASKED = {"model": "any", "temperature": 0, "max_tokens": 1, "logprobs": 2, "echo": True}


@pytest.fixture(scope="module")
def model(f32):
    with Model.load(f32) as model:
        yield model


@pytest.fixture(scope="module")
def server(model):
    with Working(model, n_seq=4) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def tokens(model):
    return model.tokenize(TEXT)[:60].tolist()


@pytest.fixture(scope="module")
def likely(model, tokens):
    """ln p of every token after each of the prompt's, computed directly: [n, n_vocab]."""
    with Context(model, ContextOptions(n_ctx=256, threads=1)) as context:
        return log_softmax(context.decode(tokens))


def own(likely, tokens):
    """Of the prompt's tokens but the first."""
    return [likely[i, token] for i, token in enumerate(tokens[1:])]


# --- what a client is told ---


def test_the_prompts_tokens_come_with_their_probabilities(model, client, tokens, likely):
    """The first has none; what is drawn comes last."""
    choice = client.completions.create(prompt=[tokens], **ASKED).choices[0]
    told = choice.logprobs
    texts = [model.piece(token, special=True).decode(errors="replace") for token in tokens]

    assert told.tokens[:-1] == texts and choice.finish_reason == "length"
    assert choice.text == "".join(told.tokens[1:])  # BOS is no text
    assert (told.token_logprobs[0], told.top_logprobs[0]) == (None, None)
    np.testing.assert_allclose(told.token_logprobs[1:-1], own(likely, tokens), atol=NOISE)
    for top, row in zip(told.top_logprobs[1:], likely, strict=True):
        assert len(top) == 2
        assert max(top.values()) == pytest.approx(row.max(), abs=NOISE)
    assert told.token_logprobs[-1] == max(told.top_logprobs[-1].values())
    assert told.text_offset == [sum(map(len, told.tokens[:i])) for i in range(len(tokens) + 1)]


def test_a_bos_that_the_client_has_not_written_is_not_told(model, client, tokens, likely):
    """So that what is told is its text, token by token, each given BOS and what comes before."""
    assert tokens[0] == model.bos
    text = b"".join(map(model.piece, tokens[1:])).decode()
    told = client.completions.create(prompt=text, **ASKED).choices[0].logprobs

    assert "".join(told.tokens[:-1]) == text and len(told.tokens) == len(tokens)
    np.testing.assert_allclose(told.token_logprobs[:-1], own(likely, tokens), atol=NOISE)


def test_without_an_answer_there_is_the_prompt_alone(client, tokens):
    whole = client.completions.create(prompt=[tokens], **ASKED)
    bare = client.completions.create(prompt=[tokens], **ASKED | {"max_tokens": 0})
    told = bare.choices[0].logprobs

    assert (bare.choices[0].finish_reason, bare.usage.completion_tokens) == ("length", 0)
    assert told.tokens == whole.choices[0].logprobs.tokens[:-1]
    assert whole.choices[0].text.startswith(bare.choices[0].text)
    one = client.completions.create(prompt=[tokens[:1]], **ASKED | {"max_tokens": 0})
    assert one.choices[0].logprobs.token_logprobs == [None]


def test_several_prompts_are_told_apart(client, tokens, likely):
    parts = [tokens, tokens[:7], tokens[:20]]
    choices = client.completions.create(prompt=parts, **ASKED | {"n": 2}).choices

    assert [choice.index for choice in choices] == list(range(6))
    for choice, part in zip(choices, [part for part in parts for _ in range(2)], strict=True):
        assert len(choice.logprobs.tokens) == len(part) + 1
        wanted = own(likely, part)
        np.testing.assert_allclose(choice.logprobs.token_logprobs[1:-1], wanted, atol=NOISE)


def test_the_token_that_ends_an_answer_is_told_too(model, client, tokens):
    """Whoever scores texts cuts off the last token; without it that would be the prompt's."""
    bias = {str(model.eos): 100}
    choice = client.completions.create(prompt=[tokens], logit_bias=bias, **ASKED).choices[0]

    assert choice.finish_reason == "stop"
    assert len(choice.logprobs.tokens) == len(tokens) + 1
    assert choice.logprobs.tokens[-1] == model.piece(model.eos, special=True).decode()


def test_a_stream_begins_with_the_prompt(client, tokens):
    asked = ASKED | {"max_tokens": 3}
    whole = client.completions.create(prompt=[tokens], **asked).choices[0]
    chunks = client.completions.create(prompt=[tokens], stream=True, **asked)
    stream = [chunk.choices[0] for chunk in chunks]

    assert stream[0].logprobs.tokens == whole.logprobs.tokens[: len(tokens)]
    assert "".join(part.text for part in stream) == whole.text
    told = [token for part in stream if part.logprobs for token in part.logprobs.tokens]
    assert told == whole.logprobs.tokens


def test_what_would_take_too_much_memory_is_refused(client, tokens):
    """Not what is usual: a batch of sixteen prompts."""
    long = [tokens * 20] * 16
    with pytest.raises(openai.BadRequestError, match="at most 131072 are told"):
        client.completions.create(prompt=long, **ASKED | {"logprobs": 20})
    with pytest.raises(openai.BadRequestError, match="0 tokens are no answer"):
        client.completions.create(prompt=[tokens], model="any", max_tokens=0)


def test_the_tokenizer_can_be_asked_as_vllms(model, server):
    """Which is how a harness finds the tokens without a file of its own."""
    info = server.web.get("/tokenizer_info").json()
    asked = {"prompt": "import os", "add_special_tokens": False}
    tokens = server.web.post("/tokenize", json=asked).json()["tokens"]
    begin = server.web.post("/tokenize", json=asked | {"prompt": info["bos_token"]}).json()
    text = server.web.post("/detokenize", json={"tokens": tokens}).json()

    assert tokens == model.tokenize("import os", add_special=False).tolist()
    assert begin["tokens"] == [model.bos]
    assert text == {"content": "import os", "prompt": "import os"}
    assert info["chat_template"] == model.chat_template


# --- how it is computed ---


class Counting(Context):
    """A context that notes the logits asked of each batch."""

    asked: list[int]

    def run(self, spans):
        """As a context does."""
        logits = super().run(spans)
        self.asked = [*getattr(self, "asked", []), len(logits)]
        return logits


def echoed(listener):
    """The prompt that a listener was told, once, before anything else."""
    told = [news for news in listener.all if isinstance(news, Read)]
    assert told == listener.all[:1]
    return [drawn.logprob for drawn in told[0].tokens[1:]]


class Hearing(Listener):
    """Keeps all news in order."""

    def __init__(self):
        self.all = []
        super().__init__()

    def __call__(self, news):
        self.all.append(news)
        if not isinstance(news, Read):
            super().__call__(news)


@pytest.mark.parametrize(("n_seq", "n_outputs"), [(1, 1), (2, 2), (2, 7), (2, 64)])
def test_few_outputs_are_enough_and_never_exceeded(model, tokens, likely, n_seq, n_outputs):
    """Prompts are then read in pieces; others go on beside them."""
    options = ContextOptions(
        n_ctx=512,
        n_ubatch=32,
        n_batch=32,
        n_seq=n_seq,
        threads=1,
        n_outputs=n_outputs,
        kv_unified=True,
    )
    with Counting(model, options) as context, Scheduler(context) as scheduler:
        listeners = [Hearing() for _ in range(3)]
        for listener in listeners[:2]:
            scheduler.submit(Job(tuple(tokens), GREEDY, 3, logprobs=1, echo=True), listener)
        scheduler.submit(Job(tuple(tokens[:20]), GREEDY, 12), listeners[2])
        assert [listener.wait().finish for listener in listeners] == ["length"] * 3

        assert max(context.asked) <= n_outputs
        for listener in listeners[:2]:
            np.testing.assert_allclose(echoed(listener), own(likely, tokens), atol=NOISE)
            assert len(listener.tokens) == 3


def test_who_writes_is_not_held_up(model, tokens):
    """While a long prompt is echoed, each batch has a token for him, too."""
    options = ContextOptions(
        n_ctx=512, n_ubatch=64, n_batch=64, n_seq=2, threads=1, n_outputs=3, kv_unified=True
    )
    written = []

    def wrote(news):
        if isinstance(news, Drawn) and not written:
            scheduler.submit(Job(tuple(tokens), GREEDY, 1, 1, echo=True), heard)
        written.append(news)

    def heard(news):
        if isinstance(news, Read):
            told.append(len(written))
        if isinstance(news, Ended):
            done.set()

    told, done = [], Event()
    with Context(model, options) as context, Scheduler(context) as scheduler:
        never = Sampling(temperature=0, logit_bias=((model.eos, -100.0),))
        scheduler.submit(Job(tuple(tokens[:9]), never, 200), wrote)
        assert done.wait(WAIT)
    # The writer leaves two outputs a batch for the echo of 60 tokens.
    assert told[0] in (30, 31, 32)


def test_an_echo_that_has_to_wait_again_is_told_once_and_whole(model, tokens, likely):
    """Where the cells run out, who came last begins anew; what he heard already is kept."""
    options = ContextOptions(
        n_ctx=256, n_ubatch=32, n_batch=32, n_seq=2, threads=1, n_outputs=2, kv_unified=True
    )
    long = tokens * 3
    with Context(model, ContextOptions(n_ctx=256, threads=1)) as context:
        wanted = own(log_softmax(context.decode(long)), long)
    with Context(model, options) as context, Scheduler(context) as scheduler:
        first, second = Hearing(), Hearing()
        never = Sampling(temperature=0, logit_bias=((model.eos, -100.0),))
        with scheduler._changed:  # both are there before the first batch
            scheduler.submit(Job(tuple(tokens), never, 180), first)
            scheduler.submit(Job(tuple(long), GREEDY, 2, logprobs=1, echo=True), second)
        assert {first.wait().finish, second.wait().finish} == {"length"}

        assert scheduler.stats().preempted > 0
        np.testing.assert_allclose(echoed(second), wanted, atol=NOISE)
        assert isinstance(second.all[-1], Ended) and len(second.tokens) == 2


def test_an_echo_reads_its_prompt_anew(model, tokens):
    """A prompt that was read before has no logits any more; who comes after may use it."""
    options = ContextOptions(n_ctx=256, n_ubatch=32, n_batch=32, threads=1, n_outputs=8)
    with Context(model, options) as context, Scheduler(context) as scheduler:
        cached = []
        for echo in (False, True, False):
            listener = Hearing()
            scheduler.submit(Job(tuple(tokens), GREEDY, 1, 1, echo=echo), listener)
            cached.append(listener.wait().timing.cached)
    assert cached == [0, 0, len(tokens) - 1]


def test_a_server_can_have_more_outputs_than_sequences():
    wanted = Wanted(Given(n_seq=4), CHAT)
    counts = [with_outputs(wanted, each).given.n_outputs for each in (None, 1, 4, 256)]
    assert counts == [None, 4, 4, 256]
