"""The server with a real model behind it, asked by OpenAI's own client."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from gemcut.engine import ContextOptions, Sampling
from gemcut.gguf_file import GGUFFile, Value
from gemcut.gguf_writer import GGUFWriter
from gemcut.llama import Context, Model
from gemcut.llama.embedder import Embedder, makes_vectors
from gemcut.runtime.server.service import Service
from gemcut.runtime.server.vectors import Vectors
from tests.chats import open_chat
from tests.serving import Serving, Working, connected, wait

ASKED = [{"role": "user", "content": "def add(a, b):"}]
LONG = {"messages": ASKED, "grammar": "root ::= [a-z]{1000}"}  # takes seconds
NOISE = 0.4  # of log-probabilities, by the shape of a batch; measured: 0.16 among thousands


@pytest.fixture(scope="module")
def server(model):
    with Working(model, n_seq=4) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


def answer(client, messages=ASKED, **options):
    """The whole of one chat completion, greedy unless told otherwise."""
    asked = {"model": "any", "messages": messages, "temperature": 0, "max_tokens": 12} | options
    return client.chat.completions.create(**asked)


# --- chat ---


def test_alone_it_answers_as_the_chat_does(bf16, model):
    """At temperature 0 with one slot: the same text, turn after turn."""
    turns = ["def add(a, b):", "class Point:", "import os"]
    shape = ContextOptions(512, 128, 128, threads=1, n_outputs=1)
    with (
        Working(model, n_seq=1) as server,
        server.client() as client,
        open_chat(bf16, context=shape, sampling=Sampling(temperature=0)) as chat,
    ):
        messages = []
        for turn in turns:
            expected = "".join(piece.text for piece in chat.send(turn, max_tokens=24))
            messages.append({"role": "user", "content": turn})
            done = answer(client, messages, max_tokens=24)
            messages.append({"role": "assistant", "content": done.choices[0].message.content})
            assert expected == done.choices[0].message.content
            assert chat.finish == done.choices[0].finish_reason
        assert done.usage.prompt_tokens_details.cached_tokens > 20


def test_a_stream_has_the_same_answer_in_parts(client):
    """The parts joined are the whole, and the usage comes last where it is asked for."""
    whole = answer(client)
    chunks = list(answer(client, stream=True, stream_options={"include_usage": True}))
    said = [chunk.choices[0] for chunk in chunks[:-1]]

    assert whole.choices[0].message.content == "".join(each.delta.content or "" for each in said)
    assert ["assistant"] == [each.delta.role for each in said if each.delta.role]
    assert whole.choices[0].finish_reason == said[-1].finish_reason
    assert [] == chunks[-1].choices
    assert whole.usage.total_tokens == chunks[-1].usage.total_tokens
    assert whole.usage.completion_tokens == 12 == len(said) - 2
    assert 1 == len({chunk.id for chunk in chunks})
    assert chunks[-1].model_extra["timings"]["predicted_n"] == 11


def test_an_answer_follows_a_schema(client):
    """`response_format` is kept by a grammar, whatever the model would rather say."""
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["sum", "difference"]}, "exact": {"type": "boolean"}},
        "required": ["kind", "exact"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "kind", "schema": schema}}
    done = answer(client, response_format=form, max_tokens=100)
    found = json.loads(done.choices[0].message.content)

    assert found.keys() == {"kind", "exact"}
    assert found["kind"] in ("sum", "difference") and isinstance(found["exact"], bool)
    assert "stop" == done.choices[0].finish_reason


def test_a_tool_can_be_forced(client):
    """The call is of the tool, its arguments are of its schema; streamed as well as whole."""
    parameters = {
        "type": "object",
        "properties": {"unit": {"enum": ["metre", "foot"]}},
        "required": ["unit"],
        "additionalProperties": False,
    }
    tools = [
        {"type": "function", "function": {"name": name, "parameters": parameters}}
        for name in ("measure", "compare")
    ]
    forced = {"type": "function", "function": {"name": "compare"}}
    done = answer(client, tools=tools, tool_choice=forced, max_tokens=100).choices[0]
    parts = [
        call
        for chunk in answer(
            client, tools=tools, tool_choice="required", max_tokens=100, stream=True
        )
        for call in chunk.choices[0].delta.tool_calls or []
    ]

    call = done.message.tool_calls[0]
    assert ("tool_calls", None, "compare") == (
        done.finish_reason,
        done.message.content,
        call.function.name,
    )
    assert json.loads(call.function.arguments)["unit"] in ("metre", "foot")
    assert 1 == len(parts) and parts[0].function.name in ("measure", "compare")
    assert json.loads(parts[0].function.arguments)["unit"] in ("metre", "foot")


def test_a_grammar_of_the_clients_own(client):
    """llama-server's field `grammar`, and what is wrong with one is said."""
    done = answer(client, extra_body={"grammar": 'root ::= "yes" | "no"'})
    assert done.choices[0].message.content in ("yes", "no")
    with pytest.raises(openai.BadRequestError, match="grammar"):
        answer(client, extra_body={"grammar": "root ::= nothing"})


def test_probabilities_are_told(client):
    """Each token of the text with the likeliest ones; greedy drew the first of them."""
    done = answer(client, logprobs=True, top_logprobs=3).choices[0]
    told = done.logprobs.content

    assert done.message.content == b"".join(bytes(each.bytes) for each in told).decode()
    assert all(3 == len(each.top_logprobs) for each in told)
    assert all(each.logprob == each.top_logprobs[0].logprob <= 0 for each in told)
    assert answer(client).choices[0].logprobs is None
    bare = answer(client, logprobs=True).choices[0].logprobs.content
    assert all([] == each.top_logprobs for each in bare)


def test_an_answer_ends_where_it_is_told_to(client):
    """At a stop, which is not shown; at max_tokens, by either name."""
    whole = answer(client).choices[0].message.content
    word = whole.split()[2]
    cut = answer(client, stop=[word, "never said"]).choices[0]
    short = answer(client, max_completion_tokens=3, max_tokens=openai.omit)

    assert (whole[: whole.index(word)], "stop") == (cut.message.content, cut.finish_reason)
    assert (3, "length") == (short.usage.completion_tokens, short.choices[0].finish_reason)


def test_a_seed_repeats_an_answer_and_n_gives_several(model):
    """Several answers differ, their prompt counts once, and the seed brings all of them back.

    With one slot, and the prompt read before: other batches would have other roundings.
    """
    options = {"n": 3, "seed": 7, "temperature": 1.5, "max_tokens": 16}
    with Working(model, n_seq=1) as server, server.client() as client:
        once = answer(client)
        first, second = answer(client, **options), answer(client, **options)
        streamed = ["", "", ""]
        for chunk in answer(client, stream=True, **options):
            for choice in chunk.choices:
                streamed[choice.index] += choice.delta.content or ""
    texts = [choice.message.content for choice in first.choices]

    assert texts == [choice.message.content for choice in second.choices] == streamed
    assert 1 < len(set(texts))
    assert once.usage.prompt_tokens == first.usage.prompt_tokens


def test_a_bias_forbids_a_token(client, server):
    """logit_bias by token numbers, as OpenAI has it."""
    first = answer(client, max_tokens=1).choices[0].message.content
    token = server.service.model.tokenize(first, add_special=False).tolist()[0]

    other = answer(client, max_tokens=1, logit_bias={str(token): -100}).choices[0].message.content

    assert first != other


# --- the others ---


def test_texts_are_continued(client):
    """Several prompts, as texts and as tokens; the prompt before it where it is wanted."""
    asked = {"model": "any", "temperature": 0, "max_tokens": 6, "logprobs": 2}
    texts = client.completions.create(prompt=["import os", "def f("], **asked)
    tokens = [client.post("/../tokenize", body={"content": "import os"}, cast_to=object)["tokens"]]
    again = client.completions.create(prompt=[[2, *tokens[0]]], **asked)
    echoed = client.completions.create(prompt="import os", echo=True, **asked | {"logprobs": None})

    assert [0, 1] == [choice.index for choice in texts.choices]
    assert texts.choices[0].text == again.choices[0].text
    assert "import os" + texts.choices[0].text == echoed.choices[0].text
    told = texts.choices[0].logprobs
    assert texts.choices[0].text == "".join(told.tokens)
    assert told.text_offset == [sum(map(len, told.tokens[:i])) for i in range(6)]
    assert all(2 == len(top) for top in told.top_logprobs)


def test_the_model_is_listed(client):
    """By its name, with what it can hold."""
    listed = list(client.models.list())

    assert ["demo"] == [each.id for each in listed]
    assert 1536 == client.models.retrieve("demo").model_extra["meta"]["n_ctx"]
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.models.retrieve("another/one")


def test_a_model_that_writes_makes_no_vectors(client):
    """Said, not made up."""
    with pytest.raises(openai.InternalServerError, match="not made for embeddings") as error:
        client.embeddings.create(model="any", input="x")
    assert 501 == error.value.status_code


@pytest.fixture
def embedding_file(bf16, tmp_path):
    """The demo, said to be made for embeddings: the mean of its last states."""
    path = tmp_path / "embed.gguf"
    with GGUFFile(bf16) as file:
        metadata = {**file.metadata, "gemma4.pooling_type": Value("u32", 1)}
        with GGUFWriter(path, metadata, file.tensors.values()) as writer:
            for name in file.tensors:
                writer.write(name, 0, file.rows(name))
    return path


def test_a_model_made_for_it_makes_vectors(embedding_file):
    """They are the mean of the model's last states, of length 1; chat is not to be had."""
    states = []
    with GGUFFile(embedding_file) as file:
        assert makes_vectors(file.metadata)
    with Model.load(embedding_file) as model, Embedder(model, 256, 1) as embedder:
        with Vectors(model, embedder) as vectors:
            service = Service("vectors", model, embedder.n_ctx, None, vectors)
            with Serving(service) as server, server.client() as client:
                texts = ["def add(a, b):", "import os"]
                made = client.embeddings.create(model="any", input=texts)
                plain = client.embeddings.create(
                    model="any", input=texts[1], encoding_format="float"
                )
                with pytest.raises(openai.BadRequestError, match="wanted 1 to 256"):
                    client.embeddings.create(model="any", input="x = 1\n" * 200)
                with pytest.raises(openai.InternalServerError, match="writes no text"):
                    answer(client)
        shape = ContextOptions(64, threads=1)
        with Context(
            model,
            shape,
            lambda _, t: states.append(t.read()),
            lambda name, _: name == "result_norm",
        ) as context:
            context.decode(model.tokenize(texts[1]))
    mean = states[0].reshape(-1, 256).astype(float).mean(axis=0)
    expected = mean / (mean @ mean) ** 0.5
    assert expected == pytest.approx(plain.data[0].embedding, abs=1e-5)
    assert plain.data[0].embedding == pytest.approx(made.data[1].embedding, abs=1e-6)
    assert made.data[0].embedding != made.data[1].embedding


# --- many at once ---


def test_what_ran_alone_is_recorded(model):
    """The speed of an answer that shared the machine says nothing about the machine."""
    timings = []
    with Working(model, n_seq=2, record=timings.append) as server, server.client() as client:
        answer(client)
        wait(lambda: [11] == [timing.answer_tokens for timing in timings])
        with connected(server, "/v1/chat/completions", LONG):
            wait(lambda: server.scheduler.stats().active == 1)
            answer(client)
        wait(lambda: server.scheduler.stats().active == 0)
        assert 1 == len(timings)


def test_clients_do_not_hear_each_other(server, client):
    """Eight at once, some of whom leave early: each gets what it would get alone.

    Where a batch's shape changes the answer at all, it does so at a token that was nearly a tie.
    Each has a secret, too: only its own may be said, which a grammar makes it say.
    """
    texts = [f"def secret_{number}(x):\n    return {number**3}" for number in range(8)]
    alone = [probabilities(client, text) for text in texts]
    chance = random.Random(0)

    def talk(number):
        own = random.Random(chance.random())
        with server.client() as client:
            for _ in range(4):
                if own.random() < 0.4:
                    leave(client, texts[number], own.randrange(1, 8))
                check(alone[number], probabilities(client, texts[number]))
                secret = f"secret {number}"
                said = answer(client, extra_body={"grammar": f'root ::= "{secret}"'})
                assert secret == said.choices[0].message.content

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(talk, number) for number in range(8)]:
            done.result(timeout=120)
    wait(lambda: server.scheduler.stats().active == 0)
    assert server.scheduler.stats().finished["cancelled"] > 0
    assert not server.service._live


def probabilities(client, text):
    """An answer's tokens, each with the two likeliest ones."""
    messages = [{"role": "user", "content": text}]
    told = answer(client, messages, logprobs=True, top_logprobs=2, max_tokens=16).choices[0]
    return [[(each.token, each.logprob) for each in t.top_logprobs] for t in told.logprobs.content]


def check(alone, together):
    """The same tokens with the same probabilities, until two are nearly as likely."""
    for one, other in zip(alone, together, strict=False):
        assert one[0][1] == pytest.approx(other[0][1], abs=NOISE)
        if one[0][0] != other[0][0]:
            assert one[0][1] - one[1][1] < NOISE
            return


def leave(client, text, after):
    """Hang up after some parts of an answer."""
    messages = [{"role": "user", "content": text}]
    with answer(client, messages, stream=True, max_tokens=200) as stream:
        for number, _ in enumerate(stream):
            if number == after:
                return


@pytest.mark.parametrize("stream", [True, False])
def test_nothing_is_computed_for_who_has_left(server, stream):
    """The job ends when the client's connection does, however the answer was to be sent."""
    before = server.scheduler.stats().finished.get("cancelled", 0)
    with connected(server, "/v1/chat/completions", LONG | {"stream": stream}):
        wait(lambda: server.scheduler.stats().active == 1)
    wait(lambda: server.scheduler.stats().active == 0)
    wait(lambda: not server.service._live)
    assert before + 1 == server.scheduler.stats().finished["cancelled"]
