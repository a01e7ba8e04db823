"""What runs on this machine were predicted to take, beside what they took: it corrects predictions.

Kept in the user's cache: numbers, and digests of the machine's rates and of the model's shapes; no
prompts, no paths, no names. What cannot be read is ignored, what cannot be written is not kept: a
run never fails for it.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from gemcut.artefact import (
    Reader,
    amount,
    each,
    fields,
    number,
    parse,
    read_text,
    sequence,
    string,
    write_text,
)
from gemcut.engine import PINNED
from gemcut.errors import GemcutError, OutputError, ProfileError
from gemcut.lock import Lock
from gemcut.profile import Profile
from gemcut.runtime.chat.timing import Timing
from gemcut.runtime.placement.held import predicted, totals
from gemcut.runtime.placement.placement import Placement
from gemcut.runtime.speed.forecast import Forecast
from gemcut.runtime.speed.throughput import Speed
from gemcut.user_cache import cache_folder

_VERSION = 1
_NAME = "runs.json"
_MOST = 256  # records of all runs
_LONGEST = 1e9  # seconds; the shortest is as far from one the other way
_ALIKE = 8  # records of one file at the same places: the latest, which also are what is looked at
_LEAST_ANSWER = 16  # tokens, below which the time says little
# Seconds of a token over another model's, either way, up to which its errors say something here: a
# small model is off by what its operations and caches do, a large one by what memory does.
_COMPARABLE = 4.0
# The same of one file's runs at two depths, so that what attention is off by is told from the rest.
_AS_DEEP = 1.1
Pair = tuple[float, float]  # predicted, measured


@dataclass(frozen=True)
class Kin:
    """What makes two runs alike: digests, and the places that compute."""

    machine: str  # its rates, and llama.cpp's version
    places: str
    model: str  # names of the tensors
    file: str  # and how many bytes they take


@dataclass(frozen=True)
class Record:
    """Speeds of a run, or its memory: seconds of a token, bytes; predicted, and measured."""

    kin: Kin
    depth: int = 0  # tokens that the context held at first
    prefill: Pair | None = None
    decode: Pair | None = None
    memory: Mapping[str, Pair] = field(default_factory=dict)  # by place
    repeats: int = 1  # that the speeds are the medians of


@dataclass(frozen=True)
class Correction:
    """What earlier runs say of a prediction.

    factor: of its seconds. doubt: relative standard error that is left. runs: how many there were.
    """

    factor: float
    doubt: float
    runs: int

    def of(self, speed: Speed) -> Speed:
        """The corrected speed."""
        seconds = self.factor * speed.seconds
        return Speed(seconds, self.doubt * seconds)


@dataclass(frozen=True)
class History:
    """What ran with the same rates, at the same places, as a run that is to be predicted.

    doubt: relative standard error of what is predicted without it.
    """

    own: Kin
    doubt: float
    runs: Sequence[Record]

    def prefill(self, seconds: float) -> Correction:
        """Of a prompt's token that is predicted to take so long."""
        return self._correction(((each, each.prefill) for each in self.runs), seconds)

    def decode(self, seconds: float) -> Correction:
        """Of an answer's token that is predicted to take so long."""
        return self._correction(((each, each.decode) for each in self.runs), seconds)

    def _correction(self, runs: Iterable[tuple[Record, Pair | None]], seconds: float) -> Correction:
        """The median of the logarithms of measured over predicted, and how far they are spread.

        The prediction itself counts as one more run, which was off by nothing but its doubt.
        """
        ratios: list[float] = []
        for run, (said, measured) in self._nearest(runs, seconds):
            ratios += [math.log(measured / said)] * run.repeats
        middle = median([0.0, *ratios])
        squares = [self.doubt**2, *((ratio - middle) ** 2 for ratio in ratios)]
        return Correction(math.exp(middle), math.sqrt(sum(squares) / len(squares)), len(ratios))

    def _nearest(
        self, runs: Iterable[tuple[Record, Pair | None]], seconds: float
    ) -> list[tuple[Record, Pair]]:
        """The latest of the same file about as deep, else of that file; else of the same model;
        else of any that takes about as long."""
        known = [(run, pair) for run, pair in runs if pair]
        of_model = [each for each in known if each[0].kin.model == self.own.model]
        of_file = [each for each in of_model if each[0].kin == self.own]
        as_deep = [each for each in of_file if _comparable(each[1][0], seconds, _AS_DEEP)]
        close = [each for each in known if _comparable(each[1][0], seconds, _COMPARABLE)]
        return (as_deep or of_file or of_model or close)[-_ALIKE:]


@dataclass(frozen=True)
class Recorder:
    """Keeps what the answers of one run take.

    forecast: as it was predicted, without corrections.
    """

    forecast: Forecast
    folder: Path | None = None

    def take(self, timing: Timing) -> None:
        """Keep how long an answer took, unless it was too short to tell. Never fails, and
        takes some milliseconds.

        For answers that had the context to themselves: others slow each other down.
        """
        with suppress(GemcutError):  # what could not be predicted
            self._take(timing)

    def _take(self, timing: Timing) -> None:
        placement, prefill, decode = self.forecast.placement, None, None
        if timing.prompt_tokens >= placement.context.n_ubatch and timing.prefill:
            told = self.forecast.prefill(timing.cached, timing.prompt_tokens)
            prefill = (told.seconds, 1 / timing.prefill)
        if timing.answer_tokens >= _LEAST_ANSWER and timing.decode:
            depth = timing.cached + timing.prompt_tokens + timing.answer_tokens // 2
            decode = (self.forecast.decode(depth).seconds, 1 / timing.decode)
        if prefill or decode:
            keep(Record(self._kin, timing.cached, prefill, decode), self.folder)

    @cached_property
    def _kin(self) -> Kin:
        return kin(self.forecast.placement)  # digests of all names: made once, not for each answer


def kin(placement: Placement) -> Kin:
    """What a run is compared by."""
    names = sorted(placement.places)
    weights: dict[str, int] = {}
    for page in placement.ledger.values():
        for what, size in page.items():
            if what.startswith("weights"):
                weights[what] = weights.get(what, 0) + size
    return Kin(
        _digest(_rates(placement.profile)),
        "+".join(sorted(set(placement.places.values()))),
        _digest(names),
        _digest([names, weights]),
    )


def keep_memory(
    placement: Placement, actual: Mapping[str, int], folder: Path | None = None
) -> None:
    """Keep how many bytes llama.cpp says that a run takes at each place. Never fails."""
    keep(Record(kin(placement), memory=memory_pairs(placement, actual)), folder)


def memory_pairs(placement: Placement, actual: Mapping[str, int]) -> dict[str, Pair]:
    """Bytes at each place, predicted and actual."""
    said = totals(predicted(placement))
    return {place: (said.get(place, 0), size) for place, size in actual.items()}


def keep(record: Record, folder: Path | None = None) -> None:
    """Add a record, in place of the oldest where there are many."""
    folder = folder or cache_folder()
    with suppress(OSError, OutputError), _locked(folder):
        known = records(folder)
        if record.memory and record in known:  # the same run was loaded before
            return
        kept = [*known, record]
        alike = [each for each in kept if _alike(each, record)]
        if len(alike) > _ALIKE:
            kept.remove(alike[0])
        plain = {"version": _VERSION, "runs": [asdict(each) for each in kept[-_MOST:]]}
        write_text(folder / _NAME, json.dumps(plain, sort_keys=True) + "\n")


def records(folder: Path | None = None) -> list[Record]:
    """All that is kept, the latest last; of a file that cannot be read nothing."""
    path = (folder or cache_folder()) / _NAME
    try:
        document = parse(read_text(path, "records of runs", ProfileError))
        if not isinstance(document, dict) or document.get("version") != _VERSION:
            return []
        return [_record(raw) for raw in sequence(document.get("runs"), "runs")[-_MOST:]]
    except (GemcutError, ValueError, TypeError, RecursionError):
        return []


def history(placement: Placement, folder: Path | None = None) -> History:
    """What is kept of runs like this one."""
    own = kin(placement)
    runs = [
        each
        for each in records(folder)
        if (each.kin.machine, each.kin.places) == (own.machine, own.places)
    ]
    return History(own, placement.profile.doubt, runs)


def corrections(placement: Placement, folder: Path | None = None) -> tuple[Correction, Correction]:
    """What earlier runs say of a placement's own speeds: of prefill, and of decode."""
    known = history(placement, folder)
    return known.prefill(placement.prefill.seconds), known.decode(placement.decode.seconds)


def corrected(placement: Placement, folder: Path | None = None) -> Placement:
    """The placement with its speeds corrected by earlier runs; the same where there were none."""
    prefill, decode = corrections(placement, folder)
    speeds = prefill.of(placement.prefill), decode.of(placement.decode)
    return replace(placement, prefill=speeds[0], decode=speeds[1])


def _alike(record: Record, other: Record) -> bool:
    return record.kin == other.kin and bool(record.memory) == bool(other.memory)


def _comparable(one: float, other: float, factor: float) -> bool:
    return one <= factor * other and other <= factor * one


def _rates(profile: Profile) -> list[Any]:
    """All of a profile that speeds are predicted from."""
    plain = profile.to_dict()
    places = [plain.pop("host"), *plain.pop("cards")]
    without = ("memory", "reserve")
    return [PINNED, plain, [{k: v for k, v in p.items() if k not in without} for p in places]]


def _digest(what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """While other processes wait. Raises OSError, OutputError."""
    folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder / f".{_NAME}.lock", wait=True):
        yield


def _record(raw: Any, what: str = "a run") -> Record:
    readers: dict[str, Reader[Any]] = {
        "kin": _kin,
        "depth": lambda depth, which: int(amount(depth, which)),
        "prefill": _speeds,
        "decode": _speeds,
        "memory": lambda sizes, which: each(_pair, sizes, which),
        "repeats": _repeats,
    }
    return Record(**fields(raw, what, readers))


def _kin(raw: Any, what: str) -> Kin:
    return Kin(**fields(raw, what, dict.fromkeys(("machine", "places", "model", "file"), string)))


def _speeds(raw: Any, what: str) -> Pair | None:
    """Two times, neither of which is nothing, or next to it, or forever."""
    if raw is None:
        return None
    found = _pair(raw, what)
    if not 1 / _LONGEST <= min(found) <= max(found) <= _LONGEST:
        raise ValueError(f"{what} is {raw!r:.40}, wanted seconds")
    return found


def _repeats(raw: Any, what: str) -> int:
    return min(max(1, int(amount(raw, what))), _ALIKE)


def _pair(raw: Any, what: str) -> Pair:
    predicted, measured = sequence(raw, what, 2)
    return number(predicted, what), number(measured, what)
