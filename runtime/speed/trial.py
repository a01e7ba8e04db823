"""A run put to the test: predicted beside measured, at several depths of its context."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemcut.runtime.loading.loading import Loaded
from gemcut.runtime.placement.held import totals
from gemcut.runtime.placement.placement import Placement
from gemcut.runtime.speed.forecast import Forecast
from gemcut.runtime.speed.measured import MeasuredSpeed, Tell, speeds
from gemcut.runtime.speed.records import Pair, Record, history, keep, kin, memory_pairs
from gemcut.runtime.speed.throughput import Speed


@dataclass(frozen=True)
class Row:
    """One depth. The predictions are corrected by earlier runs; None of what was not measured."""

    measured: MeasuredSpeed
    prefill: Speed | None
    decode: Speed | None

    def to_dict(self) -> dict[str, Any]:
        """Tokens per second, with their spread or standard error."""
        found = self.measured
        return {
            "depth": found.depth,
            "prefill": _beside(self.prefill, found.prefill, found.prefill_spread),
            "decode": _beside(self.decode, found.decode, found.decode_spread),
        }


@dataclass(frozen=True)
class Trial:
    """What came of it. memory: bytes by place, predicted and as llama.cpp's log has them."""

    placement: Placement
    rows: tuple[Row, ...]
    memory: Mapping[str, Pair]
    n_prompt: int
    n_generate: int
    repeats: int

    def to_dict(self) -> dict[str, Any]:
        """The trial as JSON knows it."""
        memory = {
            place: {"predicted": int(said), "measured": int(found)}
            for place, (said, found) in self.memory.items()
        }
        counts = {name: getattr(self, name) for name in ("n_prompt", "n_generate", "repeats")}
        rows = [row.to_dict() for row in self.rows]
        return {"placement": self.placement.to_dict(), "memory": memory, "rows": rows} | counts


def try_run(
    loaded: Loaded,
    forecast: Forecast,
    depths: Sequence[int] = (0,),
    n_prompt: int = 512,
    n_generate: int = 64,
    repeats: int = 3,
    tell: Tell = lambda done, total: None,
    folder: Path | None = None,
) -> Trial:
    """Measure a loaded run beside its forecast, and keep both for later predictions.

    Args:
        folder: of the records; None: in the user's cache.

    Raises:
        UsageError: nothing to measure, or more than the context holds.
        EngineError: the model does not run.
    """
    measured = speeds(loaded.context, depths, n_prompt, n_generate, repeats, tell)
    before = history(forecast.placement, folder)
    rows = []
    for found in measured:
        prefill, decode = _predicted(forecast, found)
        keep(_record(forecast, found, prefill, decode), folder)
        prefill = prefill and before.prefill(prefill.seconds).of(prefill)
        decode = decode and before.decode(decode.seconds).of(decode)
        rows.append(Row(found, prefill, decode))
    memory = memory_pairs(loaded.placement, totals(loaded.held))
    return Trial(loaded.placement, tuple(rows), memory, n_prompt, n_generate, repeats)


def _predicted(forecast: Forecast, found: MeasuredSpeed) -> tuple[Speed | None, Speed | None]:
    """Prefill and decode as the formulas have them, of what was measured."""
    prefill = forecast.prefill(found.depth, found.n_prompt) if found.n_prompt else None
    decode = forecast.decode(found.depth + found.n_generate // 2) if found.n_generate else None
    return prefill, decode


def _record(
    forecast: Forecast, found: MeasuredSpeed, prefill: Speed | None, decode: Speed | None
) -> Record:
    return Record(
        kin(forecast.placement),
        found.depth,
        (prefill.seconds, 1 / found.prefill) if prefill else None,
        (decode.seconds, 1 / found.decode) if decode else None,
        repeats=found.repeats,
    )


def _beside(said: Speed | None, found: float, spread: float) -> dict[str, Any] | None:
    if said is None:
        return None
    error = said.per_second * said.se / said.seconds
    return {"predicted": said.per_second, "se": error, "measured": found, "spread": spread}
