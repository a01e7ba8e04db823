"""What the ledger says that a run takes, beside what llama.cpp itself says.

    PYTHONPATH=. python bench/ledger.py [--models gemma4-26b ...] [--files FILE ...]

Of models in the shapes of real ones, as metadata alone: llama.cpp plans their caches and compute
buffers without allocating a byte. Of the demo's model, and of files (those of bench/shaped.py), by
loading them: weights, and all that the host holds. The last lines say how far off the worst is.
"""

import argparse
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from common import Cell, Table, demo_file, record

from gemcut import api
from gemcut.engine import ContextOptions
from gemcut.llama import Context
from gemcut.runtime.memory.ledger import fixed
from gemcut.runtime.placement.given import Given
from gemcut.runtime.placement.held import predicted
from tests.weightless import load, metadata_for

CLAIM = "What the ledger says a run takes is what llama.cpp takes, before a weight is loaded."
COLUMNS = ("", "compared", "beyond the promise", "worst, relative", "worst, MiB")
NOTES = (
    "Contexts of five shapes (4k to 256k, F16, Q8_0, Q4_0, ubatch 256 to 4096), planned by "
    "llama.cpp without allocating a byte, and files that were loaded. Promised: weights and caches "
    "exactly, compute within 3 % or 32 MiB, all that the host holds within 5 %.",
)
MODELS = ("gemma4-26b", "gemma4-120b", "gpt-oss-120b", "qwen3-30b", "mixtral-8x7b")
CONTEXTS, UBATCHES = (4096, 32768, 131072, 262144), (256, 512, 1024, 2048, 4096)
KINDS = ("f16", "q8_0", "q4_0")
DEMO_TYPES = ("q4_0", "q4_k_m", "q8_0", "bf16")
_MIB = 1 << 20
_LOGGED = _MIB // 100  # the log rounds each buffer to it


@dataclass(frozen=True)
class Row:
    """One number that was predicted, in bytes, and what llama.cpp says."""

    model: str
    what: str
    options: str
    said: int
    found: int

    @property
    def off(self) -> float:
        """Relatively, above it if positive."""
        return self.said / self.found - 1 if self.found else 0.0

    @property
    def bad(self) -> bool:
        """Beyond what is promised: weights and caches are exact, the host is within 5 %, computing
        within 3 % or 32 MiB."""
        error = abs(self.said - self.found)
        if self.what == "compute":
            return error > max(0.03 * self.found, 32 * _MIB)
        return error > (0.05 * self.found if self.what == "host" else 3 * _LOGGED)

    def __str__(self) -> str:
        return (
            f"{self.model:16} {self.what:8} {self.options:32} predicted {self.said / _MIB:9.2f}, "
            f"llama.cpp {self.found / _MIB:9.2f} MiB ({100 * self.off:+.2f} %)"
            f"{' BAD' if self.bad else ''}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--files", nargs="+", type=Path, default=[])
    arguments, rows = parser.parse_args(), []
    files = [*map(demo_file, DEMO_TYPES), *arguments.files]
    for row in itertools.chain(_planned(arguments.models), _loaded(files)):
        rows.append(row)
        print(row, flush=True)
    summed: list[list[Cell]] = []
    for what in dict.fromkeys(row.what for row in rows):
        of_kind = [row for row in rows if row.what == what]
        worst = max(of_kind, key=lambda row: abs(row.off))
        bad = sum(row.bad for row in of_kind)
        print(f"{what}: {len(of_kind)} compared, {bad} beyond what is promised; the worst: {worst}")
        off = max(abs(row.said - row.found) for row in of_kind) / _MIB
        summed.append([what, len(of_kind), bad, f"{100 * worst.off:+.2f} %", f"{off:.2f}"])
    record("ledger", CLAIM, [Table("", COLUMNS, summed)], NOTES)


def _planned(models: list[str]) -> Iterator[Row]:
    with TemporaryDirectory() as folder:
        for name in models:
            metadata = metadata_for(name)
            with load(metadata, Path(folder) / "model.gguf") as model:
                for options in _contexts():
                    said = fixed(metadata, options)
                    with Context(model, options) as context:
                        memory = context.memory
                    words = f"{options.n_ctx} ub {options.n_ubatch} {options.type_k}"
                    words += f" x{options.n_seq}" * (options.n_seq > 1)
                    caches = sum(cache.bytes for cache in memory.caches)
                    yield Row(name, "caches", words, sum(said.caches), caches)
                    yield Row(name, "compute", words, said.compute, memory.compute["CPU"])


def _contexts() -> Iterator[ContextOptions]:
    for n_ctx, n_ubatch, kind in itertools.product(CONTEXTS, UBATCHES, KINDS):
        yield ContextOptions(n_ctx, n_ubatch=n_ubatch, type_k=kind, type_v=kind, n_outputs=1)
    yield ContextOptions(32768, n_seq=4, n_outputs=4, kv_unified=True)


def _loaded(files: Iterable[Path]) -> Iterator[Row]:
    """Of mapped files, without the CPU's own layout, of which the log tells twice."""
    for path in files:
        given = Given(n_ctx=2048, devices=(), repack=False, load_mode="mmap")
        with api.open_run(path, given) as run:
            said, found = predicted(run.placement)["cpu"], run.held["cpu"]
        for ours, what in (("weights",) * 2, ("caches", "kv"), ("compute",) * 2):
            yield Row(path.stem, ours, "2048", said[what], found[what])
        yield Row(path.stem, "host", "2048", sum(said.values()), sum(found.values()))


if __name__ == "__main__":
    main()
