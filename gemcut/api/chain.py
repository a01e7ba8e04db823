"""Measuring a model before it is cut: a temporary Q8_0, importance, sensitivity, in one go.

They lie in a folder beside the result. Each is made once: an interrupted chain goes on where it
stopped, and the next file of the same source, for another budget, starts from what is there.
"""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from gemcut.api.base import NAME, Base, StageProgress
from gemcut.api.measuring import collect_importance, measure_sensitivity, probing
from gemcut.api.planning import predicted_by
from gemcut.api.sources import Source, model_of
from gemcut.api.words import Where, paths_of
from gemcut.convert.model import Model
from gemcut.cores import default_threads
from gemcut.engine import ModelOptions
from gemcut.errors import PlanError, TextError, UsageError
from gemcut.eval.texts.text import Text
from gemcut.plan import Measured, Plan
from gemcut.quantize.artefacts import Artefacts
from gemcut.quantize.calibration import Use, dealt
from gemcut.quantize.division import CHUNKS, Rate, divided, expected, probe_chunks
from gemcut.quantize.identity import (
    VERSION,
    Key,
    digest,
    model_key,
    text_digest,
)
from gemcut.quantize.importance import Importance, importance_for
from gemcut.quantize.measure import Request
from gemcut.quantize.probe import Probing, check_probe
from gemcut.quantize.statistics import Statistics, read_statistics
from gemcut.quantize.subject import Sampling
from gemcut.quantize.writer import Tell
from gemcut.sensitivity import Sensitivity

PLAN = "plan.json"
_IMATRIX, _SENSITIVITY = "imatrix.gguf", "sensitivity.json"


@dataclass(frozen=True)
class Measurements:
    """What is known of a model before its file is planned.

    measured: what earlier files, planned by the same sensitivity, were found to lose.
    """

    folder: Path
    imatrix: Path
    importance: Importance
    sensitivity: Sensitivity
    measured: tuple[Measured, ...] = ()


@dataclass(frozen=True)
class Effort:
    """How a model is measured.

    texts: what it will be used for; none: the built-in text. Importance, the probe and the
        validation each get a part of them.
    minutes: for measuring; the temporary file comes on top. None: as many as it takes.
    n_ctx: tokens of a chunk of text.
    room: bytes of the disk that are to be left for the result.
    """

    texts: Where | Sequence[Where] = ()
    minutes: float | None = None
    threads: int | None = None
    options: ModelOptions | None = None  # where the weights go
    n_ctx: int = 512
    room: int = 0


def measure_chain(
    source: Source,
    folder: Where,
    effort: Effort | None = None,
    restart: bool = False,
    progress: StageProgress | None = None,
    tell: Tell | None = None,
) -> Measurements:
    """Importance and sensitivity of a model, from a folder where they are kept; else measured.

    Args:
        restart: throw away what was interrupted; what is finished is used all the same.
        tell: told in lines what is made and why, and how long it will take.

    Raises:
        UsageError: no measurement takes so few minutes.
        OutputError: a file cannot be written, the disk is too small, or unfinished work of
            something else lies there.
        TextError: a text cannot be read or is too short.
        EngineError, CheckpointError: the model cannot be loaded, or the source read.
    """
    made = model_of(source), Path(folder), effort or Effort()
    return _Chain(*made, restart, progress, tell).run()


class _Chain:
    """The steps of measuring, each of which is left out if its artefact is there."""

    def __init__(
        self,
        model: Model,
        folder: Path,
        effort: Effort,
        restart: bool,
        progress: StageProgress | None,
        tell: Tell | None,
    ) -> None:
        self._model, self._effort, self._restart = model, effort, restart
        self._threads = effort.threads or default_threads()
        self._texts = [Text.read(path) for path in paths_of(effort.texts)]
        self._artefacts = Artefacts(folder)
        self._base = Base(model, self._artefacts, effort.options, self._threads)
        self._progress = progress or (lambda what, done, total: None)
        self._tell = tell or (lambda line: None)
        self._spent: float | None = None  # minutes of importance, if it was collected now

    def run(self) -> Measurements:
        """Do what is to be done."""
        statistics = self._importance()
        sensitivity = self._sensitivity(statistics)
        return Measurements(
            self._artefacts.folder,
            self._artefacts.path(_IMATRIX),
            importance_for(statistics, self._model.tensors),
            sensitivity,
            _measured_before(self._artefacts.path(PLAN), sensitivity),
        )

    def _importance(self) -> Statistics:
        key, path = self._key(), self._artefacts.path(_IMATRIX)
        if self._can_use(_IMATRIX, key):
            return read_statistics(path)
        minutes = self._effort.minutes
        self._foretell()
        made = not self._base.is_there
        base = self._made_base()
        self._check_probe(base)
        rate = Rate(partial(self._progress, path.name))
        found = collect_importance(
            base,
            self._dealt("importance"),
            path,
            self._effort.n_ctx,
            threads=self._threads,
            options=self._effort.options,
            restart=self._restart or made,  # what is unfinished was of another file
            progress=rate,
            tell=self._tell,
            minutes=None if minutes is None else divided(minutes).importance,
        )
        self._spent = rate.seconds / 60
        self._artefacts.keep(_IMATRIX, key, minutes, seconds_per_chunk=rate.each)
        return found

    def _check_probe(self, base: Path) -> None:
        """Raise TextError now, rather than after hours, if there is too little to probe on."""
        if self._base.refusal:
            return
        try:
            check_probe(self._probing_on(base, CHUNKS[0]), self._model, self._threads)
        except TextError as error:
            raise TextError(f"{error} (an eighth of each text is for the probe)") from error

    def _sensitivity(self, statistics: Statistics) -> Sensitivity:
        key = self._key(importance=digest(statistics), detail="every expert")
        path = self._artefacts.path(_SENSITIVITY)
        if self._can_use(_SENSITIVITY, key):
            found = Sensitivity.read(path)
            if all(group.source == "prior" for group in found.groups.values()):
                self._tell(f"{path.name}: what errors cost is a prior in it; remove it to probe")
            return found
        found = self._measured(path)
        self._artefacts.keep(_SENSITIVITY, key, self._effort.minutes)
        return found

    def _can_use(self, name: str, key: Key) -> bool:
        """Whether an artefact need not be made; and say why, or why not."""
        why = self._artefacts.outdated(name, key, self._effort.minutes)
        self._tell(f"{name}: {why or 'is used as it is there'}")
        return why is None

    def _measured(self, path: Path) -> Sensitivity:
        """A new sensitivity, probed if memory and time allow it."""
        minutes = self._minutes_left()
        request = Request(minutes=minutes, probing=self._probing(minutes))
        measure = partial(
            measure_sensitivity,
            self._model,
            path,
            self._artefacts.path(_IMATRIX),
            threads=self._threads,
            progress=partial(self._progress, path.name),
            tell=self._tell,
        )
        anew = self._restart or self._spent is not None  # what is unfinished had another importance
        try:
            return measure(request=request, restart=anew)
        except UsageError as error:
            if request.probing is None:
                raise
            self._tell(f"{error}; what errors cost stays a prior")
            return measure(request=replace(request, probing=None))

    def _probing(self, minutes: float | None) -> Probing | None:
        """What to probe on; None: there is too little memory, or time."""
        if refusal := self._base.refusal:
            self._tell(f"what errors cost the model stays a prior: {refusal}")
            return None
        each = self._artefacts.facts(_IMATRIX).get("seconds_per_chunk", 0.0)
        chunks = probe_chunks(self._model, each, minutes)
        if chunks is None:
            self._tell(
                f"what errors cost the model stays a prior: a chunk of text takes {each:.1f} s, "
                f"too long to probe in {minutes:.3g} minutes"
            )
            return None
        return self._probing_on(self._made_base(), chunks)

    def _probing_on(self, base: Path, chunks: int) -> Probing:
        effort = self._effort
        return probing(base, self._dealt("probe"), chunks, effort.n_ctx, effort.options)

    def _minutes_left(self) -> float | None:
        """For what comes behind importance."""
        if self._effort.minutes is None:
            return None
        return divided(self._effort.minutes).left(self._spent or 0.0)

    def _foretell(self) -> None:
        """Say how long it will take, as far as that is known; raise UsageError if it cannot be."""
        minutes = self._effort.minutes
        rest = None if minutes is None else divided(minutes).rest
        time = expected(self._model, Sampling(), self._threads, rest)
        errors = f"errors of tensors {time.least / 60:.1f} to {time.most / 60:.1f} minutes"
        if minutes is None:
            self._tell(f"measuring: importance, then {errors}, then what they cost")
        else:
            share = divided(minutes).importance
            self._tell(
                f"measuring in {minutes:g} minutes: up to {share:.1f} for importance, then {errors}"
                ", the rest for what they cost"
            )

    def _made_base(self) -> Path:
        stage = partial(self._progress, NAME)
        return self._base.made(self._effort.room, self._restart, stage, self._tell)

    def _dealt(self, use: Use) -> list[Text]:
        return dealt_texts(self._texts, use)

    def _key(self, **more: str) -> Key:
        """Everything that decides a measurement but how much time there was."""
        if self._texts:
            text = text_digest("\0".join(text.content for text in self._texts))
        else:
            text = f"built into gemcut, of Python {platform.python_version()}"
        own = {"source": model_key(self._model), "text": text, "context": str(self._effort.n_ctx)}
        return {"version": VERSION, **own, **more}


def dealt_texts(texts: Sequence[Text], use: Use) -> list[Text]:
    """Of each of a user's texts the part for one use. Raises TextError: it is too short."""
    return [Text.of(text.name, dealt(text.content, use)) for text in texts]


def _measured_before(path: Path, sensitivity: Sensitivity) -> tuple[Measured, ...]:
    """What a plan.json says that files lost, if they were predicted by the same sensitivity."""
    if not path.is_file():
        return ()
    try:
        plan = Plan.read(path)
    except PlanError:  # of another version: it is about to be written anew
        return ()
    return predicted_by(sensitivity, plan)
