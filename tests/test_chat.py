"""Conversations with a real model, small as it is: the words are poor, the mechanics are not."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut.engine import ContextOptions, Sampling
from gemcut.errors import EngineError
from gemcut.llama import Model
from gemcut.runtime.chat import (
    Chat,
    conversation_options,
    open_chat,
    recommended_sampling,
)
from gemcut.runtime.pieces import Piece, Splitter, opens_thought
from gemcut.runtime.template import Message, Template

CONTEXT = ContextOptions(n_ctx=512, n_batch=64, n_ubatch=64, threads=1, n_outputs=1)
GREEDY = Sampling(temperature=0)


@pytest.fixture
def chat(bf16):
    with open_chat(bf16, context=CONTEXT, sampling=GREEDY) as chat:
        yield chat


@pytest.fixture(scope="module")
def model(bf16):
    with Model.load(bf16) as model:
        yield model


def code(model, tokens: int) -> str:
    """A text with at least so many tokens, hardly more."""
    text = ""
    while len(model.tokenize(text)) < tokens:
        text += "x = 1\n"
    return text


def said(pieces) -> str:
    return "".join(piece.text for piece in pieces if not piece.thought)


# --- conversations ---


def test_an_answer_joins_the_conversation(chat):
    """Turns alternate, the answer is what was streamed, the timing counts every token."""
    first = said(chat.send("def add(a, b):", max_tokens=12))
    second = said(chat.send("def sub(a, b):", max_tokens=12))

    assert ["def add(a, b):", first, "def sub(a, b):", second] == [
        message["content"] for message in chat.messages
    ]
    assert ["user", "assistant"] * 2 == [message["role"] for message in chat.messages]
    assert chat.finish in ("stop", "length")
    assert chat.timing.answer_tokens <= 11
    assert chat.timing.prefill > 0
    assert chat.note is None


def test_what_was_read_is_not_read_again(bf16, chat):
    """The second turn reuses the first one's tokens and answers as a fresh context would."""
    list(chat.send("def add(a, b):", max_tokens=8))
    history = list(chat.messages)
    again = said(chat.send("class Point:", max_tokens=8))

    assert chat.timing.cached > 5
    with open_chat(bf16, context=CONTEXT, sampling=GREEDY) as fresh:
        fresh.messages = history
        assert again == said(fresh.send("class Point:", max_tokens=8))
        assert 0 == fresh.timing.cached
        assert fresh.timing.prompt_tokens == chat.timing.cached + chat.timing.prompt_tokens


def test_a_passed_window_is_read_again(bf16, chat):
    """When the sliding window has moved on, going back means reading everything anew."""
    text = code(chat.model, 480)
    list(chat.generate(text, max_tokens=1))
    other = said(chat.generate(text[:60], max_tokens=8))

    assert 0 == chat.timing.cached
    with open_chat(bf16, context=CONTEXT, sampling=GREEDY) as fresh:
        assert other == said(fresh.generate(text[:60], max_tokens=8))


def test_a_conversation_that_outgrows_the_context_says_so(chat):
    """At once, before anything is read; nothing is dropped in silence, and `reset` helps."""
    with pytest.raises(EngineError, match="the context 512.*start a new conversation"):
        chat.send("x = 1\n" * 400)
    assert [] == chat.messages
    list(chat.send("x = 1", max_tokens=2))
    chat.reset()
    assert [] == chat.messages


def test_an_answer_ends_with_the_context(chat):
    """A full context ends the answer, and the finish says that it was cut."""
    prompt = code(chat.model, 500)
    room = chat.context.n_ctx_seq - len(chat.model.tokenize(prompt))
    list(chat.generate(prompt))

    assert 0 < room <= 12
    assert ("length", room - 1) == (chat.finish, chat.timing.answer_tokens) or (
        chat.finish == "stop" and chat.timing.answer_tokens < room
    )


def test_a_broken_off_answer_is_kept_as_far_as_it_got(chat):
    """Closing the iterator, as Ctrl-C does, records what was said until then."""
    answer = chat.send("def add(a, b):", max_tokens=50)
    first = next(answer)
    answer.close()

    assert [first.text] == [m["content"] for m in chat.messages if m["role"] == "assistant"]
    assert said(chat.send("def sub(a, b):", max_tokens=4))


def test_the_system_message_stays(bf16):
    """It comes first in every prompt and survives a reset."""
    with open_chat(bf16, context=CONTEXT, sampling=GREEDY, system="Be brief.") as chat:
        list(chat.send("x", max_tokens=1))
        chat.reset()

        assert [{"role": "system", "content": "Be brief."}] == chat.messages


def test_without_a_template_text_is_continued(bf16, tmp_path):
    """Every message is completed as it is, and the user is told."""
    path = tmp_path / "plain.gguf"
    hidden = bf16.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_hidden__")
    path.write_bytes(hidden)

    with open_chat(path, context=CONTEXT, sampling=GREEDY) as chat:
        plain = said(chat.send("def add(a, b):", max_tokens=6))
        assert "no chat template" in (chat.note or "")
        assert plain == said(chat.generate("def add(a, b):", max_tokens=6))
        assert [] == chat.messages


def test_bos_is_never_doubled(chat):
    """Templates write it, plain text gets it; once each."""
    bos = chat.model.bos
    for prompt, special in (("<bos>hi", True), ("hi", True), ("hi", False)):
        assert [bos] == [t for t in chat._tokens(prompt, special) if t == bos]
    assert bos == chat._tokens("hi", False)[0]


def test_a_seed_repeats_an_answer(bf16):
    """Two conversations with one seed are the same; the file's own settings are used."""
    answers = []
    for _ in range(2):
        with Model.load(bf16) as model:
            sampling = replace(recommended_sampling(model), seed=5)
            with Chat(model, CONTEXT, sampling) as chat:
                answers.append(said(chat.generate("import ", max_tokens=20)))

    assert answers[0] == answers[1]


def test_the_file_recommends_how_to_sample(model):
    """`general.sampling.*` replaces llama.cpp's defaults, one by one."""
    sampling = recommended_sampling(model)

    assert sampling.temperature == pytest.approx(float(model.metadata("general.sampling.temp")))
    assert (64, 0.05) == (sampling.top_k, sampling.min_p)
    assert sampling.top_p == pytest.approx(0.95)


def test_a_conversation_needs_logits_for_one_token(model):
    """The default context is as long as the model, within reason, and small beside it."""
    options = conversation_options(model)

    assert (min(8192, model.n_ctx_train), 1) == (options.n_ctx, options.n_outputs)
    assert 100 == conversation_options(model, 100).n_batch


# --- pieces ---


def split(model, text, thought=False):
    splitter = Splitter(model, thought)
    tokens = model.tokenize(text, add_special=False, parse_special=True)
    pieces = [piece for token in tokens for piece in splitter.take(int(token))]
    return [*pieces, *splitter.end()]


def test_thoughts_are_told_apart(model):
    """Gemma's channel and its heading are not shown; what is in it is a thought."""
    pieces = split(model, "<|channel>thought\nhm, so\nwhat<channel|>yes")

    assert "hm, so\nwhat" == "".join(piece.text for piece in pieces if piece.thought)
    assert "yes" == said(pieces)
    assert "a" == said(split(model, "b<channel|>a", thought=True))


@given(
    st.text(st.characters(exclude_characters="▁<\ufffd", exclude_categories=["Cs"]), max_size=40)
)
def test_characters_are_never_cut(model, text):
    """Pieces are whole characters, whatever the tokens are, and together the text."""
    pieces = split(model, text)

    assert text == said(pieces)
    assert all(piece.text and "\ufffd" not in piece.text for piece in pieces)


def test_half_a_character_is_replaced_at_the_end(model):
    """An answer that was cut within a character still ends as text."""
    splitter = Splitter(model)
    first = model.tokenize("\U0001f9ff", add_special=False)
    assert len(first) > 1

    assert [] == list(splitter.take(int(first[0])))
    assert [Piece("\ufffd", False)] == list(splitter.end())


def test_some_prompts_leave_a_thought_open():
    """Templates that make the model think end in the mark that opens it."""
    assert opens_thought("<|turn>model\n<think>\n")
    assert not opens_thought("<|turn>model\n<|channel>thought\n<channel|>")


# --- templates ---


def test_a_template_gets_what_templates_use():
    """Blocks are trimmed, loops break, JSON is not escaped, dates and tokens are there."""
    source = """
{%- for m in messages %}
    {%- if loop.index > 1 %}{% break %}{% endif %}
{{ bos_token }}{{ m | tojson }}{{ eos_token }}
{%- endfor %}
{{ strftime_now("%Y") | length }}{{ enable_thinking }}{{ add_generation_prompt }}"""
    messages: list[Message] = [{"role": "user", "content": "<é>"}] * 2

    found = Template(source, "<b>", "<e>").render(messages, think=True)

    assert found == '<b>{"role": "user", "content": "<é>"}<e>4TrueTrue'


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{ raise_exception('no system please') }}", "refuses.*no system please"),
        ("{{ messages[0].content.nothing.here }}", "refuses"),
        ("{{ messages[9]['role'] }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{{ ''.__class__.__mro__ }}", "refuses"),
        ("{{ 1 / 0 }}", "refuses"),
        ("{% if %}", "not valid"),
    ],
)
def test_a_template_cannot_do_harm(source, why):
    """What fails, refuses or reaches out of the sandbox ends in an error with its reason."""
    with pytest.raises(EngineError, match=why):
        Template(source).render([{"role": "user", "content": "x"}])


def test_a_refused_conversation_stays_as_it_was(chat):
    """`send` raises at once."""
    chat.template = Template("{{ raise_exception('only one turn') }}")

    with pytest.raises(EngineError, match="only one turn"):
        chat.send("x")
    assert [] == chat.messages
