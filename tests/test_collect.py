"""Collecting statistics: text through llama.cpp, watched, interrupted and continued."""

import json
import re
import sys
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut import api
from gemcut.engine import ContextOptions, ModelOptions
from gemcut.errors import EngineError, OutputError, TextError, UsageError
from gemcut.gguf_file import GGUFFile
from gemcut.llama import Context, Model
from gemcut.quantize.calibration import Use, calibration_text, dealt
from gemcut.quantize.collect import Unfinished, collect
from gemcut.quantize.coverage import coverage
from gemcut.quantize.statistics import Statistics, read_statistics
from gemcut.runtime.language.template import Template
from tests import families
from tests.rpc import beside_a_device
from tests.shell import run

N_CTX, CHUNKS = 64, 5


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(calibration_text(size=4000))
    return path


@pytest.fixture(scope="module")
def chunks(model, text):
    """Chunks [5, 64] as llama.cpp's tools cut them."""
    tokens = model.tokenize(text.read_text())[: CHUNKS * N_CTX].reshape(CHUNKS, N_CTX).copy()
    tokens[:, 0] = model.bos
    return tokens


@pytest.fixture(scope="module")
def collected(model, chunks) -> Statistics:
    return collect(model, chunks, threads=1)


def close(one: Statistics, other: Statistics, tolerance=1e-3) -> bool:
    """The same tensors and counts, and sums that are equal but for rounding."""
    if one.entries.keys() != other.entries.keys():
        return False
    for name, a in one.entries.items():
        b = other.entries[name]
        near = np.abs(a.sums - b.sums).max() <= tolerance * b.sums.max()
        if not (near and np.abs(a.counts - b.counts).sum() <= tolerance * b.counts.sum()):
            return False
    return True


def by_hand(model, chunks):
    """Sums, counts and gates row by row, in double precision, one chunk after the other."""
    sums, counts, gates, last = {}, Counter(), Counter(), []

    def add(name, matrix, row):
        counts[name, matrix] += 1
        sums[name, matrix] = sums.get((name, matrix), 0) + np.square(row, dtype=np.float64)

    def on_tensor(name, tensor):
        if tensor.op not in ("MUL_MAT", "MUL_MAT_ID", "MUL") or len(tensor.sources) < 2:
            return
        weight, rows, *rest = tensor.sources
        if tensor.op == "MUL_MAT" and weight.name.endswith(".weight"):
            for row in rows.read().reshape(-1, rows.shape[-1]):
                add(weight.name, 0, row)
        elif tensor.op == "MUL_MAT_ID":
            given, ids = rows.read()[0], rest[0].read()[0, 0]
            last[:] = [*last[-1:], (weight.name, ids)]
            for token, chosen in enumerate(ids):
                for place, expert in enumerate(chosen):
                    add(weight.name, expert, given[token, place % given.shape[1]])
        elif tensor.op == "MUL" and name.startswith("ffn_moe_weighted"):
            for own, ids in last:
                for expert, gate in zip(ids.ravel(), rows.read().ravel(), strict=True):
                    gates[own, expert] += gate

    options = ContextOptions(n_ctx=N_CTX, threads=1)
    with Context(model, options, on_tensor) as context:
        for chunk in chunks:
            context.decode(chunk)
    return sums, counts, gates


def test_every_product_with_a_weight_is_counted(model, chunks, collected):
    """Per expert where experts are chosen, with the router's weights; the tied output, too."""
    sums, counts, gates = by_hand(model, chunks)

    assert {name for name, _ in sums} == collected.entries.keys()
    assert "token_embd.weight" in collected.entries
    for name, entry in collected.entries.items():
        for matrix, count in enumerate(entry.counts):
            assert count == counts[name, matrix]
            if count:
                np.testing.assert_allclose(entry.sums[matrix], sums[name, matrix], rtol=5e-4)
        assert ("_exps." in name) == (entry.gates is not None)
        if entry.gates is not None:
            expected = [gates[name, expert] for expert in range(len(entry.counts))]
            np.testing.assert_allclose(entry.gates, expected, rtol=1e-3)


def test_every_row_counts(collected):
    """Every token once in a plain product, and once for each expert it is sent to."""
    tokens = N_CTX * CHUNKS
    for name, entry in collected.entries.items():
        assert entry.counts.sum() == tokens * (4 if "_exps." in name else 1), name
    assert (CHUNKS, N_CTX) == (collected.chunk_count, collected.chunk_size)
    assert [0, 1, 2, 3, 4, 5] == [each.layer for each in coverage(collected)]


@pytest.mark.parametrize(("n_ctx", "ubatch"), [(16, 512), (32, 64), (320, 512), (160, 150)])
def test_chunks_of_other_lengths_are_counted_whole(model, chunks, n_ctx, ubatch, monkeypatch):
    """Short chunks are computed together, long ones in parts; none loses a row."""
    monkeypatch.setattr("gemcut.quantize.collect._UBATCH", ubatch)
    other = chunks.reshape(-1, n_ctx)

    found = collect(model, other, threads=1)

    assert found.entries["token_embd.weight"].counts.tolist() == [chunks.size]


def test_chunks_are_computed_in_parts(model, chunks, collected, monkeypatch):
    """A long context takes several graphs, and all of them count; the router's weights, too."""
    monkeypatch.setattr("gemcut.quantize.collect._UBATCH", 32)

    found = collect(model, chunks, threads=1)

    assert close(found, collected, 0.02)
    for name, entry in found.entries.items():
        if entry.gates is not None:
            np.testing.assert_allclose(entry.gates, collected.entries[name].gates, 0.1, 0.5)


def test_weights_given_before_the_experts_are_found(tmp_path):
    """Where a model weights the rows beforehand: every token's weight goes to its own expert."""
    folder = families.build(tmp_path / "model", "llama4_text")
    source = api.open_source(folder)
    api.convert_checkpoint(source, tmp_path / "m.gguf", "f32", threads=1)
    with Model.load(tmp_path / "m.gguf") as model:
        random = np.random.default_rng(0).integers(0, model.n_vocab, (2, N_CTX), np.int32)
        found = collect(model, random, threads=1)

    experts = {n: e for n, e in found.entries.items() if n.endswith("_exps.weight")}
    assert len(experts) == 6
    for entry in experts.values():
        assert entry.gates is not None
        assert (entry.gates > 0).tolist() == (entry.counts > 0).tolist()
        assert (entry.gates <= entry.counts).all()  # each is a sigmoid


def test_a_context_too_short_to_be_counted_is_refused(model, chunks):
    with pytest.raises(UsageError, match="wanted 16 or more"):
        collect(model, chunks.reshape(-1, 8))


def collect_file(bf16, text, output, **options) -> Statistics:
    settings = {"n_ctx": N_CTX, "chunks": 24, "threads": 1} | options
    return api.collect_importance(bf16, [text], output, **settings)


def test_a_collection_that_was_interrupted_is_continued(bf16, text, tmp_path):
    """To the very bytes of one that was not; and what is kept is told."""
    kept = tmp_path / ".whole.gguf.unfinished"
    there: list[bool] = []
    collect_file(
        bf16, text, tmp_path / "whole.gguf", progress=lambda *_: there.append(kept.exists())
    )
    assert [False, True, True] == there  # whatever ends the process, some of it is kept
    told: list[str] = []

    def stop(done, total):
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_file(bf16, text, tmp_path / "i.gguf", progress=stop, tell=told.append)
    assert not (tmp_path / "i.gguf").exists()
    seen: list[int] = []
    collect_file(
        bf16,
        text,
        tmp_path / "i.gguf",
        progress=lambda done, total: seen.append(done),
        tell=told.append,
    )

    assert "8 of 24 chunks are kept: the same command continues" in told[0]
    assert ["continuing behind chunk 8 of 24"] == told[1:]
    assert 16 == seen[0]
    assert (tmp_path / "i.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert {"i.gguf", "whole.gguf"} == {path.name for path in tmp_path.iterdir()}


def test_another_collection_is_not_continued(bf16, q8_0, text, tmp_path):
    """Another model, text or context: what is another is told, and nothing is thrown away."""
    output = tmp_path / "i.gguf"

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_file(bf16, text, output, progress=stop)
    left = Unfinished(output, "", np.zeros((1, 1), np.int32)).path
    before = left.read_bytes()
    for model_file, n_ctx, difference in (
        (q8_0, N_CTX, "another model lies there"),
        (bf16, 32, r"another context \(64, now 32\) and text lies there"),
    ):
        with pytest.raises(OutputError, match=f"{difference}.*--restart begins anew"):
            collect_file(model_file, text, output, n_ctx=n_ctx)
    assert before == left.read_bytes()
    left.write_bytes(before[:-100])
    with pytest.raises(OutputError, match="truncated.*--restart begins anew"):
        collect_file(bf16, text, output)


def test_restarting_throws_unfinished_work_away(bf16, q8_0, text, tmp_path):
    """Whatever it is of; and there need be none."""
    output = tmp_path / "i.gguf"

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_file(q8_0, text, output, progress=stop)
    seen: list[int] = []
    options = {"restart": True, "progress": lambda done, total: seen.append(done)}
    collect_file(bf16, text, output, **options)
    found = collect_file(bf16, text, output, chunks=2, restart=True)

    assert 8 == seen[0]
    assert 2 == found.chunk_count == read_statistics(output).chunk_count
    assert ("text.txt",) == found.datasets
    assert ["i.gguf"] == [path.name for path in tmp_path.iterdir()]


def test_time_ends_a_collection(model, chunks, monkeypatch):
    """With the chunks that were read by then, and a few in any case."""
    monkeypatch.setattr("gemcut.quantize.collect._UBATCH", N_CTX)  # one after the other

    found = collect(model, chunks, 1, seconds=0.0)

    assert 4 == found.chunk_count < len(chunks)
    assert [4 * N_CTX] == found.entries["token_embd.weight"].counts.tolist()
    assert CHUNKS == collect(model, chunks, 1, seconds=1e6).chunk_count


def test_bad_input_leaves_what_is_there(bf16, text, tmp_path):
    """A text too short, a model whose numbers are none, an output that is an input."""
    output = tmp_path / "i.gguf"
    output.write_bytes(b"old")
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(TextError, match="short.txt: too short"):
        collect_file(bf16, tmp_path / "short.txt", output)
    with GGUFFile(bf16) as file:
        info = file.tensors["blk.1.attn_norm.weight"]
        at = file.data_offset + info.offset
    data = bytearray(bf16.read_bytes())
    data[at : at + 4] = b"\x00\x00\xc0\x7f"
    (tmp_path / "nan.gguf").write_bytes(data)
    with pytest.raises(EngineError, match=r"inputs of blk\.1\.attn_q\.weight are not finite"):
        collect_file(tmp_path / "nan.gguf", text, output)
    for taken in (bf16, text):
        with pytest.raises(OutputError, match="is read or written here, too"):
            collect_file(bf16, text, taken)

    assert b"old" == output.read_bytes()
    assert {"i.gguf", "nan.gguf", "short.txt"} == {path.name for path in tmp_path.iterdir()}


# In a process of its own: a device stays registered, and every later load would use it.
CLIENT = """
import sys
from pathlib import Path
from gemcut import api
from gemcut.engine import ModelOptions
endpoint, path, text, output = sys.argv[1:]
override = (r"blk\\\\.[0-1]\\\\.ffn_.*_exps\\\\.weight", "CPU")
options = ModelOptions(rpc=(endpoint,), overrides=(override,), load_mode="none")
api.collect_importance(Path(path), [Path(text)], Path(output), 64, 5, 1, options)
"""


def test_weights_on_another_device_are_watched_as_well(bf16, text, collected, tmp_path):
    """A second process stands in for the GPU; some experts stay on the CPU."""
    output = tmp_path / "i.gguf"
    beside_a_device(CLIENT, bf16, text, output)

    assert close(
        read_statistics(output), collected, 0.02
    )  # other kernels, other routing now and then


def test_the_command_line_collects_merges_and_reports(bf16, text, tmp_path):
    """The table or JSON on stdout; merging a file with itself doubles it."""
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    arguments = ["imatrix", bf16, "--text", text, "-c", 64, "--chunks", 5, "-t", 1]
    plot = ["--plot", tmp_path / "load.png", "--json"]

    collected = run(*arguments, "-o", one, *plot)
    merged = run("imatrix", "--merge", one, one, "-o", two)

    assert (0, 0) == (collected.exit_code, merged.exit_code), collected.output + merged.output
    found = json.loads(collected.stdout)
    assert (5, 64, 6) == (found["chunks"], found["context"], len(found["coverage"]))
    assert (tmp_path / "load.png").exists()
    assert "reached" in merged.stdout
    assert "of 10 chunks" in merged.stderr
    sums = [read_statistics(path).entries["token_embd.weight"].sums for path in (one, two)]
    np.testing.assert_allclose(2 * sums[0], sums[1])
    with pytest.raises(OutputError, match="one.gguf: is read or written here, too"):
        api.merge_importance([two, one], one)


@pytest.mark.parametrize(
    "arguments", [["a.gguf", "b.gguf"], ["--merge", "a.gguf", "--text", "t"], []]
)
def test_wrong_usage_is_told(arguments, tmp_path):
    done = run("imatrix", "-o", tmp_path / "i.gguf", *arguments)

    assert 2 == done.exit_code


def test_the_built_in_text_is_always_the_same():
    """For a seed; and of any beginning it has some of every kind."""
    template = Template("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}")

    text = calibration_text(template, size=30_000)

    assert text == calibration_text(template, size=30_000)
    assert text != calibration_text(template, size=30_000, seed=2)
    assert 30_000 <= len(text) < 35_000
    for sign in ("<|user|>", "<|assistant|>", '"active":', "    return ", "::= "):
        assert sign in text, sign
    assert any(ord(letter) > 0x400 for letter in text)


USES: tuple[Use, ...] = ("importance", "probe", "validation")


@pytest.mark.parametrize(("one", "other"), list(combinations(USES, 2)))
def test_texts_for_two_uses_have_nothing_in_common(one, other):
    """No long line of the built-in text, and no word of a user's own."""
    lines = [
        {line for line in calibration_text(size=200_000, use=use).splitlines() if len(line) >= 50}
        for use in (one, other)
    ]
    words = [f"w{number:06}" for number in range(20_000)]
    own = [set(re.findall(r"w\d{6}", dealt(" ".join(words), use))) for use in (one, other)]

    # A few that modules have in common; the text is Python's own, and 3.13's have more.
    share = 0.005 if sys.version_info < (3, 12) else 0.02
    assert len(lines[0] & lines[1]) <= share * len(lines[1])
    assert own[0].isdisjoint(own[1])
    assert min(map(len, own)) > 1500


@given(st.text(max_size=400))
def test_all_of_a_text_is_dealt(text):
    assert len(text) == sum(len(dealt(text, use)) for use in USES)
    assert Counter(text) == Counter("".join(dealt(text, use) for use in USES))


def test_a_conversation_is_framed_plainly_where_the_template_refuses():
    refusing = Template("{{ raise_exception('no') }}")

    for template in (refusing, None):
        assert "User: " in calibration_text(template, size=15_000)


def test_no_text_is_needed(bf16, model, tmp_path):
    """The built-in one is framed as the model wants it, special tokens and all."""
    content = api.calibration(model).content
    assert "<bos>" not in content
    assert (model.tokenize(content[:20000], True, True) < 20).sum() > 10

    found = api.collect_importance(bf16, [], tmp_path / "i.gguf", 64, 2, 1, ModelOptions(0))

    assert ("gemcut-calibration",) == found.datasets
