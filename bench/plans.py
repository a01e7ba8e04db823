"""What gemcut plans for large models on common machines, from headers alone, as Markdown.

    PYTHONPATH=. python bench/plans.py [--context 32768] [--models 26B-A4B 120B-A15B]

The checkpoints are sparse files of the true shapes, without weights: types are chosen by priors as
if there was importance for every tensor. Machines are data sheets. So all of it is predicted.
"""

import argparse
from dataclasses import replace
from time import process_time

from memory import MODELS, checkpoint

from gemcut import api
from gemcut.convert.model import Model
from gemcut.engine import ContextOptions
from gemcut.errors import BudgetError
from gemcut.quantize.outcome import Outcome, Point, Task
from gemcut.quantize.planner import plan_model
from gemcut.quantize.request import Request
from gemcut.runtime.machine.profiles import open_profile, with_limits

CARDS = {8: "rtx-4060", 12: "rtx-3060", 16: "rtx-4060-ti-16gb", 24: "rtx-3090"}
MEMORY = "ddr5-5600x2@8"
RAM = (32, 64)
COLUMNS = "file | bpw | KLD | decode, prefill t/s | on the card | on the host | below"
RULER = "|---" * 8 + "|"
HEAD = """\
# Plans for large models on common machines

**All of it is predicted.** Made by `bench/plans.py` from headers alone: no weight was read, so
types are chosen by priors (round numbers by role) as if importance had been collected, which lets
smaller ones be chosen than without; KL divergences are beliefs, and speeds follow from data
sheets (standard error {doubt:.0%}). What `gemcut measure` finds on the model itself
replaces the priors, `gemcut doctor --measure` the data sheets. VRAM and RAM are totals,
of which reserves and margins are taken; cards are {cards}; memory
is DDR5-5600 on two channels with eight cores; the context is {context} tokens with keys and values
in F16. A plan is the balance, the knee of the frontier from the fastest to the best; "below" counts
tensors below the default range of types.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--context", type=int, default=32768)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    arguments = parser.parse_args()
    doubt = open_profile(f"rtx-3060+{MEMORY}").doubt
    cards = ", ".join(f"{name} ({size} GB)" for size, name in CARDS.items())
    print(HEAD.format(doubt=doubt, cards=cards, context=arguments.context))
    for name in arguments.models:
        table(name, api.open_source(checkpoint(name)), arguments.context)


def table(name: str, model: Model, context: int) -> None:
    """The balances for all machines, then one frontier."""
    print(f"## {name}: {model.weights / 1e9:.1f} billion weights\n")
    print(f"| VRAM, RAM | {COLUMNS} |\n{RULER}")
    seconds = []
    for vram in CARDS:
        for ram in RAM:
            start = process_time()
            try:
                outcome = plan_model(task(model, vram, ram, context), alternatives=False)
            except BudgetError as error:
                print(f"| {vram} GB, {ram} GB | {error} | | | | | | |")
                continue
            seconds.append(process_time() - start)
            print(f"| {vram} GB, {ram} GB | {row(outcome.chosen)} |", flush=True)
    start = process_time()
    outcome = plan_model(task(model, 12, 64, context))
    whole = process_time() - start
    print(f"\nThe frontier at 12 GB and 64 GB, by size:\n\n{frontier(outcome)}")
    print(f"\nWhat more would buy:\n\n{gains(outcome)}")
    print(
        f"\nA plan took {min(seconds):.1f} to {max(seconds):.1f} s of CPU time, with frontier and "
        f"what more would buy {whole:.1f} s; the gap to the optimum of the program was "
        f"{outcome.chosen.gap:.2%}.\n"
    )


def task(model: Model, vram: int, ram: int, context: int) -> Task:
    """A plan for a card of so many gigabytes beside so many of RAM."""
    machine = open_profile(f"{CARDS[vram]}+{MEMORY}")
    found = api.make_task(
        model,
        Request(),
        machine=with_limits(machine, [vram * 10**9], ram * 10**9),
        context=ContextOptions(n_ctx=context, n_outputs=1),
    )
    return replace(found, weighted=frozenset(tensor.name for tensor in model.tensors))


def row(point: Point) -> str:
    speeds = f"{point.decode:.0f}, {point.prefill:.0f}" if point.decode and point.prefill else ""
    return (
        f"{point.size / 1e9:.1f} GB | {point.bpw:.2f} | {point.kld:.4f} | {speeds} | "
        f"{point.cards / 1e9:.1f} GB | {point.host / 1e9:.1f} GB | {point.below}"
    )


def frontier(outcome: Outcome) -> str:
    lines = [f"| | {COLUMNS} |", RULER]
    for point in outcome.frontier:
        label = point.label + ("" if point.fits else ", does not fit")
        lines.append(f"| {label} | {row(point)} |")
    return "\n".join(lines)


def gains(outcome: Outcome) -> str:
    lines = [f"| | {COLUMNS} |", RULER]
    lines.append(f"| as it is | {row(outcome.chosen)} |")
    lines += [f"| {gain.what} | {row(gain.point)} |" for gain in outcome.gains]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
