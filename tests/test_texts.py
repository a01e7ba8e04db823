"""Reading texts and answers from files."""

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemcut.engine import ModelOptions
from gemcut.errors import OutputError, TextError
from gemcut.eval.texts import own, reading
from gemcut.eval.texts.own import Answer, prompts, written
from gemcut.eval.texts.reading import read_texts
from gemcut.eval.texts.text import Text
from gemcut.llama import Model

IN_A_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
PRINTABLE = st.text(
    st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=30
).filter(str.isprintable)
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)
ROLES = st.sampled_from(["system", "user", "assistant"])
TURNS = st.lists(st.tuples(ROLES, WORDS), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def vocabulary(bf16):
    with Model.load(bf16, ModelOptions(vocab_only=True)) as model:
        yield model


def jsonl(path, *entries):
    lines = (each if isinstance(each, str) else json.dumps(each) for each in entries)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


# --- files and folders ---------------------------------------------------------------------------


def test_a_file_is_one_text(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("Some words.\n")

    (text,) = read_texts([path])

    assert (text.name, text.content, text.n_bytes) == ("notes.txt", "Some words.", 12)
    assert text == Text.read(path) and not text.messages


def test_a_folder_is_a_text_for_each_file_and_its_folders_are_the_domains(tmp_path):
    for name in ("code/b.py", "code/deep/a.py", "prose/x.txt", "top.txt", ".git/config", ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"the text of {name}")
    (tmp_path / "code" / "empty.py").write_text("\n")
    jsonl(tmp_path / "prose" / "lines.jsonl", {"text": "one"}, {"text": "two", "domain": "own"})

    texts = read_texts([tmp_path])

    assert [(text.name, text.domain) for text in texts] == [
        ("code/b.py", "code"),
        ("code/deep/a.py", "code"),
        ("prose/lines.jsonl:1", "prose"),
        ("prose/lines.jsonl:2", "own"),
        ("prose/x.txt", "prose"),
        ("top.txt", ""),
    ]


def test_of_several_folders_each_is_a_domain(tmp_path):
    for name in ("law/a.txt", "songs/a.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)

    texts = read_texts([tmp_path / "law", tmp_path / "songs"])

    assert [(t.name, t.domain) for t in texts] == [("law/a.txt", "law"), ("songs/a.txt", "songs")]


def test_two_files_of_one_name_are_called_by_their_paths(tmp_path):
    paths = [tmp_path / folder / "a.txt" for folder in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        path.write_text("words")

    assert [text.name for text in read_texts(paths)] == [str(path) for path in paths]
    with pytest.raises(TextError, match="there twice"):
        read_texts([paths[0], paths[0]])


def test_links_that_lead_round_and_pipes_in_a_folder_are_passed_over(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "round").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")

    assert [text.name for text in read_texts([tmp_path])] == ["a.txt"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x7fELF\x00\x01", "a.bin: not a text: a zero byte at offset 4"),
        (b"\xff\xfea", "a.bin: not UTF-8: byte 0xff at offset 0"),
    ],
)
def test_a_binary_file_is_refused_by_name(tmp_path, data, message):
    (tmp_path / "a.bin").write_bytes(data)

    for path in (tmp_path, tmp_path / "a.bin"):
        with pytest.raises(TextError, match=message):
            read_texts([path])


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(TextError, match="no text to score"):
        read_texts([])
    with pytest.raises(TextError, match="there is no text in this folder"):
        read_texts([tmp_path])
    with pytest.raises(TextError, match=r"no\.txt: cannot read this text: No such file"):
        read_texts([tmp_path / "no.txt"])


def test_too_much_is_refused(tmp_path, monkeypatch):
    path = jsonl(tmp_path / "a.jsonl", *({"text": str(number)} for number in range(5)))
    monkeypatch.setattr(reading, "_MOST_TEXTS", 4)
    with pytest.raises(TextError, match="at most 4 texts"):
        read_texts([path])
    monkeypatch.setattr("gemcut.eval.texts.text.MOST_BYTES", 10)
    with pytest.raises(TextError, match="longer than 10 bytes"):
        read_texts([path])


# --- lines of JSON -------------------------------------------------------------------------------


@IN_A_FOLDER
@given(st.lists(st.tuples(WORDS, PRINTABLE.filter(str.strip)), min_size=1, max_size=8))
def test_texts_on_lines_are_read_as_they_were_written(tmp_path, entries):
    """Whatever is in them, with their domains; every name is another one."""
    path = jsonl(tmp_path / "a.jsonl", *({"text": t, "domain": d} for t, d in entries))

    texts = read_texts([path])

    assert [(t.content, t.domain) for t in texts] == [(t.removesuffix("\n"), d) for t, d in entries]
    assert len({text.name for text in texts}) == len(texts)


@IN_A_FOLDER
@given(TURNS)
def test_conversations_are_read_as_they_were_written(tmp_path, turns):
    messages = [{"role": role, "content": said} for role, said in turns]

    (text,) = read_texts([jsonl(tmp_path / "a.jsonl", {"messages": messages, "id": 7})])

    assert text.name == "a.jsonl:7" and text.messages == tuple(turns)
    assert text.is_answered == any(role == "assistant" for role, _ in turns)
    assert all(said.removesuffix("\n") in text.content for _, said in turns)


def test_a_prompt_is_a_conversation_without_an_answer(tmp_path):
    (text,) = read_texts([jsonl(tmp_path / "a.jsonl", "", {"prompt": "Why?"}, "")])

    assert (text.name, text.messages) == ("a.jsonl:2", (("user", "Why?"),))
    assert not text.is_answered


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "a.jsonl:2: not JSON"),
        ("[" * 100_000, "a.jsonl:2: not JSON"),
        ('{"n": 1' + "0" * 5000 + "}", "a.jsonl:2: not JSON"),
        ("[1]", "a.jsonl:2: of the type list, wanted an object"),
        ('"words"', "a.jsonl:2: 'words', wanted an object"),
        ({}, 'a.jsonl:2: has 0 of "text" or "prompt" or "messages"'),
        ({"text": "a", "prompt": "b"}, "a.jsonl:2: has 2 of"),
        ({"text": " "}, "a.jsonl:2: \"text\" is ' ', wanted text"),
        ({"text": ["a"]}, 'a.jsonl:2: "text" is of the type list'),
        ({"text": "a\0"}, "a.jsonl:2: not a text: a zero byte"),
        ({"text": "\ud800"}, "a.jsonl:2: not valid Unicode"),
        ({"text": "a", "id": "x\n"}, 'a.jsonl:2: "id" is'),
        ({"text": "a", "domain": "x" * 101}, 'a.jsonl:2: "domain" is'),
        ({"text": "a", "domain": {}}, 'a.jsonl:2: "domain" is of the type dict'),
        ({"text": "b", "id": 1}, "a.jsonl:1 is there twice"),
        ({"messages": []}, 'a.jsonl:2: "messages" is no list of 1 to'),
        ({"messages": "hello"}, 'a.jsonl:2: "messages" is no list'),
        ({"messages": ["hello"]}, "a.jsonl:2: a message of the role of the type NoneType"),
        ({"messages": [{"role": "tool", "content": "1"}]}, "a.jsonl:2: a message of the role 'to"),
        ({"messages": [{"role": "user"}]}, 'a.jsonl:2: "content" is of the type NoneType'),
    ],
)
def test_a_line_that_is_no_text_is_refused_by_its_number(tmp_path, line, message):
    path = jsonl(tmp_path / "a.jsonl", {"text": "a text"}, line)

    with pytest.raises(TextError) as caught:
        read_texts([path])

    assert message in str(caught.value)


def test_lines_are_bounded_and_have_to_be_there(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_MOST_LINE", 20)
    with pytest.raises(TextError, match="a.jsonl:1: 22 bytes, wanted at most 20"):
        read_texts([jsonl(tmp_path / "a.jsonl", {"text": "a" * 10})])
    with pytest.raises(TextError, match="there is no line"):
        read_texts([jsonl(tmp_path / "a.jsonl", " ", "")])


@IN_A_FOLDER
@given(st.binary(max_size=60))
def test_any_bytes_are_texts_or_a_text_error(tmp_path, data):
    for name in ("a.jsonl", "a.txt"):
        path = tmp_path / name
        path.write_bytes(data)
        try:
            assert read_texts([path])
        except TextError:
            pass


# --- prompts and answers -------------------------------------------------------------------------


def test_prompts_are_lines_of_prose_and_conversations_up_to_the_last_question():
    prose = Text.of("a.txt", "Why?\n\n  How? ")
    talk = [("system", "Be brief."), ("user", "Why?"), ("assistant", "So."), ("user", "How?")]
    answered = Text.conversation("b", [*talk, ("assistant", "Thus.")], "chat")

    found = prompts([prose, answered])

    assert [text.name for text in found] == ["a.txt:1", "a.txt:3", "b"]
    assert [text.messages for text in found[:2]] == [(("user", "Why?"),), (("user", "How?"),)]
    assert found[2].messages == tuple(talk) and found[2].domain == "chat"
    assert [text.name for text in prompts([prose, answered], 1)] == ["a.txt:1", "b"]


def test_without_texts_there_are_prompts_of_several_domains():
    built_in = prompts([])

    assert len(built_in) == 24 and len({text.content for text in built_in}) == 24
    assert len({text.domain for text in built_in[:6]}) == 6
    assert prompts([], 3) == built_in[:3]


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(TextError, match="no turn of a user"):
        prompts([Text.conversation("a", [("assistant", "Hello.")])])
    with pytest.raises(TextError, match="a: 5000 prompts, .* at most 4096"):
        prompts([Text.of("a", "why\n" * 5000)])


@pytest.fixture
def answer(vocabulary):
    talk = Text.conversation("t.txt:1", [("user", "Why?"), ("assistant", "So.")], "facts")
    tokens = vocabulary.tokenize("Why? So.").tolist()
    return Answer(talk, tuple(tokens), 3, "f00d", 5, {"temperature": 0.5, "top_k": 40})


def test_answers_are_read_as_they_were_written(tmp_path, vocabulary, answer):
    path = tmp_path / "answers.jsonl"

    own.write(path, [answer, answer], vocabulary)

    assert own.read(path, vocabulary) == [answer, answer]
    assert [each.name for each in tmp_path.iterdir()] == ["answers.jsonl"]


def test_answers_are_conversations_too(tmp_path, vocabulary, answer):
    path = tmp_path / "answers.jsonl"
    own.write(path, [answer], vocabulary)

    (text,) = read_texts([path])

    assert text.messages == answer.text.messages and text.domain == "facts"


def test_answers_that_end_early_leave_no_file(tmp_path, vocabulary, answer):
    def ending():
        yield answer
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        own.write(tmp_path / "answers.jsonl", ending(), vocabulary)
    assert [] == [*tmp_path.iterdir()]
    with pytest.raises(OutputError, match="cannot be written: No such file"):
        own.write(tmp_path / "no" / "answers.jsonl", [answer], vocabulary)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": [2, 2, 2, 1 << 40]}, '"tokens" has no whole number from 0 to'),
        ({"tokens": [True, 1, 2, 3]}, '"tokens" has no whole number'),
        ({"tokens": []}, '"n_prompt" has no whole number from 0 to -1'),
        ({"tokens": 3}, "wanted a list of tokens"),
        ({"n_prompt": 0}, "do not say in this vocabulary"),
        ({"n_prompt": 99}, '"n_prompt" has no whole number'),
        ({"written": "Why? No."}, "do not say in this vocabulary what was said"),
        ({"seed": None}, '"seed" has no whole number'),
        ({"model": None}, "does not say which model"),
        ({"messages": None}, "has 0 of"),
    ],
)
def test_damaged_answers_are_refused(tmp_path, vocabulary, answer, change, message):
    path = tmp_path / "answers.jsonl"
    own.write(path, [answer], vocabulary)
    jsonl(path, {**json.loads(path.read_text()), **change})

    with pytest.raises(TextError, match=r"answers\.jsonl:1") as caught:
        own.read(path, vocabulary)
    assert message in str(caught.value)


def test_any_tokens_can_be_written_out(vocabulary):
    """Control tokens, parts of characters and zero bytes included: a text can hold all of it."""
    whole = written(vocabulary, range(vocabulary.n_vocab), special=True)

    assert "\0" not in whole and "<bos>" in whole
    assert "<bos>" not in written(vocabulary, range(vocabulary.n_vocab), special=False)
