"""Scores that were worked out before, kept in a database: what is in it is never decoded again.

One row for a chunk, as one column of a comparison scored it:

    key     of the column and of what it was compared with (`Work.key`)
    chunk   `Chunk.digest`
    blob    "GCS" and the version 1, uint8 whether there is a divergence, 3 bytes of zero, uint32 n;
            float32 nll[n], with a divergence kld[n], reverse[n], delta_p[n]; uint8 flags[n], of
            which bit 0 is `correct` and bit 1 `same_top`; all little-endian

Several processes may use one file at the same time. Rows are committed twice a second, so a process
that is killed loses no more than that. A damaged blob counts as missing.
"""

import sqlite3
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep, time

import numpy as np
from numpy.typing import NDArray

from gemcut.closing import Closing
from gemcut.errors import OutputError, TextError
from gemcut.eval.texts.chunks import Chunk
from gemcut.score import Divergence, Scores

NAME = "eval.sqlite"
MOST_BYTES = 1 << 30  # some 60 million scored tokens
_LEFT = 0.75  # of them, after the columns that were not used for longest were dropped
_COMMIT_SECONDS = 0.5
_WAIT_SECONDS = 60.0  # for other processes' commits, which take milliseconds
_APPLICATION, _VERSION = 0x47435330, 1
_HEADER = struct.Struct("<3sBB3xI")
_FLOATS = np.dtype("<f4")
_SCHEMA = """
    CREATE TABLE IF NOT EXISTS scores(
        key TEXT NOT NULL, chunk TEXT NOT NULL, blob BLOB NOT NULL, UNIQUE(key, chunk));
    CREATE TABLE IF NOT EXISTS columns(key TEXT PRIMARY KEY, used REAL NOT NULL) WITHOUT ROWID;
"""


class Cache(Closing):
    """A file of scores, made if there is none. Close it, or use it as a context manager.

    Args:
        most_bytes: of the file: when it is closed, the columns that were not used for longest are
            dropped until it is smaller.

    Raises, as all its methods:
        TextError: the file is damaged, or not such a file.
        OutputError: it cannot be opened or written.
    """

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES) -> None:
        self.path, self._most = path, most_bytes
        self._pending: dict[tuple[str, str], bytes] = {}
        self._committed, self._open = monotonic(), True
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{path.parent}: cannot be made: {error.strerror}; choose another "
                "place for scores (XDG_CACHE_HOME)"
            ) from error
        with self._guarded():
            self._base = sqlite3.connect(path, timeout=_WAIT_SECONDS, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._base.close()
                raise

    def get(self, key: str, chunk: Chunk) -> Scores | None:
        """The scores of a chunk, if there are any that make sense."""
        blob = self._pending.get((key, chunk.digest)) or self._read(key, chunk)
        return None if blob is None else unpack(blob, chunk.n_scored)

    def missing(self, key: str, chunks: Sequence[Chunk], numbers: Iterable[int]) -> set[int]:
        """Which of the chunks with these numbers have no scores, of equal ones the first alone."""
        first = {chunks[number].digest: number for number in reversed([*numbers])}
        return {number for number in first.values() if self.get(key, chunks[number]) is None}

    def put(self, key: str, chunk: Chunk, scores: Scores) -> None:
        """Keep the scores of a chunk; in the file within half a second, or by `commit`."""
        self._pending[key, chunk.digest] = pack(scores)
        if monotonic() - self._committed > _COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Write what is not in the file yet."""
        rows = [(*row, blob) for row, blob in self._pending.items()]
        with self._transaction():
            self._base.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", rows)
        self._pending.clear()
        self._committed = monotonic()

    def use(self, keys: Iterable[str]) -> None:
        """Note that these columns are in use: others are dropped first."""
        rows = [(key, time()) for key in keys]
        with self._transaction():
            self._base.executemany("INSERT OR REPLACE INTO columns VALUES (?, ?)", rows)

    def close(self) -> None:
        """Commit, drop what is too much, and close the file."""
        if not self._open:
            return
        self._open = False
        try:
            if self._pending:
                self.commit()
            with suppress(OutputError):  # the next one may have the room, or the time, for it
                self._shrink()
        finally:
            self._base.close()

    def _prepare(self) -> None:
        # Tables first: where another process is just making them, the numbers are there with them.
        (tables,) = self._base.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        (application,) = self._base.execute("PRAGMA application_id").fetchone()
        (version,) = self._base.execute("PRAGMA user_version").fetchone()
        if tables and (application, version) != (_APPLICATION, _VERSION):
            raise self._damaged("it is of another version, or of another program")
        self._write_ahead()
        self._base.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the last commits
        if not tables:
            self._base.executescript(
                f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA application_id = {_APPLICATION};"
                f"PRAGMA user_version = {_VERSION}; COMMIT;"
            )

    def _write_ahead(self) -> None:
        """Let others read while one writes. SQLite does not wait by itself where another process
        changes the same."""
        until = monotonic() + _WAIT_SECONDS
        while True:
            try:
                self._base.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or monotonic() > until:
                    raise
                sleep(0.01)

    def _read(self, key: str, chunk: Chunk) -> bytes | None:
        # A blob of another length is damaged, and not read: it might not fit into memory.
        lengths = packed_bytes(chunk.n_scored, False), packed_bytes(chunk.n_scored, True)
        query = "SELECT blob FROM scores WHERE key = ? AND chunk = ? AND length(blob) IN (?, ?)"
        with self._guarded():
            row = self._base.execute(query, (key, chunk.digest, *lengths)).fetchone()
        return row[0] if row and isinstance(row[0], bytes) else None

    def _shrink(self) -> None:
        """Drop the columns that were not used for longest, if the file is too large."""
        if self._bytes() <= self._most:
            return
        query = (
            "SELECT key, sum(length(blob)) FROM scores LEFT JOIN columns USING (key) "
            "GROUP BY key ORDER BY coalesce(used, 0) DESC"
        )
        kept, dropped = 0, []
        with self._transaction():
            for key, size in self._base.execute(query).fetchall():
                kept += size
                if kept > _LEFT * self._most:
                    dropped.append((key,))
            for table in ("scores", "columns"):
                self._base.executemany(f"DELETE FROM {table} WHERE key = ?", dropped)
        with self._guarded():
            self._base.execute("VACUUM")

    def _bytes(self) -> int:
        with self._guarded():
            (pages,) = self._base.execute("PRAGMA page_count").fetchone()
            (size,) = self._base.execute("PRAGMA page_size").fetchone()
        return int(pages * size)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._guarded():
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._base.execute("COMMIT")
            except BaseException:
                if self._base.in_transaction:
                    self._base.execute("ROLLBACK")
                raise

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """SQLite's errors in words that help."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OutputError(
                f"{self.path}: scores cannot be kept there: {error}; free some room, delete it, or "
                "choose another place (XDG_CACHE_HOME)"
            ) from error
        except sqlite3.Error as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, why: str) -> TextError:
        return TextError(
            f"{self.path}: the scores kept there cannot be read: {why}; delete that file and those "
            "beside it that end in -wal and -shm: they are worked out again"
        )


def pack(scores: Scores) -> bytes:
    """Scores as a row's blob: 17 bytes a token, 5 without a divergence."""
    n, d = len(scores.nll), scores.divergence
    columns = [scores.nll] if d is None else [scores.nll, d.kld, d.reverse, d.delta_p]
    flags = scores.correct.astype(np.uint8)
    if d is not None:
        flags |= d.same_top.astype(np.uint8) << 1
    floats = b"".join(column.astype(_FLOATS).tobytes() for column in columns)
    return _HEADER.pack(b"GCS", _VERSION, d is not None, n) + floats + flags.tobytes()


def unpack(blob: bytes, n: int) -> Scores | None:
    """The scores of n tokens in a row's blob; None if it is damaged."""
    if len(blob) < _HEADER.size:
        return None
    magic, version, compared, found = _HEADER.unpack_from(blob)
    if (magic, version, found) != (b"GCS", _VERSION, n) or compared not in (0, 1):
        return None
    if len(blob) != packed_bytes(n, bool(compared)):
        return None
    rows = 4 if compared else 1
    floats = np.frombuffer(blob, _FLOATS, rows * n, _HEADER.size).reshape(rows, n)
    flags = np.frombuffer(blob, np.uint8, n, _HEADER.size + floats.nbytes)
    if not np.isfinite(floats).all() or flags.max(initial=0) > (3 if compared else 1):
        return None
    return _scores(floats.astype(np.float64), flags)


def packed_bytes(n: int, compared: bool) -> int:
    """The length of a blob of n tokens."""
    return _HEADER.size + n * (17 if compared else 5)


def _scores(rows: NDArray[np.float64], flags: NDArray[np.uint8]) -> Scores:
    correct, same_top = (flags & 1) > 0, (flags & 2) > 0
    if len(rows) == 1:
        return Scores(rows[0], correct)
    nll, kld, reverse, delta_p = rows
    return Scores(nll, correct, Divergence(kld, reverse, delta_p, same_top))
