"""A reference that is closed: its logits out of the store are those that it computed."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from gemcut import api, ggml
from gemcut.engine import ContextOptions, ModelOptions
from gemcut.errors import EngineError, OutputError
from gemcut.eval.scoring import store as module
from gemcut.eval.scoring.head import divergence
from gemcut.eval.scoring.store import AGREES, StoredReference, hidden_bytes, packed_bytes
from gemcut.eval.texts.chunks import Chunk, half_scored
from gemcut.gguf_file import GGUFFile, TensorInfo, Value
from gemcut.gguf_writer import GGUFWriter
from gemcut.llama import Context, Model
from gemcut.llama.head import Head, Step
from gemcut.score import log_softmax, score
from tests import families
from tests.rpc import beside_a_device

N_CTX = 48


def chunks(vocabulary=2048):
    """Two halves of random tokens, and a chunk of another length of which other tokens count."""
    random = np.random.default_rng(0)
    rows = random.integers(0, vocabulary, (2, N_CTX)).astype(np.int32)
    mask = np.zeros(40, np.bool_)
    mask[[3, 17, 18, 38]] = True
    return [*half_scored(rows), Chunk(random.integers(0, vocabulary, 40).astype(np.int32), mask)]


def read(store, path, pieces, n_ubatch=N_CTX, options=None):
    """Let the reference read; its own logits."""
    how, found = ContextOptions(N_CTX, n_ubatch=n_ubatch, threads=1), []
    with (
        Model.load(path, options) as model,
        Context(model, how, store.on_tensor, store.wants) as context,
    ):
        for chunk in pieces:
            context.forget()
            found.append(context.decode(chunk.tokens, outputs=chunk.outputs).copy())
            store.add(chunk, found[-1])
    return found


def check(path, folder, vocabulary=2048, **reading):
    """The logits of every chunk are the reference's; what the store took them from."""
    pieces, told = chunks(vocabulary), []
    with StoredReference(path, pieces, folder=folder, tell=told.append) as store:
        real = read(store, path, pieces, **reading)
        for chunk, logits in reversed(list(zip(pieces, real, strict=True))):
            kept = store.logits(chunk)
            np.testing.assert_allclose(kept, logits, atol=1e-3)
            assert divergence(logits, kept) <= AGREES
        assert store.error <= AGREES
    assert ["hidden states"] == [text.split(":")[0].split(" as ")[1] for text in told]
    assert [] == list(folder.iterdir())


@pytest.mark.parametrize(
    ("kind", "n_ubatch"), [("bf16", N_CTX), ("bf16", 16), ("q8_0", N_CTX), ("q4_k_m", N_CTX)]
)
def test_hidden_states_make_the_logits_that_llama_cpp_computed(kind, n_ubatch, request, tmp_path):
    """A tied head with a soft cap, of several types; also where a part of a chunk has no output."""
    check(request.getfixturevalue(kind), tmp_path, n_ubatch=n_ubatch)


def scaled(folder):
    """A model with an output matrix of its own and logits that are scaled: Granite's graph."""
    source, plain = families.build(folder / "source", "mixtral"), folder / "plain.gguf"
    api.convert_checkpoint(api.open_source(source), plain, "bf16", threads=1)
    file, path = GGUFFile(plain), folder / "scaled.gguf"
    metadata = {
        key.replace("llama.", "granitemoe.", 1) if key.startswith("llama.") else key: value
        for key, value in file.metadata.items()
    }
    metadata["general.architecture"] = Value("str", "granitemoe")
    for key in ("logit_scale", "residual_scale", "embedding_scale", "attention.scale"):
        metadata[f"granitemoe.{key}"] = Value("f32", 0.25)
    with GGUFWriter(path, metadata, list(file.tensors.values())) as writer:
        for name in file.tensors:
            writer.write(name, 0, file.rows(name))
    return path


def test_the_steps_are_read_off_the_graph_of_an_architecture_never_heard_of(tmp_path):
    path = scaled(tmp_path)
    (tmp_path / "store").mkdir()
    with Model.load(path, ModelOptions(vocab_only=True)) as model:
        vocabulary = model.n_vocab

    check(path, tmp_path / "store", vocabulary)


CHILD = """
import sys
from pathlib import Path
from gemcut.engine import ModelOptions
from tests.test_store import check
options = ModelOptions(rpc=(sys.argv[1],), overrides=((r"(token_embd|output)[.]weight", "CPU"),))
check(Path(sys.argv[2]), Path(sys.argv[3]), options=options)
"""


def test_a_reference_on_another_device_is_kept_as_well(bf16, tmp_path):
    """The blocks on the device and the head on the CPU: what flows between them is a copy."""
    beside_a_device(CHILD, bf16, tmp_path)


@pytest.mark.parametrize("why", ["another operation", "other numbers"])
def test_where_the_head_is_not_known_16_bit_logits_are_kept(why, bf16, tmp_path, monkeypatch):
    if why == "other numbers":
        monkeypatch.setattr(module, "AGREES", -1.0)
    else:
        monkeypatch.setattr("gemcut.eval.scoring.head._HIDDEN", "no such tensor")
    pieces, told = chunks(), []

    with StoredReference(bf16, pieces, 2, tmp_path, told.append) as store:
        real = read(store, bf16, pieces)
        assert store.planned_bytes == packed_bytes(pieces, 2048)
        for chunk, logits in zip(pieces, real, strict=True):
            kept = store.logits(chunk)
            step = np.ptp(logits, axis=1, keepdims=True) / 65535
            assert (abs(kept - log_softmax(logits)) <= step / 2 + 1e-5).all()
            assert divergence(logits, kept) < 1e-8
            same, other = score(chunk.targets, [logits], kept)
            np.testing.assert_allclose(same.nll, other.nll, atol=1e-3)
    assert store.error < 1e-8
    assert len(told) == 1 and "16-bit logits, as" in told[0]
    assert {"another operation": "it has GET_ROWS", "other numbers": "is off by"}[why] in told[0]


def test_the_size_is_told_before_anything_is_written(bf16, tmp_path):
    pieces = chunks()

    def tell(text):
        assert "51.20 KB" in text
        told.append(list(tmp_path.iterdir()))

    told = []
    with StoredReference(bf16, pieces, folder=tmp_path, tell=tell) as store:
        read(store, bf16, pieces)
        assert store.planned_bytes == hidden_bytes(pieces, 256)
        assert store._end == store.planned_bytes
    assert told == [[]]


def test_nothing_is_left_when_somebody_presses_ctrl_c(bf16, tmp_path):
    pieces = chunks()
    with (
        pytest.raises(KeyboardInterrupt),
        StoredReference(bf16, pieces, folder=tmp_path) as store,
    ):
        read(store, bf16, pieces[:1])
        raise KeyboardInterrupt

    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("trouble", ["full", "not a folder"])
def test_a_disk_without_room_is_refused_before_the_text_is_read(
    trouble, bf16, tmp_path, monkeypatch
):
    folder = tmp_path / "store"
    if trouble == "full":
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(module, "disk_usage", lambda path: usage)
    else:
        folder.write_text("in the way")
    pieces = chunks()

    with (
        pytest.raises(OutputError, match=r"51.20 KB are needed .* use fewer chunks"),
        StoredReference(bf16, pieces, folder=folder) as store,
    ):
        read(store, bf16, pieces)


def test_a_chunk_decoded_in_another_way_is_refused(bf16, tmp_path):
    first, second, _ = chunks()
    fewer = replace(second, outputs=np.roll(second.outputs, -1) & second.outputs)
    with StoredReference(bf16, [first, second], folder=tmp_path) as store:
        logits = read(store, bf16, [first])[0]
        with pytest.raises(EngineError, match="0 rows for"):
            store.add(fewer, logits)
        with pytest.raises(KeyError):
            store.logits(second)


# --- the head alone ---


def write(path, **tensors):
    infos, offset = [], 0
    for name, values in tensors.items():
        infos.append(TensorInfo(name, values.shape, ggml.type_named("f32"), offset))
        offset += -(-values.nbytes // 32) * 32
    with GGUFWriter(path, {"general.architecture": Value("str", "x")}, infos) as writer:
        for info in infos:
            rows = tensors[info.name].reshape(info.rows, -1)
            writer.write(info.name, 0, rows.view(np.uint8))
    return path


@pytest.fixture
def weights(tmp_path):
    random = np.random.default_rng(0)
    matrix, bias = random.normal(size=(50, 32)), random.normal(size=50)
    tensors = {"w": matrix, "b": bias, "s": np.array([0.5])}
    return write(tmp_path / "head.gguf", **{k: v.astype(np.float32) for k, v in tensors.items()})


def test_every_step_does_what_it_says(weights):
    hidden = np.random.default_rng(1).normal(size=(7, 32)).astype(np.float32)
    file = GGUFFile(weights)
    w, b, s = (file.rows(name).view(np.float32) for name in "wbs")
    steps = [
        Step("SCALE", scale=0.5, bias=0.125),
        Step("MUL_MAT", "w"),
        Step("MUL", "s"),
        Step("ADD", "b"),
        Step("TANH"),
        Step("SCALE", scale=30.0),
    ]
    with Head(weights, steps, 1) as head:
        for rows in (7, 1, 3):
            wanted = 30 * np.tanh((0.5 * hidden[:rows] + 0.125) @ w.T * s + b)
            np.testing.assert_allclose(head.logits(hidden[:rows]), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [Step("MUL_MAT", "gone")],
        [Step("MUL_MAT", "w"), Step("MUL_MAT", "w")],
        [Step("MUL_MAT", "w"), Step("ADD", "w")],
        [Step("ADD", "b"), Step("MUL_MAT", "w")],
        [Step("TANH")],
    ],
)
def test_steps_that_ggml_would_end_the_process_for_are_refused(weights, steps):
    with pytest.raises(EngineError, match="the model's head"):
        Head(weights, steps, 1)


def test_a_closed_head_is_refused(weights):
    with Head(weights, [Step("MUL_MAT", "w")], 1) as head:
        head.logits(np.zeros((3, 32), np.float32))

    for rows in (3, 4):
        with pytest.raises(EngineError, match="closed"):
            head.logits(np.zeros((rows, 32), np.float32))


def test_hidden_states_of_another_width_are_refused(weights):
    with Head(weights, [Step("MUL_MAT", "w")], 1) as head:
        for shape in ((3, 31), (0, 32)):
            with pytest.raises(EngineError, match="hidden states"):
                head.logits(np.zeros(shape, np.float32))
