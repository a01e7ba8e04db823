"""How the cost of a command grows: the sizes it was measured at, exponents, and what follows."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from common import Cell, Table

NOISE = 0.1  # seconds, or this share of them, that two runs may differ by
COSTS = ("cpu", "memory", "disk")


@dataclass(frozen=True)
class Size:
    """A model and its use. files: shards of a checkpoint, or how many files are compared."""

    layers: int = 8
    experts: int = 16
    vocabulary: int = 1 << 14
    context: int = 512
    files: int = 1
    hidden: int = 512
    expert: int = 128
    dense: int = 512
    used: int = 4
    tokens: int = 2048  # that are run

    @property
    def weights(self) -> float:
        """In blocks and vocabulary, of a checkpoint in Gemma's shape."""
        attention = 16 * 256 * self.hidden * 3 if self.hidden > 1024 else 2048 * self.hidden
        mlp = 3 * self.hidden * (self.dense + self.experts * self.expert)
        return float(self.layers * (attention + mlp) + self.vocabulary * self.hidden)

    @property
    def active(self) -> float:
        """Weights of the blocks that a token meets."""
        meets = 4 * self.hidden * self.hidden + 3 * self.hidden * self.used * self.expert
        return float(self.layers * meets)


SMALL = Size()
LARGE = Size(12, 32, 1 << 16, 32768, 1, 2816, 704, 2112, 8)  # widths of 26B-A4B
TRUE = {
    "26B-A4B": replace(LARGE, layers=30, experts=128, vocabulary=1 << 18, files=24),
    "120B-A15B": Size(48, 128, 1 << 18, 32768, 24, 4096, 1536, 8192, 8),
}
Axes = dict[str, tuple[int, ...]]
BLOCKS = {"two blocks of 26B-A4B": replace(LARGE, layers=2, experts=128, context=512)}
TRIPLED, FOLD4 = (8, 24, 72), (1 << 14, 1 << 16, 1 << 18)
WEIGHTS: Axes = {"layers": TRIPLED, "experts": (16, 48, 144), "vocabulary": FOLD4}
HEADERS: Axes = {"layers": (6, 12, 24), "experts": (32, 64, 128), "vocabulary": FOLD4}
TEXT: Axes = {
    "layers": (8, 16, 32),
    "experts": (16, 32, 64),
    "vocabulary": (1 << 14, 1 << 15, 1 << 16),
    "context": (64, 256, 1024),
}
USE: Axes = {"context": (8192, 32768, 131072)}
SHARDS: Axes = {"files": (1, 8, 64)}
AXES: Mapping[str, Axes] = {
    "inspect": HEADERS | SHARDS,
    "convert": WEIGHTS | SHARDS,
    "quantize": WEIGHTS | SHARDS,
    "imatrix": TEXT,
    "measure": WEIGHTS,
    "plan": HEADERS | USE,
    "run": HEADERS | USE,
    "eval": TEXT | {"files": (1, 2, 4)},
}
WEIGHED = ("convert", "quantize", "measure")  # what reads weights of checkpoints


@dataclass(frozen=True)
class Point:
    """A command on a model: CPU seconds, bytes of peak memory, bytes left on the disk."""

    verb: str
    size: Size
    cpu: float
    memory: float
    disk: float


def base(verb: str) -> Size:
    """What the sizes of a command start from."""
    return LARGE if verb in ("inspect", "plan", "run") else SMALL


def true(verb: str) -> list[Size]:
    """The true shapes that a command is run on: whole, or two blocks with their weights."""
    known = BLOCKS if verb in WEIGHED else TRUE if base(verb) == LARGE else {}
    return [*known.values()]


def along(verb: str, axis: str) -> Iterator[Size]:
    """The sizes along one axis."""
    return (replace(base(verb), **{axis: value}) for value in AXES[verb][axis])


def features(verb: str, size: Size, cost: str) -> list[float]:
    """What a command's cost is made of, as far as it is linear in it."""
    if base(verb) == LARGE:
        return [1, size.layers, size.vocabulary, size.files]
    if verb in WEIGHED and cost == "memory":
        return [1, size.vocabulary]  # of tensors only some tiles are held
    if verb in WEIGHED:
        rows = size.layers * size.experts if verb == "measure" else size.weights
        return [1, rows, size.layers, size.vocabulary]
    if cost == "memory":
        return [1, size.weights, size.vocabulary]
    if cost == "disk":
        sums = size.layers * size.experts * (2 * size.hidden + size.expert)
        return [1, sums if verb == "imatrix" else size.files * size.tokens]
    run = size.tokens * (size.files + 1 if verb == "eval" else 1)
    output = size.vocabulary * size.hidden
    return [1, run * size.active, run * output, size.weights * (size.files + 1), size.vocabulary]


def growth(known: Sequence[Point]) -> Table:
    """Every command along every axis, with exponents."""
    found = {(point.verb, point.size): point for point in known}
    rows: list[list[Cell]] = []
    for verb, axes in AXES.items():
        for axis, values in axes.items():
            points = [found[verb, size] for size in along(verb, axis) if (verb, size) in found]
            if len(points) == len(values):
                cpu = [point.cpu for point in points]
                sizes = ", ".join(f"{value:,}".replace(",", " ") for value in values)
                costs = [[point.memory / 1e6 for point in points], [p.disk / 1e6 for p in points]]
                lists = [", ".join(f"{each:.{d}f}" for each in one) for one, d in ((cpu, 2),)]
                lists += [", ".join(f"{each:,.3g}" for each in one) for one in costs]
                rows.append([verb, axis, sizes, lists[0], exponent(values, cpu), *lists[1:]])
    columns = ("command", "grows", "sizes", "CPU s", "exponent", "peak memory MB", "disk MB")
    return Table("Cost along each axis", columns, rows)


def exponent(values: Sequence[int], costs: Sequence[float]) -> Cell:
    """Of the growth beside the fixed cost, or nothing where it is lost in noise."""
    first, second = costs[1] - costs[0], costs[2] - costs[1]
    factor = values[1] / values[0]
    if second < NOISE * max(1, costs[2]):
        return "none"
    if first < NOISE * max(1, costs[1]):
        return "not clear"
    return f"{math.log(second / first, factor):.2f}"


def extrapolated(known: Sequence[Point]) -> Table:
    """What the true shapes would take, beside what they took where they were run."""
    rows: list[list[Cell]] = []
    for verb in AXES:
        shapes = *TRUE.values(), *BLOCKS.values()
        own = [point for point in known if point.verb == verb and point.size not in shapes]
        for name, size in (TRUE | (BLOCKS if verb in WEIGHED else {})).items():
            if own:
                real = [p for p in known if (p.verb, p.size) == (verb, size)]
                told = [predicted(verb, own, size, cost) for cost in COSTS]
                seen = [real[0].cpu, real[0].memory / 1e6] if real else [None, None]
                rows.append([verb, name, told[0], seen[0], told[1] / 1e6, seen[1], told[2] / 1e9])
    columns = "command, model, CPU s, measured, peak memory MB, measured, disk GB".split(", ")
    return Table("A line through all points, at the true shapes", columns, rows)


def predicted(verb: str, points: Sequence[Point], size: Size, cost: str) -> float:
    """By least relative squares, no part of the cost being negative."""
    if not any(getattr(point, cost) for point in points):
        return 0.0
    kept = list(range(len(features(verb, size, cost))))
    found = np.array([max(getattr(point, cost), 1e-3) for point in points])
    matrix = np.array([features(verb, point.size, cost) for point in points])
    while True:
        scale = matrix[:, kept].max(axis=0)
        lines = matrix[:, kept] / scale / found[:, None]
        factors = np.linalg.lstsq(lines, np.ones(len(found)), rcond=None)[0]
        if factors.min() >= 0 or len(kept) == 1:
            at = np.array(features(verb, size, cost))[kept]
            return float(at / scale @ factors)
        kept.pop(int(factors.argmin()))
