"""The file that a model is measured on: the source itself if it can be, else a temporary Q8_0.

Importance can be collected with weights that stay on the disk, slowly. To probe, they have to be in
memory, where they are changed.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from gemcut.api.cutting import Target, make_plan, planned_size, quantize_model
from gemcut.convert.model import Model
from gemcut.engine import ModelOptions
from gemcut.errors import EngineError, OutputError
from gemcut.gguf_file import MAGIC
from gemcut.llama.experts import is_marked
from gemcut.plan import Plan
from gemcut.positions import allocated
from gemcut.quantize.artefacts import Artefacts
from gemcut.quantize.identity import VERSION, model_key
from gemcut.quantize.probe import Sample, check_memory
from gemcut.quantize.swapping import check_types
from gemcut.quantize.writer import Tell
from gemcut.runtime.machine.inspection import inspect_machine
from gemcut.sizes import format_size

StageProgress = Callable[[str, int, int], None]  # told (what is being made, done, in all)

NAME = "q8_0.gguf"
_TYPE = "q8_0"


class Base:
    """The Q8_0 in a folder of artefacts, or the source in its place."""

    def __init__(
        self,
        model: Model,
        artefacts: Artefacts,
        options: ModelOptions | None = None,
        threads: int = 1,
    ) -> None:
        """Nothing is made yet."""
        self._model, self._artefacts = model, artefacts
        self._options, self._threads = options or ModelOptions(), threads
        self._key = {"version": VERSION, "source": model_key(model)}

    @cached_property
    def _own(self) -> Path | None:
        """The source, if it is a GGUF that can be probed, or one that is no larger than Q8_0."""
        path = source_gguf(self._model)
        narrow = all(t.kept or t.source_type == _TYPE for t in self._model.tensors if t.quantizable)
        return path if path and (narrow or not self._refusal(self._model)) else None

    @cached_property
    def _plan(self) -> Plan:
        return make_plan(self._model, Target(_TYPE))

    @cached_property
    def refusal(self) -> str | None:
        """Why the file cannot be probed, wherever it lies; None: it can."""
        if self._own:
            return self._refusal(self._model)
        types = {name: entry.type for name, entry in self._plan.tensors.items()}
        tensors = (replace(t, source_type=types[t.name]) for t in self._model.tensors)
        return self._refusal(replace(self._model, tensors=tuple(tensors)))

    def _refusal(self, base: Model) -> str | None:
        try:
            check_types(base)
            check_memory(base, Sample(), self._options, self._threads)
        except EngineError as error:
            return str(error)
        return None

    @property
    def path(self) -> Path:
        """Where the file is, or will be."""
        return self._own or self._artefacts.path(NAME)

    @property
    def kept(self) -> Path | None:
        """The temporary file, if it is there and of this source."""
        outdated = self._artefacts.outdated(NAME, self._key)
        return None if outdated else self._artefacts.path(NAME)

    @property
    def is_there(self) -> bool:
        """Whether nothing has to be made."""
        return bool(self._own or self.kept)

    def made(
        self,
        room: int = 0,
        restart: bool = False,
        progress: Callable[[int, int], None] | None = None,
        tell: Tell | None = None,
    ) -> Path:
        """The file, made if it is not there.

        Args:
            room: bytes of the disk that it has to leave.
            restart: throw away what was interrupted.
            progress: told weights done, and in all.

        Raises:
            OutputError: the disk is too small, or the file cannot be written.
            CheckpointError: the source cannot be fetched or read.
        """
        if self.is_there:
            return self.path
        size = planned_size(self._model, self._plan)
        self._check_disk(size, room)
        if tell:
            tell(f"{NAME}: {format_size(size)} for measuring, removed when all is done")
        quantize_model(
            self._model,
            self.path,
            Target(plan=self._plan),
            threads=self._threads,
            progress=counted(progress, self._model.weights),
            restart=restart,
            tell=tell,
        )
        self._artefacts.keep(NAME, self._key)
        return self.path

    def _check_disk(self, size: int, room: int) -> None:
        """Raise OutputError if the file and what is to come after it do not fit on the disk."""
        partial = self.path.with_name(f".{NAME}.partial")
        reserved = allocated(partial.stat()) if partial.exists() else 0
        free = shutil.disk_usage(self._artefacts.folder).free + reserved
        if free < size + room:
            after = f" and {format_size(room)} for the result" if room else ""
            raise OutputError(
                f"{self.path}: measuring takes {format_size(size)} of the disk{after}, "
                f"{format_size(free)} are free: make room, or plan without measuring"
            )


def remove_base(folder: Path) -> None:
    """Delete the temporary file in a folder of artefacts, if there is one."""
    (folder / NAME).unlink(missing_ok=True)


def counted(progress: Callable[[int, int], None] | None, total: int) -> Callable[[int], None]:
    """Progress that is told how much was just done, from progress that is told of all of it."""
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        if progress:
            progress(done, total)

    return advance


def finest(model: Model, beside: int) -> str:
    """The type of a reference that is made for the time being: BF16 if that and the largest file
    beside it, of so many bytes, fit into memory; else Q8_0."""
    memory = inspect_machine().ram_available
    size = planned_size(model, make_plan(model, Target("bf16")))
    return "bf16" if memory is None or size + beside <= memory else _TYPE


def source_gguf(model: Model) -> Path | None:
    """The source, if it is a GGUF of stacks; of a split one its first part."""
    first = min(model.files, default=None)
    if first is None or not all(map(_is_gguf, model.files)):
        return None
    return None if is_marked(first) else first


def _is_gguf(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC
