"""Router agreement of files with their reference: one file after the other, on a few chunks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, groupby
from pathlib import Path

import numpy as np

from gemcut.engine import ModelOptions
from gemcut.errors import GemcutError
from gemcut.eval.routing.agreement import Agreement, agreement
from gemcut.eval.routing.capture import Routing, capture
from gemcut.eval.scoring.column import Column
from gemcut.eval.statistics.intervals import Clusters
from gemcut.eval.texts.chunks import Chunk, most_outputs
from gemcut.llama import Model

ROUTED_CHUNKS = 4

# (chunks done, chunks in all), called after every chunk.
Progress = Callable[[int, int], None]


def route(
    columns: Sequence[Column],
    chunks: Sequence[Chunk],
    options: Mapping[Path, ModelOptions],
    threads: int | None = None,
    progress: Progress | None = None,
    owners: Clusters | None = None,
    limit: int = ROUTED_CHUNKS,
) -> dict[Column, Agreement | str]:
    """How far every column sends the scored tokens where the first one, the reference, does.

    One model is loaded at a time. Of the reference its choices are kept: six bytes for each expert
    that a token is sent to.

    Args:
        options: how each file is loaded; as llama.cpp does it where nothing is said.
        owners: of each chunk [n_chunks], the cluster it belongs to; default: each its own.
        limit: at most so many of the chunks are read, spread evenly over them.

    Returns:
        For every column but the reference its agreement, or in words why there is none. Nothing if
        the reference has no experts.
    """
    numbers = spread(chunks, limit)
    passes = _Passes(columns, [chunks[number] for number in numbers], options, threads, progress)
    of_token = passes.of_tokens(np.asarray(numbers) if owners is None else owners[numbers])
    reference: Routing | str | None = None
    results: dict[Column, Agreement | str] = {}
    for path, own in groupby(range(len(columns)), lambda place: columns[place].file.path):
        places = list(own)
        routings = passes.read(path, places)
        reference = routings[0] if reference is None else reference
        if isinstance(reference, str):
            why = f"the reference's routing could not be read: {reference}"
            return dict.fromkeys(columns[1:], why)
        if not reference:
            return {}
        for place, routing in zip(places, routings, strict=True):
            if place:
                results[columns[place]] = _compared(reference, routing, of_token)
    return results


def spread(chunks: Sequence[Chunk], limit: int) -> list[int]:
    """The numbers of at most `limit` of the chunks that have scored tokens, evenly over those."""
    numbers = [number for number, chunk in enumerate(chunks) if chunk.n_scored]
    steps = min(limit, len(numbers))
    return [numbers[(2 * step + 1) * len(numbers) // (2 * steps)] for step in range(steps)]


@dataclass(frozen=True)
class _Passes:
    """What all passes over the text have in common."""

    columns: Sequence[Column]
    chunks: Sequence[Chunk]
    options: Mapping[Path, ModelOptions]
    threads: int | None
    progress: Progress | None

    def of_tokens(self, clusters: Clusters) -> Clusters:
        """Clusters of chunks as those of their scored tokens.

        Chunks that are all of one cluster are taken one by one, or there would be no error bar.
        """
        if len(np.unique(clusters)) < 2:
            clusters = np.arange(len(self.chunks))
        return np.repeat(clusters, [chunk.n_scored for chunk in self.chunks])

    def read(self, path: Path, places: Sequence[int]) -> list[Routing | str]:
        """The routing of the columns at these places, which are of one file, or what went wrong."""
        try:
            with Model.load(path, self.options.get(path)) as model:
                return [self._read(model, place) for place in places]
        except GemcutError as error:
            return [str(error)] * len(places)

    def _read(self, model: Model, place: int) -> Routing | str:
        n_ctx = max(len(chunk.tokens) for chunk in self.chunks)
        n_outputs = max(map(most_outputs, self.chunks))
        options = self.columns[place].context(n_ctx, n_outputs, self.threads)
        done = count(place * len(self.chunks) + 1)
        try:
            return capture(model, options, self.chunks, lambda: self._tell(next(done)))
        except GemcutError as error:
            return str(error)

    def _tell(self, done: int) -> None:
        if self.progress:
            self.progress(done, len(self.columns) * len(self.chunks))


def _compared(reference: Routing, other: Routing | str, owners: Clusters) -> Agreement | str:
    if isinstance(other, str):
        return other
    try:
        return agreement(reference, other, owners)
    except GemcutError as error:
        return str(error)
