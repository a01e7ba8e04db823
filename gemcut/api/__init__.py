"""The verbs: what gemcut does, as functions. They cross the rooms; the command line calls them.

Each returns data or raises a GemcutError, and prints nothing. What is slow takes a `progress`
that is told how much was just done.
"""

from gemcut.api.base import remove_base
from gemcut.api.building import chain_folder, quantize_measured
from gemcut.api.chain import Effort, Measurements, measure_chain
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
from gemcut.api.measuring import (
    calibration,
    collect_importance,
    measure_sensitivity,
    merge_importance,
    missing_importance,
    probing,
)
from gemcut.api.planning import make_task, measured_of
from gemcut.api.running import evaluate, load
from gemcut.api.sources import families, inspect_source, open_source
from gemcut.api.validating import record, validate

__all__ = [
    "Effort",
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
    "inspect_source",
    "load",
    "load_importance",
    "make_plan",
    "make_task",
    "measure_chain",
    "measure_sensitivity",
    "measured_of",
    "merge_importance",
    "missing_importance",
    "open_source",
    "planned_files",
    "planned_size",
    "probing",
    "quantize_measured",
    "quantize_model",
    "record",
    "remove_base",
    "validate",
]
