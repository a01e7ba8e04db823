"""The demo: the whole way with a small Gemma 4 Mixture-of-Experts model that ships with gemcut.

A real, trained checkpoint is converted, cut to llama.cpp's types and to a size, run, and compared
on text that it has not seen: held-out modules of this Python's standard library.
"""

import shlex
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Protocol

from gemcut import api
from gemcut.convert.model import Model
from gemcut.demo.text import held_out_text
from gemcut.errors import OutputError
from gemcut.eval.compare import compare
from gemcut.eval.comparison import Report
from gemcut.eval.dissect import dissect
from gemcut.eval.scope import Means, Scope
from gemcut.eval.texts.text import Text
from gemcut.runtime.speed.measured import speed
from gemcut.sizes import format_size

BUDGET = 4_750_000  # bytes; less than the stock mixture's file
CHUNKS = 40  # of 512 tokens
_FLOOR, _ROUTED = 8, 4  # of them, for the noise floor and for routing
QUESTION = "What does the function dedent do?"
_ANSWER_TOKENS = 60

TARGETS: Mapping[str, api.Target] = {
    "demo-BF16.gguf": api.Target(type="bf16"),
    "demo-Q8_0.gguf": api.Target(type="q8_0"),
    "demo-Q4_K_M.gguf": api.Target(type="q4_k_m"),
    "demo-4.75MB.gguf": api.Target(size=BUDGET),
}
REFERENCE, CUT = "demo-BF16.gguf", "demo-4.75MB.gguf"


class Teller(Protocol):
    """Who tells the user how it goes."""

    def say(self, text: str) -> None:
        """A line of talk."""

    def bar(self, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """A progress bar that is told how much was just done."""

    def steps(self, label: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """A progress bar that is told (done, total)."""


@dataclass(frozen=True)
class Walk:
    """What the demo made and found."""

    folder: Path
    cut: Path  # the budgeted file
    report: Report
    question: str
    sample: str

    @property
    def next_steps(self) -> list[str]:
        """Commands to try, that work as they stand."""
        reference, text = self.folder / REFERENCE, self.folder / "held-out.txt"
        checkpoint = self.folder / "checkpoint"
        mine = self.folder / "mine.gguf"
        commands: list[list[str | Path]] = [
            ["run", self.cut],
            ["inspect", self.cut],
            ["quantize", checkpoint, "-o", mine, "--size", "4M"],
            ["eval", mine, "--reference", reference, "--text", text],
        ]
        return [shlex.join(["gemcut", *map(str, words)]) for words in commands]


def walk(folder: Path, teller: Teller, threads: int | None = None, chunks: int = CHUNKS) -> Walk:
    """Go the whole way; everything is written into `folder`.

    Raises:
        OutputError: the folder cannot be written.
    """
    folder = Path(folder)
    _unpack(folder)
    model = api.open_source(folder / "checkpoint")
    experts = model.metadata[f"{model.architecture}.expert_count"].data
    teller.say(
        f"a {model.architecture} checkpoint of {model.weights / 1e6:.1f} M weights, "
        f"{experts} experts a block, trained on this language's standard library"
    )
    for name, target in TARGETS.items():
        _cut(model, folder / name, target, teller, threads)
    text = Text.of("held-out standard library", held_out_text())
    paths = [folder / name for name in TARGETS if name != REFERENCE]
    with teller.steps("scoring all files on held-out text") as progress:
        means = Means(threads, progress=lambda what, done, total: progress(done, total))
        scope = Scope(floor=_FLOOR, routed=_ROUTED)
        comparison = compare(paths, folder / REFERENCE, [text], 512, chunks, scope, means)
    files = []
    with teller.steps("measuring speed") as progress:
        for done, name in enumerate(TARGETS, 1):
            measured = speed(folder / name, n_generate=32, threads=threads)
            files.append(replace(dissect(folder / name, name), speed=measured))
            progress(done, len(TARGETS))
    sample = _answer(folder / CUT, threads)
    report = Report((comparison,), tuple(files))
    return Walk(folder, folder / CUT, report, QUESTION, sample)


def _unpack(folder: Path) -> None:
    """Copy the checkpoint out of the package, so that the user has one to go on with."""
    try:
        (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
        with as_file(files("gemcut.demo") / "checkpoint") as source:
            for path in source.iterdir():
                _put(folder / "checkpoint" / path.name, path.read_bytes())
        (folder / "held-out.txt").write_text(held_out_text(), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}") from error


def _put(path: Path, data: bytes) -> None:
    """Write a file of the demo's, but never over somebody's."""
    if path.exists() and path.read_bytes() != data:
        raise OutputError(f"{path}: is not the demo's; name another --folder")
    path.write_bytes(data)


def _cut(model: Model, path: Path, target: api.Target, teller: Teller, threads: int | None) -> None:
    with teller.bar(path.name, model.weights) as progress:
        cut = api.quantize_model(model, path, target, threads=threads, progress=progress)
    why = f" (asked for at most {format_size(target.size)})" if target.size else ""
    teller.say(f"{path.name}: {format_size(cut.size)}, {cut.bpw:.2f} bits per weight{why}")


def _answer(path: Path, threads: int | None) -> str:
    with api.load(path, threads=threads, sampling={"temperature": 0.0}) as session:
        return session.chat(QUESTION, _ANSWER_TOKENS).text.strip()
