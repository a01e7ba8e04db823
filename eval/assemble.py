"""From scores to a comparison: who is compared with whom, and over what."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gemcut.eval.comparison import Comparison, Effects, Protocol, Row
from gemcut.eval.scoring.column import CANDIDATE, FLOOR, REFERENCE
from gemcut.eval.statistics.intervals import Clusters, Estimate, mean
from gemcut.eval.statistics.summary import Summary, summarise
from gemcut.eval.statistics.ties import Pair, detectable_between, pairs, tie_letters
from gemcut.eval.texts.chunks import Chunk
from gemcut.eval.texts.text import Text
from gemcut.score import Scores

# From so many texts on, they are what error bars take as independent: fewer give wild ones.
ENOUGH_TEXTS = 10
# More texts than this are not shown one by one.
_MOST_SHOWN = 30

Sizes = NDArray[np.integer]  # [n_chunks], bytes of each chunk's scored tokens
Mask = NDArray[np.bool_]


def cluster_of(chunks: Sequence[Chunk]) -> tuple[str, Clusters]:
    """What chunks are taken to be independent with, and its number for every chunk."""
    texts = np.array([chunk.text for chunk in chunks])
    if len(np.unique(texts)) >= ENOUGH_TEXTS:
        return "text", texts
    return "chunk", np.arange(len(chunks))


def covering(protocol: Protocol, chunks: Sequence[Chunk], sizes: Sizes) -> Protocol:
    """The protocol of these chunks, whose scored tokens stand for so many bytes each."""
    (cluster, clusters), n_scored = cluster_of(chunks), sum(chunk.n_scored for chunk in chunks)
    return replace(
        protocol,
        n_chunks=len(chunks),
        n_scored=n_scored,
        n_clusters=len(np.unique(clusters)),
        cluster=cluster,
        bytes_per_token=float(sizes.sum() / n_scored),
    )


def assemble(
    protocol: Protocol,
    chunks: Sequence[Chunk],
    sizes: Sizes,
    rows: Sequence[Row],
    notes: Sequence[str] = (),
) -> Comparison:
    """Sum up rows: intervals, domains, ties, effects of the cache.

    Args:
        rows: with scores, or with a failure; what they come to is filled in here.
    """
    _, clusters = cluster_of(chunks)
    base = next((row.scores for row in rows if row.column.role == REFERENCE), None)
    scored = _Scored(chunks, sizes, clusters, base)
    groups = _groups(chunks, protocol.texts)
    done = []
    for row in rows:
        if row.scores is not None:
            summary, (domains, texts) = scored.summary(row), (scored.parts(row, g) for g in groups)
            row = replace(row, summary=summary, by_domain=domains, by_text=texts)
        done.append(row)
    done, found, detectable = _tied(_floored(done, scored), scored)
    return Comparison(
        protocol,
        tuple(done),
        tuple(chunks),
        clusters,
        sizes,
        tuple(_effects(done)),
        tuple(found),
        detectable,
        tuple(notes),
    )


@dataclass(frozen=True)
class _Scored:
    """The text that was scored, and the reference on it."""

    chunks: Sequence[Chunk]
    sizes: Sizes
    clusters: Clusters
    base: Scores | None

    @property
    def lengths(self) -> Sizes:
        """Scored tokens of every chunk."""
        return np.array([chunk.n_scored for chunk in self.chunks])

    def owners(self, chosen: Mask) -> Clusters:
        """The cluster of every token of some chunks."""
        return np.repeat(self.clusters[chosen], self.lengths[chosen])

    def summary(self, row: Row, among: Mask | None = None) -> Summary:
        """A row over its chunks, or over those of them that are `among` some."""
        assert row.scores is not None, "who calls has looked"
        held = self.held(row)
        chosen = held if among is None else held & among
        within = np.repeat(chosen[held], self.lengths[held])
        reference = None if row.scores.divergence is None else self.base
        return summarise(
            row.scores.where(within),
            self.owners(chosen),
            np.repeat(self.sizes[chosen] / self.lengths[chosen], self.lengths[chosen]),
            reference and reference.where(np.repeat(chosen, self.lengths)),
        )

    def beyond(self, row: Row, floor: Row) -> Estimate | None:
        """What a row diverges more than the floor does, on the chunks of both."""
        both, columns = self.held(row) & self.held(floor), []
        for each in (row, floor):
            if not (both.any() and each.scores and each.scores.divergence):
                return None
            held = self.held(each)
            columns.append(each.scores.divergence.kld[np.repeat(both[held], self.lengths[held])])
        return mean(columns[0] - columns[1], self.owners(both))

    def parts(self, row: Row, groups: Mapping[str, Mask]) -> dict[str, Summary]:
        """A row over each of several groups of chunks."""
        held = self.held(row)
        return {
            name: self.summary(row, among) for name, among in groups.items() if (held & among).any()
        }

    def held(self, row: Row) -> Mask:
        """Which chunks a row has scores of."""
        if row.chunks is None:
            return np.ones(len(self.chunks), np.bool_)
        return np.isin(np.arange(len(self.chunks)), row.chunks)


def _groups(
    chunks: Sequence[Chunk], texts: Sequence[Text]
) -> tuple[dict[str, Mask], dict[str, Mask]]:
    """The chunks of every domain, and of every text; none where there is one, or too many."""
    domains, names = (
        np.array([getattr(texts[chunk.text], what) for chunk in chunks])
        for what in ("domain", "name")
    )
    return _members(domains), _members(names)


def _members(names: NDArray[np.str_]) -> dict[str, Mask]:
    found = list(dict.fromkeys(names.tolist()))
    several = 1 < len(found) <= _MOST_SHOWN
    return {name: names == name for name in found} if several else {}


def _floored(rows: list[Row], scored: _Scored) -> list[Row]:
    """Rows with what they diverge more than the floor, if there is one."""
    floor = next((row for row in rows if row.column.role == FLOOR), None)
    if floor is None:
        return rows
    return [
        replace(row, beyond_floor=scored.beyond(row, floor))
        if row.column.role == CANDIDATE
        else row
        for row in rows
    ]


def _tied(rows: list[Row], scored: _Scored) -> tuple[list[Row], list[Pair], float | None]:
    """Rows with the letters of those that cannot be told apart, the pairs they come from, and the
    least difference that would be seen."""
    at = [i for i, row in enumerate(rows) if row.column.role == CANDIDATE and row.scores]
    if len(at) < 2:
        return rows, [], None
    owners = scored.owners(np.ones(len(scored.chunks), np.bool_))
    values = [_value(rows[i]) for i in at]
    found = pairs(values, owners)
    for i, letters in zip(at, tie_letters(values, found), strict=True):
        rows[i] = replace(rows[i], letters=letters)
    numbered = [replace(p, first=at[p.first], second=at[p.second]) for p in found]
    return rows, numbered, detectable_between(found, owners)


def _value(row: Row) -> NDArray[np.float64]:
    """What files are ranked by: divergence, or without a reference likelihood."""
    assert row.scores is not None, "who calls has looked"
    return row.scores.divergence.kld if row.scores.divergence else row.scores.nll


def _effects(rows: Sequence[Row]) -> Iterator[Effects]:
    """Weights and cache apart, for every file that was scored with both caches."""
    base = next((row.column for row in rows if row.column.role == REFERENCE), None)
    if base is None:
        return
    klds = {row.column: row.summary.kld.value for row in rows if row.summary and row.summary.kld}
    for column, both in klds.items():
        cache = base.with_cache(column.type_k, column.type_v)
        weights = column.with_cache(base.type_k, base.type_v)
        apart = column.file != base.file and column != weights
        if apart and cache in klds and weights in klds:
            yield Effects(
                column.file.name, column.type_k, column.type_v, klds[weights], klds[cache], both
            )
