"""The boundary to llama.cpp, on real files and the real library."""

import json
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut import ggml, llama
from gemcut.engine import ModelOptions
from gemcut.errors import EngineError, TextError
from gemcut.llama import Context, Model, library, memory
from tests.decoding import TEXT, alike, small
from tests.rpc import beside_a_device

# --- the libraries ---


def test_the_pinned_version_is_wanted(monkeypatch):
    """Another llama-cpp-python is refused with the line that installs the right one."""
    monkeypatch.setattr(ggml, "PINNED", "0.0.1")

    with pytest.raises(EngineError, match="wanted exactly 0.0.1: pip install"):
        library.require.__wrapped__()


@pytest.mark.parametrize("params", ["llama_model_default_params", "llama_context_default_params"])
def test_a_struct_of_another_layout_is_found(params):
    """A field that the library filled in otherwise, or that is gone, ends in an error."""
    filled = getattr(llama.require(), params)()

    with pytest.raises(EngineError, match="wanted 12345"):
        library.check_defaults(filled, {filled._fields_[-1][0]: 12345})
    with pytest.raises(EngineError, match="is nothing by default"):
        library.check_defaults(filled, {"no_such_field": 1})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_every_ggml_library_is_mapped_once():
    """Two copies of ggml would have two registries of devices."""
    llama.backends()
    copies = library.mapped_copies(Path("/proc/self/maps").read_text())

    assert {"ggml", "ggml-base", "ggml-cpu"} <= copies.keys()
    assert {1} == {len(files) for files in copies.values()}


def test_a_second_copy_is_noticed():
    """The files behind one library are told apart by their paths."""
    row = "7f00-7f01 r-xp 00000000 00:01 42   /opt/a b/lib/libggml-base.so{}\n"

    copies = library.mapped_copies(row.format("") + row.format(".0") * 2)

    assert {"ggml-base": {f"/opt/a b/lib/libggml-base.so{end}" for end in ("", ".0")}} == copies


def test_llama_cpp_writes_nothing(bf16, capfd):
    """Its log is kept here, not on the user's terminal."""
    with Model.load(bf16) as model, Context(model, small()):
        pass

    assert ("", "") == capfd.readouterr()


def test_the_log_takes_lines_in_pieces():
    """Lines come in pieces that end within characters; broken bytes are replaced."""
    log = library.Log()
    for level, text in [(2, b"a \xc3"), (5, b"\xa9\nb"), (4, b"ad \xff\n"), (1, b"noise\n")]:
        log.take(level, text, None)

    assert (["a é", "bad �"], ["bad �"]) == (log.since(0), log.errors())


def test_the_cpu_is_a_device():
    """There is always a CPU, with memory."""
    cpu = next(device for device in llama.devices() if device.kind == "cpu")

    assert "CPU" in llama.backends()
    assert 0 < cpu.free <= cpu.total


# --- models ---


def test_a_model_knows_its_numbers(model):
    """What the file says is what the properties say."""
    said = [model.metadata(f"gemma4.{key}") for key in ("block_count", "embedding_length")]

    assert [str(model.n_layer), str(model.n_embd)] == said
    assert model.metadata("no.such.key") is None
    assert "<|turn>" in model.chat_template
    assert "BF16" in model.description
    assert sum(model.memory.weights.values()) == pytest.approx(model.size_bytes, rel=0.01)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda data: b"GGML" + data[4:], "not a GGUF file"),
        (lambda data: data[: len(data) // 2], "truncated: .* ends at byte"),
        (lambda data: data[:2000], "truncated"),
        (lambda data: data.replace(b"gemma4", b"gemmaX"), "unknown model architecture: 'gemmaX'"),
        (lambda data: b"", "not a GGUF file"),
    ],
)
def test_a_damaged_file_is_refused(bf16, tmp_path, damage, why):
    """The error names the file and says what is wrong, in our words or in llama.cpp's."""
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damage(bf16.read_bytes()))

    with pytest.raises(EngineError, match=f"damaged.gguf: .*{why}"):
        Model.load(path)


def test_a_missing_file_is_refused(tmp_path):
    """Before llama.cpp sees it."""
    with pytest.raises(EngineError, match=r"none\.gguf: cannot be read: No such file"):
        Model.load(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (ModelOptions(overrides=(("exps", "TPU7"),)), "no device 'TPU7'; llama.cpp has .*CPU"),
        (ModelOptions(devices=("TPU7",)), "no device 'TPU7'"),
        (ModelOptions(load_mode="magic"), "'magic' is none of llama.cpp's auto, direct_io, mlock"),
        (ModelOptions(no_alloc=True), "no_alloc needs load_mode 'none'"),
        (ModelOptions(overrides=(("a", "CPU"),) * 100_000), "100000 overrides"),
        (ModelOptions(rpc=("nowhere",)), "not an endpoint"),
        (ModelOptions(rpc=("127.0.0.1:1",)), "no RPC server answers"),
    ],
)
def test_impossible_options_are_refused(bf16, options, why):
    """llama.cpp would end the process for most of them."""
    with pytest.raises(EngineError, match=why):
        Model.load(bf16, options)


def test_options_reach_the_loading(bf16):
    """Repacking, load mode, devices and overrides change the buffers that weights go to."""
    options = ModelOptions(
        load_mode="none", repack=False, devices=(), overrides=((r"_exps\.weight", "CPU"),)
    )
    with Model.load(bf16, options) as model:
        assert {"CPU"} == model.memory.weights.keys()


def test_nothing_is_raised_amid_loading(bf16):
    """Python prints what is raised in a callback of C, and goes on."""
    seen = []
    with Model.load(
        bf16, on_progress=lambda fraction: seen.append(signal.getsignal(signal.SIGINT))
    ):
        pass
    assert seen and signal.default_int_handler not in seen
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_progress_raises_ends_the_loading(bf16):
    """Also when that is Ctrl-C, which C cannot pass on."""
    seen = []

    def interrupt(fraction):
        seen.append(fraction)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Model.load(bf16, on_progress=interrupt)
    assert 1 == len(seen)


def test_an_interrupt_ends_a_watched_decode_wherever_it_arrives(bf16):
    """A signal is mostly seen where C enters Python: before anything there could catch it."""

    def ring(number, frame):
        raise KeyboardInterrupt

    ended, usual, hook = 0, signal.signal(signal.SIGALRM, ring), sys.unraisablehook
    try:
        with Model.load(bf16) as model, Context(model, small(), lambda *_: None) as context:
            for _ in range(20):
                with suppress(KeyboardInterrupt):
                    signal.setitimer(signal.ITIMER_REAL, 0.0005)
                    while True:
                        context.forget()
                        context.decode([1] * 16)
                ended += 1
                context.forget()
                assert len(context.decode([1])) == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)
    assert 20 == ended and hook is sys.unraisablehook


def test_a_closed_model_takes_its_contexts_along(bf16):
    """Nothing reaches freed memory; closing twice is harmless."""
    model = Model.load(bf16)
    context = Context(model, small())
    context.decode([1])
    model.close()
    model.close()
    assert 0 == len(context.logits)

    for use in (
        lambda: model.n_vocab,
        lambda: model.tokenize("x"),
        lambda: context.decode([1]),
        lambda: context.forget(),
        lambda: context.held(),
        lambda: Context(model),
    ):
        with pytest.raises(EngineError, match="is closed"):
            use()


def test_a_vocabulary_alone_reads_text(bf16, model):
    """It tokenizes as the whole model does and makes no context."""
    with Model.load(bf16, ModelOptions(vocab_only=True)) as vocabulary:
        assert vocabulary.tokenize(TEXT).tolist() == model.tokenize(TEXT).tolist()
        with pytest.raises(EngineError, match="vocab_only"):
            Context(vocabulary)


# --- text ---


@given(st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"]), max_size=60))
def test_pieces_spell_the_text(model, text):
    """Tokens put together again are the text, byte for byte."""
    tokens = model.tokenize(text, add_special=False)

    assert text.encode() == b"".join(model.piece(token) for token in tokens)


def test_special_tokens_are_read_and_written_on_request(model):
    """BOS comes first if the model wants it; "<bos>" is a token only where asked for."""
    assert model.add_bos
    assert [model.bos] == model.tokenize("").tolist()
    assert [model.bos] == model.tokenize("<bos>", False, parse_special=True).tolist()
    assert model.bos not in model.tokenize("x<bos>", False)
    assert (b"", b"<bos>") == (model.piece(model.bos), model.piece(model.bos, special=True))


def test_generations_end_at_an_end_token(model):
    """End of sequence ends; ordinary text does not; what is no token is refused."""
    assert model.is_end(model.eos)
    assert not model.is_end(model.tokenize("x")[-1])
    for use in (model.is_end, model.piece):
        with pytest.raises(EngineError, match="not in the vocabulary"):
            use(model.n_vocab)


def test_text_must_be_unicode(model):
    """A lone surrogate has no UTF-8."""
    with pytest.raises(TextError, match="not valid Unicode"):
        model.tokenize("\ud800")


# --- memory ---


def test_the_probe_sees_what_the_run_takes(bf16):
    """Caches and compute buffers as planned are those of the real load; options matter."""
    options = small(n_ctx=2048, n_outputs=1, type_k="q8_0", type_v="q8_0")
    planned = llama.probe(bf16, context=options)
    with Model.load(bf16) as model, Context(model, options) as context:
        real = context.memory

    assert planned == real
    assert 0 < planned.cache_bytes("swa") < planned.cache_bytes("full")
    assert {"CPU"} == planned.compute.keys()
    assert 4 * model_vocab(bf16) == planned.outputs
    full = llama.probe(bf16, context=small(n_ctx=2048, swa_full=True))
    assert full.cache_bytes("swa") > planned.cache_bytes("swa")


def model_vocab(path):
    with Model.load(path, ModelOptions(vocab_only=True)) as model:
        return model.n_vocab


def test_a_failed_probe_says_why(bf16, tmp_path):
    """Refusals come back as errors, and so do a crash and a child that hangs."""
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(bf16.read_bytes().replace(b"gemma4", b"gemmaX"))
    crash = subprocess.CompletedProcess([], -6, "", "ggml.c:1: GGML_ASSERT(x) failed\n")

    with pytest.raises(EngineError, match="unknown model architecture"):
        llama.probe(damaged)
    with pytest.raises(EngineError, match="more than 0.001 s"):
        llama.probe(bf16, timeout=0.001)
    with pytest.raises(EngineError, match=r"Aborted.*GGML_ASSERT"):
        memory._read_answer(bf16, crash)


# --- another device ---


# In a process of its own: a device stays registered, and every later load would use it.
CLIENT = """
import json, sys
import numpy as np
from gemcut import ggml, llama
from gemcut.engine import ContextOptions, ModelOptions
endpoint, path, logits = sys.argv[1:]
override = (r"blk\\.[0-1]\\.ffn_.*_exps\\.weight", "CPU")
options = ModelOptions(rpc=(endpoint,), overrides=(override,), load_mode="none")
context = ContextOptions(n_ctx=256, n_ubatch=64, threads=1)
planned = llama.probe(path, options, context)
with llama.Model.load(path, options) as model, llama.Context(model, context) as run:
    np.save(logits, run.decode(model.tokenize("def f(x):\\n    return x")))
    again = llama.add_rpc(endpoint)
    kinds = {d.name: d.kind for d in llama.devices()}
    print(json.dumps([model.memory.weights, run.memory.to_dict(), planned.to_dict(), again, kinds]))
"""


def test_experts_on_the_cpu_and_the_rest_elsewhere(bf16, model, tmp_path):
    """Hybrid offload for real: a second process stands in for the GPU.

    The weights divide as the override says, the caches go to the device, and the logits are those
    of the CPU alone. `add_rpc` twice is one device; each ggml library is still loaded once, which
    `add_rpc` checks.
    """
    out = tmp_path / "logits.npy"
    endpoint, stdout = beside_a_device(CLIENT, bf16, out)
    weights, real, planned, again, kinds = json.loads(stdout.splitlines()[-1])

    remote = f"RPC0[{endpoint}]"
    experts = 2 * 16 * 3 * 64 * model.n_embd * 2  # layers, experts, matrices, rows, columns, bf16
    embedding = model.n_vocab * model.n_embd * 2  # on the host, and as the output on the device
    assert weights["CPU"] == pytest.approx(experts + embedding, rel=0.01)
    assert weights[remote] == pytest.approx(model.size_bytes - experts, rel=0.01)
    assert {"RPC0"} == {name for cache in real["caches"] for name in cache["devices"]}
    assert planned["caches"] == real["caches"]
    assert planned["compute"] == real["compute"]
    assert remote in real["compute"]
    assert (["RPC0"], "gpu") == (again, kinds["RPC0"])
    with Context(model, small()) as context:
        alone = context.decode(model.tokenize("def f(x):\n    return x"))
        assert alike(np.load(out), alone)


@pytest.mark.parametrize("wrong", ["localhost", ":5", "host:", "host:http"])
def test_endpoints_are_host_and_port(wrong):
    """Anything else would end the process."""
    with pytest.raises(EngineError, match="not an endpoint"):
        llama.add_rpc(wrong)
