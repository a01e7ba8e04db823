"""What stands around a text when it is scored, what a model says itself, and what the two tell."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemcut.demo.text import held_out_text
from gemcut.engine import ContextOptions, ModelOptions, Sampling
from gemcut.errors import EngineError, TextError, UsageError
from gemcut.eval.texts import diagnosis, own
from gemcut.eval.texts.chunks import cut, half_scored
from gemcut.eval.texts.diagnosis import diagnose, judged
from gemcut.eval.texts.dialogue import Dialogue
from gemcut.eval.texts.framing import FRAMINGS, MANY_TEXTS, frame, left_out, scored_bytes
from gemcut.eval.texts.text import Text
from gemcut.gguf_file import GGUFFile, Value
from gemcut.gguf_layout import header
from gemcut.llama import Context, Model

TALK = [
    ("user", "What does the function close do?"),
    ("assistant", "Close the file."),
    ("user", "And open?"),
    ("assistant", "Open a file, and return it."),
]
EMPTY_THOUGHT = "<|channel>thought\n<channel|>"
# A vocabulary whose flags llama.cpp believes: it puts a BOS before Gemma's texts whatever they say.
NO_BOS = {
    "ggml.model": Value("str", "llama"),
    "ggml.scores": Value("[f32]", [0.0] * 2048),
    "ggml.add_bos_token": Value("bool", False),
}


@pytest.fixture(scope="module")
def vocabulary(bf16):
    with Model.load(bf16, ModelOptions(vocab_only=True)) as model:
        yield model


@pytest.fixture(scope="module")
def text():
    return Text.of("held-out", held_out_text()[:20_000])


@pytest.fixture
def altered(tmp_path, bf16):
    """The demo's vocabulary with other metadata; None leaves a key out."""

    def load(**changes):
        with GGUFFile(bf16) as file:
            metadata = {**file.metadata, **{f"tokenizer.{k}": v for k, v in changes.items()}}
        path = tmp_path / "altered.gguf"
        path.write_bytes(header({k: v for k, v in metadata.items() if v is not None}, []))
        return Model.load(path, ModelOptions(vocab_only=True))

    return load


def says(model, tokens):
    """Tokens as text, control tokens written out."""
    return b"".join(model.piece(int(token), special=True) for token in tokens).decode()


def template(source):
    return {"chat_template": Value("str", source)}


# --- plain text ----------------------------------------------------------------------------------


def test_raw_chunks_are_those_of_llama_cpp(vocabulary, text):
    """Cut once, each chunk begun with the BOS this vocabulary wants, its second half scored."""
    tokens = vocabulary.tokenize(text.content)
    rows = cut(tokens, 128, 5, vocabulary.bos, text.name)

    chunks = frame(vocabulary, [text], "raw", 128, 5)

    assert [chunk.digest for chunk in chunks] == [chunk.digest for chunk in half_scored(rows)]
    assert chunks[0].n_scored == 63 and chunks[4].tokens[0] == vocabulary.bos
    assert np.array_equal(chunks[1].targets, tokens[128 + 65 : 256])


def test_a_bos_is_put_in_place_where_it_is_wanted(altered, text):
    """With `bos` the same tokens are scored, after a BOS that the vocabulary does not ask for."""
    with altered(**NO_BOS) as model:
        assert not model.add_bos and model.bos == 2
        raw, bos = (frame(model, [text], framing, 64, 4) for framing in ("raw", "bos"))

    assert all(chunk.tokens[0] == 2 for chunk in bos)
    assert not any(chunk.tokens[0] == 2 for chunk in raw)
    for one, other in zip(raw, bos, strict=True):
        assert np.array_equal(one.tokens[1:], other.tokens[1:])
        assert np.array_equal(one.outputs, other.outputs)


def test_a_vocabulary_without_a_bos_has_no_such_framing(vocabulary, text, monkeypatch):
    monkeypatch.setattr(Model, "bos", None)

    with pytest.raises(UsageError, match="has no BOS; frame the text raw"):
        frame(vocabulary, [text], "bos", 64)


def test_special_tokens_in_a_text_are_read_if_asked_for(vocabulary, text):
    marked = Text.of("marked", "<turn|>" * 200)

    read = frame(vocabulary, [marked], "raw", 64, parse_special=True)
    spelled = frame(vocabulary, [marked], "raw", 64)

    assert len({*read[0].tokens[1:].tolist()}) == 1
    assert "<turn|>" in says(vocabulary, spelled[0].tokens) and len(spelled) > len(read)


def test_few_texts_have_to_be_long_and_are_told_by_number(vocabulary, text):
    chunks = frame(vocabulary, [text, replace(text, name="again")], "raw", 256, 3)

    assert [chunk.text for chunk in chunks] == [0, 0, 0, 1, 1, 1]
    with pytest.raises(TextError, match=r"note: too short: \d+ tokens, wanted 512"):
        frame(vocabulary, [text, Text.of("note", "hello world")], "raw", 256)


def test_of_many_texts_a_short_one_is_a_chunk_of_its_own(vocabulary, text):
    lengths = [30, 200, 1_000, 5_000] * 3
    texts = [Text.of(f"text {n}", text.content[:length]) for n, length in enumerate(lengths)]
    assert len(texts) >= MANY_TEXTS

    for framing in ("raw", "chat"):
        chunks = frame(vocabulary, texts, framing, 256, 3)

        assert left_out(texts, chunks) == texts[::4]  # 30 characters are too few
        by_text = [[c for c in chunks if c.text == number] for number in range(4)]
        assert [len(found) for found in by_text] == [0, 1, 1, 3]
        assert [len(found[0].tokens) < 256 for found in by_text[1:]] == [True, False, False]
        assert all(0 < chunk.n_scored <= len(chunk.tokens) // 2 for chunk in chunks)
    with pytest.raises(TextError, match="0 chunks in 12 texts"):
        frame(vocabulary, [Text.of(str(n), "hello") for n in range(12)], "raw", 256)


def test_what_cannot_be_framed_is_refused(vocabulary, text):
    with pytest.raises(TextError, match="no text"):
        frame(vocabulary, [], "raw", 64)
    with pytest.raises(UsageError, match="a context of 7 is too small"):
        frame(vocabulary, [text], "raw", 7)
    for framing in ("own", "poem"):
        with pytest.raises(UsageError, match=f"no framing '{framing}' of a text"):
            frame(vocabulary, [text], framing, 64)
    assert FRAMINGS == ("raw", "bos", "chat", "own")


def test_bytes_of_scored_tokens_are_those_of_their_text(vocabulary, text):
    chunks = frame(vocabulary, [text], "raw", 128, 4)

    wanted = sum(len(says(vocabulary, chunk.targets).encode()) for chunk in chunks)
    assert text.content.isascii() and scored_bytes(vocabulary, chunks) == wanted


@settings(max_examples=30)
@given(st.integers(48, 300), st.sampled_from(["raw", "bos", "chat"]), st.integers(2, 4))
def test_every_framing_scores_the_second_half_of_whole_chunks(vocabulary, text, n_ctx, framing, n):
    """As many tokens in each framing and no more chunks than asked for; the text's own alone."""
    chunks = frame(vocabulary, [text], framing, n_ctx, n)

    assert [len(chunk.tokens) for chunk in chunks] == [n_ctx] * n
    assert {chunk.n_scored for chunk in chunks} == {n_ctx - 1 - n_ctx // 2}
    assert all(says(vocabulary, chunk.targets) in text.content for chunk in chunks)
    assert all(np.array_equal(chunk.targets, chunk.tokens[n_ctx // 2 + 1 :]) for chunk in chunks)


# --- the model's own turn ------------------------------------------------------------------------


def test_prose_is_the_models_own_turn_after_an_empty_thought(vocabulary, text):
    """The template's prompt stands before every part of the text; it is never scored."""
    first, second = frame(vocabulary, [text], "chat", 128, 2)

    opening, _, content = says(vocabulary, first.tokens).partition(EMPTY_THOUGHT)
    assert opening.startswith("<bos><|turn>user\n") and opening.endswith("<|turn>model\n")
    rest = says(vocabulary, second.tokens).partition(EMPTY_THOUGHT)[2]
    assert text.content.startswith(content + rest)
    assert len(first.tokens) == 128 and first.n_scored == 63
    assert content.endswith(says(vocabulary, first.targets))


def test_of_a_conversation_the_answers_are_scored_to_their_ends(vocabulary):
    """Each after what was said before it, as the template has it, without earlier thoughts."""
    talks = [Text.conversation(name, TALK) for name in "ab"]

    chunks = frame(vocabulary, talks, "chat", 256)

    assert [chunk.text for chunk in chunks] == [0, 0, 1, 1]
    said = [says(vocabulary, chunk.targets) for chunk in chunks[:2]]
    assert said == ["Close the file.<turn|>", "Open a file, and return it.<turn|>"]
    read = says(vocabulary, chunks[1].tokens)
    assert read.count(EMPTY_THOUGHT) == 1 and read.endswith(EMPTY_THOUGHT + said[1])
    assert "<|turn>model\nClose the file.<turn|>\n<|turn>user\nAnd open?<turn|>" in read


def test_a_long_conversation_is_scored_as_far_as_it_fits(vocabulary):
    long = [*TALK, ("user", "Why?"), ("assistant", "word " * 500), *TALK]
    texts = [Text.conversation(name, long) for name in "ab"]

    chunks = frame(vocabulary, texts, "chat", 128)

    assert [chunk.text for chunk in chunks] == [0, 0, 0, 1, 1, 1]
    assert len(chunks[2].tokens) == 128 and says(vocabulary, chunks[2].targets).endswith(
        "word word"
    )
    with pytest.raises(TextError, match="a: what is said before the first answer fills"):
        frame(vocabulary, [Text.conversation("a", TALK)], "chat", 24)


def test_conversations_that_cannot_be_framed_are_refused(vocabulary, altered, text):
    asked = Text.conversation("asked", TALK[:1])
    with pytest.raises(TextError, match="asked: the assistant says nothing in it"):
        frame(vocabulary, [asked], "chat", 128)
    refusing = "{% if messages | length > 1 %}{{ raise_exception('no more') }}{% endif %}x"
    with altered(**template(refusing)) as model:
        with pytest.raises(TextError, match="talk: the chat template refuses .* no more"):
            frame(model, [Text.conversation("talk", TALK)], "chat", 128)
    with altered(chat_template=None) as model:
        with pytest.raises(UsageError, match="there is no chat template in it"):
            frame(model, [text], "chat", 128)
    with altered(**template("{{ 'a word ' * 60 }}")) as model:
        with pytest.raises(UsageError, match="more than half of a context of 64: use one of at"):
            frame(model, [text], "chat", 64)


@pytest.mark.parametrize(
    ("end", "wanted"),
    [
        ("<think>\n", "<think>\n\n</think>\n\n"),  # as Qwen's templates close it themselves
        ("<|channel>thought\n", "<|channel>thought\n<channel|>"),
        ("<think>\n\n</think>\n\n", "<think>\n\n</think>\n\n"),
        ("<|turn>model\n", "<|turn>model\n"),
    ],
)
def test_a_thought_that_a_template_opens_is_closed(altered, end, wanted):
    with altered(**template(f"{{{{ bos_token + messages[-1].content + {end!r} }}}}")) as model:
        opening = says(model, Dialogue(model).opening([("user", "Why?")]))

    assert opening == "<bos>Why?" + wanted


def test_the_same_text_has_the_same_tokens_on_another_day(altered):
    with altered(**template("{{ strftime_now('%Y') }}")) as model:
        assert "2025" in says(model, Dialogue(model).opening())


# --- own answers ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def context(bf16):
    sizes = ContextOptions(n_ctx=192, threads=1)
    with Model.load(bf16) as model, Context(model, sizes) as context:
        yield context


def test_own_answers_are_drawn_once_and_scored_whole(context):
    """The same seed says the same; every token is scored, the one that ends an answer, too."""
    asked = own.prompts([], 3)
    seen = []

    answers = list(
        own.answers(context, asked, "f00d", n_predict=24, progress=lambda *done: seen.append(done))
    )

    assert answers == list(own.answers(context, asked, "f00d", n_predict=24))
    assert answers != list(own.answers(context, asked, "f00d", seed=9, n_predict=24))
    assert seen == [(1, 3), (2, 3), (3, 3)] and [each.seed for each in answers] == [1, 2, 3]
    model = context.model
    for each, chunk in zip(answers, own.framed(answers, 192), strict=True):
        said = each.tokens[each.n_prompt :]
        assert tuple(chunk.targets) == said and 0 < len(said) <= 24
        assert model.is_end(said[-1]) or len(said) == 24
        assert each.text.messages[-1][1] == own.written(model, said, special=False).strip()
        assert says(model, each.tokens[: each.n_prompt]).endswith(EMPTY_THOUGHT)
    assert answers[0].sampling["temperature"] == pytest.approx(0.7)  # the file recommends it


def test_greedy_answers_are_the_likeliest_tokens(context):
    (answer,) = own.answers(context, own.prompts([], 1), "", sampling=Sampling(0), n_predict=12)

    (chunk, _) = own.framed([answer, answer], 192)
    context.forget()
    logits = context.decode(chunk.tokens, outputs=chunk.outputs)

    assert logits.argmax(axis=1).tolist() == chunk.targets.tolist()


def test_own_answers_have_to_fit(context):
    (answer,) = own.answers(context, own.prompts([], 1), "", n_predict=8)
    with pytest.raises(TextError, match="0 of 1 own answers fit in a context of 16, wanted 2"):
        own.framed([answer], 16)
    long = Text.conversation("long", [("user", "word " * 300)])
    with pytest.raises(TextError, match=r"long: a prompt of \d+ tokens leaves no room"):
        list(own.answers(context, [long], ""))


def test_without_a_template_a_prompt_is_continued(context, monkeypatch):
    monkeypatch.setattr(Model, "chat_template", None)
    prompt = Text.conversation("p", [("user", "def close(self):")])

    (answer,) = own.answers(context, [prompt], "", n_predict=8)

    assert says(context.model, answer.tokens[: answer.n_prompt]) == "<bos>def close(self):"


# --- the diagnosis -------------------------------------------------------------------------------


def test_the_demo_can_be_scored_in_every_framing(bf16, text):
    """The same tokens are scored in each; a BOS that is there anyway is no framing of its own."""
    found = {framing: diagnose(bf16, [text], framing, threads=1) for framing in ("raw", "chat")}

    assert found["raw"].perplexities.keys() == {"raw", "chat"}
    assert found["raw"].perplexities == found["chat"].perplexities
    assert not any(each.meaningless or each.advice for each in found.values())
    assert found["raw"].is_chat and 5 < found["raw"].perplexities["raw"] < 100


def test_nothing_is_read_of_what_is_framed_as_the_model_is_used(bf16, text):
    talk = Text.conversation("talk", TALK)

    assert diagnose(bf16, [text], "own").perplexities == {}
    assert diagnose(bf16, [talk], "chat").perplexities == {}
    assert diagnose(bf16, [Text.of("short", "a")], "raw").perplexities == {}


@pytest.mark.parametrize(
    ("framing", "perplexities", "meaningless", "advice"),
    [
        # Gemma 4 26B-A4B-it on prose, as published
        ("raw", {"raw": 19_312, "chat": 18.2}, True, "19,312 framed raw, 18.2 framed chat"),
        ("bos", {"raw": 19_312, "chat": 18.2}, True, "use --framing chat, or --framing own"),
        ("chat", {"raw": 19_312, "chat": 18.2}, False, None),
        ("raw", {"raw": 9.0, "chat": 8.0}, False, None),
        # a base model whose file has a template all the same
        ("chat", {"raw": 8.0, "chat": 30.0}, True, "continues plain text .* --framing raw"),
        # a BOS that is missed much, and a little (Gemma 4 31B)
        ("raw", {"raw": 2645.0, "bos": 9.0}, True, "expects a BOS .* --framing bos"),
        ("raw", {"raw": 6.6, "bos": 5.23}, False, "6.6 without a BOS, 5.23 with one"),
        ("bos", {"raw": 6.6, "bos": 5.23}, False, None),
        ("raw", {"raw": 5.3, "bos": 5.23}, False, None),
        # noise, in any framing
        ("chat", {"raw": 2e6, "chat": 1e6}, True, "makes nothing of this text .* --framing own"),
        ("raw", {}, False, None),
    ],
)
def test_what_perplexities_say_of_a_framing(framing, perplexities, meaningless, advice):
    found = judged(framing, perplexities, "chat" in perplexities, 4.0)

    assert found.meaningless == meaningless and bool(found.advice) == bool(advice)
    if advice:
        assert re.search(advice, found.advice)


def test_the_rows_of_a_diagnosis_differ_by_what_stands_before_them_alone(altered, text):
    with altered(**NO_BOS) as model:
        framed = diagnosis._framings(model, diagnosis._rows(model, [text], False))

    assert list(framed) == ["raw", "bos", "chat"] and len(framed["raw"]) == 2
    for chunks in zip(*framed.values(), strict=True):
        assert len({chunk.targets.tobytes() for chunk in chunks}) == 1
    assert len(framed["chat"][0].tokens) > 256 == len(framed["raw"][0].tokens)


def test_a_file_that_is_none_is_refused(tmp_path, text):
    with pytest.raises(EngineError, match="cannot be read"):
        diagnose(tmp_path / "no.gguf", [text], "raw")
