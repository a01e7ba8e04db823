"""The verbs: what gemcut does, as functions. They cross the rooms; the command line calls them.

    from gemcut import api

    plan = api.make_plan("checkpoint", vram="12G", ram="32G", context="32k")
    cut = api.quantize_model("checkpoint", "model.gguf", plan)
    with api.load(cut.path) as session:
        answer = session.chat("What is an expert?")
    report = api.evaluate(cut.path, reference="reference.gguf")

Each returns data or raises a GemcutError, and prints nothing. Paths are text or Path, sizes bytes
or "12G", contexts tokens or "32k"; a source is a checkpoint's folder, a Hub id or a GGUF, or what
`open_source` makes of one. What is slow takes a `progress` that is told how far it is, and a `tell`
that is told in lines what is noteworthy. docs/python.md goes the whole way.

A verb's module is imported when the verb is first asked for: chatting needs nothing of what
quantizing does.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemcut.api.base import remove_base
    from gemcut.api.building import chain_folder, quantize_measured
    from gemcut.api.chain import Effort, Measurements, measure_chain
    from gemcut.api.comparing import evaluate
    from gemcut.api.cutting import (
        FLOAT_TYPES,
        Cut,
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
    from gemcut.api.planning import compare_plans, make_task, measured_of
    from gemcut.api.running import load, machine_for, open_run, prepare
    from gemcut.api.session import Answer, Session
    from gemcut.api.sources import (
        families,
        importance_in,
        inspect_source,
        open_source,
    )
    from gemcut.api.standard import check_file, ollama_modelfile
    from gemcut.api.sweeping import parse_levels, swept
    from gemcut.api.timing import measure_speed
    from gemcut.api.validating import record, validate

__all__ = [
    "Answer",
    "Cut",
    "Effort",
    "FLOAT_TYPES",
    "Measurements",
    "Session",
    "Target",
    "calibration",
    "chain_folder",
    "check_file",
    "collect_importance",
    "compare_plans",
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
    "measure_speed",
    "measured_of",
    "merge_importance",
    "missing_importance",
    "ollama_modelfile",
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
    "comparing": "evaluate",
    "cutting": "Cut FLOAT_TYPES Target convert_checkpoint differences load_importance make_plan "
    "planned_files planned_size quantize_model",
    "fetching": "local_gguf",
    "measuring": "calibration collect_importance measure_sensitivity merge_importance "
    "missing_importance probing",
    "planning": "compare_plans make_task measured_of",
    "running": "load machine_for open_run prepare",
    "session": "Answer Session",
    "sources": "families importance_in inspect_source open_source",
    "standard": "check_file ollama_modelfile",
    "sweeping": "parse_levels swept",
    "timing": "measure_speed",
    "validating": "record validate",
}

if not TYPE_CHECKING:  # for a type checker, a name that is misspelt has to stay unknown

    def __getattr__(name: str) -> object:
        """A verb, from its home. Raises AttributeError for what is none."""
        home = next((home for home, names in _HOMES.items() if name in names.split()), None)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f"{__name__}.{home}"), name)
        globals()[name] = found  # from now on it is found without asking
        return found

    def __dir__() -> list[str]:
        """For completion in a notebook."""
        return sorted({*globals(), *__all__})
