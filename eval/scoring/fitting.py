"""Which files are in memory together, and where their tensors go: by what they will take."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gemcut.engine import ContextOptions, ModelOptions
from gemcut.errors import BudgetError, EngineError, GGUFError, PlanError
from gemcut.eval.scoring.column import Column
from gemcut.gguf_parts import GGUFParts
from gemcut.llama import devices, probe
from gemcut.profile import HOST
from gemcut.runtime.machine.inspection import inspect_machine
from gemcut.runtime.memory.ledger import HOST_MARGIN
from gemcut.runtime.placement.contents import contents_of
from gemcut.runtime.placement.needs import Needs
from gemcut.runtime.placement.workload import CHAT

if TYPE_CHECKING:
    from gemcut.eval.scoring.cards import Cards


@dataclass(frozen=True)
class Demand:
    """Bytes by place: of a file's tensors, which its columns share, and of one column's context.

    logits: bytes of one chunk's logits, which are in `context`, too.
    """

    tensors: Mapping[str, int]
    context: Mapping[str, int]
    logits: int


@dataclass(frozen=True)
class Fitting:
    """What has to fit: contexts of n_ctx tokens, of which n_outputs have logits.

    memory: bytes that may be taken on the host; None: what is available.
    """

    n_ctx: int
    n_outputs: int
    options: Mapping[Path, ModelOptions]
    threads: int | None = None
    memory: int | None = None

    def together(self, columns: Sequence[Column], stored: bool) -> int:
        """How many of the first columns fit into memory together, at least 1.

        Args:
            stored: whether the logits of what they are compared with come from a file, so that one
                chunk of these is in memory beside.

        Of a file that is not what it should be its size is counted: loading it tells.
        """
        if len(columns) == 1:
            return 1
        cards = _cards(self.threads)
        rooms, taken, loaded = self._rooms(cards), Counter[str](), set[Path]()
        for count, column in enumerate(columns):
            demand = self._demand(column, cards)
            taken.update(demand.context)
            if stored and not count:
                taken[HOST] += demand.logits
            if column.file.path not in loaded:
                taken.update(demand.tensors)
                loaded.add(column.file.path)
            if count and any(size > rooms.get(place, 0) for place, size in taken.items()):
                return count
        return len(columns)

    def _rooms(self, cards: "Cards | None") -> dict[str, int]:
        machine = inspect_machine()
        available = machine.ram_total if machine.ram_available is None else machine.ram_available
        host = available - HOST_MARGIN if self.memory is None else self.memory
        return {HOST: host} | (cards.rooms if cards else {})

    def _demand(self, column: Column, cards: "Cards | None") -> Demand:
        path = column.file.path
        context = column.context(self.n_ctx, self.n_outputs, self.threads)
        options = self.options.get(path, ModelOptions())
        try:
            if cards and options.devices != ():
                return cards.demand(path, context, options)
            return _on_host(path, context)
        except (BudgetError, EngineError, GGUFError, PlanError):
            return Demand({HOST: column.file.size}, {}, 0)


def placed(
    columns: Sequence[Column], n_ctx: int = 512, n_outputs: int = 1, threads: int | None = None
) -> dict[Path, ModelOptions]:
    """How each file is loaded: as is fastest for reading, or without cards where it does not fit.

    Args:
        n_ctx: tokens of a chunk, of which n_outputs have logits.

    Raises:
        GGUFError, PlanError: a file is not what it should be.
        EngineError: llama.cpp is missing, or refuses one.
    """
    cards = _cards(threads)
    first = {column.file.path: column for column in reversed(columns)}
    if cards is None:
        return dict.fromkeys(first, ModelOptions())
    found = dict.fromkeys(first, ModelOptions(devices=()))
    for path, column in first.items():
        with suppress(BudgetError):
            found[path] = cards.options(path, column.context(n_ctx, n_outputs, threads))
    return found


def _cards(threads: int | None) -> "Cards | None":
    """The machine's cards: without them there is nothing to place, or to measure."""
    if all(device.kind not in ("gpu", "igpu") for device in devices()):
        return None
    from gemcut.eval.scoring.cards import Cards

    return Cards(threads)


def _on_host(path: Path, context: ContextOptions) -> Demand:
    with GGUFParts(path) as file:
        contents = contents_of(file)
        fixed = Needs(contents, CHAT, partial(probe, path))(context)
    tensors = sum(tensor.size for tensor in contents.tensors)
    rest = sum(fixed.caches) + fixed.compute + fixed.outputs
    return Demand({HOST: tensors}, {HOST: rest}, fixed.outputs)
