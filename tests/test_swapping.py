"""Changing the weights of a loaded model, and changing them back, on real files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gemcut import api, ggml, llama
from gemcut.convert.gguf_source import open_gguf
from gemcut.convert.model import Reading
from gemcut.engine import ContextOptions, ModelOptions
from gemcut.errors import EngineError, PlanError
from gemcut.quantize.swapping import Change, Swapper, find_weights
from tests.rpc import beside_a_device

OPTIONS = ModelOptions(load_mode="none", repack=False, devices=())
RUN = ContextOptions(n_ctx=64, n_ubatch=64, threads=1)
DOWN = "blk.1.ffn_down_exps.weight"
QUERY = "blk.0.attn_q.weight"
EMBEDDING = "token_embd.weight"
TOKENS = np.arange(5, 45)


def base_of(path):
    return open_gguf(path, Reading(requantize=True))


def tensor(model, name):
    return next(each for each in model.tensors if each.name == name)


def loaded_bytes(model, name):
    """The bytes of a weight as they lie in memory now."""
    return next(iter(find_weights(model)[name])).read_bytes()


@pytest.fixture(scope="module")
def source(checkpoint):
    return api.open_source(checkpoint)


@pytest.fixture(scope="module", params=["q8_0", "bf16", "f32"])
def loaded(request):
    """A loaded model of each supported base, and the file."""
    path = request.getfixturevalue(request.param)
    with llama.Model.load(path, OPTIONS) as model:
        yield model, path


def test_every_tensor_that_may_be_cut_is_found(loaded, source):
    """One token reads them all."""
    model, path = loaded
    wanted = {t.name for t in source.tensors if t.quantizable and not t.kept}

    assert wanted == set(Swapper(model, base_of(path), source).names)


@pytest.mark.parametrize(
    ("name", "kind"),
    [(DOWN, "q4_0"), (DOWN, "iq4_nl"), (QUERY, "iq4_xs"), (QUERY, "q2_k"), (EMBEDDING, "q6_k")],
)
def test_values_are_a_round_trip_in_the_loaded_types_encoding(loaded, source, kind, name):
    """What lies in memory is the source after the round trip, with every expert's importance."""
    model, path = loaded
    target, own = tensor(source, name), tensor(base_of(path), name)
    wanted, base = ggml.type_named(kind), ggml.type_named(own.source_type)
    shape = (target.matrices, target.columns)
    importance = np.random.default_rng(0).uniform(0.1, 2, shape).astype(np.float32)
    height = target.rows // target.matrices
    expected = []
    for matrix in range(target.matrices):
        rows = target.read(matrix * height, (matrix + 1) * height)
        coded = ggml.quantize(wanted, rows, importance[matrix])
        expected.append(ggml.quantize(base, ggml.dequantize(wanted, coded, target.columns)))
    before = loaded_bytes(model, name)

    with Swapper(model, base_of(path), source, {name: importance}).swapped({name: Change(wanted)}):
        assert np.array_equal(np.concatenate(expected).ravel(), loaded_bytes(model, name))
    assert np.array_equal(before, loaded_bytes(model, name))


def test_logits_change_and_come_back_bit_for_bit(loaded, source):
    """Several tensors at once, with more threads than one; nothing is loaded again."""
    model, path = loaded
    swapper = Swapper(model, base_of(path), source, threads=2)
    kind = Change(ggml.type_named("q4_0"))
    with llama.Context(model, RUN) as context:
        before = context.decode(TOKENS).copy()
        with swapper.swapped(dict.fromkeys([DOWN, QUERY, EMBEDDING], kind)):
            changed = context.decode(TOKENS).copy()
        after = context.decode(TOKENS)

        assert np.abs(changed - before).max() > 0.01
        assert np.array_equal(before, after)


def test_a_tensors_own_type_changes_nothing(loaded):
    """Without a source, the file's own values are what there is."""
    model, path = loaded
    base = base_of(path)
    own = ggml.type_named(tensor(base, DOWN).source_type)
    before = loaded_bytes(model, DOWN)

    with Swapper(model, base).swapped({DOWN: Change(own)}):
        assert np.array_equal(before, loaded_bytes(model, DOWN))


def test_strength_scales_the_error(f32, source):
    """Twice as strong is the same error twice; squared errors are four times as large."""
    kind = ggml.type_named("q4_0")
    exact = tensor(source, DOWN).read(0, tensor(source, DOWN).rows)
    with llama.Model.load(f32, OPTIONS) as model:
        swapper, errors = Swapper(model, base_of(f32), source), []
        for strength in (1.0, 2.0):
            with swapper.swapped({DOWN: Change(kind, strength)}):
                now = loaded_bytes(model, DOWN).view(np.float32).reshape(exact.shape)
                errors.append(now - exact)

    np.testing.assert_allclose(2 * errors[0], errors[1], atol=1e-6)


def test_what_fails_in_between_puts_everything_back(q8_0, source):
    """Rows that refuse a type, and whatever the caller raises."""
    types = {QUERY: Change(ggml.type_named("q4_0")), DOWN: Change(ggml.type_named("q4_k"))}
    with llama.Model.load(q8_0, OPTIONS) as model:
        swapper = Swapper(model, base_of(q8_0), source)
        before = loaded_bytes(model, QUERY)
        with pytest.raises(PlanError, match=f"{DOWN}: rows of .* do not divide into q4_k"):
            with swapper.swapped(types):
                pass
        assert np.array_equal(before, loaded_bytes(model, QUERY))
        with pytest.raises(KeyboardInterrupt), swapper.swapped({QUERY: types[QUERY]}):
            raise KeyboardInterrupt
        assert np.array_equal(before, loaded_bytes(model, QUERY))
        with pytest.raises(EngineError, match="output_norm.weight: not a weight that can be"):
            with swapper.swapped({"output_norm.weight": types[QUERY]}):
                pass


@pytest.mark.parametrize(
    "options", [ModelOptions(load_mode="mmap", repack=False), ModelOptions(load_mode="none")]
)
def test_weights_out_of_reach_are_refused(q8_0, options):
    """Mapped and repacked memory is not written to."""
    with llama.Model.load(q8_0, options) as model:
        with pytest.raises(EngineError, match="load with load_mode='none' and repack=False"):
            Swapper(model, base_of(q8_0))


def test_a_coarse_base_is_refused(q4_k_m):
    """Its own error is as large as what is to be seen."""
    with llama.Model.load(q4_k_m, OPTIONS) as model:
        with pytest.raises(EngineError, match="q8_0 or bf16 or f16 or f32"):
            Swapper(model, base_of(q4_k_m))


def test_another_models_values_are_refused(q8_0, source):
    """Another architecture, another shape, a missing tensor."""
    base = base_of(q8_0)
    smaller = tuple(replace(t, shape=(2, *t.shape[1:])) for t in source.tensors)
    with llama.Model.load(q8_0, OPTIONS) as model:
        for wrong, why in (
            (replace(source, architecture="llama"), "the loaded file is gemma4, the source llama"),
            (replace(source, tensors=smaller), "in the loaded file, .* in the source"),
            (replace(source, tensors=source.tensors[:3]), "absent in the source"),
        ):
            with pytest.raises(EngineError, match=why):
                Swapper(model, base, wrong)


# In a process of its own: a device stays registered, and every later load would use it.
REMOTE = """
import sys
import numpy as np
from pathlib import Path
from gemcut import ggml, llama
from gemcut.convert.gguf_source import open_gguf
from gemcut.convert.model import Reading
from gemcut.engine import ContextOptions, ModelOptions
from gemcut.quantize.swapping import Change, Swapper, find_weights
endpoint, path, out, *names = sys.argv[1:]
override = (r"blk\\.0\\.ffn_.*_exps\\.weight", "CPU")
options = ModelOptions(rpc=(endpoint,), overrides=(override,), load_mode="none", repack=False)
with llama.Model.load(path, options) as model:
    base = open_gguf(Path(path), Reading(requantize=True))
    swapper = Swapper(model, base)
    places = {name: sorted(each.buffer for each in found)
              for name, found in find_weights(model).items() if name in names}
    with llama.Context(model, ContextOptions(n_ctx=64, n_ubatch=64, threads=1)) as context:
        tokens = np.arange(5, 45)
        before = context.decode(tokens).copy()
        with swapper.swapped({name: Change(ggml.type_named("q4_0")) for name in names}):
            changed = context.decode(tokens).copy()
        after = context.decode(tokens).copy()
np.savez(out, before=before, changed=changed, after=after)
print(places)
"""


def test_weights_on_another_device(q8_0, tmp_path: Path):
    """On the device, on the host beside it, and the tied embedding on both, as on a GPU."""
    out = tmp_path / "logits.npz"
    names = ["blk.0.ffn_down_exps.weight", DOWN, EMBEDDING]
    _, stdout = beside_a_device(REMOTE, q8_0, out, *names)
    places = eval(stdout.splitlines()[-1])

    assert ["CPU"] == places[names[0]]
    assert places[DOWN][0].startswith("RPC0")
    assert ["CPU", places[DOWN][0]] == places[EMBEDDING]
    found = np.load(out)
    assert np.array_equal(found["before"], found["after"])
    with llama.Model.load(q8_0, OPTIONS) as model, llama.Context(model, RUN) as context:
        with Swapper(model, base_of(q8_0)).swapped(
            dict.fromkeys(names, Change(ggml.type_named("q4_0")))
        ):
            alone = context.decode(TOKENS)
            assert np.abs(found["changed"] - alone).mean() < 0.02
            assert np.abs(found["changed"] - found["before"]).mean() > 0.1
