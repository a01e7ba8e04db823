"""What fuzzing and reading found once: damaged input that ended in another error, or never."""

import io
import json
import struct
import warnings
import zipfile

import numpy as np
import pytest

from gemcut.engine import read_memory
from gemcut.errors import EngineError, GemcutError, GGUFError, UsageError
from gemcut.eval.report import arrays
from gemcut.llama.devices import add_rpc
from gemcut.quantize import legacy
from gemcut.quantize.intent import read_intent
from gemcut.quantize.statistics import read_statistics
from gemcut.runtime.language.grammar import schema_grammar
from gemcut.runtime.language.tools import call_of, read_bare_calls, read_calls
from gemcut.runtime.speed.throughput import hit

MANY = 20_000  # quadratic work on so many takes minutes, cubic years


# --- arrays --------------------------------------------------------------------------------------


def archive(content: bytes, method: int = zipfile.ZIP_STORED) -> zipfile.ZipFile:
    """An archive with one array in it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as made:
        made.writestr("x.npy", content)
    return zipfile.ZipFile(out)


def npy(header: str, data: bytes = bytes(400)) -> bytes:
    raw = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw + data


def test_arrays_are_those_of_numpy():
    """Of every kind and shape that a report has."""
    written = ((np.arange(9, dtype="<f4"), 0), (np.zeros((3, 32), "|u1"), 32), (np.ones(4, "?"), 0))
    for array, width in written:
        out = io.BytesIO()
        np.save(out, array)
        found = arrays._Taken(archive(out.getvalue())).take("x", array.dtype.str, None, width)
        assert np.array_equal(array, found)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1",
        "{'descr': '<f4', 'fortran_order': True, 'shape': (100,), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (100,), }",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (100,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        "(" * 3000,
    ],
)
def test_another_header_of_an_array_is_refused(header):
    """No literal of Python's is read: its parser has errors, and warnings, of its own."""
    with pytest.raises(ValueError, match="another format than numpy's|is .*, wanted"):
        arrays._Taken(archive(npy(header))).take("x", "<f4")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_arrays_that_are_packed_otherwise_are_refused(method):
    with pytest.raises(ValueError, match="packed in another way"):
        arrays._Taken(archive(npy("x"), method))


# --- numbers -------------------------------------------------------------------------------------


def test_a_number_of_too_many_digits_is_no_toml(tmp_path):
    path = tmp_path / "intent.toml"
    path.write_text(f"bpw = {'9' * 5000}\n")
    with pytest.raises(UsageError, match="not TOML"):
        read_intent(path)


@pytest.mark.parametrize("value", [3e38, float("nan")])
def test_importance_beyond_all_numbers_is_refused_without_a_warning(value, tmp_path):
    path = tmp_path / "imatrix.dat"
    entry = struct.pack("<i", 1) + b"x" + struct.pack("<iif", 3, 1, value)
    path.write_bytes(struct.pack("<i", 1) + entry)
    with pytest.raises(GGUFError, match="not finite"):
        read_statistics(path)


def test_importance_without_an_end_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(legacy, "_MAX_SIZE", 1000)
    with open(tmp_path / "imatrix.dat", "wb") as file:
        file.truncate(2000)
    with pytest.raises(GGUFError, match="longer than 1000 bytes"):
        legacy.read(tmp_path / "imatrix.dat")


def test_lines_of_a_log_that_make_no_sense_are_passed_over():
    for size in ("1.2.3", "9" * 5000, ".", "1e9"):
        lines = [
            f"load_tensors: CPU model buffer size = {size} MiB",
            f"llama_kv_cache: size = {size} MiB ( 10 cells",
            f"llama_kv_cache: size = 1.00 MiB ( {'9' * 5000} cells",
        ]
        assert read_memory(lines).weights == {} and not read_memory(lines).caches


@pytest.mark.parametrize("endpoint", ["a:99999", "a:²", f"a:{'9' * 5000}", "a\0:1", "\ud800:1"])
def test_an_address_that_can_be_none_is_refused(endpoint):
    with pytest.raises(EngineError, match="is not an endpoint"):
        add_rpc(endpoint)


def test_a_name_that_no_network_can_have_is_refused():
    with pytest.raises(EngineError, match="no RPC server answers there"):
        add_rpc(f"{'a' * 70}:1")


# --- texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "<function=f>" + "<parameter=a>" * MANY,
        "f" + "<arg_key></arg_key><arg_value>" * MANY + "</arg_value>!",
        "f<arg_key>" + "</arg_key><arg_value>" * MANY,
        "f" + "\n" * 10 * MANY + "!",
        "call:f{" + "a:1," * MANY,
        "call:f{a:[" + "1," * 20 * MANY + "]}",
        "call:f{a:[" + "," * 20 * MANY + "]}",
    ],
)
def test_what_begins_as_a_call_is_read_in_one_go(text):
    """The time grows as the text does, whatever a model writes."""
    read_calls(text)


def test_many_bare_calls_are_read_in_one_go():
    calls = read_bare_calls('{"name": "f"}; ' * 3000)
    assert calls is not None and 3000 == len(calls)


@pytest.mark.parametrize("value", ["NaN", "1e999", '"\\ud800"'])
def test_what_no_json_can_hold_is_no_call(value):
    """It would fail where the answer is sent."""
    assert read_calls(f'{{"name": "f", "arguments": {{"a": {value}}}}}') is None
    assert call_of("f", f'{{"a": {value}}}') is None


def test_arguments_in_tags_are_read_as_before():
    """Values in JSON or as they are; a line's end around them does not belong to them."""
    tags = (
        "<function=f>\n<parameter=a>\n1\n</parameter>\n"
        "<parameter=b>\nx\ny\n</parameter>\n</function>"
    )
    keys = (
        "f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n"
        "<arg_key>b</arg_key><arg_value>x\ny</arg_value>\n"
    )
    for text in (tags, keys):
        (call,) = read_calls(text) or []
        assert ("f", {"a": 1, "b": "x\ny"}) == (call.name, json.loads(call.arguments))


@pytest.mark.parametrize("pattern", ["[a||b]", "[[a]", "[a--b]", "[a&&b]"])
def test_a_pattern_gives_no_warning(pattern):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            schema_grammar({"type": "string", "pattern": pattern})
        except GemcutError:
            pass


@pytest.mark.parametrize("text", ["call:f{a:[1,}", "call:f{a:[}]}", "call:f{a:[[1}"])
def test_a_list_that_ends_as_an_object_has_an_end(text):
    """Nothing of it was taken, for ever."""
    assert read_calls(text) is None


def test_more_experts_than_there_are_are_all_of_them():
    """As a damaged file has it: no power of a negative number."""
    assert hit(3.0, 512.5) == hit(1.0, 512.5) == 1
