"""Placement: where a finished file's tensors go on a machine, and how its context is made.

The program that chooses types for new files chooses here, too, with one option a tensor: the type
that it has. It minimises the time of a typical request within the memory of every place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from gemcut.engine import ContextOptions, ModelOptions
from gemcut.errors import UsageError
from gemcut.gguf_file import GGUFFile
from gemcut.gguf_parts import GGUFParts
from gemcut.profile import Profile
from gemcut.runtime.placement.candidates import Loading
from gemcut.runtime.placement.choosing import Choice, Chooser
from gemcut.runtime.placement.contents import Contents, contents_of
from gemcut.runtime.placement.fitting import Fitter
from gemcut.runtime.placement.freedom import Freedom, freedom
from gemcut.runtime.placement.given import UNSAID, Given
from gemcut.runtime.placement.layout import NOTHING, layout
from gemcut.runtime.placement.needs import Needs, Probe
from gemcut.runtime.placement.workload import CHAT, Workload
from gemcut.runtime.speed.throughput import Speed


@dataclass(frozen=True)
class Placement:
    """A planned run: what llama.cpp is told, and what comes of it as far as can be known before."""

    model: ModelOptions
    context: ContextOptions
    workload: Workload
    profile: Profile
    places: Mapping[str, str] = field(repr=False)  # tensor -> "cpu", "gpu0", ...
    ledger: Mapping[str, Mapping[str, int]]  # place -> what -> bytes, "free" among them
    prefill: Speed
    decode: Speed
    origin: str  # "planned", "the file's plan", "given"
    notes: tuple[str, ...] = ()  # what was reduced, and what may surprise

    @property
    def seconds(self) -> float:
        """Predicted seconds of one request of the workload."""
        reading = self.workload.prompt * self.prefill.seconds
        return reading + self.workload.answer * self.decode.seconds

    @property
    def loading(self) -> Loading:
        """How weights lie on the host."""
        model = self.model
        return Loading(model.load_mode, model.repack, model.no_host, self.context.op_offload)

    def to_dict(self) -> dict[str, Any]:
        """The placement as JSON knows it; tokens/s beside the seconds of a token."""
        return {
            "model": asdict(self.model),
            "context": asdict(self.context),
            "workload": asdict(self.workload),
            "machine": self.profile.to_dict(),
            "places": dict(self.places),
            "ledger": {place: dict(page) for place, page in self.ledger.items()},
            "predicted": {
                "prefill": _speed(self.prefill),
                "decode": _speed(self.decode),
                "request_seconds": self.seconds,
            },
            "origin": self.origin,
            "notes": list(self.notes),
        }


def plan_run(
    file: GGUFFile | GGUFParts,
    profile: Profile,
    given: Given = UNSAID,
    workload: Workload = CHAT,
    taken: Mapping[str, int] | None = None,
    probe: Probe | None = None,
) -> Placement:
    """The fastest run of a file on a machine, around what was given.

    Args:
        taken: bytes at each place that turned out to be needed beyond the formulas.
        probe: asked what contexts of an unknown architecture take; None: llama.cpp.

    Raises:
        BudgetError: it does not fit; says what would.
        UsageError: what was given contradicts itself, or the machine.
        PlanError: there is no model in the file, or llama.cpp cannot be told of the places.
        GGUFError, EngineError: the file is not what it should be.
    """
    contents = contents_of(file)
    given = _loadable(contents, given)
    profile = profile.with_cards(()) if given.devices == () else profile
    free = freedom(contents, given, _names(given, profile))
    needs = Needs(contents, workload, probe or _asking(file))
    fitter = Fitter(contents, profile, free, workload, needs, taken or {})
    return _placement(Chooser(fitter, given).choose(), given, fitter, free)


def _loadable(contents: Contents, given: Given) -> Given:
    """What is given, with how files with types per expert are always loaded.

    Raises:
        UsageError: they were to be loaded in another way.
    """
    if not contents.per_expert:
        return given
    if given.load_mode not in (None, "auto", "none"):
        raise UsageError(
            f"load mode {given.load_mode}: {contents.name} has types per expert, which are read "
            "into memory of their own: leave it out"
        )
    return replace(given, load_mode="none")


def _names(given: Given, profile: Profile) -> Sequence[str]:
    """What llama.cpp calls the cards; it is asked only if somebody named one."""
    if given.devices is not None:
        names: Sequence[str] = given.devices
    elif all(device == "CPU" for _, device in given.overrides):
        return [card.name for card in profile.cards]
    else:
        from gemcut.runtime.machine.profiles import card_names

        names = card_names()
    if len(names) < len(profile.cards):
        cards = ", ".join(card.description for card in profile.cards)
        say = ",".join(f"CUDA{number}" for number in range(len(profile.cards)))
        raise UsageError(
            f"what llama.cpp calls {cards} is not known here, where it has "
            f"{', '.join(names) or 'no card'}: say it, as with -dev {say}"
        )
    return names[: len(profile.cards)]


def _asking(file: GGUFFile | GGUFParts) -> Probe:
    from gemcut.llama.memory import probe

    return partial(probe, file.files[0].path if isinstance(file, GGUFParts) else file.path)


def _placement(choice: Choice, given: Given, fitter: Fitter, free: Freedom) -> Placement:
    fit, cards = choice.fit, len(fitter.profile.cards)
    places = {tensor.name: tensor.place for tensor in fit.tensors}
    # Who loads the file says of experts that are apart where they are.
    told = free.overridden | {tensor.name for tensor in fit.tensors if tensor.single}
    where = layout(places, cards, fit.homes, told)
    overrides = (*given.overrides, *((each, "CPU") for each in where.host))
    one = given.split_mode == "none"
    loading = fit.candidate.loading
    model = ModelOptions(
        gpu_layers=where.gpu_layers,
        overrides=overrides or (((NOTHING, "CPU"),) if cards > 1 else ()),
        devices=given.devices if given.devices is not None or cards else (),
        rpc=given.rpc,
        split_mode=given.split_mode or "layer",
        tensor_split=() if one else given.tensor_split or tuple(map(float, where.split)),
        main_gpu=given.main_gpu or 0,
        load_mode=loading.load_mode,
        repack=loading.repack,
        no_host=loading.no_host,
    )
    return Placement(
        model,
        fit.candidate.context,
        fitter.workload,
        fitter.profile,
        places,
        fit.ledger,
        fit.prefill,
        fit.decode,
        choice.origin,
        choice.notes,
    )


def _speed(speed: Speed) -> dict[str, float]:
    return asdict(speed) | {"per_second": speed.per_second}
