"""Tasks: formats of files, likelihoods of choices, and files compared by their answers."""

import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemcut.engine import ContextOptions
from gemcut.errors import EngineError, GGUFError, TextError, UsageError
from gemcut.eval.files import select
from gemcut.eval.scoring.column import FLOOR, REFERENCE, Column
from gemcut.eval.tasks.reading import read_task
from gemcut.eval.tasks.run import run_tasks
from gemcut.eval.tasks.scoring import answer, chosen, groups, question
from gemcut.llama import Context
from gemcut.score import log_softmax
from tests import tasks

ITEMS = tasks.questions(8)
# Two decodes of one text differ by the shape of their batches: for a mean over few tokens of the
# demo's model by 0.004 at most where it was measured.
NOISE = 0.03


@pytest.fixture
def file(tmp_path):
    """Writes a file of tasks."""

    def write(data, name="task"):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


def scores(model, items, n_ctx=512, n_seq=16, n_outputs=512):
    """What `answer` says of all items."""
    questions = [question(model, item) for item in items]
    options = ContextOptions(
        n_ctx=n_ctx, n_seq=n_seq, kv_unified=True, n_outputs=n_outputs, threads=1
    )
    with Context(model, options) as context:
        return [
            each
            for group in groups(questions, context)
            for each in answer(context, [questions[number] for number in group])
        ]


# --- formats ---


def test_one_task_in_three_formats_is_the_same(file):
    """And which format it is, is seen."""
    read = [
        read_task(file(data))
        for data in (tasks.hellaswag(ITEMS), tasks.multiple_choice(ITEMS), tasks.jsonl(ITEMS))
    ]

    assert [task.kind for task in read] == ["hellaswag", "multiple-choice", "jsonl"]
    assert read[0].items == read[1].items == read[2].items
    assert len({task.sha256 for task in read}) == 3
    first = read[0].items[0]
    assert (first.context, list(first.choices)) == (ITEMS[0][0], ITEMS[0][1])
    assert set(first.correct) == {ITEMS[0][2]}


def test_winogrande_lines_are_cut_outside_of_quotes(file):
    task = read_task(file(tasks.FIXED_WINOGRANDE))
    second = task.items[1]

    assert (task.kind, len(task.items)) == ("winogrande", 6)
    assert second.context == "If the name, or the path, is None, then "
    assert (second.choices, set(second.correct)) == (("yellow", "only"), {1})
    assert second.texts()[1].endswith("then only the current directory is used.")
    headed = read_task(file("qID,sentence,option1,option2,answer\n" + tasks.FIXED_WINOGRANDE))
    assert headed.items == task.items


def test_a_kind_that_is_said_is_taken(file):
    path = file("a\n0\nb\nc\nd\ne\n")
    assert read_task(f"hellaswag:{path}") == read_task(path)
    with pytest.raises(TextError, match="kind jsonl"):
        read_task(f"jsonl:{path}")


def test_jsonl_says_context_and_domain_too(file):
    line = '{"context": "One ", "choices": ["a", "b"], "answer": 1, "domain": "x"}\n'
    none = '{"choices": ["a b", "c d"], "answer": 0}\n'
    said, bare = read_task(file(line + "\n" + none)).items

    assert (said.texts(), said.domain) == (("One a", "One b"), "x")
    assert bare.texts() == ("a b", "c d")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("", "no items"),
        ("?", "line 1.*not JSON"),
        ("a\n0\nb\nc\nd\n", "5 lines, wanted a multiple of 6"),
        ("a\n0\nb\nc\nd\ne\nf\n7\nb\nc\nd\ne\n", "line 8.*wanted the right ending"),
        ("a\n0\nb\n\nd\ne\n", "line 1: a choice is empty"),
        ("0,no gap,a,b,1\n", "line 1.*sentence with _"),
        ("0,the _ end,a,b,3\n", "line 1.*1 or 2"),
        ("0,the _,a,b,1\n", "words after the _"),
        ("{}\n", "line 1: choices"),
        ("{\n", "line 1.*not JSON"),
        ("[1]\n", "line 1: wanted an object"),
        ("[" * 100_000, "not JSON"),
        ('{"choices": ["a", "b"], "answer": true}', "answer"),
        ('{"choices": ["a", "b"], "answer": 2}', "right choices: 2"),
        ('{"choices": ["a"], "answer": 0}', "1 choices, wanted 2 to 100"),
        ('{"question": 1, "choices": ["a", "b"], "answer": 0}', "wanted texts"),
        (b'{"question": "\xff"}', "not UTF-8: byte 0xff at offset 14"),
        (struct.pack("<I", 0), "no items"),
        (struct.pack("<II", 1 << 23, 0), "33554432 bytes wanted at 4, 4 are left"),
        (struct.pack("<III", 1, 8, 1 << 31), "item 1 of 1: 2147483648 bytes wanted"),
        (struct.pack("<III1sI", 1, 8, 1, b"?", 101), "101 answers, wanted at most 100"),
        (struct.pack("<III1s", 1, 8, 1, b"\xff"), "not UTF-8"),
    ],
)
def test_damaged_files_are_refused_with_the_place(file, data, why):
    with pytest.raises(TextError, match=why):
        read_task(file(data))


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(TextError, match="cannot read this task"):
        read_task(tmp_path / "none")
    with pytest.raises(TextError, match="cannot read this task"):
        read_task(tmp_path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_binary_file_cut_or_changed_anywhere_ends_in_order(tmp_path_factory, data):
    """It is read, or refused: nothing else, and nothing is allocated that is not there."""
    whole = bytearray(tasks.multiple_choice(ITEMS[:2]))
    end = data.draw(st.integers(4, len(whole)))
    place, byte = data.draw(st.integers(0, end - 1)), data.draw(st.integers(0, 255))
    whole[place] = byte
    path = tmp_path_factory.getbasetemp() / "changed"
    path.write_bytes(whole[:end])
    try:
        assert len(read_task(f"multiple-choice:{path}").items) >= 1
    except TextError as error:
        assert str(path) in str(error)


# --- scoring ---


@pytest.mark.parametrize("kind", ["hellaswag", "winogrande"])
def test_scores_are_those_of_whole_texts_read_alone(model, file, kind):
    """A shared beginning, many items at once and scarce outputs change nothing but the noise."""
    items = read_task(file(getattr(tasks, kind)(ITEMS))).items
    found = scores(model, items)
    scarce = scores(model, items, n_ctx=256, n_seq=4, n_outputs=4)

    with Context(model, ContextOptions(n_ctx=256, threads=1)) as context:
        for item, many, few in zip(items, found, scarce, strict=True):
            one = question(model, item)
            for number, row in enumerate(one.rows):
                context.forget()
                likely = log_softmax(context.decode(row))
                of = {i: likely[i - 1, row[i]] for i in one.predicted(number)}
                wanted = np.mean([of[i] for i in one.scored[number]])
                assert many[0, number] == pytest.approx(wanted, abs=NOISE)
                assert few[0, number] == pytest.approx(wanted, abs=NOISE)
                if kind == "hellaswag":
                    per_byte = sum(of.values()) / len(item.choices[number].encode())
                    assert many[1, number] == pytest.approx(per_byte, abs=NOISE)


def test_endings_are_scored_without_the_last_token(model, file):
    """Where enough follows the choice; else the choice is scored as well."""
    long, short = (
        question(model, item)
        for item in read_task(
            file("0,Return True if _ is a string.,one,zzz,1\n1,Return the _.,one,zzz,1")
        ).items
    )
    for row, scored in zip(long.rows, long.scored, strict=True):
        text = b"".join(model.piece(int(token)) for token in row[scored.start : scored.stop])
        assert b" is a string".endswith(text.removesuffix(b".")) and text
        assert scored.stop == len(row) - 1
    assert [scored.start for scored in short.scored] == [short.shared] * 2


def test_answers_are_those_of_llama_perplexity(f32, model, file):
    """Scores that `llama-perplexity -m f32.gguf -c 512` printed for these files.

    --winogrande told both scores of every item; --multiple-choice that only the last answer was
    wrong; --hellaswag, which asks in another order, that five of six were right.
    """
    told = [
        (-3.415355, -3.478096),
        (-4.150273, -4.484685),
        (-4.073923, -2.999164),
        (-2.789149, -4.842763),
        (-3.390073, -4.717618),
        (-5.586297, -5.872456),
    ]
    items = read_task(file(tasks.FIXED_WINOGRANDE)).items
    found = scores(model, items)
    np.testing.assert_allclose([each[0] for each in found], told, atol=NOISE)
    assert chosen(found, items).chosen.tolist() == [0, 0, 1, 0, 0, 0]

    for data in (tasks.multiple_choice(tasks.FIXED), tasks.hellaswag(tasks.FIXED)):
        items = read_task(file(data)).items
        answers = chosen(scores(model, items), items)
        assert answers.correct.tolist() == [True] * 5 + [False]


def test_a_text_that_another_one_begins_with_can_be_scored(model, file):
    """The shared beginning leaves each text a token; equal texts are equally likely."""
    line = '{"question": "The", "choices": ["end", "end of", "end"], "answer": 0}'
    item = read_task(file(line)).items[0]
    found = scores(model, [item])[0]

    assert question(model, item).shared == len(question(model, item).rows[0]) - 1
    assert np.isfinite(found).all() and found[0, 0] == found[0, 2]


def test_sequences_go_on_from_what_one_of_them_read(model):
    """As if each had read it itself; and cells are taken once."""
    text = model.tokenize("def add(a, b):\n    return a")
    options = ContextOptions(n_ctx=256, n_seq=3, kv_unified=True, threads=1)
    with Context(model, options) as context:
        context.decode(text[:-1])
        context.share(0, [1, 2])
        assert [context.held(seq) for seq in range(3)] == [len(text) - 1] * 3
        shared = context.decode(text[-1:], start=len(text) - 1, seq=2)[0].copy()
        np.testing.assert_allclose(context.decode(text)[-1], shared, atol=0.05)
        with pytest.raises(EngineError, match="sequence 3"):
            context.share(0, [3])
    with Context(model, ContextOptions(n_ctx=256, n_seq=2, threads=1)) as context:
        context.decode(text)
        with pytest.raises(EngineError, match="kv_unified"):
            context.share(0, [1])


# --- files compared ---


@pytest.fixture(scope="module")
def columns(bf16, q4_k_m):
    reference, other = select([q4_k_m], bf16)
    return [Column(reference, REFERENCE), Column(other)]


def test_files_are_compared_item_by_item(file, columns):
    paths = [
        file(tasks.jsonl(ITEMS, ("maths", "prose")), "j"),
        file(tasks.winogrande(ITEMS), "w"),
    ]
    told = []
    found = run_tasks(paths, columns, {}, threads=1, progress=lambda *each: told.append(each))

    assert [(task.name, task.kind, task.n_items) for task in found] == [
        ("j", "jsonl", 8),
        ("w", "winogrande", 8),
    ]
    for task in found:
        reference, row = task.rows
        assert (reference.lost, reference.p_value, row.failure) == (None, None, None)
        assert row.accuracy.value == row.correct.mean()
        assert row.accuracy.low <= row.accuracy.value <= row.accuracy.high
        assert row.lost is not None and row.gained is not None and row.p_value is not None
        right = reference.correct.sum() - row.lost + row.gained
        assert right == row.correct.sum()
        assert row.changed == (row.chosen != reference.chosen).sum() >= row.lost + row.gained
        assert 0 <= row.p_value <= 1
    jsonl, winogrande = (task.rows[1] for task in found)
    assert list(jsonl.by_domain) == ["maths", "prose"] and not winogrande.by_domain
    assert jsonl.by_domain["maths"].value == jsonl.correct[::2].mean()
    assert jsonl.accuracy_by_bytes and winogrande.accuracy_by_bytes is None
    assert told[-1] == (32, 32) and told == sorted(told)


def test_a_sample_is_of_the_same_items_each_time(file, columns):
    path = file(tasks.hellaswag(ITEMS))
    whole = run_tasks([path], columns[:1], {}, threads=1)[0]
    sample = run_tasks([path], columns[:1], {}, limit=3, threads=1)[0]
    first = run_tasks([path], columns[:1], {}, limit=3, threads=1, seed=None)[0]
    again = run_tasks([path], columns[:1], {}, limit=3, threads=1)[0]

    assert (whole.items, first.items) == (tuple(range(8)), tuple(range(3)))
    assert sample.items == again.items != first.items and sample.n_items == 3
    assert list(sample.items) == sorted(set(sample.items))
    # Items are answered alike, whichever stand beside them, but where two choices are as good.
    same = sample.rows[0].chosen == whole.rows[0].chosen[list(sample.items)]
    assert same.sum() >= 2


def test_the_same_file_in_another_way_is_a_column_of_its_own(file, columns):
    floor = Column(columns[0].file, FLOOR, n_ubatch=128, flash_attention=False)
    path = file(tasks.hellaswag(ITEMS))
    row = run_tasks([path], [columns[0], floor], {}, threads=1)[0].rows[1]
    assert row.changed is not None and row.changed <= 2


def test_a_file_that_fails_leaves_the_others_their_answers(file, columns, bf16, tmp_path):
    copy = Path(shutil.copy(bf16, tmp_path / "cut.gguf"))
    broken = Column(select([copy], None)[0])
    copy.write_bytes(copy.read_bytes()[:100_000])
    path = file(tasks.hellaswag(ITEMS))
    task = run_tasks([path], [broken, columns[0]], {}, threads=1)[0]

    assert task.rows[0].accuracy is None and "cut.gguf" in (task.rows[0].failure or "")
    assert task.rows[1].accuracy is not None and task.rows[1].failure is None
    with pytest.raises((EngineError, GGUFError), match=re.escape("cut.gguf")):
        run_tasks([path], [broken], {}, threads=1)


def test_what_cannot_be_asked_is_refused(file, columns):
    path = file(tasks.hellaswag(ITEMS))
    with pytest.raises(UsageError, match="limit of 1"):
        run_tasks([path], columns, {}, limit=0)
    with pytest.raises(UsageError, match="need a file"):
        run_tasks([path], [], {})
    long = {"question": "word " * 400, "choices": ["one", "two"], "answer": 0}
    with pytest.raises(TextError, match="item 1 takes .* use a larger one"):
        run_tasks([file(str(long).replace("'", '"'))], columns[:1], {}, n_ctx=256, threads=1)
