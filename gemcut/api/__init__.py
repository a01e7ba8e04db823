"""The verbs: what gemcut does, as functions. They cross the rooms; the command line calls them.

Each returns data or raises a GemcutError, and prints nothing. What is slow takes a `progress`
that is told how much was just done. A verb's module is imported when the verb is first asked for:
chatting needs nothing of what quantizing does.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemcut.api.base import remove_base
    from gemcut.api.building import chain_folder, quantize_measured
    from gemcut.api.chain import Effort, Measurements, measure_chain
    from gemcut.api.comparing import Extras, evaluate
    from gemcut.api.cutting import (
        FLOAT_TYPES,
        Target,
        convert_checkpoint,
        differences,
        load_importance,
        make_plan,
        planned_files,
        planned_size,
        quantize_model,
    )
    from gemcut.api.fetching import local_gguf
    from gemcut.api.measuring import (
        calibration,
        collect_importance,
        measure_sensitivity,
        merge_importance,
        missing_importance,
        probing,
    )
    from gemcut.api.planning import make_task, measured_of
    from gemcut.api.running import load, machine_for, open_run, prepare
    from gemcut.api.sources import families, importance_in, inspect_source, open_source
    from gemcut.api.sweeping import parse_levels, swept
    from gemcut.api.validating import record, validate

__all__ = [
    "Effort",
    "Extras",
    "FLOAT_TYPES",
    "Measurements",
    "Target",
    "calibration",
    "chain_folder",
    "collect_importance",
    "convert_checkpoint",
    "differences",
    "evaluate",
    "families",
    "importance_in",
    "inspect_source",
    "load",
    "load_importance",
    "local_gguf",
    "machine_for",
    "make_plan",
    "make_task",
    "measure_chain",
    "measure_sensitivity",
    "measured_of",
    "merge_importance",
    "missing_importance",
    "open_run",
    "open_source",
    "parse_levels",
    "planned_files",
    "planned_size",
    "prepare",
    "probing",
    "quantize_measured",
    "quantize_model",
    "record",
    "remove_base",
    "swept",
    "validate",
]

# Where each is at home.
_HOMES = {
    "base": "remove_base",
    "building": "chain_folder quantize_measured",
    "chain": "Effort Measurements measure_chain",
    "comparing": "Extras evaluate",
    "cutting": "FLOAT_TYPES Target convert_checkpoint differences load_importance make_plan "
    "planned_files planned_size quantize_model",
    "fetching": "local_gguf",
    "measuring": "calibration collect_importance measure_sensitivity merge_importance "
    "missing_importance probing",
    "planning": "make_task measured_of",
    "running": "load machine_for open_run prepare",
    "sources": "families importance_in inspect_source open_source",
    "sweeping": "parse_levels swept",
    "validating": "record validate",
}


def __getattr__(name: str) -> Any:
    """A verb, from its home. Raises AttributeError for what is none."""
    home = next((home for home, names in _HOMES.items() if name in names.split()), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = found  # from now on it is found without asking
    return found
