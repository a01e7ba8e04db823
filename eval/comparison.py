"""What a comparison found: data for the report, without a way to print it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemcut.eval.routing.agreement import Agreement
from gemcut.eval.scoring.column import CANDIDATE, FLOOR, REFERENCE, Column
from gemcut.eval.statistics.intervals import Clusters, Estimate
from gemcut.eval.statistics.summary import Summary
from gemcut.eval.statistics.ties import Pair
from gemcut.eval.tasks.result import TaskResult
from gemcut.eval.texts.chunks import Chunk
from gemcut.eval.texts.diagnosis import Diagnosis
from gemcut.eval.texts.text import Text
from gemcut.runtime.speed.measured import MeasuredSpeed
from gemcut.score import Scores


@dataclass(frozen=True)
class Protocol:
    """How the numbers were made: whoever uses the same protocol should get the same numbers."""

    n_ctx: int
    framing: str  # raw, bos, chat, own
    bos: int | None  # the token that each chunk of plain text begins with
    threads: int | None
    engine: str
    texts: tuple[Text, ...] = field(repr=False)
    n_chunks: int = 0
    n_scored: int = 0  # tokens
    n_clusters: int = 0
    cluster: str = "chunk"  # what error bars take as independent: "text" where there are many
    bytes_per_token: float = 0.0  # of the scored text


@dataclass(frozen=True)
class Row:
    """One column's result.

    summary: None where it failed, and then `failure` says why.
    by_domain: the same over each domain's texts, where there are several domains; `by_text` over
        each text's, where there are several texts but not many.
    scores: one number per scored token of its chunks, in their order.
    chunks: the numbers of the chunks it was scored on; None: all of them.
    letters: columns that share a letter cannot be told apart by their mean KL divergence.
    beyond_floor: what its mean KL divergence is more than the floor's, on the chunks of both.
    prefill: tokens per second of the scoring decodes; None where the scores were kept from before.
    """

    column: Column
    summary: Summary | None
    by_domain: Mapping[str, Summary] = field(default_factory=dict)
    by_text: Mapping[str, Summary] = field(default_factory=dict)
    scores: Scores | None = field(default=None, repr=False)
    chunks: tuple[int, ...] | None = None
    letters: str = ""
    beyond_floor: Estimate | None = None
    prefill: float | None = None
    routing: Agreement | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Effects:
    """What weights and cache cost, apart and together: mean KL divergence from the reference.

    Of one file and one cache type: `weights` with an f16 cache, `cache` of the reference's weights
    with that cache, `both` of the file with it; what is beyond the sum is their interaction.
    """

    file: str
    type_k: str
    type_v: str
    weights: float
    cache: float
    both: float


@dataclass(frozen=True)
class Comparison:
    """One protocol's rows: the reference first if there is one, then its noise floor, then files.

    clusters: of each chunk, the number of what it is taken to be independent with.
    sizes: of each chunk, the bytes of its scored tokens; kept with the scores, so that results can
        be joined and summed up anew without the models.
    pairs: of files, by the numbers of their rows: which are worse than which.
    detectable: the smallest difference of mean KL divergence between two files like these that
        this much text would show, in 4 of 5 cases and beside all other pairs; None with fewer than
        two files.
    """

    protocol: Protocol
    rows: tuple[Row, ...]
    chunks: tuple[Chunk, ...] = field(default=(), repr=False)
    clusters: Clusters | None = field(default=None, repr=False)
    sizes: NDArray[np.integer] | None = field(default=None, repr=False)
    effects: tuple[Effects, ...] = ()
    pairs: tuple[Pair, ...] = ()
    detectable: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def reference(self) -> Row | None:
        """What the others are compared with."""
        return next((row for row in self.rows if row.column.role == REFERENCE), None)

    @property
    def floor(self) -> Row | None:
        """The reference against itself, computed in another way."""
        return next((row for row in self.rows if row.column.role == FLOOR), None)

    @property
    def files(self) -> tuple[Row, ...]:
        """The rows that are compared, or scored alone."""
        return tuple(row for row in self.rows if row.column.role == CANDIDATE)


@dataclass(frozen=True)
class Anatomy:
    """What a file is, whatever it scores.

    types: of every tensor with its bytes, in the file's order: (name, ggml type, bytes).
    predicted: mean KL divergence that the plan which the file carries predicted, if it has one.
    provenance: what the file says of where it comes from.
    speed: prefill and decode, measured; memory: the most bytes by place while it ran, measured.
    """

    name: str
    types: tuple[tuple[str, str, int], ...] = field(repr=False)
    predicted: float | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    speed: MeasuredSpeed | None = None
    memory: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Everything one run of `gemcut eval` found: a comparison for each context, tasks, files."""

    comparisons: tuple[Comparison, ...]
    files: tuple[Anatomy, ...] = ()
    tasks: tuple[TaskResult, ...] = ()
    diagnosis: Diagnosis | None = None
    command: tuple[str, ...] = ()  # that makes it again
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON knows it: every number, but none per token."""
        from gemcut.eval.report import record  # which reads reports, too

        return record.to_dict(self)
