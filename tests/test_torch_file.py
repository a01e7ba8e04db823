"""Torch's files are read without torch, and nothing that a file names is ever called."""

import io
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemcut.convert import torch_file
from gemcut.convert.shards import DTYPES
from gemcut.errors import CheckpointError

FIXTURES = Path(__file__).parent / "fixtures"
RECORDED = np.load(FIXTURES / "dtypes.npz")
WRITTEN = (FIXTURES / "dtypes.bin").read_bytes()


def read(data: bytes):
    return torch_file.read(lambda count, at: data[at : at + count], "x.bin", len(data))


def rezip(change=lambda name, data: data, compression=zipfile.ZIP_STORED) -> bytes:
    """Torch's file once more, with some records changed, or left out (None)."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(WRITTEN)) as old, zipfile.ZipFile(out, "w", compression) as new:
        for info in old.infolist():
            data = change(info.filename.partition("/")[2], old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
    return out.getvalue()


def with_pickle(program: bytes) -> bytes:
    return rezip(lambda name, data: program if name == "data.pkl" else data)


def test_every_tensor_is_found_where_it_lies():
    """All types that checkpoints use, tied and partial tensors, parameters, scalars."""
    found = read(WRITTEN)
    wanted = {n.removeprefix("file/"): RECORDED[n] for n in RECORDED if n.startswith("file/")}
    assert list(found) == list(wanted)
    for name, entry in found.items():
        data = WRITTEN[entry.offset : entry.offset + entry.nbytes]
        assert entry.nbytes == wanted[name].nbytes
        assert data == wanted[name].tobytes(), name
    assert found["e4m3"].dtype == "F8_E4M3" and found["e8m0"].dtype == "F8_E8M0"
    assert found["parameter"].dtype == "BF16" and found["parameter"].shape == (5, 12)
    assert found["tied"].offset == found["f32"].offset
    assert found["part"].offset == found["f32"].offset + 2 * 12 * 4
    assert found["scalar"].shape == () and found["empty"].shape == (0, 4)
    assert {entry.dtype for entry in found.values()} <= set(DTYPES)


def test_rewritten_archives_are_read():
    """Other programs align nothing."""
    assert {n: e.shape for n, e in read(rezip()).items()} == {
        n: e.shape for n, e in read(WRITTEN).items()
    }


class Bomb:
    """Unpickling it would call a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize(
    "place", [lambda bomb: bomb, lambda bomb: {"w": bomb}, lambda bomb: [bomb]]
)
def test_nothing_is_called(protocol, place, tmp_path):
    """However a pickle spells the call of a function."""
    trace = tmp_path / "called"
    for bomb in (Bomb(os.mkdir, str(trace)), Bomb(eval, f"__import__('os').mkdir({str(trace)!r})")):
        with pytest.raises(CheckpointError, match="instruction|call of"):
            read(with_pickle(pickle.dumps(place(bomb), protocol)))
    assert not trace.exists()


def test_a_call_is_named():
    """So that a person can tell an attack from a training checkpoint."""
    with pytest.raises(CheckpointError, match="a call of posix.system|a call of nt.system"):
        read(with_pickle(pickle.dumps(Bomb(os.system, "true"), 2)))


def small(name: str, data: bytes) -> bytes:
    """Torch's pickle with its first tensor's shape [5, 12] made [250, 12]."""
    return data.replace(b"K\x05K\x0c\x86", b"K\xfaK\x0c\x86", 1) if name == "data.pkl" else data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated or not a PyTorch file"),
        (b"PK\x03\x04", "not a zip"),
        (WRITTEN[:-100], "not a table of tensors"),
        ((FIXTURES / "dtypes_old.bin").read_bytes(), "before torch 1.6; save it anew: torch.save"),
        ((FIXTURES / "dtypes_strided.bin").read_bytes(), "turned: strides .*save a dense copy"),
        (with_pickle(b"\x80\x02]."), "a list, wanted tensors by name"),
        (with_pickle(b"\x80\x02}X\x01\x00\x00\x00aK\x01s."), "'a' is a int: wanted tensors"),
        (with_pickle(b"\x80\x02}}."), "values to unpack"),
        (with_pickle(b"\x80\x02}"), "exhausted"),
        (with_pickle(b"\x80\x02}))s."), "a key that is no name"),
        (rezip(lambda name, data: None if name == "data.pkl" else data), "there is no data.pkl"),
        (rezip(lambda name, data: None if name == "data/0" else data), "there is no data/0"),
        (rezip(lambda name, data: b"big" if name == "byteorder" else data), "big-endian"),
        (rezip(lambda name, data: data[:-1] if name == "data/0" else data), "in 239 bytes"),
        (rezip(small), r"shape \[250, 12\] of F32 in 240 bytes"),
        (rezip(compression=zipfile.ZIP_DEFLATED), "compressed"),
    ],
)
def test_damage_is_said(data, message):
    """In one line that names the file."""
    with pytest.raises(CheckpointError, match=message) as caught:
        read(data)
    assert "x.bin" in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(WRITTEN) - 1), st.integers(0, 255)), max_size=8),
    st.integers(0, len(WRITTEN)),
)
def test_any_damage_is_an_error_or_harmless(changes, end):
    """Bytes changed and cut off: an error, or entries within the file."""
    data = bytearray(WRITTEN)
    for position, value in changes:
        data[position] = value
    data = data[: end if end % 2 else None]
    try:
        for entry in read(bytes(data)).values():
            assert 0 <= entry.offset and entry.offset + entry.nbytes <= len(data)
    except CheckpointError:
        pass


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 300))
def test_any_program_is_bounded(program, start):
    """Instructions at random, after a part of torch's own."""
    with zipfile.ZipFile(io.BytesIO(WRITTEN)) as archive:
        own = archive.read("dtypes/data.pkl")
    data = with_pickle(own[:start] + program)
    tracemalloc.start()
    try:
        read(data)
    except CheckpointError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 10_000_000
