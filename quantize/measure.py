"""Measuring a model: errors of tensors, then what groups of them cost, kept as they are found."""

import hashlib
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from time import monotonic

from gemcut import __version__
from gemcut.convert.model import Model
from gemcut.engine import PINNED, ModelOptions
from gemcut.errors import UsageError
from gemcut.quantize.forecast import Forecast, Speeds, fitted, forecast, speeds
from gemcut.quantize.groups import group_tensors
from gemcut.quantize.identity import digest, fingerprint
from gemcut.quantize.importance import Importance, importance_for
from gemcut.quantize.local_error import Sampling, Subject
from gemcut.quantize.priors import prior_weights
from gemcut.quantize.probe import Probe, Sample, check_probe, open_probe
from gemcut.quantize.reweigh import probe_sensitivity
from gemcut.quantize.roles import role_of
from gemcut.quantize.statistics import Statistics
from gemcut.quantize.tensor_errors import Progress, measure_tensors, subjects
from gemcut.quantize.unfinished import Unfinished
from gemcut.sensitivity import Sensitivity

Tell = Callable[[str], None]  # told a line for the user


@dataclass(frozen=True)
class Probing:
    """A file of the model to try errors on, and the text that tells what they cost."""

    path: Path
    text: str
    sample: Sample = field(default_factory=Sample)
    options: ModelOptions | None = None  # where its weights go
    parse_special: bool = False  # read "<bos>" and the like in the text as tokens


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
    resume: bool,
    progress: Progress,
    tell: Tell,
) -> Sensitivity:
    """Measure the errors of all tensors and what they cost, and write them.

    Args:
        output: the sensitivity.json to write; what is measured so far is kept beside it.
        resume: go on where an interrupted run of the same stopped.
        progress: told tensors done and in all, then passes over the text.
        tell: told how long it will take, and what becomes of an interrupted run.

    Raises:
        UsageError: no measurement takes so few minutes.
        PlanError: the statistics are of another model, or a type is unknown or unsuitable.
        OutputError: the file cannot be written, or other work is to be resumed.
        EngineError, CheckpointError: a tensor cannot be encoded or read.
        GGUFError, TextError: the file to probe, or the text, is not what is needed.
    """
    end = monotonic() + 60 * (request.minutes or 0)
    wanted = subjects(model, statistics, request.types)
    model.fetch()
    known = speeds(each for subject in wanted for each in subject.candidates)
    sampling = _sampling(wanted, request, known, threads)
    groups = group_tensors([each.tensor.name for each in wanted], 1)
    frame = Sensitivity(
        model.architecture,
        fingerprint(model),
        None if statistics is None else digest(statistics),
        None,
        {"engine": PINNED} | ({"types": " ".join(sorted(request.types))} if request.types else {}),
        prior_weights(model, groups),
    )
    if request.probing:  # now, rather than after minutes of measuring
        needed = _checked(request.probing, model, threads)
        tell(f"the probe will take {needed / 1e9:.1f} GB of memory")
    with Unfinished(output, _key(frame, request), resume) as unfinished:
        tell(_described(wanted, forecast(wanted, sampling, known, threads)))
        try:
            tensors = measure_tensors(wanted, groups, sampling, threads, unfinished, progress)
            settings = {**frame.settings, **asdict(sampling)}
            found = replace(frame, tensors=tensors, settings=settings)
            if request.probing:
                left = None if request.minutes is None else max(0.0, end - monotonic()) / 60
                importance = importance_for(statistics, model.tensors) if statistics else None
                with _opened(request.probing, model, importance, threads) as probe:
                    found = probe_sensitivity(
                        found,
                        probe,
                        left,
                        unfinished.groups,
                        on_result=unfinished.add_group,
                        progress=progress,
                        tell=tell,
                    )
        except BaseException:
            if unfinished.tensors:
                tell(f"{output.name}: what was measured is kept: --resume continues")
            else:
                unfinished.remove()
            raise
        found.write(output)
        unfinished.remove()
    return found


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


def _key(frame: Sensitivity, request: Request) -> str:
    """A digest of everything that decides the result but how much time there was."""
    hashed = hashlib.sha256(f"{__version__}\n{request.sampling}\n{frame.to_json()}".encode())
    if request.probing:
        hashed.update(f"{request.probing.sample}\n{request.probing.text}".encode())
    return hashed.hexdigest()


def _opened(probing: Probing, model: Model, importance: Importance | None, threads: int) -> Probe:
    return open_probe(
        probing.path,
        probing.text,
        model,
        importance,
        probing.sample,
        probing.options,
        threads,
        probing.parse_special,
    )


def _checked(probing: Probing, model: Model, threads: int) -> int:
    return check_probe(
        probing.path,
        probing.text,
        model,
        probing.sample,
        probing.options,
        threads,
        probing.parse_special,
    )


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
