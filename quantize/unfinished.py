"""What an interrupted measurement has measured, kept beside its result until that is written.

JSON lines: the first holds a key, everything that decides the errors of tensors; each further one
a tensor's errors with those of its parts, or a group's weight. The weights depend on more than the
errors do: a key of their own stands before them. A last line may be torn.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from gemcut.artefact import MAX_SIZE, each, fields, parse, string
from gemcut.closing import Closing
from gemcut.errors import OutputError, PlanError
from gemcut.quantize.identity import Key, check_key
from gemcut.sensitivity import GroupWeight, read_group
from gemcut.tensor_sensitivity import TensorSensitivity, read_tensor, tensor_to_dict


class Unfinished(Closing):
    """The record of a measurement; what is added is kept until it is removed."""

    def __init__(self, result: Path, key: Key, restart: bool = False) -> None:
        """Go on with what an earlier run of the same key has left, or begin anew.

        Raises:
            OutputError: it cannot be written, or unfinished work of another key lies there.
        """
        self.path = result.parent / f".{result.name}.unfinished"
        self.tensors: dict[str, TensorSensitivity] = {}
        self.groups: dict[str, GroupWeight] = {}
        self._probe: Key | None = None
        self._file: IO[bytes] | None = None
        try:
            self._file = open(self.path, "wb+" if restart else "ab+")
            found = self._read()
        except OSError as error:
            self.close()
            raise OutputError(f"{self.path}: cannot be written: {error.strerror}") from error
        if found is None:
            self._append({"key": key})
            return
        try:
            check_key(self.path, found, key)
        except OutputError:
            self.close()
            raise

    def probed_with(self, key: Key) -> int:
        """Forget the weights that were measured with another key; how many they are.

        Raises:
            OutputError: it cannot be written.
        """
        forgotten = 0 if key == self._probe else len(self.groups)
        if key != self._probe:
            self._probe, self.groups = key, {}
            self._append({"probe": key})
        return forgotten

    def add_tensors(self, tensors: Mapping[str, TensorSensitivity]) -> None:
        """Keep a tensor's errors, with those of its parts. Raises OutputError."""
        self.tensors |= tensors
        self._append({"tensors": {name: tensor_to_dict(each) for name, each in tensors.items()}})

    def add_group(self, name: str, weight: GroupWeight) -> None:
        """Keep a group's weight. Raises OutputError."""
        self.groups[name] = weight
        self._append({"groups": {name: vars(weight)}})

    def remove(self) -> None:
        """Delete the record: the result is written."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file, which stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, line: Mapping[str, Any]) -> None:
        assert self._file is not None, "closed"
        try:
            self._file.write(json.dumps(line, sort_keys=True).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror}") from error

    def _read(self) -> Key | None:
        """Take over the lines that make sense, and cut off the rest; the key, if there is one."""
        assert self._file is not None, "closed"
        self._file.seek(0)
        key, end = None, 0
        for raw in self._file.read(MAX_SIZE).splitlines(keepends=True):
            try:
                if not raw.endswith(b"\n"):
                    break
                line = parse(raw.decode())
                if key is None:
                    key = fields(line, "the first line", {"key": _key})["key"]
                else:
                    self._take(line)
            except (ValueError, TypeError, RecursionError, PlanError):
                break
            end += len(raw)
        self._file.truncate(end)
        os.lseek(self._file.fileno(), 0, os.SEEK_END)
        return key

    def _take(self, line: Any) -> None:
        if isinstance(line, dict) and line.keys() == {"groups"}:
            self.groups |= each(read_group, line["groups"], "groups")
        elif isinstance(line, dict) and line.keys() == {"probe"}:
            self._probe, self.groups = _key(line["probe"], "probe"), {}
        else:
            found = fields(
                line, "a line", {"tensors": lambda raw, what: each(read_tensor, raw, what)}
            )
            self.tensors |= found["tensors"]


def _key(raw: Any, what: str) -> Key:
    return each(string, raw, what)
