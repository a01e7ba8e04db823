"""How experts were used, for people: what `gemcut imatrix` and `gemcut inspect` say of it."""

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.table import Table

from gemcut.cli.common import print_table
from gemcut.errors import printable

if TYPE_CHECKING:
    from gemcut.quantize.coverage import LayerCoverage
    from gemcut.quantize.skew import Skew
    from gemcut.quantize.statistics import Statistics


def to_dict(statistics: "Statistics") -> dict[str, Any]:
    """Coverage and skew as plain data; of a model without experts there is no skew."""
    from gemcut.quantize.coverage import coverage
    from gemcut.quantize.coverage import to_dict as described
    from gemcut.quantize.skew import skew

    layers = coverage(statistics)
    return {
        "chunks": statistics.chunk_count,
        "context": statistics.chunk_size,
        "coverage": described(layers),
        "routing": skew(layers).to_dict() if layers else None,
    }


def describe(statistics: "Statistics") -> None:
    """Print what an imatrix file holds, and `report`."""
    print_table(
        f"importance of {len(statistics.entries)} tensors, from {statistics.chunk_count} chunks of "
        f"{statistics.chunk_size} tokens: {', '.join(map(printable, statistics.datasets)) or '?'}"
    )
    report(statistics)


def report(statistics: "Statistics") -> None:
    """Print how the experts of each block were used, and say what that means."""
    from gemcut.quantize.coverage import coverage
    from gemcut.quantize.skew import skew

    if layers := coverage(statistics):
        print_table(_table(layers))
        print_table(spoken(skew(layers)))


def spoken(skew: "Skew") -> str:
    """The skew in words."""
    said = (
        f"The busiest quarter of a block's experts gets {skew.busiest:.0%} of the rows. "
        "Types per expert (--per-expert): "
    )
    if not skew.enough:
        return f"{said}too few rows were counted to tell skew from chance; read more text."
    said += "worth trying." if skew.worth else "not worth it, routing is balanced."
    factors = ", ".join(f"x {each:.2f}" for each in skew.factors.values())
    sizes = ", ".join(f"{size:g}" for size in skew.factors)
    return (
        f"{said} Predicted from these shares alone, at equal bytes: the experts' part of KL "
        f"divergence {factors} at {sizes} bits per weight."
    )


def _table(layers: Sequence["LayerCoverage"]) -> Table:
    columns = "block, experts, reached, as many as, busiest quarter, least rows, median, most"
    table = Table(*columns.split(", "))
    for column in table.columns:
        column.justify = "right"
    for each in layers:
        counts = [int(count) for count in each.counts]
        table.add_row(
            str(each.layer),
            str(each.experts),
            str(each.reached),
            f"{each.effective:.1f}",
            f"{each.busiest:.0%}",
            *(f"{of(counts):.0f}" for of in (min, median, max)),
        )
    return table
