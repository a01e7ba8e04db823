"""Placement on cards: where a file's tensors go for reading, and the bytes that each place has.

Imported where there are cards only: what plans for them takes long to import.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from gemcut.engine import ContextOptions, ModelOptions
from gemcut.eval.scoring.fitting import Demand
from gemcut.gguf_parts import GGUFParts
from gemcut.profile import HOST, Profile
from gemcut.runtime.machine.profiles import card_names, this_machine
from gemcut.runtime.memory.ledger import CARD_MARGIN
from gemcut.runtime.placement.given import Given
from gemcut.runtime.placement.placement import Placement, plan_run
from gemcut.runtime.placement.workload import Workload

_READING = Workload("scoring", 512, 1)  # what placement minimises the time of
_NOT_OURS = ("reserve", "margin", "free")  # of a ledger's page
_TENSORS = "weights"  # how the lines begin that count them


class Cards:
    """The cards of a machine. Its methods raise what `plan_run` does.

    Args:
        profile: of the machine; None: of this one, measured where it was not before.
    """

    def __init__(self, threads: int | None = None, profile: Profile | None = None) -> None:
        self._profile = profile or this_machine(threads)

    @property
    def rooms(self) -> dict[str, int]:
        """Bytes of each card that files and contexts may take."""
        return {card.name: card.room - CARD_MARGIN for card in self._profile.cards}

    def options(self, path: Path, context: ContextOptions) -> ModelOptions:
        """How a file is loaded to be read fastest, if it has the machine to itself."""
        return self._plan(path, self._given(context)).model

    def demand(self, path: Path, context: ContextOptions, options: ModelOptions) -> Demand:
        """What a file takes that is loaded in some way."""
        fixed = replace(
            self._given(context),
            gpu_layers=options.gpu_layers,
            overrides=options.overrides,
            tensor_split=options.tensor_split,
            split_mode=options.split_mode,
            devices=self._names if options.devices is None else options.devices,
            rpc=options.rpc,
            load_mode=options.load_mode,
            repack=options.repack,
            no_host=options.no_host,
        )
        return _demand(self._plan(path, fixed).ledger)

    def _plan(self, path: Path, given: Given) -> Placement:
        with GGUFParts(path) as file:
            return plan_run(file, self._profile, given, _READING)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(card_names())[: len(self._profile.cards)]

    def _given(self, context: ContextOptions) -> Given:
        return Given(
            n_ctx=context.n_ctx,
            n_ubatch=context.n_ubatch,
            type_k=context.type_k,
            type_v=context.type_v,
            threads=context.threads,
            flash_attention=context.flash_attention,
            n_outputs=context.n_outputs,
            devices=self._names,
        )


def _demand(ledger: Mapping[str, Mapping[str, int]]) -> Demand:
    pages = {
        place: {what: size for what, size in page.items() if what not in _NOT_OURS}
        for place, page in ledger.items()
    }
    tensors = {
        place: sum(size for what, size in page.items() if what.startswith(_TENSORS))
        for place, page in pages.items()
    }
    context = {place: sum(page.values()) - tensors[place] for place, page in pages.items()}
    return Demand(tensors, context, pages[HOST].get("outputs", 0))
