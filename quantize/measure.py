"""Measuring a model: errors of tensors, then what groups of them cost, kept as they are found."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from time import monotonic

from gemcut.convert.model import Model
from gemcut.engine import PINNED
from gemcut.errors import UsageError
from gemcut.quantize.forecast import Forecast, Speeds, fitted, forecast, speeds
from gemcut.quantize.groups import Groups, group_tensors
from gemcut.quantize.identity import VERSION, Key, digest, fingerprint, text_digest
from gemcut.quantize.importance import importance_for
from gemcut.quantize.priors import prior_weights
from gemcut.quantize.probe import Probe, Probing, check_probe, open_probe
from gemcut.quantize.reweigh import probe_sensitivity
from gemcut.quantize.statistics import Statistics
from gemcut.quantize.subject import Sampling, Subject
from gemcut.quantize.tensor_errors import Progress, measure_tensors, subjects
from gemcut.quantize.unfinished import Unfinished
from gemcut.roles import role_of
from gemcut.sensitivity import Sensitivity

Tell = Callable[[str], None]  # told a line for the user


@dataclass(frozen=True)
class Request:
    """What is to be measured, and how long that may take.

    types: the only ones to measure; None: all that make sense.
    minutes: fewer rows are drawn and fewer groups told apart, if it would take longer.
    probing: None: what groups cost stays a prior.
    """

    sampling: Sampling = field(default_factory=Sampling)
    types: Collection[str] | None = None
    minutes: float | None = None
    probing: Probing | None = None

    @property
    def probed(self) -> Path | None:
        """The file that is probed, if one is."""
        return None if self.probing is None else self.probing.path


def measure_model(
    model: Model,
    output: Path,
    statistics: Statistics | None,
    request: Request,
    threads: int,
    restart: bool,
    progress: Progress,
    tell: Tell,
) -> Sensitivity:
    """Measure the errors of all tensors and what they cost, and write them.

    Args:
        output: the sensitivity.json to write; what is measured so far is kept beside it.
        restart: throw away what an interrupted run has left, rather than go on with it.
        progress: told tensors done and in all, then passes over the text.
        tell: told how long it will take, and what becomes of an interrupted run.

    Raises:
        UsageError: no measurement takes so few minutes.
        PlanError: the statistics are of another model, or a type is unknown or unsuitable.
        OutputError: the file cannot be written, or unfinished work of something else lies there.
        EngineError, CheckpointError: a tensor cannot be encoded or read.
        GGUFError, TextError: the file to probe, or the text, is not what is needed.
    """
    end = None if request.minutes is None else monotonic() + 60 * request.minutes
    wanted = subjects(model, statistics, request.types)
    model.fetch()
    known = speeds(each for subject in wanted for each in subject.candidates)
    sampling = _sampling(wanted, request, known, threads)
    groups = group_tensors([each.tensor.name for each in wanted], 1)
    frame = _frame(model, statistics, request, groups)
    if request.probing:  # now, rather than after minutes of measuring
        needed = check_probe(request.probing, model, threads)
        tell(f"the probe will take {needed / 1e9:.1f} GB of memory")
    with Unfinished(output, _key(frame, request), restart) as unfinished:
        if unfinished.tensors:
            tell(f"{output.name}: continuing with what was measured before")
        tell(_described(wanted, forecast(wanted, sampling, known, threads)))
        with _kept(unfinished, output, tell):
            how = wanted, groups, sampling, threads, unfinished, progress
            tensors = measure_tensors(*how, model.release)
            settings = {**frame.settings, **asdict(sampling)}
            found = replace(frame, tensors=tensors, settings=settings)
            if request.probing:
                importance = importance_for(statistics, model.tensors) if statistics else None
                with open_probe(request.probing, model, importance, threads) as probe:
                    found = _probed(found, probe, request.probing, end, unfinished, progress, tell)
        model.check()
        found.write(output)
        unfinished.remove()
    return found


@contextmanager
def _kept(unfinished: Unfinished, output: Path, tell: Tell) -> Iterator[None]:
    """Say that what is measured stays, if the work is interrupted; nothing measured does not."""
    try:
        yield
    except BaseException:
        if unfinished.tensors:
            kept = "what was measured is kept: the same command continues, --restart begins anew"
            tell(f"{output.name}: {kept}")
        else:
            unfinished.remove()
        raise


def _frame(
    model: Model, statistics: Statistics | None, request: Request, groups: Groups
) -> Sensitivity:
    """A sensitivity without errors yet: what it is of, and priors."""
    types = {"types": " ".join(sorted(request.types))} if request.types else {}
    return Sensitivity(
        model.architecture,
        fingerprint(model),
        None if statistics is None else digest(statistics),
        None,
        {"engine": PINNED} | types,
        prior_weights(model, groups),
    )


def _probed(
    found: Sensitivity,
    probe: Probe,
    probing: Probing,
    end: float | None,
    unfinished: Unfinished,
    progress: Progress,
    tell: Tell,
) -> Sensitivity:
    """The sensitivity with weights that are measured in the time that is left."""
    if forgotten := unfinished.probed_with(_probe_key(probing)):
        tell(f"another text or context to probe on: {forgotten} groups are measured anew")
    left = None if end is None else max(0.0, end - monotonic()) / 60
    return probe_sensitivity(
        found,
        probe,
        left,
        unfinished.groups,
        on_result=unfinished.add_group,
        progress=progress,
        tell=tell,
    )


def _sampling(
    subjects: Sequence[Subject], request: Request, speeds: Speeds, threads: int
) -> Sampling:
    """As asked for, or of fewer rows for want of time; probing gets half of that."""
    if request.minutes is None:
        return request.sampling
    if not request.minutes > 0:
        raise UsageError(f"{request.minutes} minutes: wanted more than 0")
    seconds = 60 * request.minutes / (2 if request.probing else 1)
    return fitted(subjects, request.sampling, speeds, threads, seconds)


def _key(frame: Sensitivity, request: Request) -> Key:
    """Everything that decides the errors of tensors but how much time there was."""
    sampling = " ".join(f"{name}={value:g}" for name, value in asdict(request.sampling).items())
    return {
        "version": VERSION,
        "source": frame.source,
        "importance": frame.imatrix or "none",
        "types": str(frame.settings.get("types", "all")),
        "sampling": sampling,
        "detail": "every expert",
    }


def _probe_key(probing: Probing) -> Key:
    """Everything that further decides what they cost."""
    return {
        "text": text_digest(probing.text),
        "sample": f"{probing.sample.chunks} chunks of {probing.sample.n_ctx}",
        "special tokens": "read" if probing.parse_special else "not read",
    }


def _described(subjects: Sequence[Subject], time: Forecast) -> str:
    types = {each.type for subject in subjects for each in subject.candidates}
    unit, size = ("seconds", 1) if time.most < 60 else ("minutes", 60)
    return (
        f"measuring {len(subjects)} tensors in {len(types)} types: "
        f"{math.ceil(time.least / size)} to {math.ceil(time.most / size)} {unit}"
    )


@dataclass(frozen=True)
class Spread:
    """The errors of several tensors: their mean, and the standard deviation between them."""

    mean: float
    deviation: float
    count: int


def by_role(sensitivity: Sensitivity) -> dict[str, dict[str, Spread]]:
    """The errors of every role's tensors, by candidate."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, tensor in sensitivity.tensors.items():
        if "#" in name:
            continue
        errors = found.setdefault(role_of(name).name, {})
        for candidate, error in tensor.errors.items():
            errors.setdefault(candidate, []).append(error.mean)
    return {
        role: {each: _spread(values) for each, values in errors.items()}
        for role, errors in found.items()
    }


def _spread(values: list[float]) -> Spread:
    return Spread(fmean(values), stdev(values) if len(values) > 1 else 0.0, len(values))
