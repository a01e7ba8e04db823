"""A finished file for other programs: whether it is standard, and what Ollama imports it by."""

import os
from pathlib import Path, PurePath

from gemcut.api.words import Where
from gemcut.errors import PlanError, ProfileError, UsageError
from gemcut.gguf_parts import GGUFParts, part_paths
from gemcut.llama.experts import ADVICE
from gemcut.modelfile import Run, modelfile
from gemcut.plan import METADATA_KEY, Plan
from gemcut.quantize.export import layout
from gemcut.runtime.loading.loading import open_parts
from gemcut.runtime.placement.carried import context_of
from gemcut.standard import Verdict, check_standard

_BY_TENSOR = "The plan keeps single tensors on the host; Ollama moves whole layers, so it decides."


def check_file(path: Where) -> Verdict:
    """Whether llama.cpp and what is made of it should load a GGUF: see `gemcut.standard`.

    Raises:
        GGUFError: it is none, or damaged.
    """
    return check_standard(Path(path))


def ollama_modelfile(path: Where, folder: Where | None = None) -> str:
    """The text of a Modelfile for a GGUF: its context and layers on cards as they were planned,
    sampling and ends of answers as the file has them. Not tested with Ollama.

    Args:
        folder: where the Modelfile will lie; None: where the path is seen from.

    Raises:
        GGUFError: it is none, or damaged.
        UsageError: it has no tokenizer, types per expert, or a name that a Modelfile cannot hold.
    """
    with open_parts(Path(path)) as parts:
        if "tokenizer.ggml.model" not in parts.metadata:
            raise UsageError(f"{path}: has no tokenizer, so it is no model that answers")
        if parts.per_expert:
            raise UsageError(f"{path}: has types per expert, for gemcut alone: {ADVICE}")
        files = [_seen_from(folder, each) for each in part_paths(Path(path))]
        return modelfile(files, parts.metadata, _run(parts))


def _seen_from(folder: Where | None, path: Path) -> PurePath:
    if folder is None or path.is_absolute():
        return path
    try:
        return PurePath(os.path.relpath(path, folder))
    except ValueError:  # on another drive
        return path.resolve()


def _run(parts: GGUFParts) -> Run:
    """What the plan in the file says of its run."""
    value = parts.metadata.get(METADATA_KEY)
    if value is None:
        return Run()
    try:
        plan = Plan.from_json(str(value.data), "the file's plan")
        context, places = context_of(plan), layout(plan)
    except (PlanError, ProfileError):  # no plan of a machine, or of another version
        return Run()
    n_ctx = context.n_ctx // context.n_seq
    if places.host:
        return Run(n_ctx, None, _BY_TENSOR)
    return Run(n_ctx, places.gpu_layers)
