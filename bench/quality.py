"""What the choice of types is worth: KL divergence at equal bytes, against llama.cpp's mixtures.

    PYTHONPATH=. python bench/quality.py [--text TEXT ...] [--models demo ...] [--chunks 75]

For the demo's model and those that bench/train.py has made. Every file is written with the same
importance and scored against BF16 on text that neither training nor importance nor probes have
seen: the held-out modules, and texts of other domains if some are given. "Equal bytes" means that
our whole file, the plan in it included, is not larger than the mixture's file without a plan.
Compared are, for the size of each mixture:

    measured   types by measured errors, and by what they were measured to cost
    errors     types by measured errors, and by what errors cost other models (no probes)
    priors     types by figures of other models alone: nothing measured
    #15550     types by llama.cpp's pull request of that number, the strongest peer (target_bpw.py)

Printed are ratios to the mixture's divergence with 95 % intervals, paired: a bootstrap over chunks
of text, the same for both files. build/bench/quality.json has all numbers.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import target_bpw
from common import FOLDER, SHOW, keep, record
from numpy.typing import NDArray
from quality_tables import CLAIM, NOTES, files, ratios, summary
from subjects import PARTS, Subject, add_options, spread, subjects

from gemcut import api, ggml
from gemcut.demo.text import held_out_text
from gemcut.eval.compare import compare
from gemcut.eval.scope import Means
from gemcut.eval.texts.text import Text
from gemcut.gguf_layout import file_size
from gemcut.plan import METADATA_KEY, Plan
from gemcut.quantize.choose import infos
from gemcut.quantize.outcome import Outcome
from gemcut.quantize.planner import plan_model
from gemcut.quantize.request import Request
from gemcut.quantize.writer import metadata
from gemcut.sensitivity import Sensitivity

MIXTURES = ("iq3_xxs", "q3_k_m", "iq4_xs", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k")
STOCK, OURS, PEER = "stock", ("measured", "errors", "priors"), "#15550"
RECIPES = (*OURS, PEER)
RESAMPLES = 4000
RESULT = FOLDER / "quality.json"
HELD_OUT = "held-out modules"
_FUSED = re.compile(r"ffn_(gate|up)_exps\.weight")

Doubles = NDArray[np.float64]
Files = Mapping[str, Plan]  # by recipe


@dataclass(frozen=True)
class Ratio:
    """A ratio of divergences with its 95 % interval."""

    value: float
    low: float
    high: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--text", type=Path, action="append", default=[], help="of another domain")
    parser.add_argument("--chunks", type=int, default=75, help="of each text")
    parser.add_argument("--built-in", action="store_true", help="measure on the built-in text")
    add_options(parser)
    parser.add_argument(SHOW, action="store_true", help="what was measured before, alone")
    arguments = parser.parse_args()
    if arguments.show:
        return report()
    texts = {HELD_OUT: spread(HELD_OUT, held_out_text())}
    for path in arguments.text:
        texts[path.name] = spread(path.name, Text.read(path).content)
    measuring = arguments.threads, arguments.probe_chunks, arguments.built_in
    for subject in subjects(arguments.models, *measuring):
        made = {mixture: plans(subject, mixture) for mixture in MIXTURES}
        written = {mixture: write(subject, mixture, of) for mixture, of in made.items()}
        for name, parts in texts.items():
            found = {
                mixture: scores(
                    subject, paths, subject.gguf("bf16"), parts, arguments.chunks // PARTS
                )
                for mixture, paths in written.items()
            }
            result = described(subject, name, made, written, found)
            print(f"\n{ratios(result)}", flush=True)
            keep(RESULT, result, ("model", "text", "measured_on"))
    report()


def report() -> None:
    """Print and record all that was ever measured here."""
    found = json.loads(RESULT.read_text())
    found.sort(key=lambda each: (each["text"] != HELD_OUT, each["model"]))
    seen = [each for each in found if (each["model"], each["text"]) == ("demo", HELD_OUT)]
    tables = [summary(found), *map(ratios, found), *map(files, seen)]
    print("\n\n".join(map(str, tables)))
    record("quality", CLAIM, tables, NOTES, RESULT.stat().st_mtime)


def plans(subject: Subject, mixture: str) -> Files:
    """The mixture's types, and each recipe's for its size. Raises SystemExit: one is larger."""
    model, importance = subject.model, subject.importance
    stock = api.make_plan(model, api.Target(mixture), importance)
    room = stock_size(subject, stock)
    known = {"measured": subject.sensitivity, "errors": subject.errors, "priors": None}
    found = {name: planned(subject, room, own).plan for name, own in known.items()}
    for name, plan in found.items():
        if (size := api.planned_size(model, plan)) > room:
            raise SystemExit(f"{subject.name}, {mixture}, {name}: {size} bytes, of {room} allowed")
    peer = target_bpw.choose(model, subject_fronts(subject), stock)
    return {STOCK: stock, **found, PEER: api.make_plan(model, api.Target(plan=peer))}


def planned(
    subject: Subject, room: int, sensitivity: Sensitivity | None, per_expert: bool = False
) -> Outcome:
    """Our types for a whole file of so many bytes."""
    request = Request(size=room, per_expert=per_expert)
    task = api.make_task(subject.model, request, sensitivity, subject.statistics)
    return plan_model(task, alternatives=False)


def stock_size(subject: Subject, stock: Plan) -> int:
    """Bytes of the file as llama-quantize writes it: there is no plan in it."""
    values = {k: v for k, v in metadata(subject.model, stock).items() if k != METADATA_KEY}
    return file_size(values, infos(subject.model, stock))


def subject_fronts(subject: Subject) -> target_bpw.Fronts:
    """The peer's errors, which take longer than all else: kept."""

    def make(path: Path) -> None:
        found = target_bpw.fronts(subject.model, subject.importance)
        plain = {name: [vars(point) for point in points] for name, points in found.items()}
        path.write_text(json.dumps(plain))

    plain = json.loads(subject.made("peer.json", make).read_text())
    return {name: [target_bpw.Point(**p) for p in points] for name, points in plain.items()}


def write(subject: Subject, mixture: str, files: Files) -> dict[str, Path]:
    """Cut all files of a mixture's size."""
    paths = {}
    for recipe, plan in files.items():
        paths[recipe] = subject.path(f"{mixture}-{recipe.strip('#')}.gguf")
        target = api.Target(plan=plan)
        api.quantize_model(
            subject.model, paths[recipe], target, subject.importance, threads=subject.threads
        )
    return paths


def scores(
    subject: Subject,
    paths: Mapping[str, Path],
    reference: Path,
    parts: Sequence[Text],
    chunks: int,
) -> dict[str, Doubles]:
    """Divergence of each file: float64 [chunks], means over the tokens of each."""
    how = Means(subject.threads)
    found = compare([*paths.values()], reference, parts, chunks=chunks, means=how)
    by_chunk = {}
    for name, row in zip(paths, found.files, strict=True):
        assert row.scores and row.scores.divergence, row.failure
        kld = row.scores.divergence.kld.reshape(found.protocol.n_chunks, -1)
        by_chunk[name] = kld.mean(axis=1)
    return by_chunk


def described(
    subject: Subject,
    text: str,
    files: Mapping[str, Files],
    paths: Mapping[str, Mapping[str, Path]],
    found: Mapping[str, Mapping[str, Doubles]],
) -> dict[str, Any]:
    """The results of one model on one text, as plain data."""
    rows = {
        mixture: {
            recipe: {
                "bytes": paths[mixture][recipe].stat().st_size,
                "tensor_bytes": plan.size,
                "predicted": predicted(subject, plan),
                "kld": float(found[mixture][recipe].mean()),
                "se": float(
                    found[mixture][recipe].std(ddof=1) / len(found[mixture][recipe]) ** 0.5
                ),
            }
            for recipe, plan in made.items()
        }
        for mixture, made in files.items()
    }
    ratios = {recipe: bootstrap(found, recipe) for recipe in RECIPES}
    return {
        "model": subject.name,
        "measured_on": "the built-in text" if subject.built_in else "training modules",
        "text": text,
        "chunks": len(next(iter(found.values()))[STOCK]),
        "stock_bytes": {m: stock_size(subject, made[STOCK]) for m, made in files.items()},
        "files": rows,
        "ratios": {r: {m: vars(one) for m, one in by.items()} for r, by in ratios.items()},
    }


def bootstrap(found: Mapping[str, Mapping[str, Doubles]], recipe: str) -> dict[str, Ratio]:
    """Ratios to the stock file for every mixture, and their geometric mean as "mean".

    A resample draws chunks with replacement, the same for both files and for all mixtures.
    """
    stock = np.array([found[mixture][STOCK] for mixture in MIXTURES])
    ours = np.array([found[mixture][recipe] for mixture in MIXTURES])
    count = stock.shape[1]
    drawn = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    drawn = np.concatenate([np.arange(count)[None], drawn])  # the first is what was seen
    logs = np.log(ours[:, drawn].mean(axis=2) / stock[:, drawn].mean(axis=2))
    logs = np.concatenate([logs, logs.mean(axis=0, keepdims=True)])
    low, high = np.exp(np.quantile(logs[:, 1:], [0.025, 0.975], axis=1))
    seen = np.exp(logs[:, 0])
    return {
        name: Ratio(*map(float, each))
        for name, each in zip((*MIXTURES, "mean"), zip(seen, low, high, strict=True), strict=True)
    }


def predicted(subject: Subject, plan: Plan) -> float:
    """The divergence that the measured sensitivity predicts of a file, before any rescale."""
    columns = {tensor.name: tensor.columns for tensor in subject.model.tensors}
    types = {}
    for name, entry in plan.tensors.items():
        source = _FUSED.sub(r"ffn_gate_up_exps.weight#\1", name) if entry.split else name
        fits = ggml.type_named(entry.type).fits(columns[source.partition("#")[0]])
        types[source] = entry.type if fits else f"{entry.type}@{entry.padded_to}"
    return subject.sensitivity.predict(types)[0]


if __name__ == "__main__":
    main()
