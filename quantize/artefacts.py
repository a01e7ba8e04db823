"""What a chain of measurements leaves in its folder, and whether it can be used again.

Beside the artefacts lies keys.json: what each was made from, how large it was when it was finished,
and how much time was given for it. One that is of something else, or not as it was, is made anew.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gemcut.artefact import amount, each, fields, parse, read_text, string, write_text
from gemcut.errors import OutputError, PlanError
from gemcut.quantize.identity import Key, differing

_KEYS = "keys.json"


@dataclass(frozen=True)
class Record:
    """How an artefact was made.

    minutes: that were given for it; 0: as many as it took.
    facts: what else was found out, for the steps behind it.
    """

    key: Key
    size: int  # bytes
    minutes: float = 0.0
    facts: Mapping[str, float] = field(default_factory=dict)


class Artefacts:
    """A folder of artefacts that know what they were made from."""

    def __init__(self, folder: Path) -> None:
        """Make the folder if need be, and read what is known of its contents.

        Raises:
            OutputError: there is no room for a folder.
        """
        self.folder = folder
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be made: {error.strerror}") from error
        self._records = _read(folder / _KEYS)

    def path(self, name: str) -> Path:
        """Where an artefact lies, or will."""
        return self.folder / name

    def facts(self, name: str) -> Mapping[str, float]:
        """What was found out when it was made."""
        return self._records[name].facts if name in self._records else {}

    def outdated(self, name: str, key: Key, minutes: float | None = None) -> str | None:
        """Why an artefact has to be made, or made anew, in words; None: it can be used.

        Args:
            minutes: what is given for it; one that was given less is outdated.
        """
        known, path = self._records.get(name), self.path(name)
        if not path.is_file():
            return "it is not there"
        if known is None:
            return "nobody knows what it was made from"
        if difference := differing(known.key, key):
            return f"it is of another {difference}"
        if path.stat().st_size != known.size:
            return "it is not as it was left"
        if minutes is not None and 0 < known.minutes < minutes:
            return f"it was made in {known.minutes:g} minutes, and {minutes:g} are given now"
        return None

    def keep(self, name: str, key: Key, minutes: float | None = None, **facts: float) -> None:
        """Note what a finished artefact was made from. Raises OutputError."""
        size = self.path(name).stat().st_size
        self._records[name] = Record(dict(key), size, minutes or 0.0, facts)
        document = {each_: asdict(record) for each_, record in self._records.items()}
        write_text(self.path(_KEYS), json.dumps(document, indent=2, sort_keys=True) + "\n")


def _read(path: Path) -> dict[str, Record]:
    """The records; none where nobody can make them out, so that all is made anew."""
    if not path.exists():
        return {}
    try:
        return each(_record, parse(read_text(path, "keys of artefacts", PlanError)), "the file")
    except (ValueError, TypeError, RecursionError, PlanError):
        return {}


def _record(raw: Any, what: str) -> Record:
    readers = {
        "key": lambda value, name: each(string, value, name),
        "size": amount,
        "minutes": amount,
        "facts": lambda value, name: each(amount, value, name),
    }
    return Record(**fields(raw, what, readers))
