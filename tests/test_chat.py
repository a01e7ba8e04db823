"""Conversations with a real model, small as it is: the words are poor, the mechanics are not."""

from dataclasses import replace

import pytest

from gemcut.engine import ContextOptions, Sampling
from gemcut.errors import ContextFull, EngineError
from gemcut.llama import Context, Model
from gemcut.runtime.chat.chat import Chat, recommended_sampling
from gemcut.runtime.language.prompt import check_length, prompt_tokens
from gemcut.runtime.language.template import Message, Template
from tests.chats import open_chat

CONTEXT = ContextOptions(n_ctx=512, n_batch=64, n_ubatch=64, threads=1, n_outputs=1)
GREEDY = Sampling(temperature=0)


@pytest.fixture
def chat(bf16):
    with open_chat(bf16, context=CONTEXT, sampling=GREEDY) as chat:
        yield chat


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
    with pytest.raises(ContextFull, match="the context 512.*start a new conversation"):
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


def test_bos_is_never_doubled(model):
    """Templates write it, plain text gets it; once each."""
    for prompt, special in (("<bos>hi", True), ("hi", True), ("hi", False)):
        tokens = prompt_tokens(model, prompt, special)
        assert [model.bos] == [token for token in tokens if token == model.bos]
    assert model.bos == prompt_tokens(model, "hi", False)[0]


@pytest.mark.parametrize("text", ["a", " ", "def f(x):\n    return x\n", "\u00e4\u6f22", "\x00"])
def test_a_text_that_cannot_fit_is_not_tokenized(model, monkeypatch, text):
    """It has as many tokens at least as the longest of them would make."""
    long = text * (20000 // len(text))
    assert 0 < model.least_tokens(long) <= len(prompt_tokens(model, long, False))
    check_length(model, long, model.least_tokens(long) + 1)
    monkeypatch.setattr(model, "tokenize", None)
    with pytest.raises(ContextFull, match=r"has \d+ tokens or more, the context 16,"):
        check_length(model, long, 16)


def test_a_seed_repeats_an_answer(bf16):
    """Two conversations with one seed are the same; the file's own settings are used."""
    answers = []
    for _ in range(2):
        with Model.load(bf16) as model:
            sampling = replace(recommended_sampling(model), seed=5)
            with Chat(Context(model, CONTEXT), sampling) as chat:
                answers.append(said(chat.generate("import ", max_tokens=20)))

    assert answers[0] == answers[1]


def test_the_file_recommends_how_to_sample(model):
    """`general.sampling.*` replaces llama.cpp's defaults, one by one."""
    sampling = recommended_sampling(model)

    assert sampling.temperature == pytest.approx(float(model.metadata("general.sampling.temp")))
    assert (64, 0.05) == (sampling.top_k, sampling.min_p)
    assert sampling.top_p == pytest.approx(0.95)


# --- going back and on ---


def test_an_answer_can_be_had_again(chat):
    """It takes the old one's place; the same seed does not say the same twice."""
    chat.sampling = Sampling(temperature=2.0, seed=5)
    first = said(chat.send("def add(a, b):", max_tokens=20))
    second = said(chat.retry(max_tokens=20))

    assert first != second
    assert ["def add(a, b):", second] == [message["content"] for message in chat.messages]
    assert 5 == chat.sampling.seed


def test_exchanges_can_be_taken_back(chat):
    """The last one first; then there is nothing to go back to."""
    for text in ("x = 1", "y = 2"):
        list(chat.send(text, max_tokens=3))

    assert ["y = 2", "x = 1"] == [chat.undo(), chat.undo()]
    assert [] == chat.messages
    for back in (chat.undo, chat.retry):
        with pytest.raises(EngineError, match="the conversation is empty"):
            back()


def test_an_answer_can_be_stopped_from_outside(chat):
    """At the next token; what was said stays. Before the first one, nothing has happened."""
    answer = chat.send("def add(a, b):", max_tokens=50)
    first = next(answer)
    chat.stop()
    rest = said(answer)
    kept = list(chat.messages)
    answer = chat.send("more")
    chat.stop()

    assert [] == list(answer)
    assert "cancelled" == chat.finish
    assert kept == chat.messages
    assert first.text + rest == kept[-1]["content"]


def test_a_stop_is_heard_while_a_prompt_is_read(chat):
    """Between two ubatches; the next prompt goes on from there."""
    text, seen = code(chat.model, 300), []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        chat.stop()

    chat.generator.on_read = progress
    assert [] == list(chat.generate(text))
    chat.generator.on_read = None
    list(chat.generate(text, max_tokens=1))

    assert 1 == len(seen)
    assert 0 < seen[0][0] <= 64 < seen[0][1]
    assert seen[0][0] == chat.timing.cached


def test_a_full_context_shifts_if_it_may(bf16, chat):
    """The oldest exchanges are left out, the system message stays, nothing is lost for the user.

    The answer is what a conversation without them would have got.
    """
    chat.system, chat.shifts = "Be brief.", True
    for number in range(12):
        list(chat.send(f"x{number} = 1\n" * 8, max_tokens=8))
    again = said(chat.retry(max_tokens=8))

    assert 0 < chat.unread < 12
    assert 25 == len(chat.messages)
    assert chat.length() + 20 < chat.context.n_ctx_seq
    with open_chat(bf16, context=CONTEXT, sampling=GREEDY) as fresh:
        fresh.messages = [chat.messages[0], *chat.messages[2 * chat.unread + 1 : -2]]
        assert again == said(fresh.send(chat.messages[-2]["content"], max_tokens=8))


def test_an_answer_goes_on_when_the_context_is_full(chat):
    """In the middle of it, the oldest exchanges make room; alone it ends with the context."""
    endless = Sampling(temperature=0, grammar="root ::= [a-z]{2000}")
    chat.shifts, room = True, chat.context.n_ctx_seq
    for _ in range(2):
        list(chat.send(code(chat.model, room // 3), max_tokens=4))
    chat.sampling = endless
    answer = list(chat.send("go"))

    assert 2 == chat.unread
    assert "length" == chat.finish
    assert room / 3 < chat.generator.drawn < room
    assert len(said(answer)) == len(chat.messages[-1]["content"])


def test_stops_end_an_answer(chat):
    """They are not part of it, nor of the conversation."""
    whole = said(chat.send("def add(a, b):", max_tokens=20))
    chat.undo()
    chat.stops = (whole[3:6],)
    cut = said(chat.send("def add(a, b):", max_tokens=20))

    assert whole[:3] == cut == chat.messages[-1]["content"]
    assert "stop" == chat.finish


def test_an_error_leaves_the_conversation_as_it_was(chat, monkeypatch):
    """Whatever llama.cpp says, the next message is answered as if nothing had happened."""
    list(chat.send("x = 1", max_tokens=3))
    before = list(chat.messages)
    with monkeypatch.context() as broken:
        broken.setattr(chat.context, "decode", _fails)
        with pytest.raises(EngineError, match="out of memory"):
            list(chat.send("y = 2"))

    assert before == chat.messages
    assert said(chat.send("y = 2", max_tokens=3))
    assert 0 == chat.timing.cached


def _fails(*_: object, **__: object) -> None:
    raise EngineError("llama.cpp did not decode: it ran out of memory for the computation")


def test_another_conversation_can_be_taken_up(chat):
    """The next answer is to the whole of it; one that the template refuses changes nothing."""
    list(chat.send("x = 1", max_tokens=3))
    other: list[Message] = [
        {"role": "user", "content": "y = 2"},
        {"role": "assistant", "content": "z"},
    ]
    chat.resume(other)
    assert other == chat.messages
    chat.template = Template("{{ raise_exception('no') }}")
    with pytest.raises(EngineError, match="no"):
        chat.resume([])

    assert other == chat.messages


def test_what_was_read_outlives_the_program(bf16, chat, tmp_path):
    """A file of it saves another conversation with the same beginning the reading."""
    text = code(chat.model, 300)
    first = said(chat.generate(text, max_tokens=4))
    chat.generator.save(tmp_path / "cache")
    with open_chat(bf16, context=CONTEXT, sampling=GREEDY) as fresh:
        known = fresh.generator.restore(tmp_path / "cache")
        assert first == said(fresh.generate(text, max_tokens=4))

        assert fresh.timing.cached == known > 200


def test_thoughts_that_are_left_out_cost_little(bf16, chat):
    """Though the window has passed, the next turn reads only what came after the last question."""
    text = code(chat.model, 200)
    list(chat.send(text, max_tokens=1))
    asked = chat.timing.prompt_tokens
    thought = prompt_tokens(chat.model, code(chat.model, 250), special=True)
    chat.generator._decode(thought[1:65], "none")  # stands for thoughts of the model
    for start in range(65, len(thought), 64):
        chat.generator._decode(thought[start : start + 64], "none")
    chat.messages[1:] = [{"role": "assistant", "content": "so"}]
    list(chat.send("x", max_tokens=1))

    assert chat.timing.cached >= asked - 64


# --- templates ---


def test_a_refused_conversation_stays_as_it_was(chat):
    """`send` raises at once."""
    chat.template = Template("{{ raise_exception('only one turn') }}")

    with pytest.raises(EngineError, match="only one turn"):
        chat.send("x")
    assert [] == chat.messages
