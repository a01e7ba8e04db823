"""Files cut straight from a checkpoint are, byte for byte, those that llama.cpp makes."""

import json

import numpy as np
import pytest

from gemcut import api, ggml
from gemcut.api import Target
from gemcut.convert.model import Model
from gemcut.errors import EngineError, OutputError, PlanError
from gemcut.gguf_file import GGUFFile
from gemcut.gguf_writer import PartialFile
from gemcut.plan import METADATA_KEY, Plan
from gemcut.quantize import estimate
from gemcut.quantize.statistics import Entry, Statistics
from gemcut.quantize.writer import carrying
from tests import checkpoints, oracle
from tests.checkpoints import Recipe

# Together these hold every type from Q2_K to Q8_0 and more. IQ1_* and IQ2_S take the same way
# through gemcut, but ggml needs seconds for their tables.
MIXTURES = (
    "f32 f16 bf16 q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k_m q4_k_m q5_k_m q6_k "
    "iq2_xxs iq2_xs iq3_xxs iq3_s iq4_nl iq4_xs mxfp4_moe tq1_0 tq2_0 q2_0 q1_0"
).split()


@pytest.fixture(scope="module")
def model(checkpoint, tmp_path_factory) -> Model:
    """A small random checkpoint."""
    folder = tmp_path_factory.mktemp("random") / "model"
    return api.open_source(checkpoints.build(folder, checkpoint))


@pytest.fixture(scope="module")
def source(model, tmp_path_factory):
    """The checkpoint as a BF16 GGUF, which llama.cpp starts from."""
    path = tmp_path_factory.mktemp("source") / "bf16.gguf"
    api.convert_checkpoint(model, path, "bf16")
    return path


@pytest.fixture(scope="module")
def importance(model) -> dict[str, ggml.Floats]:
    """A random importance of every column, for every expert another one."""
    random = np.random.default_rng(7)
    return {
        t.name: np.exp(random.standard_normal((t.matrices, t.columns))).astype(np.float32)
        for t in model.tensors
        if not t.kept
    }


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_is_llama_cpps_byte_for_byte(name, weighted, model, source, importance, tmp_path):
    """Tensors, types and metadata; and what llama.cpp refuses is refused, with nothing written."""
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    given = importance if weighted else None
    try:
        oracle.quantize(source, theirs, name, given)
    except oracle.Refused:
        with pytest.raises(PlanError, match="importance|no replacement"):
            api.quantize_model(model, ours, Target(name), given)
        assert not ours.exists()
        return

    api.quantize_model(model, ours, Target(name), given, threads=2)

    oracle.assert_same(ours, theirs)


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_a_source_of_another_type_is_not_rounded_on_the_way(dtype, checkpoint, tmp_path):
    """An F16 or F32 checkpoint gives what llama.cpp makes of the F16 or F32 file."""
    folder = checkpoints.build(tmp_path / "model", checkpoint, Recipe(dtype=dtype))
    model = api.open_source(folder)
    api.convert_checkpoint(model, tmp_path / "source.gguf", dtype.lower())

    oracle.quantize(tmp_path / "source.gguf", tmp_path / "theirs.gguf", "q4_k_m")
    api.quantize_model(model, tmp_path / "ours.gguf", Target("Q4_K_M"))

    oracle.assert_same(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


def test_the_demos_q4_k_m_is_llama_cpps(bf16, q4_k_m, tmp_path):
    oracle.quantize(bf16, tmp_path / "theirs.gguf", "q4_k_m")

    oracle.assert_same(q4_k_m, tmp_path / "theirs.gguf")


def test_a_tensor_without_importance_is_encoded_as_llama_cpp_does(
    model, source, importance, tmp_path
):
    """An importance matrix that lacks the embedding and one expert stack."""
    lacking = ("token_embd.weight", "blk.1.ffn_down_exps.weight")
    some = {name: weights for name, weights in importance.items() if name not in lacking}

    oracle.quantize(source, tmp_path / "theirs.gguf", "q4_k_m", some)
    api.quantize_model(model, tmp_path / "ours.gguf", Target("q4_k_m"), some)

    oracle.assert_same(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


@pytest.mark.parametrize(("threads", "tile"), [(1, 1 << 20), (3, 1 << 20), (2, 5000), (4, 999)])
def test_threads_and_tiles_change_no_byte(threads, tile, model, importance, tmp_path, monkeypatch):
    """A tile may be a matrix, or a few rows of one."""
    api.quantize_model(model, tmp_path / "a.gguf", Target("Q5_0"), importance, threads=2)

    monkeypatch.setattr("gemcut.quantize.writer.TILE", tile)
    api.quantize_model(model, tmp_path / "b.gguf", Target("Q5_0"), importance, threads=threads)

    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_progress_counts_every_weight_once(model, tmp_path):
    done: list[int] = []

    api.quantize_model(model, tmp_path / "a.gguf", Target("Q8_0"), progress=done.append)

    assert model.weights == sum(done)


def test_a_file_carries_the_plan_it_was_made_from(model, tmp_path):
    """Read back, and applied again, it gives the same tensors."""
    cut = api.quantize_model(model, tmp_path / "a.gguf", Target(size=2_000_000))
    with GGUFFile(tmp_path / "a.gguf") as file:
        carried = Plan.from_json(file.get(METADATA_KEY), "a.gguf")

    api.quantize_model(model, tmp_path / "b.gguf", Target(plan=carried))

    assert cut.plan == carried
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_converting_leaves_no_plan_in_the_file(bf16):
    with GGUFFile(bf16) as file:
        assert METADATA_KEY not in file.metadata


def test_an_importance_of_another_model_is_refused(model, importance, tmp_path):
    """Of other shapes, or with none of its tensors; before anything is written."""
    other = importance | {"blk.0.attn_q.weight": np.ones((1, 128), np.float32)}
    with pytest.raises(PlanError, match=r"blk.0.attn_q.weight.*\[1, 128\].*\[1, 256\].*another"):
        api.quantize_model(model, tmp_path / "a.gguf", Target("Q4_K_M"), other)
    with pytest.raises(PlanError, match="none of this model's tensors"):
        api.quantize_model(model, tmp_path / "a.gguf", Target("Q4_K_M"), {})

    assert [] == list(tmp_path.iterdir())


def test_a_low_type_needs_the_tensors_own_importance(model, importance, tmp_path):
    """Found out before anything is written."""
    lacking = {k: v for k, v in importance.items() if k != "blk.1.ffn_gate_up_exps.weight"}

    with pytest.raises(
        PlanError, match="blk.1.ffn_gate_up_exps.weight: iq2_xs needs an importance"
    ):
        api.quantize_model(model, tmp_path / "a.gguf", Target("IQ2_XS"), lacking)
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("kind", ["Q8_0", "IQ4_XS", "Q4_K_M"])
def test_weights_that_are_no_numbers_are_refused(kind, value, checkpoint, tmp_path):
    """The error names the tensor, and no file is left."""
    recipe = Recipe(dtype="F32")
    arrays = checkpoints.tensors(recipe)
    arrays["model.layers.1.experts.down_proj"][2, 7, 9] = value
    folder = checkpoints.build(tmp_path / "model", checkpoint, recipe)
    header = checkpoints.header(checkpoints.shapes(recipe), "F32")
    data = b"".join(checkpoints.encoded(arrays[name], "F32") for name in header if name in arrays)
    checkpoints.write_safetensors(folder / "model.safetensors", header, data)
    (tmp_path / "out").mkdir()

    with pytest.raises(EngineError, match="blk.1.ffn_down_exps.weight: .*(NaN|too large)"):
        api.quantize_model(api.open_source(folder), tmp_path / "out" / "a.gguf", Target(kind))
    assert [] == list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Target("Q9_9"), "unknown type 'Q9_9'; ggml has"),
        (Target("Q4_K", pure=True), "ffn_down.weight: rows of 192 .*blocks of 256.*take q5_0"),
        (Target("Q1_0", pure=True, fallback=True), "ffn_down.weight: rows of 192 .*no replacement"),
        (Target("IQ2_XS"), "iq2_xs needs an importance matrix"),
        (Target("IQ2_XS", pure=True, fallback=True), "iq2_xs needs an importance matrix"),
        (Target(), "say what the file is to be"),
    ],
)
def test_a_target_that_cannot_be_is_refused(target, words, model, tmp_path):
    with pytest.raises(PlanError, match=words):
        api.quantize_model(model, tmp_path / "a.gguf", target)
    assert [] == list(tmp_path.iterdir())


def test_convert_writes_floating_point_types_only(model, tmp_path):
    with pytest.raises(PlanError, match="convert writes bf16, f16, f32, not q8_0; see quantize"):
        api.convert_checkpoint(model, tmp_path / "a.gguf", "q8_0")


def test_a_plan_for_another_model_is_refused(model, checkpoint, tmp_path):
    """Whether it lacks tensors, has others, or wants what a tensor cannot be."""
    plan = api.make_plan(model, Target("Q4_K_M"))
    document = plan.to_dict()
    for name, entry, words in [
        ("blk.9.attn_q.weight", {"type": "q4_k"}, "another model: blk.9.attn_q.weight is only in"),
        ("blk.0.ffn_down.weight", {"type": "q4_k"}, "rows of 192 do not divide.*take q5_0"),
        ("blk.0.ffn_gate_inp.weight", {"type": "q4_0"}, "stays f32"),
        ("blk.0.attn_q.weight", {"type": "q9_9"}, "unknown type 'q9_9'"),
        ("blk.0.attn_q.weight", {"type": "q4_k", "padded_to": 512}, "cannot be padded to 512"),
    ]:
        tensors = document["tensors"] | {name: entry}
        edited = Plan.from_json(json.dumps(document | {"tensors": tensors}), "plan.json")
        with pytest.raises(PlanError, match=words):
            api.quantize_model(model, tmp_path / "a.gguf", Target(plan=edited))
    with pytest.raises(PlanError, match="such tensors|plan anew"):
        api.quantize_model(api.open_source(checkpoint), tmp_path / "a.gguf", Target(plan=plan))
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("row", [0, -1])
def test_a_file_that_does_not_hold_what_was_encoded_is_not_left(row, model, tmp_path, monkeypatch):
    """Rows that a disk or a memory changed: found by decoding, although the writer saw nothing."""
    write = PartialFile.write

    def damaged(self, name, start, rows):
        if name == "blk.1.ffn_down_exps.weight":
            rows = rows.copy()
            rows[row] ^= 0x11
        return write(self, name, start, rows)

    monkeypatch.setattr(PartialFile, "write", damaged)
    told: list[str] = []

    with pytest.raises(OutputError, match="a.gguf: row .* of blk.1.ffn_down_exps.weight is not"):
        api.quantize_model(model, tmp_path / "a.gguf", Target("Q8_0"), tell=told.append)
    assert ([], []) == (list(tmp_path.iterdir()), told)


def test_a_file_says_which_importance_it_was_cut_with(model, tmp_path):
    """In llama-quantize's keys and a digest, without the folders of the text; another cut does
    not inherit it."""
    entry = Entry(np.ones((1, 256), np.float32), np.ones(1, np.float32))
    named = Statistics({"blk.0.attn_q.weight": entry}, ("C:\\texts\\wiki.txt",), 12, 512)

    api.quantize_model(carrying(model, named), tmp_path / "a.gguf", Target("Q8_0"))

    with GGUFFile(tmp_path / "a.gguf") as file:
        found = {key: file.get(f"quantize.imatrix.{key}") for key in ("dataset", "chunks_count")}
        assert {"dataset": "wiki.txt", "chunks_count": 12} == found
        assert 1 == file.get("quantize.imatrix.entries_count")
        assert 64 == len(file.get("quantize.imatrix.digest"))
    again = api.open_source(tmp_path / "a.gguf")
    assert not any(key.startswith("quantize.") for key in again.metadata)


def test_the_time_of_a_large_cut_is_told_before_it_begins(model, importance, tmp_path, monkeypatch):
    """Importance makes it longer, threads make it shorter, and what is passed on takes none."""
    monkeypatch.setattr(estimate, "WORTH", 0)
    told: list[str] = []

    api.quantize_model(model, tmp_path / "a.gguf", Target("Q4_K_M"), tell=told.append)

    (line,) = told
    assert line.startswith("a.gguf: encoding takes about ")
    q4_k = dict.fromkeys((t.name for t in model.tensors), ggml.type_named("q4_k"))
    kept = {t.name: ggml.type_named(t.source_type) for t in model.tensors}
    alone = estimate.encoding_seconds(model, q4_k, (), 1)
    assert estimate.encoding_seconds(model, q4_k, importance, 1) > alone * 0.9
    assert estimate.encoding_seconds(model, q4_k, (), 4) < alone / 2
    assert 0 == estimate.encoding_seconds(model, kept, (), 1)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.1, "1 second"), (1.2, "1 second"), (40, "40 seconds"), (720, "12 minutes")]
    + [(12600, "3.5 hours")],
)
def test_a_time_is_told_as_people_say_it(seconds, words):
    assert words == estimate.spoken(seconds)
