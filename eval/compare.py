"""Score files on the same text, chunk by chunk in lockstep, against a reference if there is one.

All files are loaded at once (memory-mapped, so their pages are shared with the page cache) and
decode the same chunk before any moves on: KL divergence needs no file of logits. Perplexity is
exactly llama.cpp's (see `texts` for the cut), so it can be held against published numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from gemcut.engine import ContextOptions, default_threads
from gemcut.errors import EngineError, TextError, UsageError
from gemcut.eval.files import File, select
from gemcut.eval.statistics import Summary, summarise
from gemcut.eval.texts import MIN_CHUNKS, Text, Tokens, cut, scored, targets
from gemcut.llama import Context, Model
from gemcut.score import Logits, Scores, broken, score

# (chunks done, chunks in all), called after every chunk.
Progress = Callable[[int, int], None]

_ENOUGH_TEXTS = 10


@dataclass(frozen=True)
class Protocol:
    """How the numbers were made: whoever uses the same protocol should get the same numbers."""

    n_ctx: int
    n_chunks: int
    n_scored: int  # tokens
    n_clusters: int
    cluster: str  # what error bars take as independent: "chunk", or "text" where there are many
    bytes_per_token: float  # of the scored text
    bos: int | None  # the token each chunk begins with
    framing: str
    n_ubatch: int
    threads: int | None
    flash_attention: bool | None
    type_k: str
    type_v: str
    engine: str
    texts: tuple[Text, ...] = field(repr=False)


@dataclass(frozen=True)
class Row:
    """One file's result. scores: [n_chunks, tokens per chunk]; prefill: tokens per second.

    Prefill speed is that of the scoring decodes themselves: whole chunks, logits for the second
    half, the median over chunks so that the first one's page faults do not count. The files take
    turns on one machine, each finding the caches as the one before it left them.
    """

    file: File
    scores: Scores = field(repr=False)
    summary: Summary
    prefill: float


@dataclass(frozen=True)
class Comparison:
    """Rows in the order given, the reference first if there is one; notes are for the reader."""

    protocol: Protocol
    rows: tuple[Row, ...]
    has_reference: bool
    notes: tuple[str, ...] = ()


def compare(
    files: Sequence[Path],
    reference: Path | None,
    texts: Sequence[Text],
    n_ctx: int = 512,
    chunks: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    parse_special: bool = False,
) -> Comparison:
    """Perplexity of every file on the texts and, with a reference, what each lost against it.

    chunks: at most so many of each text. threads: default is this machine's. parse_special: read
    "<bos>" and the like in the texts as tokens.

    Raises:
        UsageError: no file, a file listed twice, or a context or number of chunks too small.
        TextError: no text, or one with fewer than two chunks of tokens.
        GGUFError, EngineError: a file cannot be read or loaded, its vocabulary is another one
            than the first file's, or its logits are not finite.
    """
    _check(texts, n_ctx, chunks)
    chosen = select(files, reference)
    options = ContextOptions(
        n_ctx=n_ctx,
        n_ubatch=min(n_ctx, 512),
        threads=threads or default_threads(),
        n_outputs=int(scored(n_ctx).sum()),
    )
    with ExitStack() as stack:
        scorers = [stack.enter_context(_opened(file, options)) for file in chosen]
        by_text = _cut_alike(scorers, texts, n_ctx, chunks, parse_special)
        cuts, clusters = np.concatenate(by_text), _clusters(by_text)
        results = _score_in_lockstep(
            scorers, cuts, reference is not None, options.threads or 1, progress
        )
        seconds = [float(np.median(scorer.seconds)) for scorer in scorers]
        n_ctx_train = min(scorer.model.n_ctx_train for scorer in scorers)
        protocol = _protocol(options, scorers[0], cuts, clusters, texts, parse_special)
    base = results[0] if reference is not None else None
    rows = [
        Row(file, scores, summarise(scores, clusters, protocol.bytes_per_token, base), n_ctx / time)
        for file, scores, time in zip(chosen, results, seconds, strict=True)
    ]
    note = f"scored with a context of {n_ctx}, trained on {n_ctx_train}"
    notes = (note,) if n_ctx > n_ctx_train else ()
    return Comparison(protocol, tuple(rows), reference is not None, notes)


class _Scorer:
    """A loaded file that turns chunks into logits and remembers how long each took."""

    def __init__(self, file: File, model: Model, context: Context) -> None:
        self.file, self.model, self._context = file, model, context
        self.seconds: list[float] = []

    @property
    def bos(self) -> int | None:
        """The token a chunk has to begin with."""
        return self.model.bos if self.model.add_bos else None

    def logits(self, chunk: Tokens) -> Logits:
        """Logits [scored, vocabulary] of a chunk, valid until the next call."""
        self._context.forget()
        start = perf_counter()
        logits = self._context.decode(chunk, outputs=scored(len(chunk)))
        self.seconds.append(perf_counter() - start)
        return logits


@contextmanager
def _opened(file: File, options: ContextOptions) -> Iterator[_Scorer]:
    with Model.load(file.path) as model, Context(model, options) as context:
        yield _Scorer(file, model, context)


def _check(texts: Sequence[Text], n_ctx: int, chunks: int | None) -> None:
    if not texts:
        raise TextError("no text to score: name at least one text file")
    if n_ctx < 8:
        raise UsageError(f"a context of {n_ctx} is too small to score, wanted at least 8")
    if chunks is not None and chunks < MIN_CHUNKS:
        raise UsageError(f"{chunks} chunks: wanted at least {MIN_CHUNKS}, for an error bar")


def _cut_alike(
    scorers: Sequence[_Scorer], texts: Sequence[Text], n_ctx: int, limit: int | None, special: bool
) -> list[Tokens]:
    """The chunks of each text, [n_chunks, n_ctx], once every file is seen to cut them alike."""
    first = scorers[0]
    tokens = [_tokens(first, text, special) for text in texts]
    for other in scorers[1:]:
        for what, a, b in (
            ("tokens in the vocabulary", first.model.n_vocab, other.model.n_vocab),
            ("as the token that begins a text", first.bos, other.bos),
        ):
            if a != b:
                raise EngineError(_unlike(first, other, f"{b} {what} instead of {a}"))
        for text, wanted in zip(texts, tokens, strict=True):
            if not np.array_equal(_tokens(other, text, special), wanted):
                raise EngineError(_unlike(first, other, f"it cuts {text.name} into other tokens"))
    pairs = zip(texts, tokens, strict=True)
    return [cut(ids, n_ctx, limit, first.bos, text.name) for text, ids in pairs]


def _clusters(by_text: Sequence[Tokens]) -> NDArray[np.int64]:
    """The cluster of every chunk: its text, where there are enough of them for an error bar."""
    lengths = [len(chunks) for chunks in by_text]
    if len(by_text) < _ENOUGH_TEXTS:
        return np.arange(sum(lengths))
    return np.repeat(np.arange(len(by_text)), lengths)


def _tokens(scorer: _Scorer, text: Text, special: bool) -> Tokens:
    return scorer.model.tokenize(text.content, add_special=True, parse_special=special)


def _unlike(first: _Scorer, other: _Scorer, difference: str) -> str:
    return (
        f"{other.file.name} cannot be compared with {first.file.name}: {difference}; "
        "compare files made from one checkpoint"
    )


def _score_in_lockstep(
    scorers: Sequence[_Scorer],
    cuts: Tokens,
    has_reference: bool,
    threads: int,
    progress: Progress | None,
) -> list[Scores]:
    """Scores of every file: [n_chunks, tokens per chunk], the first file's being the reference."""
    by_chunk = []
    for number, chunk in enumerate(cuts, start=1):
        logits = [scorer.logits(chunk) for scorer in scorers]
        reference = logits.pop(0) if has_reference else None
        by_chunk.append(score(targets(chunk), logits, reference, threads))
        for scorer, scores in zip(scorers, by_chunk[-1], strict=True):
            _check_finite(scorer.file, scores, number, len(cuts))
        if progress is not None:
            progress(number, len(cuts))
    return [Scores.stack(scores) for scores in zip(*by_chunk, strict=True)]


def _check_finite(file: File, scores: Scores, number: int, n_chunks: int) -> None:
    if bad := broken(scores):
        raise EngineError(
            f"{file.name}: chunk {number} of {n_chunks}: {bad} of {len(scores.nll)} scored tokens "
            "have logits that are not finite; the file is damaged, or a type or back-end is faulty"
        )


def _protocol(
    options: ContextOptions,
    scorer: _Scorer,
    cuts: Tokens,
    clusters: NDArray[np.int64],
    texts: Sequence[Text],
    special: bool,
) -> Protocol:
    (n_chunks, n_ctx), bos = cuts.shape, scorer.bos
    read = "text with special tokens" if special else "raw text"
    return Protocol(
        n_ctx=n_ctx,
        n_chunks=n_chunks,
        n_scored=n_chunks * int(scored(n_ctx).sum()),
        n_clusters=len(np.unique(clusters)),
        cluster="text" if len(texts) >= _ENOUGH_TEXTS else "chunk",
        bytes_per_token=_bytes_per_token(scorer.model, cuts),
        bos=bos,
        framing=f"{read}, {'no BOS' if bos is None else 'BOS per chunk'}",
        n_ubatch=options.n_ubatch,
        threads=options.threads,
        flash_attention=options.flash_attention,
        type_k=options.type_k,
        type_v=options.type_v,
        engine=f"llama-cpp-python {version('llama-cpp-python')}",
        texts=tuple(texts),
    )


def _bytes_per_token(model: Model, cuts: Tokens) -> float:
    """The mean length of the scored tokens."""
    tokens, counts = np.unique(cuts[:, cuts.shape[1] // 2 + 1 :], return_counts=True)
    lengths = [len(model.piece(int(token), special=True)) for token in tokens]
    return float(np.average(lengths, weights=counts))
