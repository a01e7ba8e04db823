"""A finished file at work: planned, loaded, in conversation."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemcut.api.words import Size, Tokens, Where, bytes_of, tokens_of
from gemcut.engine import PINNED
from gemcut.errors import UsageError, printable
from gemcut.llama import add_rpc
from gemcut.llama.architecture import is_known
from gemcut.profile import Profile
from gemcut.runtime.loading.loading import Loaded, Progress, Tell, load_run, open_parts
from gemcut.runtime.machine.profiles import card_names, open_profile, this_machine, with_limits
from gemcut.runtime.placement.given import UNSAID, Given
from gemcut.runtime.placement.placement import Placement, plan_run
from gemcut.runtime.placement.workload import CHAT, Workload
from gemcut.runtime.speed.records import corrected

if TYPE_CHECKING:
    from gemcut.api.session import Session

_LONGEST = 40  # characters of a name that are shown


def machine_for(
    given: Given = UNSAID,
    machine: str | None = None,
    vram: Sequence[int] | None = None,
    ram: int | None = None,
) -> Profile:
    """The machine that was described; what was not is this one's.

    Args:
        machine: a name as rtx-4070+ddr5-5600, or the path of a machine.json; None: this one, as a
            run with these options sees it: with lent devices, without unwanted cards. It is
            measured where it was not before, which takes seconds (`this_machine`).
        vram, ram: bytes of each card, and of the host.

    Raises:
        UsageError: a device that is not there, an unknown name, or limits that leave nothing.
        ProfileError: a file that is no profile.
        EngineError: llama.cpp is missing, or a device does not answer or compute.
    """
    profile = open_profile(machine) if machine else _this_machine(given)
    return with_limits(profile, vram, ram)


def _this_machine(given: Given) -> Profile:
    names = _cards(given)
    profile = this_machine(given.threads)
    wanted = names if given.devices is None else given.devices
    if unknown := [name for name in wanted if name not in names]:
        raise UsageError(f"there is no card {unknown[0]!r}, but {', '.join(names) or 'none'}")
    return profile.with_cards(tuple(profile.cards[names.index(name)] for name in wanted))


def prepare(
    path: Where,
    given: Given = UNSAID,
    workload: Workload = CHAT,
    profile: Profile | None = None,
) -> Placement:
    """Plan the run of a GGUF, around what is given; nothing is loaded.

    Args:
        path: of the file, or any part of a split one.
        profile: of this or of another machine; None: `machine_for`.

    Raises:
        GGUFError: the file is none, cut short, damaged, or a part is missing.
        BudgetError: it does not fit; says what would.
        UsageError, PlanError, EngineError: see `gemcut.runtime.placement.placement.plan_run`.
    """
    profile = profile or machine_for(given)
    names = _cards(given)
    if len(profile.cards) <= len(names):  # else it is of another machine
        given = _named(given, profile, names)
    with open_parts(Path(path)) as file:
        planned = corrected(plan_run(file, profile, given, workload))
        architecture = str(file.metadata["general.architecture"].data)
    if is_known(architecture):
        return planned
    name = printable(architecture[:_LONGEST])
    refused = f"llama.cpp {PINNED} has no architecture {name}: it will not load this file"
    return replace(planned, notes=(refused, *planned.notes))


def open_run(
    path: Where,
    given: Given = UNSAID,
    workload: Workload = CHAT,
    profile: Profile | None = None,
    tell: Tell = lambda text: None,
    on_progress: Progress | None = None,
) -> Loaded:
    """Plan the run of a GGUF and load it, smaller where there is no memory for the plan.

    Args:
        path, profile: as `prepare` takes them; the profile's cards are those given, or the first
            that llama.cpp has.
        tell: told what was made smaller, and why.
        on_progress: told the fraction loaded.

    Raises:
        as `prepare`; BudgetError also after the last attempt to load, with all that was tried.
    """
    machine = profile or machine_for(given)
    fixed = _named(given, machine, _cards(given))
    with open_parts(Path(path)) as file:

        def plan(given: Given, taken: Mapping[str, int]) -> Placement:
            return corrected(plan_run(file, machine, given, workload, taken))

        return load_run(file, plan, fixed, tell, on_progress)


def load(
    path: Where,
    *,
    context: Tokens | None = None,
    vram: Size | Sequence[Size] | None = None,
    ram: Size | None = None,
    threads: int | None = None,
    gpu_layers: int | None = None,
    given: Given = UNSAID,
    workload: Workload = CHAT,
    sampling: Mapping[str, Any] | None = None,
    system: str | None = None,
    think: bool | None = None,
    tell: Tell = lambda text: None,
    progress: Progress | None = None,
) -> "Session":
    """Load a GGUF to talk with it; close it, or use it as a context manager.

    Args:
        context: tokens of the conversation; None: as many as fit, and no more than it was made for.
        vram, ram: of each card and of the host; None: this machine's.
        gpu_layers, given: further flags of llama.cpp's; what is not said is planned.
        sampling: what to change of the sampling that the file recommends: {"temperature": 0.0}.
        system: the system message.
        think: ask for thoughts, where the model knows how; None: as it likes.
        tell: told what was made smaller for want of memory, and why.
        progress: told the fraction loaded.

    Raises:
        UsageError: an unknown word in `sampling`, or a size that is none.
        as `open_run`.
    """
    from gemcut.api.session import open_session  # templates are for talk alone

    n_ctx = None if context is None else tokens_of(context)
    said: dict[str, Any] = {"n_ctx": n_ctx, "threads": threads, "gpu_layers": gpu_layers}
    given = replace(given, **{name: each for name, each in said.items() if each is not None})
    profile = machine_for(given, None, _cards_of(vram), None if ram is None else bytes_of(ram))
    run = open_run(path, given, workload, profile, tell, progress)
    try:
        return open_session(run, sampling or {}, system, think)
    except BaseException:
        run.close()
        raise


def _cards_of(vram: Size | Sequence[Size] | None) -> tuple[int, ...] | None:
    cards = [vram] if isinstance(vram, int | str) else vram
    return None if cards is None else tuple(map(bytes_of, cards))


def _named(given: Given, profile: Profile, names: Sequence[str]) -> Given:
    """What is given, with llama.cpp's names of the profile's cards: untold, it would use all.

    Raises:
        UsageError: it has fewer.
    """
    known = names if given.devices is None else given.devices
    if len(profile.cards) > len(known):
        raise UsageError(
            f"{len(profile.cards)} cards to run on, llama.cpp has {', '.join(known) or 'none'}"
        )
    return replace(given, devices=tuple(known[: len(profile.cards)]))


def _cards(given: Given) -> list[str]:
    """What llama.cpp calls the cards there are, those that are lent among them."""
    for endpoint in given.rpc:
        add_rpc(endpoint)
    return card_names()
