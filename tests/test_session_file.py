"""A sequence's cache in a file: restored whole, or refused before llama.cpp sees a byte of it."""

import os
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemcut.engine import ContextOptions
from gemcut.errors import EngineError, OutputError
from gemcut.llama import Context, Model, identity
from gemcut.llama.session import _END

OPTIONS = ContextOptions(n_ctx=512, n_batch=64, n_ubatch=64, threads=1)
COUNT = 120


@pytest.fixture(scope="module")
def model(f32):
    with Model.load(f32) as model:
        yield model


@pytest.fixture(scope="module")
def context(model):
    with Context(model, OPTIONS) as context:
        yield context


@pytest.fixture(scope="module")
def tokens(model):
    return [int(t) for t in np.tile(model.tokenize("def f(x):\n    return x\n"), 30)[:COUNT]]


@pytest.fixture(scope="module", autouse=True)
def own_folder(tmp_path_factory):
    """The secret of these tests is not the user's."""
    folder = tmp_path_factory.mktemp("user")
    with patch.dict(os.environ, XDG_CACHE_HOME=str(folder)):
        yield folder


@pytest.fixture(scope="module")
def saved(context, tokens, tmp_path_factory, own_folder):
    """A file of a cache with COUNT tokens."""
    path = tmp_path_factory.mktemp("saved") / "cache.kv"
    fill(context, tokens)
    context.save(path, 0, tokens)
    return path


def fill(context, tokens, seq=0):
    for start in range(0, len(tokens), context.n_batch):
        context.decode(tokens[start : start + context.n_batch], start, seq, "none")


def refused(path, why, context):
    """It is refused, llama.cpp is not asked, and the sequence is empty and usable."""

    def must_not_be_called(*_):
        raise AssertionError("llama.cpp was shown the file")

    with (
        patch.object(context._c, "llama_state_seq_load_file", must_not_be_called),
        pytest.raises(EngineError, match=why),
    ):
        context.restore(path, 0)
    assert 0 == context.held()


@pytest.mark.parametrize(
    "options",
    [
        OPTIONS,
        replace(OPTIONS, n_ctx=256, n_ubatch=32, threads=2),
        replace(OPTIONS, n_ctx=2048, n_seq=3, kv_unified=True),
    ],
)
def test_a_restored_sequence_goes_on_as_it_would_have(model, saved, tokens, options):
    """In a context of another size, as another sequence, beside what others hold."""
    seq = options.n_seq - 1
    with Context(model, OPTIONS) as first, Context(model, options) as second:
        fill(first, tokens)
        fill(second, tokens[:50])
        assert tokens == second.restore(saved, seq)
        assert COUNT == second.held(seq)
        assert (50 if seq else COUNT) == second.held(0)
        wanted = first.decode([7, 8, 9], start=COUNT)
        found = second.decode([7, 8, 9], start=COUNT, seq=seq)

        assert np.abs(wanted - found).max() < 0.05


def test_a_window_that_passed_is_saved_as_far_as_it_is_needed(model, tokens, tmp_path):
    """What a sliding window dropped is not in the file; the next token is still right."""
    text = np.tile(tokens, 4)[:480].tolist()
    with Context(model, OPTIONS) as context:
        fill(context, text)
        context.save(tmp_path / "long", 0, text)
        wanted = context.decode([5], start=480).copy()
        assert text == context.restore(tmp_path / "long", 0)
        assert context.reaches(0, 479) and not context.reaches(0, 478)
        assert np.abs(wanted - context.decode([5], start=480)).max() < 0.05


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused(context, saved, tmp_path_factory, data):
    """One bit anywhere, a byte more, or any end cut off."""
    whole = saved.read_bytes()
    size = len(whole)
    # Most of a file is numbers; its first and last bytes say more.
    place = st.integers(0, size - 1) | st.integers(0, 600) | st.integers(size - 600, size - 1)
    how, at = data.draw(st.sampled_from(["bit", "cut", "more"])), data.draw(place)
    damaged = bytearray(whole)
    if how == "bit":
        damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del damaged[at:]
    else:
        damaged.insert(at, data.draw(st.integers(0, 255)))
    path = tmp_path_factory.mktemp("damaged") / "cache.kv"
    path.write_bytes(damaged)

    refused(path, "not a whole file|was changed", context)


def test_a_file_of_somebody_else_is_refused(context, tokens, saved, own_folder, tmp_path):
    """However sound it looks: positions in it would be used as they are."""
    with patch.dict(os.environ, XDG_CACHE_HOME=str(tmp_path)):
        refused(saved, "not saved by this user", context)
        fill(context, tokens)
        context.save(tmp_path / "theirs", 0, tokens)
    refused(tmp_path / "theirs", "not saved by this user", context)
    assert 0o600 == (own_folder / "gemcut" / "session.key").stat().st_mode & 0o777
    assert tokens == context.restore(saved, 0)


def test_llama_cpps_own_file_is_refused(context, tokens, tmp_path):
    """Nobody vouches for it; a forged end does not help."""
    path, array = tmp_path / "plain", np.asarray(tokens, np.int32)
    fill(context, tokens)
    pointer = array.ctypes.data_as(context._c.llama_state_seq_save_file.argtypes[3])
    name = os.fsencode(path)
    assert context._c.llama_state_seq_save_file(context.handle, name, 0, pointer, len(array))
    plain = path.read_bytes()

    refused(path, "not a whole file", context)
    for length in (2, 4096, len(plain), 1 << 31):
        path.write_bytes(plain + b"{}" + bytes(32) + _END.pack(length, b"gemcutKV"))
        refused(path, "not a whole file|was changed", context)


@pytest.mark.parametrize("by", [1, -1, 7])
def test_the_length_of_its_facts_is_sealed_too(context, tokens, by, tmp_path):
    """Else they would be read from where somebody likes."""
    path = tmp_path / "cache"
    fill(context, tokens)
    context.save(path, 0, tokens)
    data = path.read_bytes()
    length, magic = _END.unpack(data[-_END.size :])
    path.write_bytes(data[: -_END.size] + _END.pack(length + by, magic))
    refused(path, "was changed", context)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"type_k": "q8_0"}, "type of keys"),
        ({"type_v": "q8_0"}, "type of values"),
        ({"flash_attention": False}, "flash attention"),
        ({"n_seq": 2}, "number of streams"),
    ],
)
def test_another_kind_of_cache_is_refused(model, saved, changes, what):
    """llama.cpp would find out half-way, or not at all."""
    with Context(model, replace(OPTIONS, **changes)) as other:
        refused(saved, f"another {what}", other)


def test_another_model_is_refused(saved, context, bf16, model, f32, tmp_path):
    """The same shapes with other weights are another model; the same file elsewhere is not."""
    with Model.load(bf16) as other, Context(other, OPTIONS) as foreign:
        refused(saved, "another model", foreign)
    copy = tmp_path / "copy.gguf"
    data = bytearray(f32.read_bytes())
    copy.write_bytes(data)
    with Model.load(copy) as other:
        assert identity(model) == identity(other)
        copy.write_bytes(data[:-5000] + bytes(5000))
        with pytest.raises(EngineError, match="changed since it was loaded"):
            identity(other)
    with Model.load(copy) as other, Context(other, OPTIONS) as foreign:
        refused(saved, "another model", foreign)


def test_a_text_longer_than_the_context_is_refused(model, tmp_path):
    """By llama.cpp, and the sequence is empty then."""
    with Context(model, OPTIONS) as context:
        text = [5] * 400
        fill(context, text)
        context.save(tmp_path / "long", 0, text)
    with Context(model, replace(OPTIONS, n_ctx=256)) as short:
        with pytest.raises(EngineError, match="cannot restore it.*exceeded capacity"):
            short.restore(tmp_path / "long", 0)
        assert 0 == short.held()
        assert len(short.decode([5]))


def test_what_is_not_there_is_refused(context, tmp_path):
    """Nothing, an empty file, a folder."""
    (tmp_path / "empty").touch()

    refused(tmp_path / "none", "cannot be read: No such file", context)
    refused(tmp_path / "empty", "not a whole file", context)
    refused(tmp_path, "cannot be read", context)


def test_a_file_appears_whole_or_not_at_all(context, tokens, saved, tmp_path):
    """A failure leaves what was there, and nothing beside it."""
    path = tmp_path / "cache"
    path.write_bytes(b"before")
    fill(context, tokens)
    with pytest.raises(EngineError, match="3 tokens to save, sequence 0 holds 120"):
        context.save(path, 0, tokens[:3])
    with patch("gemcut.llama.session._seal", side_effect=OSError(28, "No space left on device")):
        with pytest.raises(OutputError, match="No space left"):
            context.save(path, 0, tokens)
    with pytest.raises(OutputError, match="cannot be written"):
        context.save(tmp_path / "none" / "cache", 0, tokens)
    assert [path] == list(tmp_path.iterdir()) and b"before" == path.read_bytes()

    context.save(path, 0, tokens)
    assert [path] == list(tmp_path.iterdir())
    assert tokens == context.restore(path, 0)
