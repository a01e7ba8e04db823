"""The models that the choice of types is measured on, and what is measured once of each.

The demo's model, and those of bench/train.py that have been trained here. Importance and probes are
measured on text of the kind that is evaluated, as users have it: modules of the standard library,
one half of them for each, and none of those that no model has seen in training, which are for
evaluation. Or on the built-in text, which is for those who have none; that keeps the uses apart,
too.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

from common import CHECKPOINT, FOLDER

from gemcut import api
from gemcut.convert.model import Model
from gemcut.demo.text import training_sources
from gemcut.eval.texts.text import Text
from gemcut.quantize.importance import Importance
from gemcut.quantize.measure import Request
from gemcut.quantize.statistics import Statistics, read_statistics
from gemcut.sensitivity import Sensitivity

HOME = FOLDER / "quality"
SIZE = 400_000  # characters of a text to measure on
IMPORTANCE_CHUNKS = 100
PARTS = 15  # that an evaluation text is taken from


@dataclass(frozen=True)
class Subject:
    """A checkpoint, and what belongs to it in build/bench."""

    name: str
    checkpoint: Path
    threads: int
    probe_chunks: int
    built_in: bool = False  # measured on the built-in text

    def texts(self, use: str) -> list[Path]:
        """What is read to measure importance or to probe; none: the built-in text."""
        return [] if self.built_in else [modules(use)]

    @cached_property
    def model(self) -> Model:
        """The checkpoint, unread."""
        return api.open_source(self.checkpoint)

    def path(self, name: str) -> Path:
        """A file of this model's own."""
        folder = HOME / (self.name + "-built-in" * self.built_in)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    def gguf(self, kind: str) -> Path:
        """The model in one type."""

        def make(path: Path) -> None:
            api.quantize_model(self.model, path, api.Target(kind), threads=self.threads)

        return self.made(f"{kind}.gguf", make)

    @property
    def imatrix(self) -> Path:
        """Importance of columns and experts."""

        def make(path: Path) -> None:
            source, texts = self.gguf("bf16"), self.texts("importance")
            chunks, threads = IMPORTANCE_CHUNKS, self.threads
            api.collect_importance(source, texts, path, chunks=chunks, threads=threads)

        return self.made("imatrix.gguf", make)

    @cached_property
    def statistics(self) -> Statistics:
        """What the importance is made from."""
        return read_statistics(self.imatrix)

    @cached_property
    def importance(self) -> Importance:
        """The importance of all columns, as files are written with it."""
        found = api.load_importance(self.imatrix, self.model)
        assert found is not None
        return found

    @cached_property
    def errors(self) -> Sensitivity:
        """Measured errors of tensors; what they cost is a prior."""
        return self._sensitivity("errors.json", None)

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """Measured errors of tensors, and what they cost the Q8_0 file."""
        probing = api.probing(self.gguf("q8_0"), self.texts("probes"), self.probe_chunks)
        return self._sensitivity(f"sensitivity-{self.probe_chunks}.json", Request(probing=probing))

    def _sensitivity(self, name: str, request: Request | None) -> Sensitivity:
        def make(path: Path) -> None:
            api.measure_sensitivity(self.model, path, self.imatrix, request, self.threads)

        return Sensitivity.read(self.made(name, make))

    def made(self, name: str, make: Callable[[Path], None]) -> Path:
        """A file that is made once, and again when the checkpoint is a newer one."""
        path, source = self.path(name), self.checkpoint / "model.safetensors"
        if not path.exists() or path.stat().st_mtime < source.stat().st_mtime:
            path.unlink(missing_ok=True)
            make(path)
        return path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which models, and how they are measured."""
    parser.add_argument("--models", nargs="+", default=[], help="the demo and tiny-*, if not given")
    parser.add_argument("--probe-chunks", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)


def subjects(
    names: list[str], threads: int, probe_chunks: int, built_in: bool = False
) -> Iterator[Subject]:
    """The demo's model and the trained ones, or those of them that are named."""
    trained = {path.name: path for path in sorted(FOLDER.glob("tiny-*"))}
    known = {"demo": CHECKPOINT} | trained
    for name in names or known:
        if name not in known:
            raise SystemExit(f"no model {name}; there are {', '.join(known)} (see bench/train.py)")
        yield Subject(name, known[name], threads, probe_chunks, built_in)


def modules(use: str) -> Path:
    """A text file of training modules; "importance" has others than "probes"."""
    sources = list(training_sources())
    Random(0).shuffle(sources)
    own = sources[("importance", "probes").index(use) :: 2]
    path = HOME / f"{use}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(own)[:SIZE], encoding="utf-8")
    return path


def spread(name: str, content: str) -> list[Text]:
    """Parts from all over a text: its first pages alone would be all about one thing."""
    length = len(content) // PARTS
    return [
        Text.of(f"{name}, part {number + 1}", content[number * length : (number + 1) * length])
        for number in range(PARTS)
    ]
