"""Writing GGUF files: whole or not at all, in any order, and never past the disk's end."""

import errno
import os
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut import ggml
from gemcut.errors import GGUFError, OutputError
from gemcut.gguf_file import GGUFFile, TensorInfo, Value
from gemcut.gguf_layout import file_size, header, laid_out
from gemcut.gguf_writer import GGUFWriter
from tests.child import run_code

F32 = ggml.type_named("f32")
INFOS = [TensorInfo("a", (3, 5), F32), TensorInfo("b", (2, 4, 5), F32)]
ROWS = {info.name: np.arange(info.weights, dtype=np.float32).reshape(-1, 5) for info in INFOS}


def encoded(name):
    return ROWS[name].view(np.uint8)


def write_all(writer):
    for info in INFOS:
        writer.write(info.name, 0, encoded(info.name))


def check(path):
    with GGUFFile(path) as file:
        for name, rows in ROWS.items():
            assert (rows == file.rows(name).view(np.float32)).all()


@given(st.permutations([(info.name, row) for info in INFOS for row in range(info.rows)]))
def test_rows_may_come_in_any_order(tmp_path_factory, order):
    path = tmp_path_factory.getbasetemp() / "order.gguf"
    with GGUFWriter(path, {}, INFOS) as writer:
        for name, row in order:
            writer.write(name, row, encoded(name)[row : row + 1])

    check(path)


def test_rows_may_come_from_several_threads(tmp_path):
    with GGUFWriter(tmp_path / "a.gguf", {}, INFOS) as writer, ThreadPoolExecutor(4) as pool:
        for name, rows in ROWS.items():
            for row in range(len(rows)):
                pool.submit(writer.write, name, row, encoded(name)[row : row + 1])

    check(tmp_path / "a.gguf")


def test_a_file_that_was_there_is_replaced_when_all_is_written(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_text("the old one")
    with GGUFWriter(path, {}, INFOS) as writer:
        write_all(writer)
        assert "the old one" == path.read_text()

    check(path)
    assert [path] == list(tmp_path.iterdir())


def test_tensors_lie_aligned_one_after_the_other():
    """60 bytes take 64, and the size follows."""
    assert [0, 64] == [info.offset for info in laid_out(INFOS)]
    assert 64 + 160 == file_size({}, INFOS) - len(header({}, INFOS))


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError, OutputError])
def test_nothing_is_left_when_the_work_fails(failure, tmp_path):
    with pytest.raises(failure), GGUFWriter(tmp_path / "a.gguf", {}, INFOS) as writer:
        writer.write("a", 0, encoded("a"))
        raise failure

    assert [] == list(tmp_path.iterdir())


def test_nothing_is_left_when_rows_are_missing(tmp_path):
    with (
        pytest.raises(OutputError, match="rows of b were not written"),
        GGUFWriter(tmp_path / "a.gguf", {}, INFOS) as writer,
    ):
        writer.write("a", 0, encoded("a"))

    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(("start", "rows"), [(1, 3), (3, 1)])
def test_rows_past_the_end_are_refused(start, rows, tmp_path):
    with (
        pytest.raises(
            OutputError, match=f"a: rows {start} to {start + rows} of 20 bytes, wanted 3"
        ),
        GGUFWriter(tmp_path / "a.gguf", {}, INFOS) as writer,
    ):
        writer.write("a", start, encoded("a")[:rows])


def test_rows_of_another_length_are_refused(tmp_path):
    with (
        pytest.raises(OutputError, match="of 16 bytes, wanted 3 rows of 20"),
        GGUFWriter(tmp_path / "a.gguf", {}, INFOS) as writer,
    ):
        writer.write("a", 0, encoded("a")[:, :16])


@pytest.mark.parametrize(
    "value",
    [
        Value("u8", 256),
        Value("u32", -1),
        Value("[u8]", [0, 256]),
        Value("f32", "text"),
        Value("str", 7),
        Value("[str]", [7]),
        Value("f32", 1e300),
    ],
    ids=str,
)
def test_a_value_that_its_kind_does_not_hold_is_refused(value, tmp_path):
    with pytest.raises(GGUFError, match="general.x: .* is no"):
        GGUFWriter(tmp_path / "a.gguf", {"general.x": value}, INFOS)

    assert [] == list(tmp_path.iterdir())


def test_a_folder_that_is_missing_or_a_file_is_an_output_error(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "none" / "a.gguf", tmp_path / "file" / "a.gguf"):
        with pytest.raises(OutputError, match=re.escape(f"{path}: cannot be written")):
            GGUFWriter(path, {}, INFOS)


def test_a_full_disk_is_noticed_before_any_work(tmp_path, monkeypatch):
    """The error says how much was wanted, and no partial file is left."""

    def full(fd, offset, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)

    with pytest.raises(OutputError, match=r"a.gguf: No space left on device; .* GB are needed"):
        GGUFWriter(tmp_path / "a.gguf", {}, INFOS)
    assert [] == list(tmp_path.iterdir())


def test_a_disk_that_fills_up_during_the_work_leaves_nothing(tmp_path, monkeypatch):
    """Where the room could not be reserved."""
    write = os.pwrite

    def full(fd, data, offset):
        if offset > 200:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data[:7], offset)  # and a system may write less than it was given

    monkeypatch.setattr(os, "pwrite", full)

    with (
        pytest.raises(OutputError, match="a.gguf: No space left on device while writing b"),
        GGUFWriter(tmp_path / "a.gguf", {}, INFOS) as writer,
    ):
        write_all(writer)
    assert [] == list(tmp_path.iterdir())


def test_a_file_system_that_cannot_reserve_is_no_obstacle(tmp_path, monkeypatch):
    def cannot(fd, offset, length):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", cannot, raising=False)
    with GGUFWriter(tmp_path / "a.gguf", {}, INFOS) as writer:
        write_all(writer)

    check(tmp_path / "a.gguf")


def test_a_limit_on_file_sizes_is_an_output_error(tmp_path):
    """A real refusal of the system, in a process of its own."""
    code = """
import resource, sys
from pathlib import Path
from tests.test_gguf_writer import INFOS, GGUFWriter, OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
try:
    GGUFWriter(Path(sys.argv[1]), {}, INFOS)
except OutputError as error:
    sys.exit(0 if "File too large" in str(error) else str(error))
sys.exit("written")
"""
    done = run_code(code, tmp_path / "a.gguf")

    assert (0, "") == (done.returncode, done.stderr)
    assert [] == list(tmp_path.iterdir())
