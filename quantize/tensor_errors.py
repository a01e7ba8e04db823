"""The errors of all tensors of a model: which of them, what their experts count for, in a pool."""

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

import numpy as np

from gemcut import ggml
from gemcut.convert.model import Model, Tensor
from gemcut.errors import PlanError
from gemcut.gguf_experts import is_stack
from gemcut.quantize.groups import Groups
from gemcut.quantize.importance import importance_for
from gemcut.quantize.local_error import Measured, local_errors
from gemcut.quantize.sample import Doubles
from gemcut.quantize.statistics import Statistics, evened, routed_share
from gemcut.quantize.subject import Sampling, Subject, subject
from gemcut.quantize.unfinished import Unfinished
from gemcut.tensor_sensitivity import TensorSensitivity

Progress = Callable[[int, int], None]  # done, and in all


def subjects(
    model: Model, statistics: Statistics | None, types: Collection[str] | None = None
) -> list[Subject]:
    """The tensors that may be cut, in the order of their source, with what is to be measured.

    Args:
        types: the only types to measure; None: all that make sense.

    Raises:
        PlanError: the statistics are of another model, or no tensor can have one of the types.
    """
    for name in types or ():
        ggml.type_named(name)
    wanted = None if types is None else {name.lower() for name in types}
    importance = {} if statistics is None else importance_for(statistics, model.tensors)
    found = [
        subject(
            tensor,
            importance.get(tensor.name),
            expert_mass(statistics, tensor),
            wanted,
            routed(statistics, tensor),
        )
        for tensor in sorted(model.tensors, key=lambda tensor: tensor.rank)
        if not tensor.kept and tensor.quantizable
    ]
    if not found:
        raise PlanError("nothing to measure: no tensor of this model may be cut")
    possible = {candidate.type.name for each in found for candidate in each.candidates}
    if unsuitable := sorted((wanted or set()) - possible):
        raise PlanError(
            f"{', '.join(unsuitable)}: no tensor can be measured in it: it is larger than the "
            "source, does not fit any row, or needs an importance matrix (--imatrix)"
        )
    return found


def expert_mass(statistics: Statistics | None, tensor: Tensor) -> Doubles:
    """What each expert's error counts for: float64 [matrices], sums to 1.

    The rows that the router sent to it, each times the square of its mean weight where that is
    known: an expert's output is multiplied with it, and so is its error. Some of it is divided
    evenly (`evened`).
    """
    if statistics is None:
        return np.full(tensor.matrices, 1 / tensor.matrices)
    mass = routed_share(statistics, tensor.name, tensor.matrices).astype(np.float64)
    entry = statistics.entry(tensor.name)
    gates = None if entry is None else entry.gates
    if entry is not None and gates is not None and len(gates) == tensor.matrices:
        weighted = mass * (gates / np.maximum(entry.counts, 1).astype(np.float64)) ** 2
        mass = weighted if weighted.any() else mass
    return evened(mass / mass.sum())


def routed(statistics: Statistics | None, tensor: Tensor) -> Doubles | None:
    """Each expert's share of the rows that the router sent: float64 [matrices], sums to 1.

    None: nobody knows, or the tensor is no stack whose experts could have types of their own.
    """
    if statistics is None or not is_stack(tensor.name) or statistics.entry(tensor.name) is None:
        return None
    return routed_share(statistics, tensor.name, tensor.matrices).astype(np.float64)


def measure_tensors(
    subjects: Sequence[Subject],
    groups: Groups,
    sampling: Sampling,
    threads: int,
    unfinished: Unfinished,
    progress: Progress,
    release: Callable[[int], None],
) -> dict[str, TensorSensitivity]:
    """The errors of all tensors and their parts, with those that an earlier run has measured.

    Args:
        release: the model's: gives back what was read, or memory would grow to the model's size.

    Raises:
        EngineError, CheckpointError: a tensor cannot be encoded or read.
        OutputError: what is measured cannot be kept.
    """
    group_of = {name: group for group, names in groups.items() for name in names}
    left = [each for each in subjects if each.tensor.name not in unfinished.tensors]
    progress(len(subjects) - len(left), len(subjects))
    with ThreadPoolExecutor(threads) as pool:
        jobs = {pool.submit(local_errors, each, sampling): each for each in left}
        try:
            for count, job in enumerate(as_completed(jobs), len(subjects) - len(left) + 1):
                group = group_of[jobs[job].tensor.name]
                unfinished.add_tensors(dict(_entries(jobs[job], group, job)))
                release(0)
                progress(count, len(subjects))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return dict(unfinished.tensors)


def _entries(
    subject: Subject, group: str, job: Future[Measured]
) -> Iterator[tuple[str, TensorSensitivity]]:
    found, name = job.result(), subject.tensor.name
    for part, errors in found.errors.items():
        entry = TensorSensitivity(group, errors, found.lattice, found.experts, subject.routed)
        yield f"{name}#{part}" if part else name, entry
