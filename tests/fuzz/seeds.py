"""Real files, each made once a run of the embedded model, or taken from what the tests record."""

import json
import os
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import gemcut
from gemcut import api
from gemcut.engine import ContextOptions
from gemcut.eval.report import record
from gemcut.eval.scoring import kld_file
from gemcut.gguf_file import GGUFFile, Value
from gemcut.gguf_writer import GGUFWriter
from gemcut.llama import Context, Model
from gemcut.llama.experts_library import library_file
from gemcut.quantize import choose
from gemcut.quantize.measure import Request, measure_model
from gemcut.quantize.statistics import Entry, Statistics, read_statistics, write_statistics
from gemcut.runtime.experts.build import build
from gemcut.runtime.machine.cards import named
from tests import families, per_expert, reports, vocabularies

FOLDER = Path("build/fuzz/seeds")
FIXTURES = Path(__file__).parent.parent / "fixtures"
CHECKPOINT = Path(gemcut.__file__).parent / "demo" / "checkpoint"
SHAPE = ContextOptions(n_ctx=64, n_batch=64, n_ubatch=64, threads=1)
_USERS = Path(os.environ.get("HOME", "/")) / ".cache"
_CHEAP = ("q4_0", "q2_k")


def made(name: str, make: Callable[[Path], object]) -> Path:
    """A file or folder that is made if it is not there; several processes may ask at a time."""
    path = FOLDER / name
    if not path.exists():
        partial = FOLDER / f"{os.getpid()}-{name}"
        FOLDER.mkdir(parents=True, exist_ok=True)
        make(partial)
        if not path.exists():
            partial.rename(path)
    return path


def read(*paths: Path) -> list[bytes]:
    """Their bytes."""
    return [path.read_bytes() for path in paths]


# --- models --------------------------------------------------------------------------------------


def q4_k_m() -> Path:
    """The embedded model, cut as most files are."""
    return made("q4_k_m.gguf", lambda path: _cut(path, "q4_k_m"))


def q8_0() -> Path:
    """Another one, with a plan in it."""
    return made("q8_0.gguf", lambda path: _cut(path, "q8_0"))


def mixtral() -> Path:
    """Of another architecture, with a vocabulary of another kind."""

    def make(path: Path) -> None:
        folder = made("mixtral", lambda folder: families.build(folder, "mixtral"))
        api.quantize_model(api.open_source(folder), path, api.Target("q4_0", fallback=True))

    return made("mixtral.gguf", make)


def per_expert_file() -> Path:
    """One whose experts have types of their own."""

    def make(path: Path) -> None:
        per_expert.write(path, q8_0(), lambda name, number: "q4_0" if number % 2 else "q8_0")

    return made("per-expert.gguf", make)


def split() -> list[Path]:
    """All parts of a split file."""

    def make(folder: Path) -> None:
        folder.mkdir()
        target = api.Target("q4_0", fallback=True)
        api.quantize_model(
            api.open_source(CHECKPOINT), folder / "m.gguf", target, split_size=2 << 20
        )

    return sorted(made("split", make).glob("*.gguf"))


def embedding() -> Path:
    """The embedded model, said to be made for vectors."""

    def make(path: Path) -> None:
        with GGUFFile(q8_0()) as file:
            metadata = {**file.metadata, "gemma4.pooling_type": Value("u32", 1)}
            with GGUFWriter(path, metadata, file.tensors.values()) as writer:
                for name in file.tensors:
                    writer.write(name, 0, file.rows(name))

    return made("embedding.gguf", make)


def _cut(path: Path, kind: str) -> None:
    api.quantize_model(api.open_source(CHECKPOINT), path, api.Target(kind))


def experts_library() -> None:
    """The library for types per expert in this process's cache; built if the user has none."""
    path = library_file()
    own = _USERS / path.relative_to(path.parents[2])
    path.parent.mkdir(parents=True, exist_ok=True)
    if own.is_file() and not path.exists():
        shutil.copy(own, path)
    build()


# --- what is measured ----------------------------------------------------------------------------


def imatrix() -> Path:
    """Importance of the embedded model, of made-up numbers."""

    def make(path: Path) -> None:
        random, entries = np.random.default_rng(1), {}
        for tensor in api.open_source(CHECKPOINT).tensors:
            if tensor.quantizable:
                sums = random.random((tensor.matrices, tensor.columns), np.float32)
                entries[tensor.name] = Entry(sums, np.full(tensor.matrices, 7, np.float32))
        write_statistics(path, Statistics(entries, ("a.txt",), 2, 512))

    return made("imatrix.gguf", make)


def legacy_imatrix() -> bytes:
    """The same in the older kind of file."""
    entries = list(read_statistics(imatrix()).entries.items())[:3]
    parts = [struct.pack("<i", len(entries))]
    for name, entry in entries:
        values = entry.sums.ravel()[:64]
        parts += [struct.pack("<i", len(name)), name.encode()]
        parts += [struct.pack("<ii", 3, values.size), values.astype("<f4").tobytes()]
    return b"".join([*parts, struct.pack("<ii", 3, 5), b"a.txt"])


def sensitivity() -> Path:
    """Measured, of a few types."""

    def make(path: Path) -> None:
        silent = (lambda done, total: None), (lambda line: None)
        measure_model(
            api.open_source(CHECKPOINT), path, None, Request(types=_CHEAP), 1, True, *silent
        )

    return made("sensitivity.json", make)


def plan() -> Path:
    """A plan of types."""
    planned = choose.plan_stock(api.open_source(CHECKPOINT), "q4_k_m", False)
    return made("plan.json", planned.write)


def machine() -> bytes:
    """A machine's profile."""
    return named("rtx-4090").to_json().encode()


# --- what is compared ----------------------------------------------------------------------------


def report() -> Path:
    """A folder with a comparison that was kept."""

    def make(folder: Path) -> None:
        folder.mkdir()
        record.write(reports.small(), folder)

    return made("report", make)


def kld() -> Path:
    """llama.cpp's file of log-probabilities."""

    def make(path: Path) -> None:
        random = np.random.default_rng(2)
        tokens = random.integers(0, 97, (2, 16)).astype(np.int32)
        with kld_file.writing(path, tokens, 97) as writer:
            for _ in tokens:
                writer.add(random.normal(size=(7, 97)).astype(np.float32))

    return made("base.kld", make)


def session(model: Model, path: Path) -> None:
    """A sequence's cache."""
    with Context(model, SHAPE) as context:
        tokens = [int(token) for token in model.tokenize("def f(x): return x")]
        context.decode(tokens, outputs="none")
        context.save(path, 0, tokens)


# --- vocabularies --------------------------------------------------------------------------------


def vocabulary(kind: str) -> Path:
    """A folder with a tokenizer, a config and no weights."""
    return made(f"vocabulary-{kind}", lambda folder: vocabularies.checkpoint(kind, folder))


def sentencepiece() -> Path:
    """One with a SentencePiece model in place of tokenizer.json."""

    def make(folder: Path) -> None:
        vocabularies.sentencepiece(vocabularies.checkpoint("llama-spm", folder))
        (folder / "tokenizer.json").unlink()

    return made("vocabulary-sentencepiece", make)


def in_json(*documents: object) -> Sequence[bytes]:
    """Documents as bytes."""
    return [json.dumps(document).encode() for document in documents]
