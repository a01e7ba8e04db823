"""Targets that are models, importance and results: binary files, and JSON beside them."""

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from gemcut import api, ggml
from gemcut.convert import torch_file
from gemcut.convert.checkpoint import Checkpoint
from gemcut.eval.files import select
from gemcut.eval.join import join
from gemcut.eval.report import record
from gemcut.eval.report.card import card
from gemcut.eval.report.sheet import sheet
from gemcut.eval.scoring.kld_file import KldFile, KldReference
from gemcut.gguf_parts import GGUFParts
from gemcut.quantize.importance import importance_for
from gemcut.quantize.statistics import merged, read_statistics
from tests import vocabularies
from tests.fuzz import seeds
from tests.fuzz.archives import ARCHIVE, SAFETENSORS
from tests.fuzz.headers import GGUF
from tests.fuzz.mutate import BYTES, JSON
from tests.fuzz.target import Run, Target, on_bytes, on_file

# --- checkpoints ---------------------------------------------------------------------------------


def _checkpoint(damaged: str, of: Callable[[], Path] = lambda: seeds.CHECKPOINT) -> Target:
    """A whole checkpoint in which one file is damaged; its headers and some rows are read."""

    def begin(folder: Path) -> Run:
        shutil.copytree(of(), folder / "model")

        def run(data: bytes) -> None:
            (folder / "model" / damaged).write_bytes(data)
            model = api.open_source(folder / "model")
            {key: value.data for key, value in model.metadata.items()}
            for tensor in model.tensors[:3]:
                tensor.read(0, 1)

        return run

    mutators = SAFETENSORS if damaged.endswith(".safetensors") else JSON
    return Target(damaged, lambda: seeds.read(of() / damaged), mutators, begin)


def _vocabulary(name: str, damaged: str, kind: str) -> Target:
    """A tokenizer's file, read as a family reads it."""

    def folder_of() -> Path:
        return seeds.sentencepiece() if damaged == "tokenizer.model" else seeds.vocabulary(kind)

    def begin(folder: Path) -> Run:
        shutil.copytree(folder_of(), folder / "model")

        def run(data: bytes) -> None:
            (folder / "model" / damaged).write_bytes(data)
            vocabularies.read(kind, folder / "model")

        return run

    mutators = BYTES if damaged == "tokenizer.model" else JSON
    return Target(name, lambda: seeds.read(folder_of() / damaged), mutators, begin)


def _index(folder: Path) -> Run:
    """An index of shards, of which one is there."""
    shutil.copytree(seeds.CHECKPOINT, folder / "model")
    weights = folder / "model" / "model.safetensors"
    weights.rename(weights.with_name("model-00001-of-00001.safetensors"))

    def run(data: bytes) -> None:
        (folder / "model" / "model.safetensors.index.json").write_bytes(data)
        Checkpoint(folder / "model")

    return run


def _index_seeds() -> list[bytes]:
    header = seeds.read(seeds.CHECKPOINT / "model.safetensors")[0]
    names = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    names.pop("__metadata__", None)
    placed = dict.fromkeys(names, "model-00001-of-00001.safetensors")
    return [*seeds.in_json({"metadata": {"total_size": 1}, "weight_map": placed})]


def _torch(data: bytes) -> None:
    torch_file.read(lambda count, at: data[at : at + count], "x.bin", len(data))


# --- GGUF ----------------------------------------------------------------------------------------


def _gguf(path: Path) -> None:
    """As `inspect`, `convert` and `eval` see it, before llama.cpp does."""
    api.inspect_source(path).to_dict(tensors=True)
    select([path], None)
    with GGUFParts(path) as parts:
        for info in parts.tensors[:5]:
            if info.type in ggml.types().values():
                parts.read(info.name, 0, 1)
    model = api.open_source(path, requantize=True)
    for tensor in model.tensors[:3]:
        tensor.read(0, 1)


def _part(folder: Path) -> Run:
    """The second part of a split file."""
    for path in seeds.split():
        shutil.copy(path, folder / path.name)
    name = seeds.split()[1].name

    def run(data: bytes) -> None:
        (folder / name).write_bytes(data)
        _gguf(folder / seeds.split()[0].name)

    return run


def _imatrix(path: Path) -> None:
    statistics = read_statistics(path)
    merged([statistics, statistics])
    importance_for(statistics, api.open_source(seeds.CHECKPOINT).tensors)


# --- results -------------------------------------------------------------------------------------


def _kld(path: Path) -> None:
    file = KldFile.read(path)
    reference = KldReference(file, 1)
    for number in range(min(2, len(reference.chunks))):
        file.log_probabilities(number)


def _report(folder: Path) -> Run:
    """The record of a comparison, whose scores are as they were; then joined and written out."""
    shutil.copytree(seeds.report(), folder / "kept")

    def run(data: bytes) -> None:
        (folder / "kept" / record.RECORD).write_bytes(data)
        _shown(folder / "kept")

    return run


def _scores(folder: Path) -> Run:
    """The scores of a comparison, whose record has their digest."""
    shutil.copytree(seeds.report(), folder / "kept")
    document = json.loads((folder / "kept" / record.RECORD).read_text())

    def run(data: bytes) -> None:
        (folder / "kept" / record.SCORES).write_bytes(data)
        text = json.dumps(document | {"scores_sha256": sha256(data).hexdigest()})
        (folder / "kept" / record.RECORD).write_text(text)
        _shown(folder / "kept")

    return run


def _shown(folder: Path) -> None:
    found = record.read(folder)
    joined = join([found, found])
    record.to_dict(joined)
    card(joined)
    sheet(joined)


TARGETS = (
    _checkpoint("model.safetensors"),
    _checkpoint("config.json"),
    _checkpoint("tokenizer.json"),
    _checkpoint("tokenizer_config.json"),
    _checkpoint("generation_config.json"),
    Target("index.json", _index_seeds, JSON, _index),
    _vocabulary("byte-level", "tokenizer.json", "llama4"),
    _vocabulary("merges", "tokenizer.json", "llama-spm"),
    _vocabulary("sentencepiece", "tokenizer.model", "llama-spm"),
    Target("torch", lambda: seeds.read(seeds.FIXTURES / "dtypes.bin"), ARCHIVE, on_bytes(_torch)),
    Target(
        "gguf", lambda: seeds.read(seeds.mixtral(), seeds.q8_0()), GGUF, on_file("x.gguf", _gguf)
    ),
    Target(
        "gguf-per-expert",
        lambda: seeds.read(seeds.per_expert_file()),
        GGUF,
        on_file("x.gguf", _gguf),
    ),
    Target("gguf-part", lambda: seeds.read(seeds.split()[1]), GGUF, _part),
    Target("imatrix", lambda: seeds.read(seeds.imatrix()), GGUF, on_file("x.gguf", _imatrix)),
    Target(
        "imatrix-dat", lambda: [seeds.legacy_imatrix()], BYTES, on_file("x.dat", read_statistics)
    ),
    Target("kld", lambda: seeds.read(seeds.kld()), BYTES, on_file("x.kld", _kld)),
    Target("report", lambda: seeds.read(seeds.report() / record.RECORD), JSON, _report),
    Target("scores", lambda: seeds.read(seeds.report() / record.SCORES), ARCHIVE, _scores),
)
