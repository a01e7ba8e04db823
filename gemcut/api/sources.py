"""Where a model comes from, and what is in it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemcut.api.words import Where, path_of
from gemcut.convert import hub
from gemcut.convert.checkpoint import Checkpoint
from gemcut.convert.engine import open_model
from gemcut.convert.families import FAMILIES
from gemcut.convert.family import Family
from gemcut.convert.gguf_source import open_gguf
from gemcut.convert.hub_cache import Progress
from gemcut.convert.listing import Place
from gemcut.convert.model import Model, Reading
from gemcut.ggml import type_named
from gemcut.gguf_file import TensorInfo
from gemcut.gguf_parts import GGUFParts
from gemcut.inspection import Inspection, Origin, inspect
from gemcut.lattice import lattice_by_role
from gemcut.quantize.statistics import Statistics, is_imatrix, read_statistics

Source = Where | Model  # a checkpoint's folder, a Hub id, a GGUF; or one that is open


def open_source(
    source: Where,
    revision: str | None = None,
    offline: bool = False,
    scratch: Where | None = None,
    fetched: Progress | None = None,
    ignore: Sequence[str] = (),
    requantize: bool = False,
    nonfinite: bool = False,
    pre_tokenizer: str | None = None,
    restack: bool = False,
) -> Model:
    """A source's tensors and metadata, unread: a checkpoint's folder, a Hub id, or a GGUF.

    Args:
        scratch: fetch a Hub id's weights file by file into this folder, each to be removed when
            it is done, rather than all into the cache.
        fetched: told what is fetched, and bytes done and in all.
        ignore, requantize, nonfinite, pre_tokenizer, restack: see `convert.model.Reading`.

    Raises:
        CheckpointError, GGUFError: what the source lacks or what is wrong with it.
    """
    reading = Reading(ignore, requantize, nonfinite, pre_tokenizer, restack)
    if hub.is_repository(str(source)):
        place = Place(str(source), revision)
        checkpoint = Checkpoint(hub.open_repository(place, offline, path_of(scratch), fetched))
    elif is_gguf(source):
        return open_gguf(Path(source), reading)
    else:
        checkpoint = Checkpoint(Path(source))
    return open_model(checkpoint, reading)


def model_of(source: Source) -> Model:
    """A source that is open, as it is; else what `open_source` makes of it."""
    return source if isinstance(source, Model) else open_source(source)


def inspect_source(source: Where, **reading: Any) -> Inspection:
    """What is in a checkpoint or a GGUF; of a GGUF any architecture.

    Headers only, and a few rows of what is on this machine: of a Hub id no weights are fetched.

    Args:
        reading: as for `open_source`; of no meaning for a GGUF.

    Raises:
        CheckpointError, GGUFError: the source cannot be read.
    """
    lattice: dict[str, float] = {}
    if is_gguf(source):
        with GGUFParts(Path(source)) as file:
            origin = Origin("gguf", file.count, file.missing)
            stacks = file.stacks.values()
            found = inspect(origin, file.metadata, file.tensors, stacks=stacks)
            lattice = lattice_by_role(found.tensors, file.read)
            family = next((f.title for f in FAMILIES if f.name == found.architecture), None)
    else:
        model = open_source(source, **reading)
        family = model.family
        tensors = {tensor.name: tensor for tensor in model.tensors}
        infos = (TensorInfo(t.name, t.shape, type_named(t.source_type)) for t in model.tensors)
        found = inspect(Origin("checkpoint"), model.metadata, infos, model.notes)
        if not hub.is_repository(str(source)):
            lattice = lattice_by_role(found.tensors, lambda name, a, b: tensors[name].read(a, b))
    return replace(found, family=family, lattice=lattice)


def importance_in(source: Where) -> Statistics | None:
    """What an imatrix file holds; None: it is something else.

    Raises:
        GGUFError: it is damaged.
    """
    path = Path(source)
    return read_statistics(path) if path.is_file() and is_imatrix(path) else None


def families() -> tuple[Family, ...]:
    """The families of checkpoints that gemcut converts."""
    return FAMILIES


def is_gguf(source: Where) -> bool:
    """Whether a source is read as a GGUF: whatever is a file, or is called one."""
    return Path(source).suffix == ".gguf" or Path(source).is_file()
