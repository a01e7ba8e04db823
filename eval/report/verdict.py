"""What a comparison comes to, in sentences: which file is closest, what ties, what is beaten.

Nothing is called better than something else unless the test behind the letters tells them apart.
"""

from collections.abc import Iterator, Sequence

from gemcut.eval.comparison import Comparison, Row
from gemcut.eval.report.words import format_change, format_estimate, listed, short_names
from gemcut.eval.statistics.summary import Summary
from gemcut.sizes import format_size

_MOST_BEATEN = 4  # sentences about files that are larger and worse than another


def verdict(comparison: Comparison) -> list[str]:
    """The sentences, the most important first; the first alone answers the question."""
    names = short_names([row.column.name for row in comparison.rows])
    found = [*_compared(comparison, names), *_alone(comparison, names)]
    for row in comparison.rows:
        if row.failure is not None:
            what = "was scored in part only" if row.summary else "could not be scored"
            found.append(f"{names[row.column.name]} {what}: {row.failure.rstrip('.')}.")
    return found


def told_apart(first: Row, other: Row) -> bool:
    """Whether the two differ measurably by mean KL divergence."""
    return bool(first.letters and other.letters) and not set(first.letters) & set(other.letters)


def ranked(comparison: Comparison) -> list[Row]:
    """The files with a KL divergence, the closest to the reference first.

    What has another cache than the reference is left out: it is of the cache, not of the file.
    """
    reference = comparison.reference
    rows = [row for row in comparison.files if row.summary and row.summary.kld]
    if reference is not None:
        usual = [row for row in rows if _cache(row) == _cache(reference)]
        rows = usual or rows
    return sorted(rows, key=_kld)


def _compared(comparison: Comparison, names: dict[str, str]) -> Iterator[str]:
    rows, reference = ranked(comparison), comparison.reference
    if not rows or reference is None:
        return
    yield _closest(rows, names, names[reference.column.name])
    yield from _beaten(rows, names)
    yield from _ties(rows, names)
    yield from _at_the_floor(comparison, rows, names)
    yield from _perplexity_is_blind(rows, names)


def _closest(rows: Sequence[Row], names: dict[str, str], reference: str) -> str:
    best = rows[0]
    equal = [row for row in rows if row is best or _tied(best, row)]
    if len(equal) == 1 or not best.letters:
        verb = "is closest to" if len(rows) > 1 else "against"
        return f"{names[best.column.name]} {verb} {reference}: {_loss(best)}."
    smallest = min(equal, key=lambda row: row.column.file.size)
    return (
        f"{listed([names[row.column.name] for row in equal])} cannot be told apart as the closest "
        f"to {reference}; {names[smallest.column.name]} is the smallest of them: {_loss(smallest)}."
    )


def _loss(row: Row) -> str:
    summary = _summary(row)
    parts = [f"mean KL divergence {format_estimate(summary.kld)} nats"] if summary.kld else []
    if summary.same_top:
        parts.append(f"the same most likely token in {format_estimate(summary.same_top, 100)} %")
    if summary.log_ratio:
        parts.append(f"perplexity {format_change(summary.log_ratio)} %")
    return ", ".join(parts)


def _beaten(rows: Sequence[Row], names: dict[str, str]) -> Iterator[str]:
    """Files that another one beats in size and quality, each beside the best that does."""
    beaten = []
    for row in rows:
        better = [r for r in rows if told_apart(r, row) and _size(r) < _size(row)]
        better = [r for r in better if _kld(r) < _kld(row)]
        if better:
            beaten.append((max(better, key=_size), row))
    for winner, loser in beaten[:_MOST_BEATEN]:
        smaller, lower = 1 - _size(winner) / _size(loser), 1 - _kld(winner) / _kld(loser)
        yield (
            f"{names[winner.column.name]} ({format_size(_size(winner))}) is {_share(smaller)} "
            f"smaller than {names[loser.column.name]} ({format_size(_size(loser))}) and measurably "
            f"closer: its mean KL divergence is {_share(lower)} lower."
        )


def _ties(rows: Sequence[Row], names: dict[str, str]) -> Iterator[str]:
    """Groups that share a letter, but for the one of the best file."""
    said = {letter for letter in rows[0].letters}
    for letter in sorted({letter for row in rows for letter in row.letters} - said):
        group = [row for row in rows if letter in row.letters]
        if len(group) > 1:
            smallest = min(group, key=_size)
            yield (
                f"{listed([names[row.column.name] for row in group])} cannot be told apart; the "
                f"smallest is {names[smallest.column.name]} ({format_size(_size(smallest))})."
            )


def _at_the_floor(
    comparison: Comparison, rows: Sequence[Row], names: dict[str, str]
) -> Iterator[str]:
    """Held against the floor on its own chunks: to be at it is more than not to differ from it."""
    floor = comparison.floor
    if floor is None or floor.summary is None or floor.summary.kld is None:
        return
    level = floor.summary.kld.value
    known = [(row, above) for row in rows if (above := row.beyond_floor) and above.has_interval]
    close = [(names[row.column.name], above.high) for row, above in known if above.low <= 0]
    there, unsure = ([n for n, most in close if (most <= level) is at] for at in (True, False))
    if there:
        verb = "is" if len(there) == 1 else "are"
        yield (
            f"{listed(there)} {verb} at the noise floor: as close as the reference computed in "
            "another way."
        )
    if unsure:
        yield (f"{listed(unsure)} cannot be told from the noise floor of {level:.2g} on this text.")
    if known and not close and level > 0:
        times = 1 + known[0][1].value / level
        shown = f"{times:,.0f}" if times >= 10 else f"{times:.2g}"
        yield f"Even the closest is {shown} times the noise floor of {level:.2g}."


def _perplexity_is_blind(rows: Sequence[Row], names: dict[str, str]) -> Iterator[str]:
    blind = [
        names[row.column.name]
        for row in rows
        if (ratio := _summary(row).log_ratio) and ratio.has_interval and ratio.low <= 0
    ]
    if blind:
        yield f"By perplexity alone no loss would be seen of {listed(blind)}."


def _alone(comparison: Comparison, names: dict[str, str]) -> Iterator[str]:
    """Without a reference there is only perplexity, and no paired difference."""
    rows = [row for row in comparison.files if row.summary]
    if comparison.reference is not None or not rows:
        return
    best = min(rows, key=lambda row: _summary(row).perplexity.value)
    perplexity = format_estimate(_summary(best).perplexity, digits=4)
    lowest = "has the lowest perplexity," if len(rows) > 1 else "has a perplexity of"
    yield (
        f"{names[best.column.name]} {lowest} {perplexity}; without a reference nothing tells what "
        "was lost."
    )


def _cache(row: Row) -> tuple[str, str]:
    return row.column.type_k, row.column.type_v


def _tied(first: Row, other: Row) -> bool:
    return bool(set(first.letters) & set(other.letters))


def _summary(row: Row) -> Summary:
    assert row.summary is not None  # rows that failed are left out before
    return row.summary


def _kld(row: Row) -> float:
    kld = _summary(row).kld
    return kld.value if kld else float("inf")


def _size(row: Row) -> int:
    return row.column.file.size


def _share(part: float) -> str:
    return f"{100 * part:.2g} %"
