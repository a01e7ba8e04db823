"""GGUF files: what is written is read back, gguf-py agrees, and no damage gets through."""

import os
import struct

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemcut import ggml
from gemcut.errors import GGUFError
from gemcut.gguf_file import SCALARS, GGUFFile, TensorInfo, Value
from gemcut.gguf_layout import file_size
from gemcut.gguf_writer import GGUFWriter

RANGES = {"u8": (0, 8), "i8": (1, 8), "u16": (0, 16), "i16": (1, 16)}
RANGES |= {"u32": (0, 32), "i32": (1, 32), "u64": (0, 64), "i64": (1, 64)}
TYPES = [ggml.type_named(name) for name in ("f32", "f16", "bf16", "q4_0", "q8_0", "q4_k", "mxfp4")]


def scalars(kind: str) -> st.SearchStrategy:
    """Values that a kind holds exactly."""
    if kind == "bool":
        return st.booleans()
    if kind in ("f32", "f64"):
        return st.floats(width=32 if kind == "f32" else 64, allow_nan=False)
    signed, bits = RANGES[kind]
    return st.integers(-signed * 2 ** (bits - signed), 2 ** (bits - signed) - 1)


def any_values(texts: st.SearchStrategy[str]) -> st.SearchStrategy[Value]:
    """Metadata of every kind."""
    data = {kind: scalars(kind) for kind in SCALARS} | {"str": texts}
    single = [st.builds(Value, st.just(kind), values) for kind, values in data.items()]
    arrays = [
        st.builds(Value, st.just(f"[{kind}]"), st.lists(values, max_size=5))
        for kind, values in data.items()
    ]
    return st.one_of(*single, *arrays)


# Bytes that are no UTF-8 travel as lone surrogates.
texts = st.text(max_size=20) | st.binary(max_size=20).map(
    lambda raw: raw.decode("utf-8", "surrogateescape")
)
plain_texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@st.composite
def tables(draw, names: st.SearchStrategy[str]) -> list[TensorInfo]:
    """Tensors of several types and shapes."""
    infos = []
    for name in draw(st.lists(names, max_size=4, unique=True)):
        kind = draw(st.sampled_from(TYPES))
        leading = draw(st.lists(st.integers(1, 3), max_size=3))
        infos.append(TensorInfo(name, (*leading, kind.block * draw(st.integers(1, 2))), kind))
    return infos


def metadata(keys: st.SearchStrategy[str], texts: st.SearchStrategy[str]):
    free = keys.filter(lambda key: not key.startswith("general.") and key != "GGUF.version")
    return st.dictionaries(free, any_values(texts), max_size=6)


def contents(info: TensorInfo) -> ggml.Bytes:
    random = np.random.default_rng(len(info.name))
    return random.integers(0, 256, (info.rows, info.row_bytes), np.uint8)


def write(path, values, infos):
    with GGUFWriter(path, values, infos) as writer:
        for info in infos:
            writer.write(info.name, 0, contents(info))
    return path


@given(metadata(texts, texts), tables(texts))
def test_what_is_written_is_read_back(tmp_path_factory, values, infos):
    """Metadata with its kinds, and every tensor; the file is as long as it was said to be."""
    path = write(tmp_path_factory.getbasetemp() / "round.gguf", values, infos)

    with GGUFFile(path) as file:
        assert values == dict(file.metadata)
        assert [(i.name, i.shape, i.type) for i in infos] == [
            (i.name, i.shape, i.type) for i in file.tensors.values()
        ]
        for info in infos:
            assert (file.rows(info.name) == contents(info)).all()
            assert info.nbytes == contents(info).nbytes
    assert file_size(values, infos) == path.stat().st_size


@given(metadata(plain_texts, plain_texts), tables(plain_texts))
def test_gguf_py_reads_the_same(tmp_path_factory, values, infos):
    path = write(tmp_path_factory.getbasetemp() / "other.gguf", values, infos)

    reader = gguf.GGUFReader(path)

    for key, value in values.items():
        assert value.data == reader.fields[key].contents()
        kind = value.kind if value.data or not value.kind.startswith("[") else "[]"
        assert kind == kind_of(reader.fields[key])
    for info, other in zip(infos, reader.tensors, strict=True):
        assert (info.name, info.type.id) == (other.name, int(other.tensor_type))
        assert list(info.shape[::-1]) == list(other.shape)
        assert contents(info).tobytes() == other.data.tobytes()


def kind_of(field: gguf.ReaderField) -> str:
    """A kind as ours out of gguf-py's; of an empty array it does not tell."""
    numbers = {number: kind for kind, (number, _) in SCALARS.items()} | {8: "str"}
    if field.types[0] == gguf.GGUFValueType.ARRAY:
        return f"[{''.join(numbers[int(inner)] for inner in field.types[1:])}]"
    return numbers[int(field.types[0])]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> bytes:
    """A small sound file."""
    values = {
        "general.architecture": Value("str", "gemma4"),
        "a.count": Value("u32", 7),
        "a.sizes": Value("[i32]", [1, 2, 3]),
        "a.words": Value("[str]", ["one", "two"]),
    }
    infos = [
        TensorInfo("token_embd.weight", (4, 64), ggml.type_named("q8_0")),
        TensorInfo("blk.0.ffn_down_exps.weight", (2, 3, 32), ggml.type_named("q4_0")),
    ]
    return write(tmp_path_factory.mktemp("small") / "small.gguf", values, infos).read_bytes()


def read_all(path):
    with GGUFFile(path) as file:
        return [len(file.rows(name)) for name in file.tensors]


@given(st.data())
@settings(max_examples=300)
def test_a_damaged_file_is_a_gguf_error_or_still_reads(tmp_path_factory, small, data):
    """Cut off anywhere, with any bytes overwritten: nothing else is raised, nothing is huge."""
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    broken = bytearray(small[: data.draw(st.integers(0, len(small)))])
    for at in data.draw(st.lists(st.integers(0, 400), max_size=3)):
        raw = data.draw(st.binary(min_size=1, max_size=8) | st.just(b"\xff" * 8))
        broken[at : at + len(raw)] = raw
    path.write_bytes(broken)

    try:
        read_all(path)
    except GGUFError as error:
        assert str(path) in str(error) and "\n" not in str(error)


def test_a_file_cut_off_anywhere_is_refused(small, tmp_path):
    for length in range(0, len(small) - 32, 3):  # the last bytes are padding
        (tmp_path / "cut.gguf").write_bytes(small[:length])
        with pytest.raises(GGUFError):
            GGUFFile(tmp_path / "cut.gguf")


def replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) == 1 and len(old) == len(new)
    return data.replace(old, new)


def test_errors_say_what_is_wrong(small, tmp_path):
    """Each names the file."""
    path = tmp_path / "bad.gguf"
    name = b"blk.0.ffn_down_exps.weight"
    dimensions = struct.pack("<I3Q", 3, 32, 3, 2)
    cases = [
        (b"", "the file is empty"),
        (b"GGML" + small[4:], "begins with b'GGML', wanted b'GGUF'"),
        (small[:4] + struct.pack("<I", 1) + small[8:], "GGUF version 1, wanted 2 or 3"),
        (small[:8] + struct.pack("<Q", 2**60) + small[16:], "entries announced"),
        (small[:-64], "truncated: blk.0.ffn_down_exps.weight ends at byte"),
        (replaced(small, b"a.sizes\x09", b"a.sizes\x63"), "value type 99"),
        (replaced(small, b"a.words\x09\0\0\0\x08", b"a.words\x09\0\0\0\x09"), "array of type 9"),
        (replaced(small, name + dimensions[:4], name + b"\x09\0\0\0"), "9 dimensions"),
        (replaced(small, dimensions + b"\x02", dimensions + b"\xc8"), "type 200"),
        (replaced(small, dimensions[:12], struct.pack("<IQ", 3, 33)), "does not hold blocks"),
        (replaced(small, dimensions[:12], struct.pack("<IQ", 3, 0)), "does not hold blocks"),
    ]
    for data, words in cases:
        path.write_bytes(data)
        with pytest.raises(GGUFError, match=words) as caught:
            GGUFFile(path)
        assert str(path) in str(caught.value)


def test_two_tensors_of_one_name_are_refused(small, tmp_path):
    twice = small.replace(b"token_embd.weight", b"blk.0.attn_weight")
    name = b"blk.0.ffn_down_exps.weight"
    twice = twice.replace(
        struct.pack("<Q", 26) + name, struct.pack("<Q", 17) + b"blk.0.attn_weight"
    )
    (tmp_path / "twice.gguf").write_bytes(twice)

    with pytest.raises(GGUFError, match="two tensors of one name"):
        GGUFFile(tmp_path / "twice.gguf")


def test_a_missing_file_or_a_folder_is_a_gguf_error(tmp_path):
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(GGUFError, match="cannot be read as a GGUF"):
            GGUFFile(path)


def test_a_pipe_is_refused_at_once(tmp_path):
    """Nobody is at its other end, and nobody is waited for."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(GGUFError, match="a pipe or device, wanted a file"):
        GGUFFile(tmp_path / "pipe")


def test_another_alignment_is_honoured(tmp_path):
    """gguf-py writes it; rows are found where they are."""
    writer = gguf.GGUFWriter(tmp_path / "wide.gguf", "gemma4")
    writer.add_custom_alignment(128)
    first, second = np.ones((1, 4), np.float32), np.full((2, 4), 2, np.float32)
    writer.add_tensor("first", first)
    writer.add_tensor("second", second)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with GGUFFile(tmp_path / "wide.gguf") as file:
        assert (second == file.rows("second").view(np.float32)).all()
        assert second[1:].tobytes() == file.rows("second", 1).tobytes()
        assert "gemma4" == file.get("general.architecture") and file.get("none") is None


def test_a_number_alone_is_a_row_of_one(tmp_path):
    """As ggml reads it; gguf-py writes one without dimensions."""
    writer = gguf.GGUFWriter(tmp_path / "scalar.gguf", "gemma4")
    writer.add_tensor("scale", np.array(3, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with GGUFFile(tmp_path / "scalar.gguf") as file:
        assert (1,) == file.tensors["scale"].shape
        assert 3 == file.rows("scale").view(np.float32)


def test_rows_outlive_the_file(small, tmp_path):
    """A view keeps the mapping; closing the file does not pull it away."""
    (tmp_path / "small.gguf").write_bytes(small)
    with GGUFFile(tmp_path / "small.gguf") as file:
        rows = file.rows("token_embd.weight", 1, 3)

    assert (2, 68) == rows.shape and rows.any()
    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0] = 1
