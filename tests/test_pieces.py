"""Answers taken apart: characters, thoughts, calls of tools, texts that end them."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemcut.engine import Thought
from gemcut.runtime.language.pieces import Piece, Splitter
from gemcut.runtime.language.thoughts import HARMONY, THOUGHT_MARKS, opens_thought, thought_of
from gemcut.runtime.language.tools import CALL_MARKS, ToolCall, read_bare_calls, read_calls

MARKS = [*THOUGHT_MARKS.items(), *CALL_MARKS.items()]


class Bytes:
    """A vocabulary of 256 bytes and some marks; control tokens are only written when asked for."""

    def __init__(self, *marks: str, control: bool = True) -> None:
        self.marks, self.control = marks, control

    def tokenize(self, text, add_special=True, parse_special=False):
        found = []
        marks = "|".join(map(re.escape, self.marks)) or r"\Z"
        for part in re.split(f"({marks})", text):
            found += [256 + self.marks.index(part)] if part in self.marks else part.encode()
        return found

    def piece(self, token, special=False):
        if token < 256:
            return bytes([token])
        return self.marks[token - 256].encode() if special or not self.control else b""


def split(model, text, **how) -> list[Piece]:
    splitter = Splitter(model, **how)
    tokens = model.tokenize(text, add_special=False, parse_special=True)
    pieces = [piece for token in tokens for piece in splitter.take(int(token))]
    return [*pieces, *splitter.end()]


def said(pieces, thought=False) -> str:
    return "".join(piece.text for piece in pieces if piece.thought is thought)


def calls(pieces) -> list[ToolCall]:
    return [piece.call for piece in pieces if piece.call]


# --- characters ---


plain = st.characters(exclude_characters="▁<\ufffd", exclude_categories=["Cs"])


@given(st.text(plain, max_size=40))
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
    assert [Piece("\ufffd")] == list(splitter.end())


bits = st.sampled_from(
    ["a", " ", "\n", "é", "\U0001f9ff", "<", "|", ">", "think", "</think>", "<tool_call>", "{"]
    + ['{"name": ', "END", "EN", "STOP", "STO", "<|channel>", "<|call", "[TOOL_CALLS]", '"}']
    + ["</tool_call>", "thought\n"]
)


@settings(max_examples=150)
@given(st.lists(bits, max_size=12).map("".join), st.sets(st.sampled_from(["END", "STOP", '{"'])),
       st.booleans(), st.booleans())  # fmt: skip
def test_nothing_is_lost_or_shown_twice(text, stops, tools, special):
    """One token or many, marks as tokens or spelled: the same pieces, up to the stop, in order."""
    marks = ("<|channel>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]")
    vocabulary = Bytes(*marks, control=False) if special else Bytes()
    splitter = Splitter(vocabulary, stops=stops, tools=tools)
    pieces = split(vocabulary, text, stops=stops, tools=tools)
    at_once = [*splitter._feed(text), *splitter.end()] if not special else pieces

    assert [said(pieces), said(pieces, True)] == [said(at_once), said(at_once, True)]
    # Without marks, and where no JSON is held back as a call, it is the text up to the first stop.
    if not any(mark in text for mark in marks) and not (tools and text.lstrip().startswith("{")):
        assert text[: min((text.find(s) for s in stops if s in text), default=None)] == said(pieces)


# --- thoughts ---


def test_thoughts_are_told_apart(model):
    """Gemma's channel and its heading are not shown; what is in it is a thought."""
    pieces = split(model, "<|channel>thought\nhm, so\nwhat<channel|>yes")

    assert "hm, so\nwhat" == said(pieces, thought=True)
    assert "yes" == said(pieces)
    assert "a" == said(split(model, "b<channel|>a", thought=True))


@pytest.mark.parametrize(("opening", "closing"), THOUGHT_MARKS.items())
@pytest.mark.parametrize("spelled", [False, True])
def test_every_family_thinks(opening, closing, spelled):
    """Marks are tokens of their own, or spelled; the white space after them is dropped."""
    model = Bytes() if spelled else Bytes(opening, closing)
    heading = "thought\n" if opening == "<|channel>" else "\n"
    pieces = split(model, f"{opening}{heading}so < 3\n\nthen{closing}\n\nan answer\n")

    assert ["so < 3\n\nthen", "an answer\n"] == [said(pieces, True), said(pieces)]
    assert "x" == said(split(model, f"y{closing} x", thought=True))
    assert "" == said(split(model, f"{opening}{heading}{closing}"))


def test_a_spelled_mark_in_an_answer_is_text():
    """A thought begins an answer, or is none; with a token of its own, text is never a mark."""
    assert "use <think> and </think>" == said(split(Bytes(), "use <think> and </think>"))
    text = "<think>x</think>"
    vocabulary = Bytes("<think>", "</think>")
    splitter = Splitter(vocabulary)
    assert text == said([p for byte in text.encode() for p in splitter.take(byte)])


def test_some_prompts_leave_a_thought_open():
    """Templates that make the model think end in the mark that opens it."""
    assert opens_thought("<|turn>model\n<think>\n")
    assert opens_thought("<|turn>model\n<|channel>thought\n")
    assert not opens_thought("<|turn>model\n<|channel>thought\n<channel|>")
    assert not opens_thought("")


def test_a_grammar_knows_where_the_thought_ends(model):
    """Left open by the prompt, begun by the model, or not to be: as the vocabulary has it."""
    gemma = Thought("<channel|>", "<|channel>")
    assert gemma == thought_of(model, "<|turn>model\n", think=True)
    assert thought_of(model, "<|turn>model\n", think=False) is None
    assert Thought("</think>", begun=True) == thought_of(Bytes(), "x<think>\n", think=False)
    assert thought_of(Bytes(), "x", think=True) is None
    final = "<|channel|>final<|message|>"
    assert Thought(final, begun=True) == thought_of(Bytes(*HARMONY), "<|start|>assistant")
    assert thought_of(Bytes(*HARMONY), f"<|start|>assistant{final}") is None


def test_harmony_has_channels():
    """Analysis is a thought, final the answer, commentary to a function a call of it."""
    model = Bytes(*HARMONY)
    answer = (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.look <|constrain|>json<|message|>{"at": 1}'
    )
    pieces = split(model, answer, tools=True)
    assert ("hm", "") == (said(pieces, True), said(pieces))
    assert [ToolCall("look", '{"at": 1}')] == calls(pieces)

    recipient = '<|start|>assistant to=functions.a.b<|channel|>commentary<|message|>{"x":'
    pieces = split(model, f"{recipient}[]}}<|end|>{recipient}", tools=True)
    assert [ToolCall("a.b", '{"x": []}')] == calls(pieces)
    assert '{"x":' == said(pieces)

    pieces = split(model, "<|channel|>analysis<|message|>a<|end|><|start|>assistant"
                          "<|channel|>final<|message|>b{}")  # fmt: skip
    assert ("a", "b{}") == (said(pieces, True), said(pieces))
    assert "plain" == said(split(model, "plain"))


# --- stops ---


@pytest.mark.parametrize(
    ("text", "stops", "shown", "stopped"),
    [
        ("one two three", ["two"], "one ", "two"),
        ("one tw", ["two"], "one tw", None),
        ("one tw two", ["two", "tw "], "one ", "tw "),
        ("aaab", ["aab"], "a", "aab"),
        ("line\n\nnext", ["\n\n"], "line", "\n\n"),
        ("a\U0001f9ffb", ["\U0001f9ff"], "a", "\U0001f9ff"),
        ("stop", ["stop"], "", "stop"),
        ("all", [""], "all", None),
    ],
)
def test_a_stop_ends_the_answer(model, text, stops, shown, stopped):
    """Across tokens; what only began like one is shown after all, and nothing after a whole one."""
    for vocabulary in (model, Bytes()):
        splitter = Splitter(vocabulary, stops=stops)
        pieces = []
        for token in vocabulary.tokenize(text + "!", add_special=False)[:-1]:
            pieces += splitter.take(int(token))
        pieces += splitter.end()
        assert (shown, stopped) == (said(pieces), splitter.stopped)
        assert [] == list(splitter.take(65)) or stopped is None


def test_stops_are_not_looked_for_in_thoughts():
    """Nor in the white space between a thought and the answer."""
    pieces = split(Bytes(), "<think>a\n\nb</think>\n\nc\n\nd", stops=["\n\n"])

    assert ("a\n\nb", "c") == (said(pieces, True), said(pieces))


# --- calls ---

ARGUMENTS = {"city": 'a "b" {c}, d', "days": 3, "on": True, "none": None, "of": [1.5, {"k": ["x"]}]}


def gemma(value, top=True):
    """Gemma 4's notation, as its template writes calls."""
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{gemma(item, False)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(gemma(item, False) for item in value) + "]"
    return json.dumps(value)


WRITTEN = json.dumps({"name": "look_up", "arguments": ARGUMENTS})
KEYED = "".join(
    f"<arg_key>{k}</arg_key>\n<arg_value>{v if isinstance(v, str) else json.dumps(v)}</arg_value>\n"
    for k, v in ARGUMENTS.items()
)
TAGGED = "".join(
    f"<parameter={k}>\n{v if isinstance(v, str) else json.dumps(v)}\n</parameter>\n"
    for k, v in ARGUMENTS.items()
)


@pytest.mark.parametrize(
    "text",
    [
        f"<|tool_call>call:look_up{gemma(ARGUMENTS)}<tool_call|>",
        f"<tool_call>\n{WRITTEN}\n</tool_call>",
        f"<tool_call>\n<function=look_up>\n{TAGGED}</function>\n</tool_call>",
        f"<tool_call>look_up\n{KEYED}</tool_call>",
        f"<seed:tool_call>\n<function=look_up>\n{TAGGED}</function>\n</seed:tool_call>",
        f"<tool_calls>[{WRITTEN}]</tool_calls>",
        f"[TOOL_CALLS]look_up[ARGS]{json.dumps(ARGUMENTS)}",
        f"[TOOL_CALLS][{WRITTEN}]",
        f"<|python_tag|>{WRITTEN}",
        WRITTEN.replace("arguments", "parameters"),
        "  " + WRITTEN + "\n",
        json.dumps({"function": {"name": "look_up", "arguments": json.dumps(ARGUMENTS)}}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("spelled", [False, True])
def test_calls_are_read(text, spelled):
    """In every family's way: the name, and the arguments as JSON; without tools it is text."""
    model = Bytes() if spelled else Bytes(*CALL_MARKS, *filter(None, CALL_MARKS.values()), '<|"|>')
    pieces = split(model, text, tools=True, stops=["days"])

    assert [("look_up", ARGUMENTS)] == [(c.name, json.loads(c.arguments)) for c in calls(pieces)]
    assert not said(pieces).strip()
    assert re.fullmatch(r"\w{9}", calls(pieces)[0].id)
    if spelled:
        assert text == said(split(model, text))


def test_gemma_calls_with_its_own_tokens(model):
    """The real vocabulary: text, then two calls, one without arguments."""
    text = 'I look.<|tool_call>call:a{q:<|"|>x<|"|>}<tool_call|><|tool_call>call:b{}<tool_call|>'
    pieces = split(model, text, tools=True)

    assert "I look." == said(pieces)
    assert [ToolCall("a", '{"q": "x"}'), ToolCall("b", "{}")] == calls(pieces)


def test_several_calls_keep_their_order():
    """With text between them, or none; unclosed ones end where the next begins."""
    one, two = json.dumps({"name": "a", "arguments": {}}), '{"name": "b"}'
    both = [ToolCall("a", "{}"), ToolCall("b", "{}")]

    pieces = split(Bytes(), f"<tool_call>{one}</tool_call>\nthen <tool_call>{two}", tools=True)
    assert (both, "then ") == (calls(pieces), said(pieces))
    unclosed = f"<tool_call>{one}<tool_call>{two}</tool_call>"
    assert both == calls(split(Bytes(), unclosed, tools=True))
    assert both == calls(split(Bytes(), "[TOOL_CALLS]a[ARGS]{}[TOOL_CALLS]b{}", tools=True))
    assert both == calls(split(Bytes(), f"{one}; {two}", tools=True))


@pytest.mark.parametrize(
    "body",
    ["", "{", "no thing", '{"name": 5}', '{"name": "a", "arguments": [1]}', "[]]", '["a"]']
    + ["call:a{x:", "call:{}", "call:a{x:1}}", "call:a", 'call:a{<|"|>x}', "call:" + "a{x:" * 60]
    + ["[" * 9999, "a b{}", "<function=>", '{"name": ""}'],
)
def test_a_broken_call_is_text(body):
    """As it was written, never an exception, and the answer goes on."""
    text = f"<tool_call>{body}</tool_call>"
    pieces = split(Bytes(), f"{text} so", tools=True)

    assert ([], f"{text} so") == (calls(pieces), said(pieces))
    assert f"<tool_call>{body}" == said(split(Bytes(), f"<tool_call>{body}", tools=True))


def test_json_that_is_no_call_streams(model):
    """Only what begins as a call does is held back."""
    splitter = Splitter(Bytes(), tools=True)
    pieces = [piece for byte in b'{"nam' for piece in splitter.take(byte)]
    assert [] == pieces
    assert [Piece('{"namx')] == list(splitter.take(ord("x")))
    text = '{"name": "a person", "age": 3}'
    assert (text, []) == (said(p := split(Bytes(), text + "!", tools=True))[:-1], calls(p))


@given(st.text(st.sampled_from('{}[]":,<|>calfnt0 \n'), max_size=40))
def test_no_text_breaks_the_readers(text):
    """Whatever stands between the marks, it is calls or it is not."""
    for found in (read_calls(text), read_calls("call:" + text), read_bare_calls(text)):
        for call in found or ():
            assert call.name and isinstance(json.loads(call.arguments), dict)
