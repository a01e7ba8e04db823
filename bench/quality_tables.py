"""What bench/quality.py has found, as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from common import Cell, Table

CLAIM = (
    "At no more bytes than a file of llama.cpp's mixtures and with the same importance, types that "
    "gemcut chooses lose less: by priors alone, and again less with a measured sensitivity."
)
NOTES = (
    "measured: types by measured errors, and by what they were measured to cost; errors: by "
    "measured errors, and by what errors cost other models; priors: by figures of other models "
    "alone; #15550: llama.cpp's pull request of that number, rebuilt from its public source, with "
    "an ordinary importance matrix.",
    "Ratios are paired: a bootstrap over chunks of text, the same for both files. Every file is "
    "scored against BF16 on text that neither training nor importance nor probes have seen.",
    "On wiki.test.raw with `--text wiki.test.raw`, the test part of WikiText-2.",
    "The models are the demo's and those of bench/train.py: a Qwen3-MoE of 9.3 M weights, and an "
    "OLMoE of 10.2 M whose rows all divide into blocks of 256, without fallbacks to profit from.",
)
_Z = 1.96  # of a 95 % interval


def ratios(result: Mapping[str, Any]) -> Table:
    """One model on one text: divergences relative to the mixture of the same size."""
    found, rows = result["ratios"], []
    for size, files in result["files"].items():
        stock: list[Cell] = [size.upper(), result["stock_bytes"][size], files["stock"]["kld"]]
        rows.append([*stock, *(_ratio(by[size]) for by in found.values())])
    rows.append(["geometric mean", None, None, *(_ratio(by["mean"]) for by in found.values())])
    return Table(
        f"{_title(result)}, {result['chunks']} chunks of 512 tokens: divergence relative to the "
        "mixture's",
        ["size of", "bytes", "KLD of the mixture", *found],
        rows,
    )


def summary(results: Sequence[Mapping[str, Any]]) -> Table:
    """The geometric means over the sizes, and the worst of them."""
    recipes = list(dict.fromkeys(recipe for each in results for recipe in each["ratios"]))
    rows: list[list[Cell]] = []
    for result in results:
        found = [result["ratios"].get(recipe) for recipe in recipes]
        means = [_ratio(by["mean"]) if by else None for by in found]
        ends = [max(by[size]["value"] for size in result["files"]) if by else None for by in found]
        worst = [None if end is None else f"{end:.2f}" for end in ends]
        pairs = [cell for pair in zip(means, worst, strict=True) for cell in pair]
        rows.append([result["model"], result["text"], result["measured_on"], *pairs])
    title = "Geometric mean over the sizes, and the worst size"
    heads = [head for recipe in recipes for head in (recipe, "worst")]
    return Table(title, ["model", "text", "measured on", *heads], rows)


def files(result: Mapping[str, Any]) -> Table:
    """Bytes and divergence of every file of one model."""
    rows: list[list[Cell]] = [
        [
            size.upper(),
            recipe,
            result["stock_bytes"][size] if recipe == "stock" else one["bytes"],
            one["kld"],
            _Z * one["se"],
        ]
        for size, by_recipe in result["files"].items()
        for recipe, one in by_recipe.items()
    ]
    columns = ["size of", "recipe", "bytes", "KLD", "half of its 95 % interval"]
    return Table(f"Files of {_title(result)}", columns, rows)


def _title(result: Mapping[str, Any]) -> str:
    return f"{result['model']}, {result['text']}, measured on {result['measured_on']}"


def _ratio(found: Mapping[str, float]) -> list[float]:
    return [found["value"], found["low"], found["high"]]
