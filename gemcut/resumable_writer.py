"""A result that can be continued: its files under temporary names, and the journal beside them.

A result is written in tiles, in an order that every run repeats. What the journal records is on
the disk, and a later run of the same work reads it back, compares it with the journal and goes on
behind it. The final names appear when every byte is there.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from gemcut import ggml
from gemcut.errors import OutputError
from gemcut.gguf_layout import Layout
from gemcut.gguf_writer import PartialFile, reserve, sync_folder
from gemcut.journal import Journal, Record, digest
from gemcut.outputs import check_kind


class ResumableWriter:
    """Files being written; a context manager that finishes them, or keeps what is recorded."""

    def __init__(
        self, path: Path, files: Mapping[Path, Layout], key: str, tiles: int, restart: bool = False
    ) -> None:
        """Lock the result, reserve its whole room, and find out what an earlier run recorded.

        Args:
            path: the result's name; the journal lies beside it.
            files: the final names with what belongs there; the first appears last.
            key: of the work: unequal if a single byte may be different.
            tiles: how many there are.
            restart: whatever an earlier run left is removed.

        Raises:
            OutputError: another process is at work, unfinished work of another key lies there, a
                file cannot be written or the disk is too small.
        """
        self.path, self._tiles = path, tiles
        self._files: list[PartialFile] = []
        for file in files:
            check_kind(file)
        self._journal = Journal(path.with_name(f".{path.name}.journal"), path)
        try:
            self._begin(files, key, restart)
        except BaseException:
            self._leave()
            raise
        self._of = {info.name: file for file in self._files for info in file.layout.tensors}

    def _begin(self, files: Mapping[Path, Layout], key: str, restart: bool) -> None:
        partials = [_partial(path) for path in files]
        left = bool(self._journal.records) and any(map(Path.exists, _left(self.path)))
        if left and not restart and self._journal.key != key:
            raise OutputError(
                f"{self.path}: unfinished work lies there, of another source, plan or version; "
                "the command that began it would continue, --restart begins anew"
            )
        continued = left and not restart and partials[0].exists()
        try:
            if continued:
                self._take_back(files)
            else:
                self._clear(key)
            for (path, layout), partial in zip(files.items(), partials, strict=True):
                self._files.append(PartialFile(path, partial, layout, keep=continued))
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror}") from error
        reserve(self._files)

    def _take_back(self, files: Mapping[Path, Layout]) -> None:
        """Undo the giving of names that was interrupted; the first one was still to come."""
        if self._journal.records[-1].tiles == self._tiles:
            for path in files:
                if not _partial(path).exists():
                    with suppress(FileNotFoundError):
                        os.rename(path, _partial(path))

    def _clear(self, key: str) -> None:
        for partial in _left(self.path):
            partial.unlink()
        self._journal.begin(key)

    @property
    def records(self) -> Sequence[Record]:
        """What is recorded, oldest first."""
        return tuple(self._journal.records)

    @property
    def partials(self) -> dict[Path, Path]:
        """The final names, and the temporary ones under which the files lie until then."""
        return {file.path: file.partial for file in self._files}

    def forget(self, kept: int) -> None:
        """Of the records, keep the first ones only. Raises OutputError."""
        try:
            self._journal.keep(kept)
        except OSError as error:
            raise self._refused(error) from error

    def write(self, name: str, start: int, rows: ggml.Bytes) -> int:
        """Put a tile at row `start` of a tensor and return its checksum; from several threads.

        Raises:
            OutputError: the rows do not lie within the tensor, or the disk refuses them.
        """
        return self._of[name].write(name, start, rows)

    def checksum(self, name: str, start: int, stop: int) -> int:
        """The checksum of a tile that an earlier run wrote. Raises OutputError."""
        return self._of[name].checksum(name, start, stop)

    def accept(self, name: str, rows: int) -> None:
        """Count rows that an earlier run wrote as written."""
        self._of[name].accept(name, rows)

    def record(self, checksums: Sequence[int]) -> None:
        """Put the next tiles on record; they are on the disk when this returns.

        Raises:
            OutputError: the disk refuses.
        """
        done = self._journal.records[-1].tiles if self._journal.records else 0
        if not checksums:
            return
        try:
            for file in self._files:
                file.sync()
            self._journal.append(Record(done + len(checksums), digest(checksums)))
        except OSError as error:
            raise self._refused(error) from error

    def finish(self) -> None:
        """Give the files their final names.

        Raises:
            OutputError: rows are missing, or the file system refuses.
        """
        for file in self._files:
            file.check()
        first, *others = self._files
        try:
            if others:  # an older result's first file must not be loaded with our others
                first.path.unlink(missing_ok=True)
            for file in (*others, first):
                file.publish()
            self._journal.remove()
            sync_folder(self.path.parent)
        except OSError as error:
            raise self._refused(error) from error

    def discard(self) -> None:
        """Remove what was written, and the journal."""
        for file in self._files:
            file.discard()
        self._journal.remove()

    def __enter__(self) -> "ResumableWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *failure: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self._leave()

    def _leave(self) -> None:
        """Close; without a record there is nothing to continue, and nothing stays."""
        if not self._journal.records:
            self.discard()
        for file in self._files:
            file.close()
        self._journal.close()

    def _refused(self, error: OSError) -> OutputError:
        return OutputError(f"{self.path}: {error.strerror}")


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _left(path: Path) -> Iterator[Path]:
    """The temporary files of a result, however it was to be split."""
    stem = path.name.removesuffix(".gguf")
    numbered = rf"{re.escape(stem)}-\d{{5}}-of-\d{{5}}\.gguf"
    name = re.compile(rf"\.({re.escape(path.name)}|{numbered})\.partial")
    yield from (found for found in sorted(path.parent.iterdir()) if name.fullmatch(found.name))
