"""Pictures of where a loss lies: in which tokens, which blocks' routers, which kinds of text."""

from collections.abc import Iterator, Sequence
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gemcut.eval.comparison import Comparison, Effects, Row
from gemcut.eval.report.marks import decades, label, lengths, name_ends, quiet
from gemcut.eval.report.plots import FAINT, INK, LINE, MARKERS, SERIES, Plot
from gemcut.eval.report.verdict import ranked
from gemcut.eval.report.words import short_names
from gemcut.eval.routing.agreement import Agreement
from gemcut.eval.statistics.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Values = NDArray[np.float64]
_BINS = 60
_LEAST = 1e-9  # nats: less is rounding
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
_ENDS = (attrgetter("low"), attrgetter("high"))
_MOST_LINES = 28  # files in one picture: colours and dashes are used up


def distributions(comparison: Comparison, suffix: str = "") -> Iterator[Plot]:
    """How KL divergence is spread over tokens: its histogram, and its tail."""
    values = _per_token(comparison)
    if not values:
        return
    floor = _values(comparison.floor)
    yield Plot(
        f"histogram{suffix}",
        "KL divergence of single tokens",
        "Ticks: median, 99 % and 99.9 % of tokens are below; the dot: the mean. "
        + ("Grey: the noise floor." if floor is not None else ""),
        partial(_draw_histograms, values, floor),
        0.75 + 0.36 * len(values),
    )
    yield Plot(
        f"tail{suffix}",
        "How many tokens lose more than that",
        "Share of tokens whose KL divergence is larger. Dashed and grey: the noise floor.",
        partial(_draw_tails, values, floor),
    )


def routers(comparison: Comparison, suffix: str = "") -> Iterator[Plot]:
    """For every block, how often the reference's experts are chosen."""
    names = short_names([row.column.name for row in comparison.rows])
    rows = [row for row in ranked(comparison) if row.routing and row.routing.layers]
    found = {names[row.column.name]: row.routing for row in rows[:_MOST_LINES] if row.routing}
    if found:
        floor = comparison.floor.routing if comparison.floor else None
        yield Plot(
            f"routers{suffix}",
            "Tokens that are sent to the reference's experts",
            "Share of tokens whose whole set of experts is the same, block by block, with 95 % "
            "intervals. " + ("Grey: the noise floor." if floor else ""),
            partial(_draw_routers, found, floor),
        )


def domains(comparison: Comparison, suffix: str = "") -> Iterator[Plot]:
    """Mean KL divergence of each kind of text, file by file."""
    names = short_names([row.column.name for row in comparison.rows])
    found = {
        names[row.column.name]: {
            domain: summary.kld
            for domain, summary in (row.by_domain or row.by_text).items()
            if summary.kld and summary.kld.value > 0
        }
        for row in ranked(comparison)
    }
    kinds = list(dict.fromkeys(domain for each in found.values() for domain in each))
    if 1 < len(kinds) <= len(SERIES):
        yield Plot(
            f"domains{suffix}",
            "Kinds of text",
            "Mean KL divergence with 95 % intervals.",
            partial(_draw_domains, found, kinds),
            0.9 + 0.33 * len(found),
        )


def caches(comparison: Comparison, suffix: str = "") -> Iterator[Plot]:
    """What weights and cache cost, beside what they cost together."""
    if comparison.effects:
        yield Plot(
            f"cache{suffix}",
            "Weights and KV cache",
            "Bars: mean KL divergence of the weights alone, then of the cache alone. Diamond: of "
            "both together; beyond the bars' end they make each other worse.",
            partial(_draw_caches, comparison.effects),
            0.95 + 0.33 * len(comparison.effects),
        )


def _per_token(comparison: Comparison) -> dict[str, _Values]:
    names = short_names([row.column.name for row in comparison.rows])
    rows = ranked(comparison)[:_MOST_LINES]
    found = {names[row.column.name]: _values(row) for row in rows}
    return {name: values for name, values in found.items() if values is not None}


def _values(row: Row | None) -> _Values | None:
    """Divergences of a row, rounding errors cut off."""
    if row is None or row.scores is None or row.scores.divergence is None:
        return None
    kld = row.scores.divergence.kld
    kld = kld[np.isfinite(kld)]
    return np.maximum(kld, _LEAST) if kld.size else None


def _draw_histograms(values: dict[str, _Values], floor: _Values | None, figure: "Figure") -> None:
    axes = figure.subplots()
    everything = [*values.values(), *([floor] if floor is not None else [])]
    low = min(float(np.quantile(each, 0.005)) for each in everything)
    high = max(float(each.max()) for each in everything)
    edges = np.linspace(np.log10(low), np.log10(max(high, 2 * low)), _BINS + 1)
    for place, each in enumerate(reversed(list(values.values()))):
        if floor is not None:
            _ridge(axes, edges, floor, place, FAINT, 0.25)
        _ridge(axes, edges, each, place, SERIES[0], 0.55)
        _marks(axes, each, place)
    axes.set_yticks(range(len(values)), [label(name) for name in reversed(values)])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xscale("log")
    axes.set_xlim(10 ** edges[0], 10 ** edges[-1])
    axes.set_xlabel("KL divergence of a token, nats")
    decades(axes.xaxis)
    quiet(axes, "x")


def _ridge(
    axes: "Axes", edges: _Values, values: _Values, place: int, colour: str, alpha: float
) -> None:
    """A histogram on a line of its own, as high as there is room whatever it holds."""
    logs = np.clip(np.log10(values), edges[0], edges[-1])
    counts, _ = np.histogram(logs, edges)
    heights = place + 0.82 * counts / max(counts.max(), 1)
    axes.stairs(heights, 10**edges, baseline=place, fill=True, color=colour, alpha=alpha, lw=0)
    axes.axhline(place, color=LINE, linewidth=0.7, zorder=0)


def _marks(axes: "Axes", values: _Values, place: int) -> None:
    for share, height in ((0.5, 0.3), (0.99, 0.22), (0.999, 0.14)):
        at = float(np.quantile(values, share))
        axes.plot([at, at], [place, place + height], color=INK, linewidth=1.1)
    axes.plot(float(values.mean()), place + 0.07, marker="o", markersize=3.4, color=SERIES[1])


def _draw_tails(values: dict[str, _Values], floor: _Values | None, figure: "Figure") -> None:
    axes = figure.subplots()
    if floor is not None:
        axes.plot(*_tail(floor), color=FAINT, linewidth=1.0, linestyle=(0, (4, 3)))
    for i, (name, each) in enumerate(values.items()):
        marker, every = MARKERS[i % len(MARKERS)], (5 * i % 20, 20)
        axes.plot(
            *_tail(each),
            color=_colour(i),
            linestyle=_dash(i),
            marker=marker,
            markersize=3.2,
            markevery=every,
            label=label(name),
        )
    axes.set(xscale="log", yscale="log")
    axes.set_xlim(left=max(_LEAST, min(float(np.quantile(v, 0.2)) for v in values.values())))
    axes.set_xlabel("KL divergence, nats")
    decades(axes.xaxis)
    axes.set_ylabel("share of tokens above")
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    axes.legend(loc="upper right", fontsize=7.5, labelspacing=0.25, borderaxespad=0.1)
    quiet(axes, "y")


def _tail(values: _Values) -> tuple[_Values, _Values]:
    """Quantiles, closer together towards the largest: few points are enough for a line."""
    least = 1 / len(values)
    shares = np.geomspace(1, least, min(len(values), 160))
    return np.quantile(values, 1 - shares), shares


def _draw_routers(found: dict[str, Agreement], floor: Agreement | None, figure: "Figure") -> None:
    axes = figure.subplots()
    ends = []
    if floor is not None and floor.layers:
        axes.plot(*_blocks(floor), color=FAINT, linewidth=1.1, linestyle=(0, (4, 3)))
    for i, agreement in enumerate(found.values()):
        blocks, shares = _blocks(agreement)
        low, high = (
            [100 * getattr(la.same, end) for la in agreement.layers] for end in ("low", "high")
        )
        axes.fill_between(blocks, low, high, color=_colour(i), alpha=0.18, linewidth=0)
        axes.plot(blocks, shares, color=_colour(i), linestyle=_dash(i), linewidth=1.2)
        ends.append((float(blocks[-1]), shares[-1]))
    axes.set_xlabel("block")
    axes.set_ylabel("same experts, % of tokens")
    axes.set_ylim(top=100)
    axes.locator_params(axis="x", integer=True)
    quiet(axes, "y")
    name_ends(axes, ends, list(found), [_colour(i) for i in range(len(found))])


def _blocks(agreement: Agreement) -> tuple[list[int], list[float]]:
    layers = agreement.layers
    return [layer.block for layer in layers], [100 * layer.same.value for layer in layers]


def _draw_domains(
    found: dict[str, dict[str, Estimate]], kinds: Sequence[str], figure: "Figure"
) -> None:
    axes = figure.subplots()
    for i, kind in enumerate(kinds):
        for place, each in enumerate(reversed(found.values())):
            if kind in each:
                axes.errorbar(
                    each[kind].value,
                    place + 0.5 * (0.5 - (i + 0.5) / len(kinds)),
                    xerr=lengths(each[kind], True),
                    fmt=MARKERS[i],
                    color=SERIES[i],
                    markersize=4,
                    elinewidth=1,
                    label=label(kind) if place == 0 else None,
                )
    axes.set_xscale("log")
    axes.set_yticks(range(len(found)), [label(name) for name in reversed(found)])
    axes.set_xlabel("mean KL divergence, nats")
    decades(axes.xaxis)
    figure.legend(loc="outside upper left", ncols=4, fontsize=7.5)
    quiet(axes, "x")


def _draw_caches(effects: Sequence[Effects], figure: "Figure") -> None:
    axes = figure.subplots()
    names = short_names([effect.file for effect in effects])
    shown = list(reversed(effects))
    weights, cache = [e.weights for e in shown], [e.cache for e in shown]
    places = range(len(shown))
    axes.barh(places, weights, height=0.5, color=SERIES[0], label="weights")
    axes.barh(places, cache, height=0.5, left=weights, color=SERIES[4], label="KV cache")
    both = [e.both for e in shown]
    axes.plot(both, places, linestyle="", marker="D", markersize=4.5, color=INK, label="both")
    ticks = [f"{label(names[e.file])}, {e.type_k}/{e.type_v}" for e in shown]
    axes.set_yticks(places, ticks)
    axes.set_xlabel("mean KL divergence, nats")
    figure.legend(loc="outside upper left", ncols=3, fontsize=7.5)
    quiet(axes, "x")


def _colour(number: int) -> str:
    return SERIES[number % len(SERIES)]


def _dash(number: int) -> str | tuple[float, tuple[float, ...]]:
    return _DASHES[number // len(SERIES) % len(_DASHES)]
