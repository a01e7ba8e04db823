"""Statistics as files: llama.cpp's imatrix GGUF and its older .dat, read, written and added up."""

import struct
import tracemalloc
from contextlib import nullcontext, suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut.errors import GGUFError, PlanError
from gemcut.gguf_file import GGUFFile, Value
from gemcut.quantize.legacy import parse
from gemcut.quantize.statistics import (
    Entry,
    Statistics,
    merged,
    read_statistics,
    routed_share,
    write_statistics,
)

EXPERTS = "blk.0.ffn_down_exps.weight"
PLAIN = "blk.0.attn_q.weight"


def entry(matrices=1, columns=32, seed=0, gates=False) -> Entry:
    """Sums of what could be a text's rows."""
    random = np.random.default_rng(seed)
    counts = random.integers(1, 500, matrices).astype(np.float32)
    sums = (np.exp(random.standard_normal((matrices, columns))) * counts[:, None]).astype(
        np.float32
    )
    return Entry(sums, counts, counts / 4 if gates else None)


@pytest.fixture
def statistics() -> Statistics:
    return Statistics({EXPERTS: entry(4, gates=True), PLAIN: entry(seed=1)}, ("a.txt",), 7, 512)


def legacy(entries, tail=b"", count=None) -> bytes:
    """An imatrix.dat: {name: (means, chunks)}."""
    parts = [struct.pack("<i", len(entries) if count is None else count)]
    for name, (means, chunks) in entries.items():
        values = np.asarray(means, "<f4").ravel() * np.float32(chunks)
        parts += [struct.pack("<i", len(name)), name.encode()]
        parts += [struct.pack("<ii", chunks, values.size), values.tobytes()]
    return b"".join(parts) + tail


def same(one: Entry, other: Entry) -> bool:
    return all(
        np.array_equal(getattr(one, field), getattr(other, field))
        for field in ("sums", "counts", "gates")
        if getattr(other, field) is not None
    )


def test_what_is_written_is_read_back(statistics, tmp_path):
    write_statistics(tmp_path / "i.gguf", statistics)

    read = read_statistics(tmp_path / "i.gguf")

    assert read.entries.keys() == statistics.entries.keys()
    assert all(same(read.entries[name], each) for name, each in statistics.entries.items())
    assert (("a.txt",), 7, 512) == (read.datasets, read.chunk_count, read.chunk_size)


def test_the_file_is_laid_out_as_llama_cpp_wants_it(statistics, tmp_path):
    """Names, shapes and the metadata without which llama-quantize refuses; gates are beside it."""
    write_statistics(tmp_path / "i.gguf", statistics)

    with GGUFFile(tmp_path / "i.gguf") as file:
        shapes = {info.name: info.shape for info in file.tensors.values()}
        kinds = {key: value.kind for key, value in file.metadata.items()}
    assert {
        f"{EXPERTS}.in_sum2": (4, 32),
        f"{EXPERTS}.counts": (4, 1),
        f"{EXPERTS}.gates": (4, 1),
        f"{PLAIN}.in_sum2": (1, 32),
        f"{PLAIN}.counts": (1, 1),
    } == shapes
    assert {
        "general.type": "str",
        "imatrix.datasets": "[str]",
        "imatrix.chunk_count": "u32",
        "imatrix.chunk_size": "u32",
    } == kinds


def test_a_legacy_file_gives_the_same_means(tmp_path):
    """Of experts, too, whose number only a model knows; one that has ones was never reached."""
    means = np.exp(np.random.default_rng(2).standard_normal((4, 32))).astype(np.float32)
    means[2] = 1
    tail = struct.pack("<ii", 9, 5) + b"a.txt"
    (tmp_path / "i.dat").write_bytes(legacy({EXPERTS: (means, 9), PLAIN: (means[:1], 9)}, tail))

    read = read_statistics(tmp_path / "i.dat")

    fitted = read.entries[EXPERTS].shaped(4, 32)
    assert fitted is not None
    assert [True, True, False, True] == (fitted.counts > 0).tolist()
    expected = np.where([[1], [1], [0], [1]], means, 0)
    np.testing.assert_allclose(fitted.sums / np.maximum(fitted.counts, 1)[:, None], expected, 1e-6)
    assert (("a.txt",), 9) == (read.datasets, read.chunk_count)
    assert read.entries[EXPERTS].shaped(3, 32) is None


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "within an entry"),
        (b"PK\x03\x04 and so on", "entries: 67324752"),
        (legacy({PLAIN: (np.ones(8), 1)})[:-3], "values: 8"),
        (legacy({PLAIN: (np.ones(8), 1)}, count=2), "entries|within an entry"),
        (legacy({PLAIN: (np.ones(8), 0)}), "empty or there twice"),
        (legacy({"": (np.ones(8), 1)}), "empty or there twice"),
        (legacy({PLAIN: ([], 1)}), "empty or there twice"),
        (legacy({}), "holds no importance"),
        (legacy({PLAIN: ([np.nan], 1)}), "negative or not finite"),
        (legacy({PLAIN: ([-1.0], 1)}), "negative or not finite"),
        (struct.pack("<ii", 1, -5) + bytes(64), "length of a name: -5"),
        (struct.pack("<ii", 1, 1 << 30) + bytes(64), "length of a name: 1073741824"),
    ],
)
def test_what_is_no_legacy_file_is_refused(data, why, tmp_path):
    """Before anything is allocated for what it announces."""
    (tmp_path / "i.dat").write_bytes(data)

    with pytest.raises(GGUFError, match=why):
        read_statistics(tmp_path / "i.dat")


@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.integers(1, 9), max_size=4),
    st.integers(0, 200),
    st.binary(max_size=40),
)
def test_a_damaged_legacy_file_is_read_or_refused(sizes, at, noise):
    """Never another error than the one that says so, wherever bytes are replaced or cut off."""
    whole = legacy({name: (np.ones(size), 3) for name, size in sizes.items()})

    for data in (whole, whole[:at], whole[:at] + noise + whole[at + len(noise) :]):
        with suppress(GGUFError):
            found = parse(data, "i.dat")
            assert sum(4 * sums.size for sums, _ in found.entries.values()) <= len(data)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("field", ["sums", "counts", "gates"])
def test_impossible_numbers_are_refused(field, value, tmp_path):
    given_entry = entry(4, gates=True)
    getattr(given_entry, field)[1] = value
    write_statistics(tmp_path / "i.gguf", Statistics({EXPERTS: given_entry}))

    with pytest.raises(GGUFError, match=f"{EXPERTS}.*negative or not finite"):
        read_statistics(tmp_path / "i.gguf")


def test_means_beyond_any_float_are_refused(tmp_path):
    """Of finite sums and finite counts, which are below one in files of others alone."""
    for count, refused in ((1.0, False), (0.0, False), (0.25, True)):
        given_entry = entry(4)
        given_entry.sums[1], given_entry.counts[1] = np.finfo(np.float32).max, count
        write_statistics(tmp_path / "i.gguf", Statistics({EXPERTS: given_entry}))
        with pytest.raises(GGUFError, match="beyond any float32") if refused else nullcontext():
            read_statistics(tmp_path / "i.gguf")


def test_what_is_no_imatrix_is_refused(bf16, statistics, tmp_path):
    with pytest.raises(GGUFError, match="not an importance matrix"):
        read_statistics(bf16)
    with pytest.raises(GGUFError, match="cannot be read"):
        read_statistics(tmp_path / "none.gguf")
    wrong = Entry(np.ones((2, 32), np.float32), np.ones(3, np.float32))
    write_statistics(tmp_path / "i.gguf", Statistics({PLAIN: wrong}))
    with pytest.raises(GGUFError, match="3 counts for 2 matrices"):
        read_statistics(tmp_path / "i.gguf")
    write_statistics(tmp_path / "i.gguf", statistics)
    data = (tmp_path / "i.gguf").read_bytes()
    (tmp_path / "i.gguf").write_bytes(data[:-200])
    with pytest.raises(GGUFError, match="truncated"):
        read_statistics(tmp_path / "i.gguf")


def test_merging_adds_up(statistics):
    """Sums, counts, gates and chunks; a text's name is there once."""
    other = Statistics({EXPERTS: entry(4, seed=5, gates=True)}, ("a.txt", "b.txt"), 3, 512)

    both = merged([statistics, other])

    first, second = statistics.entries[EXPERTS], other.entries[EXPERTS]
    total = both.entries[EXPERTS]
    np.testing.assert_array_equal(first.sums + second.sums, total.sums)
    np.testing.assert_array_equal(first.counts + second.counts, total.counts)
    assert first.gates is not None and second.gates is not None
    np.testing.assert_array_equal(first.gates + second.gates, total.gates)
    assert same(both.entries[PLAIN], statistics.entries[PLAIN])
    assert (("a.txt", "b.txt"), 10, 512) == (both.datasets, both.chunk_count, both.chunk_size)


def test_merging_a_file_that_counts_once_for_all_experts(statistics, tmp_path):
    """A legacy file's counts are then everybody's."""
    (tmp_path / "i.dat").write_bytes(legacy({EXPERTS: (np.full(4 * 32, 2.0), 3)}))

    both = merged([read_statistics(tmp_path / "i.dat"), statistics]).entries[EXPERTS]

    one = statistics.entries[EXPERTS]
    np.testing.assert_allclose(both.counts, one.counts + 3 * 512)
    np.testing.assert_allclose(both.sums, one.sums + 2 * 3 * 512)


def test_other_models_are_not_merged(statistics):
    with pytest.raises(PlanError, match="different models"):
        merged([statistics, Statistics({EXPERTS: entry(8)})])
    with pytest.raises(PlanError, match="no tensor in common"):
        merged([statistics, Statistics({"blk.7.attn_q.weight": entry()})])


def test_sums_beyond_a_float_are_refused(statistics):
    """Each of them is finite."""
    large = Entry(np.full((1, 32), 3e38, np.float32), np.ones(1, np.float32))
    part = Statistics({PLAIN: large}, (), 1, 512)
    with pytest.raises(PlanError, match="beyond any float32"):
        merged([part, part])


def test_a_short_file_takes_little_memory(tmp_path):
    """Whatever the longest may have: a read of gigabytes takes them before it has them."""
    (tmp_path / "a.dat").write_bytes(b"abc")
    tracemalloc.start()
    with suppress(GGUFError):
        read_statistics(tmp_path / "a.dat")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_routed_shares_add_up_to_one(statistics):
    share = routed_share(statistics, EXPERTS)

    np.testing.assert_allclose(share.sum(), 1, rtol=1e-6)
    counts = statistics.entries[EXPERTS].counts
    np.testing.assert_allclose(share, counts / counts.sum(), rtol=1e-6)


def test_routed_shares_are_uniform_where_nothing_is_known(statistics):
    name = "blk.3.ffn_down_exps.weight"

    np.testing.assert_allclose(routed_share(statistics, name, 8), np.full(8, 1 / 8))
    np.testing.assert_allclose(routed_share(statistics, EXPERTS, 8), np.full(8, 1 / 8))
    np.testing.assert_allclose(routed_share(statistics, name), [1])


def test_further_metadata_is_kept_apart(statistics, tmp_path):
    extra = Statistics(statistics.entries, extra={"own.key": Value("u32", 5)})
    write_statistics(tmp_path / "i.gguf", extra)

    assert {"own.key": Value("u32", 5)} == dict(read_statistics(tmp_path / "i.gguf").extra)
