"""Make docs/benchmarks.md, and the README's picture, of the results in bench/results.

    PYTHONPATH=. python bench/render.py

Results that were measured here come from the scripts in this folder, run with RECORD=1.
"""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import RESULTS, Table

from gemcut.eval.report.marks import decades, quiet
from gemcut.eval.report.plots import MARKERS, PAPER, SERIES, Plot, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
PICTURE = ROOT / "docs" / "pictures" / "size-kld.svg"
# In this order; a result that is not named here comes last.
ORDER = (
    "quality sensitivity per-expert convert memory quantize imatrix perplexity coverage eval "
    "ledger runtime prediction experts serve logits scale"
).split()
HEAD = """\
# Benchmarks

What is claimed of gemcut, measured beside the programs it is to be compared with. Each section was
made by the command above its tables, on the machine under them; `bench/peers.sh` builds llama.cpp's
own tools out of the sources of the pinned llama-cpp-python, so that both sides are the same
llama.cpp. With `RECORD=1` before it, a command writes its result to `bench/results`, of which
`bench/render.py` makes this page: nothing here is written by hand. `make bench` does both for
those that need nothing else. Three numbers like 0.34 (0.33-0.35) are a value and its 95 % interval.
"""
PAIRS = {"stock": "llama.cpp's mixtures", "priors": "planned, nothing measured"}
PAIRS |= {"measured": "planned, by measured sensitivity"}

Result = dict[str, Any]


def main() -> None:
    results = read(RESULTS)
    PAGE.write_text(page(results), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
    for result in results:
        if result["name"] == "quality":
            PICTURE.parent.mkdir(exist_ok=True)
            PICTURE.write_text(svg(picture(result)), encoding="utf-8")
            print(PICTURE.relative_to(ROOT))


def read(folder: Path) -> list[Result]:
    """All results, in the page's order."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    return sorted(found, key=lambda result: (rank(result["name"]), result["name"]))


def rank(name: str) -> int:
    """Of a result in the page; those of other files of a benchmark stand beside the first one."""
    places = [ORDER.index(known) for known in ORDER if name.startswith(known)]
    return min(places, default=len(ORDER))


def page(results: Sequence[Result]) -> str:
    """The whole page as Markdown."""
    return "\n".join([HEAD, *(line for result in results for line in section(result))])


def section(result: Result) -> Iterator[str]:
    """One claim: sentence, command, tables, remarks, machine."""
    yield f"## {result['name'].replace('-', ' ').capitalize()}\n"
    yield f"**{result['claim']}**\n"
    yield f"```\n{result['command']}\n```\n"
    for table in result["tables"]:
        yield f"{Table(**table)}\n"
    if result["notes"]:
        yield "\n".join(f"* {note}" for note in result["notes"]) + "\n"
    yield f"{surroundings(result)}\n"


def surroundings(result: Result) -> str:
    """Date, machine and versions in a line."""
    machine, versions = result["machine"], result["versions"]
    card = machine["gpu"] or "no GPU"
    return (
        f"<sub>{result['date']}; {machine['cores']} cores of {machine['cpu']}, "
        f"{machine['ram_bytes'] / 2**30:.0f} GiB, {card}; {machine['os']}; "
        f"gemcut {versions['gemcut']}, Python {versions['python']}, {versions['peer']}</sub>"
    )


def picture(quality: Result) -> Plot:
    """What the first model's files lose, over their size: ours beside llama.cpp's mixtures."""
    (table,) = (one for one in quality["tables"] if one["title"].startswith("Files of demo"))
    title = "KL divergence over size"
    return Plot("size-kld", title, "", partial(_draw, table), height=3.2, width=5.6)


def _draw(table: dict[str, Any], figure: "Figure") -> None:
    axes, columns = figure.subplots(), table["columns"]
    place = {
        name: columns.index(name)
        for name in ("recipe", "bytes", "KLD", "half of its 95 % interval")
    }
    for (recipe, label), marker, colour in zip(PAIRS.items(), MARKERS, SERIES, strict=False):
        own = sorted(
            (row for row in table["rows"] if row[place["recipe"]] == recipe),
            key=lambda r: r[place["bytes"]],
        )
        size, kld, half = ([row[i] for row in own] for i in list(place.values())[1:])
        axes.errorbar(
            [each / 1e6 for each in size],
            kld,
            yerr=half,
            marker=marker,
            color=colour,
            markersize=5,
            markerfacecolor=PAPER if recipe == "stock" else colour,
            elinewidth=1.0,
            label=label,
        )
    axes.set_yscale("log")
    axes.set_xlabel("size of the file, MB")
    axes.set_ylabel("mean KL divergence, nats")
    decades(axes.yaxis)
    axes.legend(loc="upper right")
    quiet(axes, "y")


if __name__ == "__main__":
    main()
