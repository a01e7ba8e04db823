"""The verbs: what gemcut does, as functions. They cross the rooms; the command line calls them.

Each returns data or raises a GemcutError, and prints nothing. What is slow takes a `progress`
that is told how much was just done.
"""

from gemcut.api.cutting import (
    FLOAT_TYPES,
    Target,
    check_output,
    convert_checkpoint,
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
    probing,
)
from gemcut.api.running import evaluate, load
from gemcut.api.sources import families, inspect_source, open_source

__all__ = [
    "FLOAT_TYPES",
    "Target",
    "calibration",
    "check_output",
    "collect_importance",
    "convert_checkpoint",
    "evaluate",
    "families",
    "inspect_source",
    "load",
    "load_importance",
    "make_plan",
    "measure_sensitivity",
    "merge_importance",
    "open_source",
    "planned_files",
    "planned_size",
    "probing",
    "quantize_model",
]
