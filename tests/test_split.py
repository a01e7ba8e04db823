"""Results in several files, as llama.cpp splits and loads them; and the layout of every file."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut import api, ggml
from gemcut.api import Target
from gemcut.engine import ContextOptions
from gemcut.errors import GGUFError, OutputError, UsageError
from gemcut.gguf_file import GGUFFile, TensorInfo, Value
from gemcut.gguf_layout import Layout, header, header_size, layouts
from gemcut.gguf_writer import GGUFWriter
from gemcut.llama import Context, Model
from tests.resuming import interrupt, journal
from tests.shell import refused, run

F32 = ggml.type_named("f32")
TARGET = Target("Q8_0")


@pytest.fixture(scope="module")
def model(checkpoint):
    return api.open_source(checkpoint)


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize(("size", "count"), [(1, None), (2_000_000, 5), (4_000_000, 3)])
def test_the_files_are_one_model(size, count, model, q8_0, tmp_path):
    """The names, keys and bytes of llama.cpp's gguf-split: all metadata is in the first file."""
    api.quantize_model(model, tmp_path / "m.gguf", TARGET, split_size=size)

    paths = sorted(tmp_path.iterdir())
    count = count or len(model.tensors)
    wanted = [f"m-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    assert wanted == [path.name for path in paths]
    with GGUFFile(q8_0) as whole:
        names = []
        for number, path in enumerate(paths):
            with GGUFFile(path) as file:
                keys = {
                    "split.no": Value("u16", number),
                    "split.tensors.count": Value("i32", len(whole.tensors)),
                    "split.count": Value("u16", count),
                }
                assert (dict(whole.metadata) if number == 0 else {}) | keys == dict(file.metadata)
                assert file.tensor_bytes <= size or len(file.tensors) == 1
                for name in file.tensors:
                    assert bytes(whole.rows(name).data) == bytes(file.rows(name).data)
                names += file.tensors
        assert names == list(whole.tensors)


def test_llama_cpp_loads_the_first_file(model, q8_0, tmp_path):
    """And computes the same as from one file."""
    api.quantize_model(model, tmp_path / "m.gguf", TARGET, split_size=2_000_000)

    found = []
    for path in (q8_0, tmp_path / "m-00001-of-00005.gguf"):
        with Model.load(path) as loaded, Context(loaded, ContextOptions(64, threads=1)) as context:
            context.decode(loaded.tokenize("def add(first, second):\n    return first"))
            found.append(np.array(context.logits))
    assert (found[0] == found[1]).all() and found[0].size


def test_what_fits_into_one_file_is_a_split_of_one(model, q8_0, tmp_path):
    """As gguf-split makes it; it loads like any file."""
    api.quantize_model(model, tmp_path / "m.gguf", TARGET, split_size=10**12)

    assert ["m-00001-of-00001.gguf"] == visible(tmp_path)
    with Model.load(tmp_path / "m-00001-of-00001.gguf") as loaded, Model.load(q8_0) as whole:
        assert loaded.size_bytes == whole.size_bytes


def test_the_command_line_names_the_files_and_their_size(checkpoint, tmp_path):
    """The same with --dry-run as after it; a size of nothing is wrong usage."""
    arguments = ["convert", checkpoint, "-o", tmp_path / "m.gguf", "--split-size", "4M"]

    assert "m-00001-of-00005.gguf and 4 more would be" in run(*arguments, "--dry-run").stderr
    assert [] == visible(tmp_path)
    assert "m-00001-of-00005.gguf and 4 more are 15.2" in run(*arguments).stderr
    assert [f"m-{n:05}-of-00005.gguf" for n in range(1, 6)] == visible(tmp_path)
    assert "files of 0 bytes" in refused(run(*arguments[:-1], "0"), 2)


def test_a_name_without_gguf_gets_it(model, tmp_path):
    plan = api.make_plan(model, TARGET)

    (path,) = api.planned_files(model, plan, tmp_path / "m.v2", 10**12)

    assert path == tmp_path / "m.v2-00001-of-00001.gguf"


def test_the_planned_sizes_are_those_of_the_files(model, tmp_path):
    cut = api.quantize_model(model, tmp_path / "m.gguf", TARGET, split_size=3_000_000)

    planned = api.planned_files(model, cut.plan, tmp_path / "m.gguf", 3_000_000)

    found = {path: path.stat().st_size for path in sorted(tmp_path.iterdir())}
    assert planned == cut.files == found


def test_any_file_that_cannot_be_is_refused_before_the_work(model, tmp_path):
    (tmp_path / "m-00003-of-00005.gguf").mkdir()

    with pytest.raises(OutputError, match="m-00003-of-00005.gguf: is a folder"):
        api.quantize_model(model, tmp_path / "m.gguf", TARGET, split_size=2_000_000)
    assert ["m-00003-of-00005.gguf"] == visible(tmp_path)
    with pytest.raises(UsageError, match="files of -1 bytes"):
        api.quantize_model(model, tmp_path / "m.gguf", TARGET, split_size=-1)


@pytest.mark.parametrize("renamed", range(5))
def test_the_first_file_gets_its_name_last(renamed, model, tmp_path, monkeypatch):
    """Interrupted between two names, the next run finishes; an older set's first file is gone."""
    for number in range(1, 6):
        (tmp_path / f"m-{number:05}-of-00005.gguf").write_text("the old one")
    rename, names = os.replace, []

    def fails(source, target):
        if len(names) == renamed:
            raise OSError(5, "Input/output error")
        names.append(target.name)
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        with pytest.raises(OutputError, match="m.gguf: Input/output error"):
            api.quantize_model(model, tmp_path / "m.gguf", TARGET, split_size=2_000_000)
    assert "m-00001-of-00005.gguf" not in visible(tmp_path)

    told = []
    api.quantize_model(model, tmp_path / "m.gguf", TARGET, split_size=2_000_000, tell=told.append)

    assert told == ["m.gguf: continuing at 100%"]
    api.quantize_model(model, tmp_path / "n.gguf", TARGET, split_size=2_000_000)
    for path in sorted(tmp_path.glob("m-*")):
        other = path.with_name(path.name.replace("m-", "n-"))
        assert path.read_bytes() == other.read_bytes()
    assert len(visible(tmp_path)) == len(list(tmp_path.iterdir())) == 10


def test_restarting_removes_the_parts_of_another_split(model, tmp_path):
    """Whatever the interrupted run was to be divided into, but no other result's."""
    interrupt(model, tmp_path / "m.gguf", split_size=1_000_000)
    interrupt(model, tmp_path / "mm.gguf", split_size=1_000_000)
    others = {path for path in tmp_path.iterdir() if path.name.startswith(".mm")}

    api.quantize_model(model, tmp_path / "m.gguf", TARGET, restart=True)

    assert others | {tmp_path / "m.gguf"} == set(tmp_path.iterdir())
    assert journal(tmp_path / "mm.gguf") in others


# --- the layout of a file ---

INFOS = [TensorInfo("a", (3, 5), F32), TensorInfo("b", (2, 4, 5), F32), TensorInfo("c", (1,), F32)]


@pytest.mark.parametrize("alignment", [1, 8, 32, 64, 4096])
def test_the_alignment_that_the_metadata_says_is_kept(alignment, tmp_path):
    """Header, offsets and the end of the file; and other readers find every tensor."""
    gguf = pytest.importorskip("gguf")
    metadata = {"general.alignment": Value("u32", alignment), "a.text": Value("str", "odd")}
    rows = {i.name: np.random.default_rng(3).random((i.rows, i.shape[-1]), "f4") for i in INFOS}
    with GGUFWriter(tmp_path / "a.gguf", metadata, INFOS) as writer:
        for name, values in rows.items():
            writer.write(name, 0, values.view(np.uint8))

    size = (tmp_path / "a.gguf").stat().st_size
    assert size == Layout(metadata, tuple(INFOS)).size and size % alignment == 0
    with GGUFFile(tmp_path / "a.gguf") as file:
        assert file.data_offset % alignment == 0
        for name, values in rows.items():
            assert file.tensors[name].offset % alignment == 0
            assert (file.rows(name).view(np.float32) == values).all()
    if alignment >= 8:  # the specification wants a multiple of 8
        for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors:
            assert tensor.data.ravel().tolist() == rows[tensor.name].ravel().tolist()


def test_other_files_of_a_split_have_the_usual_alignment(tmp_path):
    """Their metadata does not say otherwise, and a reader goes by it."""
    metadata = {"general.alignment": Value("u32", 256)}

    first, second, _ = layouts(tmp_path / "a.gguf", metadata, INFOS, 1).values()

    assert (256, 32) == (first.alignment, second.alignment)
    assert 0 == first.size % 256 and 256 > second.size - second.data_offset


@pytest.mark.parametrize(
    "value",
    [
        Value("u32", 0),
        Value("u32", 48),
        Value("u32", 1 << 30),
        Value("u64", 32),
        Value("str", "32"),
        Value("bool", True),
    ],
    ids=str,
)
def test_an_impossible_alignment_is_refused(value, tmp_path):
    with pytest.raises(GGUFError, match="general.alignment: .* a power of two"):
        GGUFWriter(tmp_path / "a.gguf", {"general.alignment": value}, INFOS)
    assert [] == list(tmp_path.iterdir())


texts = st.text(max_size=9) | st.sampled_from(["\udcff\udc80", "€", "a\0b"])
values = st.one_of(
    st.builds(Value, st.just("str"), texts),
    st.builds(Value, st.just("[str]"), st.lists(texts, max_size=5)),
    st.builds(Value, st.just("[f64]"), st.lists(st.floats(), max_size=5)),
    st.builds(Value, st.just("[u8]"), st.lists(st.integers(0, 255), max_size=5)),
    st.builds(Value, st.just("bool"), st.booleans()),
    st.builds(Value, st.just("i64"), st.integers(-9, 9)),
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=6), values, max_size=6))
def test_a_headers_length_is_known_without_making_it(metadata):
    metadata.pop("general.alignment", None)
    assert len(header(metadata, INFOS)) == header_size(metadata, INFOS)
