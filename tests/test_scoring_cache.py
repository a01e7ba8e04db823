"""The database of scores: what is put is got, whoever else writes, and damage is noticed."""

import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut.errors import OutputError, TextError
from gemcut.eval.scoring import cache as module
from gemcut.eval.scoring.cache import Cache, pack, packed_bytes, unpack
from gemcut.eval.texts.chunks import Chunk, scored
from gemcut.score import Divergence, Scores
from tests.scored import assert_same


def chunk(number=0, n=16):
    return Chunk(np.full(n, number, np.int32), scored(n))


def scores(n=7, seed=0, compared=True):
    """Random scores, which float32 holds."""
    random = np.random.default_rng(seed)
    nll, kld, reverse, delta = random.gamma(1, size=(4, n)).astype(np.float32).astype(np.float64)
    correct, same = random.random((2, n)) < 0.5
    return Scores(nll, correct, Divergence(kld, reverse, delta - 1, same) if compared else None)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "eval.sqlite"


@given(st.integers(0, 40), st.booleans(), st.integers(0, 100))
def test_a_blob_holds_scores_to_float32(n, compared, seed):
    given = scores(n, seed, compared)

    blob = pack(given)
    found = unpack(blob, n)

    assert len(blob) == packed_bytes(n, compared)
    assert (found.nll == given.nll).all() and (found.correct == given.correct).all()
    assert (found.divergence is not None) == compared
    if compared:
        assert_same(found, given, atol=1e-6)


@given(st.data())
def test_a_damaged_blob_is_none_or_makes_sense(data):
    """Whatever one byte is: there is no checksum, but never a crash, or what is not a number."""
    blob = bytearray(pack(scores()))
    blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))

    found = unpack(bytes(blob), 7)

    if found is not None:
        assert np.isfinite(found.nll).all() and np.isfinite(found.divergence.kld).all()
    assert unpack(bytes(blob[:-1]), 7) is None and unpack(bytes(blob) + b"x", 7) is None
    assert unpack(bytes(blob), 8) is None and unpack(b"", 7) is None


def test_what_is_put_is_got_at_once_and_later(path):
    with Cache(path) as cache:
        cache.put("a", chunk(), scores())
        assert_same(cache.get("a", chunk()), scores(), 1e-6)
        assert cache.get("b", chunk()) is None and cache.get("a", chunk(1)) is None
    with Cache(path) as cache:
        assert_same(cache.get("a", chunk()), scores(), 1e-6)
        assert cache.missing("a", [chunk(1), chunk(), chunk(1)], range(3)) == {0}
        cache.put("a", chunk(), scores(seed=1))
        cache.commit()
        assert_same(cache.get("a", chunk()), scores(seed=1), 1e-6)


def test_rows_are_committed_by_and_by(path, monkeypatch):
    """Another connection sees them, while this one is at work."""
    monkeypatch.setattr(module, "_COMMIT_SECONDS", 0)
    with Cache(path) as cache, Cache(path) as other:
        cache.put("a", chunk(), scores())
        assert other.get("a", chunk()) is not None


_PUTS = """
import sys
from pathlib import Path
from gemcut.eval.scoring.cache import Cache
from tests.test_scoring_cache import chunk, scores
with Cache(Path(sys.argv[1])) as cache:
    for number in range(20):
        cache.put(sys.argv[2], chunk(number), scores())
        cache.commit()
"""


def test_several_processes_share_a_file(path):
    """Made by all of them at once, and none loses what it put."""
    processes = [
        subprocess.Popen([sys.executable, "-c", _PUTS, str(path), str(number)])
        for number in range(4)
    ]
    try:
        assert [process.wait(120) for process in processes] == [0] * 4
    finally:
        for process in processes:
            process.kill()
            process.wait()

    with Cache(path) as cache:
        chunks = [chunk(number) for number in range(20)]
        assert [cache.missing(str(key), chunks, range(20)) for key in range(4)] == [set()] * 4


def test_what_was_not_used_for_longest_is_dropped(path, monkeypatch):
    times = iter(range(100))
    monkeypatch.setattr(module, "time", lambda: next(times))
    with Cache(path) as cache:
        for key in ("old", "new", "unused", "old"):
            cache.use([key])
            for number in range(50):
                cache.put(key, chunk(number, 400), scores(199))
    size = path.stat().st_size

    with Cache(path, most_bytes=size - 1) as cache:
        cache.use(["unused"])

    assert path.stat().st_size < size
    with Cache(path) as cache:
        found = [cache.get(key, chunk(0, 400)) is not None for key in ("old", "new", "unused")]
    assert found == [True, False, True]


# --- damage --------------------------------------------------------------------------------------


def test_a_row_that_makes_no_sense_is_missing(path):
    with Cache(path) as cache:
        cache.put("a", chunk(), scores())
        cache.put("b", chunk(), scores())
        cache.put("c", chunk(), scores(8))
    base = sqlite3.connect(path)
    with base:
        base.execute("UPDATE scores SET blob = 'text' WHERE key = 'a'")
        base.execute("UPDATE scores SET blob = zeroblob(length(blob)) WHERE key = 'b'")
    base.close()

    with Cache(path) as cache:
        assert [cache.get(key, chunk()) for key in "abc"] == [None] * 3


def database(path, script):
    base = sqlite3.connect(path)
    base.executescript(script)
    base.close()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"nonsense" * 1000), "not a database"),
        (lambda path: database(path, "CREATE TABLE x(y)"), "another program"),
        (lambda path: database(path, "PRAGMA user_version = 9; CREATE TABLE x(y)"), "version"),
    ],
)
def test_a_file_that_is_no_cache_is_named(path, damage, message):
    path.parent.mkdir()
    damage(path)

    with pytest.raises(TextError, match=f"eval.sqlite: .*{message}.* delete that file"):
        Cache(path)


def test_a_damaged_page_is_an_error_that_says_what_to_do(path):
    with Cache(path) as cache:
        for number in range(200):
            cache.put("a", chunk(number), scores())
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)

    with pytest.raises(TextError, match="delete that file"), Cache(path) as cache:
        cache.missing("a", [chunk(number) for number in range(200)], range(200))


def test_a_folder_that_cannot_be_is_an_error(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(OutputError, match="file: cannot be made"):
        Cache(tmp_path / "file" / "eval.sqlite")
    with pytest.raises(OutputError, match="cannot be kept there"):
        Cache(tmp_path)
