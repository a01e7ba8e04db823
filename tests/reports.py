"""A report as `gemcut eval` makes it, of numbers that are made up but hang together."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from gemcut.eval.assemble import assemble, covering
from gemcut.eval.comparison import Anatomy, Comparison, Protocol, Report, Row
from gemcut.eval.files import File
from gemcut.eval.report.anatomy import bits
from gemcut.eval.routing.agreement import Agreement, LayerAgreement
from gemcut.eval.scoring.column import FLOOR, REFERENCE, Column
from gemcut.eval.statistics.intervals import Estimate
from gemcut.eval.tasks.result import TaskResult, TaskRow
from gemcut.eval.texts.chunks import Chunk, scored
from gemcut.eval.texts.diagnosis import Diagnosis
from gemcut.eval.texts.text import Text
from gemcut.runtime.speed.measured import MeasuredSpeed
from gemcut.score import Divergence, Scores

N_CTX, N_CHUNKS = 64, 40
DOMAINS = ("prose", "code")
# Of a 26B: size in GB, bits per weight, mean KL divergence.
FILES = {
    "gemma-4-26B-A4B-it-Q8_0.gguf": (26.8, 8.51, 0.0011),
    "gemma-4-26B-A4B-it-Q6_K.gguf": (22.8, 7.23, 0.0039),
    "gemma-4-26B-A4B-it-Q5_K_M.gguf": (19.1, 6.07, 0.0093),
    "gemma-4-26B-A4B-it-Q4_K_M.gguf": (16.8, 5.33, 0.0244),
    "gemma-4-26B-A4B-it-16GB.gguf": (15.9, 5.05, 0.0171),
    "gemma-4-26B-A4B-it-12GB.gguf": (11.9, 3.79, 0.066),
    "gemma-4-26B-A4B-it-IQ3_XS.gguf": (12.3, 3.9, 0.094),
}
PLANNED = {"16GB": 0.0139, "12GB": 0.081}
REFERENCE_FILE = "gemma-4-26B-A4B-it-BF16.gguf"
_N = N_CHUNKS * (N_CTX - 1 - N_CTX // 2)


def report(**changes) -> Report:
    """Seven files, a reference, its floor; every part of a report is there."""
    found = dict(
        comparisons=(comparison(),),
        files=tuple(_anatomy(name, i) for i, name in enumerate((REFERENCE_FILE, *FILES))),
        tasks=(task(),),
        diagnosis=Diagnosis("chat", {"raw": 19312.0, "bos": 18702.0, "chat": 18.2}, True, False),
        command=(
            "gemcut",
            "eval",
            "/models/a/Q4.gguf",
            "--reference=/models/BF16.gguf",
            "-c",
            "64",
        ),
        notes=("the reference is in BF16",),
    )
    return Report(**found | changes)


def small(names=("stock.gguf", "cut.gguf"), **changes) -> Report:
    """Two files, whatever they are called."""
    plain = ("x-Q4_K_M.gguf", "x-16GB.gguf")
    compared = comparison(
        {name: FILES[f"gemma-4-26B-A4B-it-{name[2:]}"] for name in plain}, caches=False
    )
    rows = [_renamed(row, dict(zip(plain, names, strict=True))) for row in compared.rows]
    pairs = enumerate(zip(plain, names, strict=True), 4)
    anatomies = [replace(_anatomy(old, i), name=new) for i, (old, new) in pairs]
    found = dict(comparisons=(replace(compared, rows=tuple(rows)),), files=tuple(anatomies))
    return report(**found | changes)


def _renamed(row: Row, names) -> Row:
    file = row.column.file
    file = replace(file, name=names.get(file.name, file.name))
    return replace(row, column=replace(row.column, file=file))


def comparison(files=FILES, n_ctx: int = N_CTX, caches=True) -> Comparison:
    """A reference, its floor, files and two caches, scored on made up tokens."""
    return _compared(tuple(files.items()), n_ctx, caches)


@cache
def _compared(pairs, n_ctx: int, caches: bool) -> Comparison:
    files = dict(pairs)
    random = np.random.default_rng(n_ctx)
    base = Scores(random.gamma(0.6, 4, _N), random.random(_N) < 0.55)
    reference = _column(REFERENCE_FILE, 50.5, 16.0, REFERENCE)
    floor = replace(reference, role=FLOOR, n_ubatch=128, flash_attention=False)
    candidates = {_column(name, size, bpw): kld for name, (size, bpw, kld) in files.items()}
    cached = {
        column.with_cache(kind, kind): candidates.get(column, 0) + extra
        for kind, extra in (("q8_0", 0.0021), ("q4_0", 0.024))
        for column in (reference, *list(candidates)[3:5])
        if caches
    }
    rows = [Row(reference, None, scores=base, prefill=212.0)]
    for column, kld in {floor: 6e-6, **candidates, **cached}.items():
        routing = None if column in cached else _agreement(kld**0.6, len(rows))
        scores = _scores(random, base, kld)
        rows.append(Row(column, None, scores=scores, prefill=210.0, routing=routing))
    chunks = [_chunk(random, i) for i in range(N_CHUNKS)]
    sizes = random.integers(90, 130, N_CHUNKS)
    return assemble(covering(protocol(n_ctx), chunks, sizes), chunks, sizes, rows)


def protocol(n_ctx: int = N_CTX) -> Protocol:
    """Two texts of two kinds."""
    pairs = enumerate(DOMAINS)
    texts = tuple(Text(f"{each}.txt", "", f"{i:064x}", 52_000, each) for i, each in pairs)
    return Protocol(n_ctx, "chat", 2, 8, "llama-cpp-python 0.3.36", texts)


def task() -> TaskResult:
    """Forty items, of which a file loses some."""
    random = np.random.default_rng(1)
    right = random.random(40) < 0.7
    rows = [TaskRow(REFERENCE_FILE, estimate(0.7, 0.14), right, right.astype(np.int32))]
    for i, name in enumerate(FILES):
        changed = random.random(40) < 0.02 * (i + 1)
        mine = right ^ changed
        lost, gained = int((right & ~mine).sum()), int((mine & ~right).sum())
        accuracy = estimate(float(mine.mean()), 0.14)
        row = TaskRow(name, accuracy, mine, mine.astype(np.int32), lost + gained, lost, gained, 0.2)
        rows.append(row)
    return TaskResult("hellaswag.txt", "hellaswag", "a" * 64, 40, tuple(rows))


def estimate(value: float, half: float) -> Estimate:
    """A value with half of its interval."""
    return Estimate(value, half / 2, value - half, value + half)


def _column(name: str, size: float, bpw: float, role: str = "candidate") -> Column:
    file = File(Path("/models") / name, name, int(size * 1e9), bpw, f"{hash_of(name):064x}")
    return Column(file, role)


def hash_of(name: str) -> int:
    """The same in every process."""
    return int.from_bytes(name.encode()[-16:], "big")


def _scores(random: np.random.Generator, base: Scores, kld: float) -> Scores:
    found = random.lognormal(np.log(kld) - 2, 2, _N)
    shift = random.normal(0.4 * kld, np.sqrt(kld) / 3, _N)
    top = random.random(_N) > min(0.5, 0.33 * kld**0.5)
    flipped = random.random(_N) < 0.1 * kld**0.5
    delta = -np.exp(-base.nll) * shift / 2
    divergence = Divergence(found, found * random.lognormal(0, 0.2, _N), delta, top)
    return Scores(np.maximum(base.nll + shift, 1e-4), base.correct ^ flipped, divergence)


def _agreement(differ: float, seed: int) -> Agreement:
    random = np.random.default_rng(seed)
    layers = []
    for block in range(30):
        part = min(0.6, differ * (1 + block / 15) * random.lognormal(0, 0.15))
        same, moved = (
            estimate(1 - 3 * part / (1 + 3 * part), 0.05 * part),
            estimate(part / 4, 0.01 * part),
        )
        layers.append(LayerAgreement(block, same, estimate(1 - part / 2, 0.02 * part), moved))
    middle = layers[15]
    return Agreement(_N, 8, 128, tuple(layers), middle.same, middle.overlap, middle.moved)


def _chunk(random: np.random.Generator, number: int) -> Chunk:
    tokens = random.integers(0, 999, N_CTX).astype(np.int32)
    return Chunk(tokens, scored(N_CTX), number % 2)


def _anatomy(name: str, number: int) -> Anatomy:
    label = name.removesuffix(".gguf").split("-")[-1]
    planned = label in PLANNED
    provenance = {
        "base model": "Gemma 4 26B A4B It",
        "base model's home": "https://huggingface.co/google/gemma-4-26B-A4B-it",
        "license": "apache-2.0",
    }
    decode = 9.0 + 3 * number
    return Anatomy(
        name,
        tuple(_types(label, number)),
        PLANNED.get(label),
        provenance | ({"plan": "size 15900000000" if planned else f"type {label}"}),
        MeasuredSpeed(420.0 + 5 * number, decode, 512, 64, 3, 8, 0, 9.0, 0.4),
        {"CUDA0": 10_400_000_000 - 400_000_000 * number, "CPU": 44_000_000_000 // (number + 1)},
    )


_STOCK = {
    "BF16": ("bf16",) * 6,
    "Q8_0": ("q8_0",) * 6,
    "Q6_K": ("q6_k",) * 6,
    "Q5_K_M": ("q5_k", "q6_k", "q5_k", "q5_k", "q5_k", "q6_k"),
    "Q4_K_M": ("q4_k", "q6_k", "q4_k", "q4_k", "q5_0", "q6_k"),
    "IQ3_XS": ("iq3_s", "iq3_s", "iq3_xxs", "iq3_xxs", "iq4_nl", "q6_k"),
}


def _types(label: str, seed: int):
    random = np.random.default_rng(seed)
    kinds = _STOCK.get(label)
    ladder = (
        ("iq3_s", "iq4_xs", "q4_k", "q5_k", "q6_k")
        if label == "12GB"
        else ("iq4_xs", "q4_k", "q5_k", "q6_k", "q8_0")
    )
    yield "token_embd.weight", kinds[5] if kinds else ladder[4], 600_000_000
    for block in range(30):
        for i, part in enumerate(
            ("attn_q", "attn_v", "ffn_gate", "ffn_gate_up_exps", "ffn_down_exps")
        ):
            up = kinds and kinds[i] != kinds[5] and (block < 4 or block > 25) and part == "ffn_gate"
            kind = (
                (kinds[5] if up else kinds[i])
                if kinds
                else ladder[
                    int(np.clip(random.normal(1.2 + (i < 3) * 1.6 + (block < 2), 0.7), 0, 4))
                ]
            )
            yield (
                f"blk.{block}.{part}.weight",
                kind,
                int(3_000_000 * bits(kind) * (1 + 9 * (i > 2))),
            )
        yield f"blk.{block}.attn_norm.weight", "f32", 11_264
        yield f"blk.{block}.ffn_gate_inp.weight", "f32", 1_441_792
    yield "output_norm.weight", "f32", 11_264
