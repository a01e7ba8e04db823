"""What a type for every single expert is worth: KL divergence at equal bytes, against one a tensor.

    OMP_NUM_THREADS=1 PYTHONPATH=. python bench/per_expert.py [--models demo ...] [--real]

Both plans are the planner's own for the size of a stock mixture, by the same measured sensitivity;
"equal bytes" are those of the whole file, its plan and table of tensors included. Importance and
sensitivity are measured on text of the kind that is scored, but on no part of it (subjects.py).
Values are simulated: every weight goes through its type and back, and is written in F32
(round_trip.py); activations are rounded as the type's kernels would (rounding.py). So nothing has
to run the types. With --real the files themselves are scored, too; "agreement" is what they lose,
relative to their simulation. Divergences are from the checkpoint in F32, ratios have 95 %
intervals, paired over chunks. build/bench/per-expert.json has all numbers.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from common import FOLDER, SHOW, Cell, Table, keep, record
from quality import Doubles, planned, scores, stock_size, write
from round_trip import write_returned
from rounding import rounded_scores
from subjects import PARTS, Subject, add_options, spread, subjects

from gemcut import api
from gemcut.demo.text import held_out_text
from gemcut.eval.statistics.intervals import Estimate, estimates
from gemcut.eval.texts.text import Text
from gemcut.plan import Plan
from gemcut.quantize.coverage import coverage
from gemcut.quantize.skew import skew

SIZES = ("iq3_xxs", "q3_k_m", "iq4_xs", "q4_k_m")
TENSOR, EXPERT = "tensor", "expert"
CLAIM = (
    "Where routing is skewed, a type for every single expert loses less than half of what the best "
    "types per tensor lose in as many bytes; where it is even, little is gained."
)
COLUMNS = (
    "model",
    "size of",
    "bytes, per tensor",
    "per expert",
    "stacks with types per expert",
    "simulated KLD, per tensor",
    "per expert",
    "files' KLD, per tensor",
    "per expert",
    "predicted ratio",
    "simulated ratio",
    "files' ratio",
)
NOTES = (
    "Simulated: every weight goes through its type and back, all is computed in F32, and "
    "activations are rounded as the types' kernels do it. Files: as they run.",
)
RESULT = FOLDER / "per-expert.json"


@dataclass(frozen=True)
class Result:
    """One model at one size; divergences of types per tensor and of types per expert."""

    model: str
    size: str  # that of this mixture
    bytes: Mapping[str, int]  # of the whole files
    singles: int  # stacks with types per expert, of all
    stacks: int
    said: str  # what the planner says of types per expert
    predicted: float  # ratio
    kld: Mapping[str, float]
    ratio: Estimate
    real: Mapping[str, float] | None = None
    real_ratio: Estimate | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--sizes", nargs="+", default=SIZES, type=str.lower, help="of mixtures")
    parser.add_argument("--chunks", type=int, default=75, help="of text")
    parser.add_argument("--real", action="store_true", help="score the files themselves, too")
    add_options(parser)
    parser.add_argument(SHOW, action="store_true", help="record what was measured before, alone")
    arguments = parser.parse_args()
    if arguments.show:
        return report()
    parts = spread("held-out modules", held_out_text())
    for subject in subjects(arguments.models, arguments.threads, arguments.probe_chunks):
        print(f"\n{subject.name}: {routing(subject)}\n\n{HEAD}", flush=True)
        for size in arguments.sizes:
            found = measured(subject, size, parts, arguments.chunks // PARTS, arguments.real)
            keep(RESULT, asdict(found), ("model", "size"))
            print(line(found), flush=True)
    report()


def report() -> None:
    """Record all that was ever measured here."""
    rows: list[list[Cell]] = []
    for one in json.loads(RESULT.read_text()):
        ends = [
            [each["value"], each["low"], each["high"]] if each else None
            for each in (one["ratio"], one["real_ratio"])
        ]
        files = *one["bytes"].values(), f"{one['singles']} of {one['stacks']}"
        klds = *one["kld"].values(), *(one["real"] or dict.fromkeys(one["kld"])).values()
        rows.append([one["model"], one["size"], *files, *klds, one["predicted"], *ends])
    record("per-expert", CLAIM, [Table("", COLUMNS, rows)], NOTES, RESULT.stat().st_mtime)


def routing(subject: Subject) -> str:
    """How skewed its routing is, and what follows from that alone."""
    found = skew(coverage(subject.statistics))
    factors = ", ".join(f"{each:.2f} at {size:g}" for size, each in found.factors.items())
    return (
        f"the busiest quarter of experts has {found.busiest:.0%} of the rows; predicted of the "
        f"experts' part by shares alone, at bits per weight: {factors}"
    )


def measured(subject: Subject, size: str, parts: Sequence[Text], chunks: int, real: bool) -> Result:
    """Both plans of a size, and what their files lose."""
    stock = api.make_plan(subject.model, api.Target(size), subject.importance)
    room = stock_size(subject, stock)
    own = subject.sensitivity
    outcomes = {name: planned(subject, room, own, name == EXPERT) for name in (TENSOR, EXPERT)}
    plans = {name: outcome.plan for name, outcome in outcomes.items()}
    values, reference = simulated(subject, size, plans), subject.gguf("f32")
    found = rounded_scores(values, reference, parts, chunks, subject.threads)
    real_found = None
    if real:
        real_found = scores(subject, write(subject, size, plans), reference, parts, chunks)
    routed = [entry for name, entry in plans[EXPERT].tensors.items() if "_exps." in name]
    return Result(
        subject.name,
        size.upper(),
        {name: api.planned_size(subject.model, plan) for name, plan in plans.items()},
        sum(entry.experts is not None for entry in routed),
        len(routed),
        str(outcomes[EXPERT].worth),
        plans[EXPERT].predicted["kld"] / plans[TENSOR].predicted["kld"],
        means(found),
        ratio(found),
        means(real_found) if real_found else None,
        ratio(real_found) if real_found else None,
    )


def simulated(
    subject: Subject, size: str, plans: Mapping[str, Plan]
) -> dict[str, tuple[Path, Plan]]:
    """Files in F32 that hold what these plans' files would, with the plans."""
    found = {name: (subject.path(f"{size}-{name}-returned.gguf"), plans[name]) for name in plans}
    for path, plan in found.values():
        write_returned(subject.model, plan, subject.importance, path, subject.threads)
    return found


def means(found: Mapping[str, Doubles]) -> dict[str, float]:
    """Over all chunks."""
    return {name: float(kld.mean()) for name, kld in found.items()}


def ratio(found: Mapping[str, Doubles]) -> Estimate:
    """Types per expert relative to types per tensor."""
    return estimates(np.array([found[EXPERT]]), found[TENSOR])[0]


HEAD = (
    "| size of | bytes, per tensor and expert | stacks with types per expert | KLD per tensor | "
    "per expert | ratio | predicted | real files' ratio | agreement |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def line(found: Result) -> str:
    """A result as a row of Markdown."""
    own = agreement = ""
    if found.real and found.real_ratio:
        own = spoken(found.real_ratio)
        each = (found.real[name] / found.kld[name] for name in (TENSOR, EXPERT))
        agreement = ", ".join(f"{share:.3f}" for share in each)
    cells = [
        found.size,
        f"{found.bytes[TENSOR]:,}, {found.bytes[EXPERT]:,}",
        f"{found.singles} of {found.stacks}",
        f"{found.kld[TENSOR]:.6f}",
        f"{found.kld[EXPERT]:.6f}",
        spoken(found.ratio),
        f"{found.predicted:.2f}",
        own,
        agreement,
    ]
    return f"| {' | '.join(cells)} |"


def spoken(ratio: Estimate) -> str:
    """A ratio with its interval."""
    return f"{ratio.value:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


if __name__ == "__main__":
    main()
