"""Score files on the same text against a reference, and say what each one lost.

Every column reads the same chunks (see `material`); scores are one number a token (see `scoring`);
what they come to is summed up in `assemble`. Perplexity is exactly llama.cpp's, so that it can be
held against published numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from gemcut.engine import ModelOptions
from gemcut.errors import UsageError
from gemcut.eval.assemble import assemble, cluster_of
from gemcut.eval.comparison import Comparison, Row
from gemcut.eval.files import File, fingerprint, select
from gemcut.eval.material import Material, of_base, of_texts
from gemcut.eval.routing.agreement import Agreement
from gemcut.eval.routing.route import route, spread
from gemcut.eval.scope import Means, Scope
from gemcut.eval.scoring.column import CANDIDATE, FLOOR, REFERENCE, Column
from gemcut.eval.scoring.fitting import placed
from gemcut.eval.scoring.scoring import Scored, score_columns
from gemcut.eval.texts.alike import check_alike
from gemcut.eval.texts.chunks import MIN_CHUNKS, most_outputs
from gemcut.eval.texts.text import Text

F16 = ("f16", "f16")
_UNCUT = 15.5  # bits per weight, from which on a file is not quantized
_FLOOR_UBATCH = 128  # tokens


def compare(
    files: Sequence[Path],
    reference: Path | None,
    texts: Sequence[Text],
    n_ctx: int = 512,
    chunks: int | None = None,
    scope: Scope | None = None,
    means: Means | None = None,
) -> Comparison:
    """Perplexity of every file on the texts and, with a reference, what each lost against it.

    chunks: at most so many of each text.

    Raises:
        UsageError: no file, a file listed twice, or a context or number of chunks too small.
        TextError: no text, or too little of it.
        GGUFError: a file cannot be read.
        EngineError: the files' vocabularies differ, or the reference cannot be scored; another file
            that cannot be is a row that says why.
    """
    chosen = select(files, reference)
    return compare_selected(chosen, reference is not None, texts, n_ctx, chunks, scope, means)


def compare_selected(
    files: Sequence[File],
    has_reference: bool,
    texts: Sequence[Text],
    n_ctx: int = 512,
    chunks: int | None = None,
    scope: Scope | None = None,
    means: Means | None = None,
) -> Comparison:
    """As `compare`, of files that are described already (`files.select`), the reference first."""
    scope, means = scope or Scope(), means or Means()
    _check_enough(chunks)
    notes = check_alike([file.path for file in files])
    material = of_texts(files[0], texts, n_ctx, chunks, scope, means)
    columns = columns_of(files, has_reference, scope)
    notes += (*_notes(files, has_reference, n_ctx), *material.notes)
    return _compared(columns, material, scope, means, notes)


def compare_with_base(
    files: Sequence[File],
    base: Path,
    chunks: int | None = None,
    scope: Scope | None = None,
    means: Means | None = None,
) -> Comparison:
    """What files lost against the log-probabilities that llama-perplexity saved of a reference.

    Its text is the file's. Of the scope only the caches count: there is no reference to run.

    Raises:
        as `compare`; TextError: the base is damaged, or no such file.
    """
    scope, means = scope or Scope(), means or Means()
    _check_enough(chunks)
    notes = check_alike([file.path for file in files])
    material = of_base(files[0], base, chunks, means)
    columns = columns_of(files, False, scope)
    return _compared(columns, material, scope, means, (*notes, *material.notes))


def _check_enough(chunks: int | None) -> None:
    if chunks is not None and chunks < MIN_CHUNKS:
        raise UsageError(f"{chunks} chunks: wanted at least {MIN_CHUNKS}, for an error bar")


def _compared(
    columns: Sequence[Column],
    material: Material,
    scope: Scope,
    means: Means,
    notes: Sequence[str],
) -> Comparison:
    rows = _rows(columns, material, scope, means)
    return assemble(material.protocol, material.chunks, material.sizes, rows, notes)


def columns_of(files: Sequence[File], has_reference: bool, scope: Scope) -> tuple[Column, ...]:
    """The reference if there is one, its floor, then every file with each cache."""
    return tuple(_columns(files, has_reference, scope))


def _columns(files: Sequence[File], has_reference: bool, scope: Scope) -> Iterator[Column]:
    if has_reference:
        yield (base := Column(files[0], REFERENCE))
        if scope.floor:
            # Kernels that are as right as the usual ones, and add up in another order.
            yield replace(base, role=FLOOR, n_ubatch=_FLOOR_UBATCH, flash_attention=False)
    for file in files:
        for cache in dict.fromkeys((F16, *scope.caches)):
            if not (has_reference and file is files[0] and cache == F16):
                yield Column(file, CANDIDATE, *cache)


def _rows(columns: Sequence[Column], material: Material, scope: Scope, means: Means) -> list[Row]:
    """Every column's scores and routing."""
    chunks, n_ctx = material.chunks, max(len(chunk.tokens) for chunk in material.chunks)
    most = max(map(most_outputs, chunks))
    options = placed(columns, n_ctx, most, means.threads)
    means.tell(f"scoring {len(columns)} columns on {len(chunks)} chunks of up to {n_ctx} tokens")
    some = tuple(spread(chunks, scope.floor))
    subset = {column: some for column in columns if column.role == FLOOR}
    scored = score_columns(
        columns,
        chunks,
        options,
        means.threads,
        means.cache,
        means.isolated,
        material.base,
        subset,
        progress=partial(means.progress, "scoring"),
        tell=means.tell,
    )
    # What crashed once would crash again, and here with all that was found.
    sound = [column for column in columns if column not in scored.failures]
    routing = _routing(sound, material, options, scope, means)
    rows = [_row(column, scored, routing.get(column), subset.get(column)) for column in columns]
    if material.base:
        rows.insert(0, Row(_base_column(material.base.path), None, scores=scored.base))
    return rows


def _base_column(path: Path) -> Column:
    """What stands for a reference in the report."""
    file = File(path, path.name, path.stat().st_size, 0.0, fingerprint([path]))
    return Column(file, REFERENCE)


def _routing(
    columns: Sequence[Column],
    material: Material,
    options: Mapping[Path, ModelOptions],
    scope: Scope,
    means: Means,
) -> Mapping[Column, Agreement | str]:
    if not scope.routed or len(columns) < 2 or columns[0].role != REFERENCE:
        return {}
    _, clusters = cluster_of(material.chunks)
    plain = [column for column in columns if (column.type_k, column.type_v) == F16]
    told = partial(means.progress, "routing")
    return route(plain, material.chunks, options, means.threads, told, clusters, scope.routed)


def _row(
    column: Column,
    scored: Scored,
    routing: Agreement | str | None,
    chunks: tuple[int, ...] | None,
) -> Row:
    return Row(
        column,
        None,
        scores=scored.scores.get(column),
        chunks=chunks,
        prefill=scored.prefill.get(column),
        routing=routing if isinstance(routing, Agreement) else None,
        failure=scored.failures.get(column),
    )


def _notes(files: Sequence[File], has_reference: bool, n_ctx: int) -> Iterator[str]:
    trained = [file.n_ctx_train for file in files if file.n_ctx_train]
    if trained and n_ctx > min(trained):
        yield f"scored with a context of {n_ctx}, trained on {min(trained)}"
    if has_reference and files[0].bpw < _UNCUT:
        yield (
            f"the reference has {files[0].bpw:.2f} bits per weight: what it lost itself is not seen"
        )
