"""A sweep: one source at several levels, built to be compared, kept or thrown away."""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

from gemcut.api.base import StageProgress, counted, finest, source_gguf
from gemcut.api.cutting import FLOAT_TYPES, Target, make_plan, planned_size, quantize_model
from gemcut.api.sources import Source, model_of
from gemcut.api.words import Where, path_of
from gemcut.convert.model import Model
from gemcut.errors import OutputError, UsageError
from gemcut.lock import alone_in
from gemcut.plan import Plan
from gemcut.quantize.artefacts import Artefacts
from gemcut.quantize.identity import VERSION, digest, model_key
from gemcut.quantize.importance import Importance, importance_for
from gemcut.quantize.statistics import read_statistics
from gemcut.quantize.writer import Tell, carrying
from gemcut.sizes import format_size, parse_size

_MOST = 32  # levels: each is a whole file


@dataclass(frozen=True)
class Level:
    """One file of a sweep: how it is called, and what it is to be."""

    name: str
    target: Target
    per_expert: bool = False  # with types per expert, where they help


@dataclass(frozen=True)
class Sweep:
    """Built files in the order of the levels, and what they are held against."""

    files: tuple[Path, ...]
    reference: Path


def parse_levels(text: str) -> tuple[Level, ...]:
    """What "Q8_0,Q4_K_M,size=14G,bpw=4.5,per-expert=14G" means: types or mixtures, sizes, bits per
    weight, sizes with types per expert.

    Raises:
        UsageError: a level that is none, or listed twice.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    levels = tuple(map(_level, words))
    names = [level.name for level in levels]
    if not 0 < len(levels) <= _MOST:
        raise UsageError(f"{len(levels)} levels to sweep, wanted 1 to {_MOST}: Q8_0,Q4_K_M,size=5G")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"level {twice} is listed twice")
    return levels


@contextmanager
def swept(
    source: Source,
    levels: Sequence[Level] | str,
    folder: Where,
    keep: bool = False,
    reference: Where | None = None,
    imatrix: Where | None = None,
    threads: int | None = None,
    progress: StageProgress | None = None,
    tell: Tell | None = None,
) -> Iterator[Sweep]:
    """Build the files of a sweep, for as long as they are needed.

    Args:
        levels: as `parse_levels` makes or takes them.
        folder: where they are kept, and found again by the same sweep; unless `keep`, they lie in a
            temporary folder in it, which stays if the sweep is interrupted.
        reference: None: the source, if it is a GGUF in 16 or 32 bits; else one is built.
        imatrix: that all files are cut with.
        progress: told weights done and in all, of each file.

    Raises:
        PlanError, BudgetError: a level that this model cannot be cut to.
        GGUFError: the imatrix is none, or damaged.
        OutputError: there is no room, or a file cannot be written.
    """
    model, levels = model_of(source), parse_levels(levels) if isinstance(levels, str) else levels
    held_against = path_of(reference) or _finished(model)
    statistics = read_statistics(Path(imatrix)) if imatrix else None
    importance = importance_for(statistics, model.tensors) if statistics else None
    plans = {f"{level.name}.gguf": _plan(model, level, importance, imatrix) for level in levels}
    wanted, base = dict(plans), ""
    if held_against is None:
        kind = finest(model, max(planned_size(model, plan) for plan in plans.values())).upper()
        base = f"{kind}.gguf"
        wanted.setdefault(base, make_plan(model, Target(kind)))
    imatrix_key = digest(statistics) if statistics else "none"
    key = {"version": VERSION, "source": model_key(model), "importance": imatrix_key}
    with _folder(Path(folder), None if keep else key, tell) as place:
        carried = carrying(model, statistics) if statistics else model
        builder = _Builder(carried, Artefacts(place), key, importance, threads, progress, tell)
        builder.check_room(wanted)
        for name, plan in wanted.items():
            builder.build(name, plan)
        yield Sweep(tuple(place / name for name in plans), held_against or place / base)


@dataclass(frozen=True)
class _Builder:
    model: Model
    artefacts: Artefacts
    key: Mapping[str, str]  # of what all files are made from
    importance: Importance | None
    threads: int | None
    progress: StageProgress | None
    tell: Tell | None

    def build(self, name: str, plan: Plan) -> None:
        """Write one file, unless it is there from before."""
        if self._is_there(name, plan):
            self._say(f"{name}: there already")
            return
        stage = partial(self.progress, name) if self.progress else None
        quantize_model(
            self.model,
            self.artefacts.path(name),
            Target(plan=plan),
            self.importance,
            threads=self.threads,
            progress=counted(stage, self.model.weights),
            tell=self.tell,
        )
        self.artefacts.keep(name, self._key(plan))

    def check_room(self, plans: dict[str, Plan]) -> None:
        """Raise OutputError if the disk does not have the room for all that is to be built."""
        missing = [plan for name, plan in plans.items() if not self._is_there(name, plan)]
        size = sum(planned_size(self.model, plan) for plan in missing)
        free = shutil.disk_usage(self.artefacts.folder).free
        if missing:
            self._say(f"building {len(missing)} files, {format_size(size)}")
        if size > free:
            raise OutputError(
                f"{self.artefacts.folder}: the files take {format_size(size)}, {format_size(free)} "
                "are free: sweep fewer levels, or name a folder elsewhere with --keep"
            )

    def _is_there(self, name: str, plan: Plan) -> bool:
        return self.artefacts.outdated(name, self._key(plan)) is None

    def _key(self, plan: Plan) -> dict[str, str]:
        return {**self.key, "plan": sha256(plan.to_json().encode()).hexdigest()}

    def _say(self, text: str) -> None:
        if self.tell:
            self.tell(text)


def _plan(model: Model, level: Level, importance: Importance | None, imatrix: Where | None) -> Plan:
    size = level.target.size
    if level.per_expert and size is not None:
        return make_plan(model, imatrix=imatrix, size=size, per_expert=True)
    return make_plan(model, level.target, importance)


def _level(word: str) -> Level:
    what, equals, value = word.partition("=")
    if not equals:
        return Level(word.upper(), Target(word, fallback=True))
    name = re.sub(r"[^\w.]", "", value)
    if what == "size":
        return Level(name, Target(size=parse_size(value)))
    if what == "per-expert":
        return Level(f"{name}-per-expert", Target(size=parse_size(value)), per_expert=True)
    if what == "bpw":
        try:
            return Level(f"{name}bpw", Target(bpw=float(value)))
        except ValueError:
            pass
    raise UsageError(
        f"level {word!r:.60}: wanted a type or mixture, size=14G, bpw=4.5 or per-expert=14G"
    )


@contextmanager
def _folder(folder: Path, key: Mapping[str, str] | None, tell: Tell | None) -> Iterator[Path]:
    """The folder, or a temporary one in it that the same sweep finds again if it is interrupted.

    Args:
        key: of what is swept; None: the files stay.
    """
    if key is None:
        with alone_in(folder):
            yield folder
        return
    place = folder / f".sweep-{sha256(repr(sorted(key.items())).encode()).hexdigest()[:16]}"
    with alone_in(place):
        try:
            yield place
        except Exception:
            shutil.rmtree(place, ignore_errors=True)
            raise
        except BaseException:
            if tell:
                tell(f"{place} is kept: the same command continues; else remove it")
            raise
        shutil.rmtree(place, ignore_errors=True)


def _finished(model: Model) -> Path | None:
    """The source, if it can be held against as it is."""
    types = {tensor.source_type for tensor in model.tensors}
    return source_gguf(model) if types <= set(FLOAT_TYPES) else None
