"""Finished files compared: what the cut cost, in quality, memory and speed."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from gemcut import llama
from gemcut.api.measuring import calibration
from gemcut.api.running import open_run
from gemcut.api.words import Tokens, Where, path_of, paths_of, tokens_of
from gemcut.engine import ModelOptions
from gemcut.errors import EngineError, GemcutError, UsageError
from gemcut.eval.compare import columns_of, compare_selected, compare_with_base
from gemcut.eval.comparison import Anatomy, Comparison, Report
from gemcut.eval.dissect import dissect
from gemcut.eval.files import File, is_same, select
from gemcut.eval.scope import Means, Progress, Scope, Tell
from gemcut.eval.scoring.cache import NAME, Cache
from gemcut.eval.scoring.column import Column
from gemcut.eval.scoring.fitting import placed
from gemcut.eval.scoring.saving import check_saving, save_kld
from gemcut.eval.scoring.worker import apart
from gemcut.eval.tasks.reading import read_task
from gemcut.eval.tasks.result import TaskResult
from gemcut.eval.tasks.run import run_tasks
from gemcut.eval.texts.diagnosis import Diagnosis, diagnose
from gemcut.eval.texts.framing import OWN, RAW
from gemcut.eval.texts.reading import read_texts
from gemcut.eval.texts.text import Text
from gemcut.runtime.placement.given import Given
from gemcut.runtime.speed.trial import try_run
from gemcut.user_cache import cache_folder


@dataclass(frozen=True)
class Extras:
    """What is done beside comparing on texts: see `evaluate`."""

    tasks: tuple[str, ...]
    task_limit: int | None
    speed_at: int | None
    save_kld: Path | None


def evaluate(
    files: Where | Sequence[Where],
    reference: Where | None = None,
    texts: Where | Sequence[Where] = (),
    *,
    context: Tokens | Sequence[Tokens] = 512,
    chunks: int | None = None,
    framing: str = RAW,
    caches: Sequence[tuple[str, str]] = (),
    floor: int = 8,
    routing: int = 4,
    tasks: Where | Sequence[Where] = (),
    task_limit: int | None = None,
    speed_at: Tokens | None = None,
    save_kld: Where | None = None,
    base: Where | None = None,
    threads: int | None = None,
    keep: bool = True,
    progress: Progress = lambda what, done, total: None,
    tell: Tell = lambda line: None,
    command: Sequence[str] = (),
) -> Report:
    """Compare GGUF files, with a reference or among themselves.

    A file is scored in a process of its own, so that one that crashes llama.cpp costs one row.

    Args:
        texts: files, folders or .jsonl; none: the built-in text, or under `own` built-in prompts.
        context: a comparison is made with chunks of so many tokens; or several, one of each.
        chunks: at most so many of each text.
        framing: how texts are read: raw, bos, chat; own: answers of the reference.
        caches: further types of keys and values that every file is scored with.
        floor: chunks that the reference is scored on once more in another way; 0: none.
        routing: chunks that routing is compared on; 0: none.
        tasks: files of tasks with answers, of each at most `task_limit` items.
        speed_at: the context that speed and memory are measured with; None: they are not.
        save_kld: where the reference's logits are written for llama-perplexity.
        base: a file of llama-perplexity's in place of reference and texts.
        keep: keep scores in the user's cache, so that nothing is scored twice.
        progress: told what is scored, chunks done, and in all.
        tell: told in lines what is noteworthy.
        command: that the report says to make it again by.

    Raises:
        UsageError, TextError, GGUFError, EngineError: see `gemcut.eval.compare`; or a task cannot
            be read.
        OutputError: there is no room for the reference's logits.
    """
    spoken = (context,) if isinstance(context, int | str) else context
    said = _Said(
        paths_of(files),
        path_of(reference),
        paths_of(texts),
        tuple(map(tokens_of, spoken)),
        chunks,
        Scope(framing, tuple(caches), floor, routing),
        Extras(
            tuple(map(str, paths_of(tasks))),
            task_limit,
            None if speed_at is None else tokens_of(speed_at),
            path_of(save_kld),
        ),
        path_of(base),
    )
    with Cache(cache_folder() / NAME) if keep else nullcontext() as cache:
        report = _evaluated(said, Means(threads, cache, True, progress, tell))
    return replace(report, command=tuple(command))


@dataclass(frozen=True)
class _Said:
    """What is compared, and on what."""

    files: tuple[Path, ...]
    reference: Path | None
    texts: tuple[Path, ...]
    contexts: tuple[int, ...]
    chunks: int | None
    scope: Scope
    extras: Extras
    base: Path | None


def _evaluated(said: _Said, means: Means) -> Report:
    scope, extras, base = said.scope, said.extras, said.base
    _check(extras, scope)
    if base and (said.reference or said.texts or extras.save_kld):
        raise UsageError("a .kld base has its own text and reference: name no others")
    chosen = select(said.files, said.reference)
    has_reference = said.reference is not None
    if base:
        comparisons = [compare_with_base(chosen, base, said.chunks, scope, means)]
        diagnosis = None
    else:
        read, scope = _read(said.texts, chosen[0], scope)
        diagnosis = _diagnosed(chosen[0], read, scope, means)
        comparisons = [
            compare_selected(chosen, has_reference, read, n_ctx, said.chunks, scope, means)
            for n_ctx in said.contexts
        ]
    if extras.save_kld:
        _save(chosen[0], comparisons[0], extras.save_kld, means)
    sound = _sound(chosen, comparisons)
    fast = replace(extras, speed_at=None)
    anatomies, notes = zip(
        *(_dissected(file, extras if file in sound else fast, means) for file in chosen),
        strict=True,
    )
    return Report(
        tuple(comparisons),
        anatomies,
        _tasks(sound, has_reference and chosen[0] in sound, extras, means),
        diagnosis,
        notes=(*filter(None, notes), *_changed(sound)),
    )


def _changed(files: Sequence[File]) -> Iterator[str]:
    """Which files are others by now: what was found after scoring, as speed, may be of these."""
    for file in files:
        if not is_same(file):
            yield f"{file.name}: was changed meanwhile: not all of this is of one file; run again"


def _check(extras: Extras, scope: Scope) -> None:
    """Refuse what would be refused at the end, when hours are spent."""
    for path in extras.tasks:
        read_task(path)
    if extras.save_kld:
        check_saving(extras.save_kld, scope.framing)


def _sound(files: Sequence[File], comparisons: Sequence[Comparison]) -> list[File]:
    """The files that could be scored: what crashed once is not run again, in this process."""
    failed = {row.column.file for each in comparisons for row in each.rows if row.failure}
    return [file for file in files if file not in failed]


def _read(texts: Sequence[Path], file: File, scope: Scope) -> tuple[list[Text], Scope]:
    """The texts, or what is built in; its conversations are framed in the file's own tokens."""
    if texts or scope.framing == OWN:
        return read_texts(texts) if texts else [], scope
    return [_built_in(file)], replace(scope, parse_special=True)


def _diagnosed(file: File, texts: Sequence[Text], scope: Scope, means: Means) -> Diagnosis | None:
    """Whether the framing makes sense, told before hours are spent; its own answers always do."""
    if scope.framing == OWN:
        return None
    options, special = placed([Column(file)]).get(file.path), scope.parse_special
    asked = file.path, texts, scope.framing, options, means.threads, special
    try:
        found = apart(file.name, diagnose, *asked) if means.isolated else diagnose(*asked)
    except EngineError:  # scoring it tells what is wrong, and what of the others can be told
        return None
    if found.meaningless:
        means.tell(found.advice)
    return found


def _save(file: File, comparison: Comparison, path: Path, means: Means) -> None:
    column = Column(file)
    options = placed([column], comparison.protocol.n_ctx).get(file.path, ModelOptions())
    told = partial(means.progress, "saving logits")
    save_kld(path, column, comparison.chunks, options, means.threads, told, means.tell)


def _built_in(file: File) -> Text:
    with llama.Model.load(file.path, ModelOptions(vocab_only=True)) as vocabulary:
        return calibration(vocabulary, "validation")


def _dissected(file: File, extras: Extras, means: Means) -> tuple[Anatomy, str]:
    """What a file is, and how fast it runs here if that is asked for; or a note why not."""
    found = dissect(file.path, file.name)
    if extras.speed_at is None:
        return found, ""
    given = Given(n_ctx=extras.speed_at, threads=means.threads)
    try:
        with open_run(file.path, given, tell=means.tell) as loaded:
            forecast = replace(loaded.recorder.forecast, probe=partial(llama.probe, file.path))
            trial = try_run(loaded, forecast, tell=partial(means.progress, f"timing {file.name}"))
    except GemcutError as error:
        return found, f"{file.name}: its speed is not known: {error}"
    memory = {place: round(actual) for place, (_, actual) in trial.memory.items()}
    return replace(found, speed=trial.rows[0].measured, memory=memory), ""


def _tasks(
    files: Sequence[File], has_reference: bool, extras: Extras, means: Means
) -> tuple[TaskResult, ...]:
    if not extras.tasks or not files:
        return ()
    columns = columns_of(files, has_reference, Scope())
    told = partial(means.progress, "answering tasks")
    limit, threads = extras.task_limit, means.threads
    return run_tasks(extras.tasks, columns, placed(columns), None, limit, threads, told)
