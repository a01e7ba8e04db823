"""A sensitivity with weights that were measured on the model in place of priors.

How many groups there are is a matter of time: each costs a pass over the text. The finest grouping
that can be afforded is taken, and every tensor becomes a member of its group there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from math import exp, fsum, log
from time import perf_counter

from gemcut.errors import SensitivityError, UsageError
from gemcut.quantize.group_weights import (
    LEVELS,
    OnResult,
    Progress,
    Work,
    change,
    probeable,
    weigh,
)
from gemcut.quantize.groups import Groups, groupings
from gemcut.quantize.probe import Probe
from gemcut.sensitivity import GroupWeight, Sensitivity
from gemcut.tensor_sensitivity import TensorSensitivity

Tell = Callable[[str], None]  # told a line for the user


def probe_sensitivity(
    sensitivity: Sensitivity,
    probe: Probe,
    minutes: float | None = None,
    known: Mapping[str, GroupWeight] | None = None,
    levels: Sequence[float] = LEVELS,
    on_result: OnResult | None = None,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Sensitivity:
    """Measure the weights of groups, and put them into a sensitivity that has tensors' errors.

    Args:
        minutes: take coarser groups rather than more time than this; None: every tensor is one.
        known: groups that an interrupted run has told of; the same grouping is taken again.
        levels: sizes of the errors that are tried, as relative squared errors.
        on_result: told every group's weight as it is found.
        tell: told in a line what is going to be done, and how long it will take.

    Raises:
        SensitivityError: no tensor can be probed, or what is known is of another model.
        UsageError: even the coarsest groups take longer.
        EngineError: see `Probe.divergence`.
    """
    names = [
        name for name in sorted(probe.swapper.names) if probeable(name, sensitivity.tensors, levels)
    ]
    if not names:
        raise SensitivityError("no error of q4_0 is known for any tensor: measure with all types")
    work, seconds = _affordable(sensitivity, probe, names, minutes, known or {}, tuple(levels))
    chunks, n_ctx = probe.tokens.shape
    if tell:
        tell(
            f"probing {len(work.left)} of {len(work.groups)} groups over {chunks} chunks of "
            f"{n_ctx} tokens: about {seconds / 60:.1f} minutes"
        )
    weights = weigh(probe, sensitivity.tensors, work, on_result, progress)
    settings = {
        "probe_chunks": chunks,
        "probe_context": n_ctx,
        "probe_levels": " ".join(f"{level:g}" for level in levels),
    }
    text = sha256(probe.tokens.tobytes()).hexdigest()
    found = regrouped(sensitivity, work.groups, weights)
    return replace(found, text=text, settings={**sensitivity.settings, **settings})


def regrouped(
    sensitivity: Sensitivity, groups: Groups, weights: Mapping[str, GroupWeight]
) -> Sensitivity:
    """The sensitivity with these groups and weights.

    Tensors that are in none of them keep their priors, in the units of the measured weights: times
    the mean ratio of a measurement to its priors.
    """
    group_of = {name: group for group, names in groups.items() for name in names}
    scale = _scale(sensitivity, groups, weights)

    def moved(name: str, tensor: TensorSensitivity) -> TensorSensitivity:
        whole = name.partition("#")[0]  # of a part: it belongs where its tensor does
        return replace(tensor, group=group_of.get(whole, _rest(tensor.group, groups)))

    tensors = {name: moved(name, tensor) for name, tensor in sensitivity.tensors.items()}
    left = {
        _rest(name, groups): replace(group, weight=group.weight * scale, se=group.se * scale)
        for name, group in sensitivity.groups.items()
    }
    used = {tensor.group for tensor in tensors.values()}
    together = {**left, **weights}
    return replace(sensitivity, tensors=tensors, groups={name: together[name] for name in used})


def _rest(group: str, groups: Groups) -> str:
    """The name of a group's tensors that were not probed, though others of it were."""
    return f"{group}, not probed" if group in groups else group


def _scale(sensitivity: Sensitivity, groups: Groups, weights: Mapping[str, GroupWeight]) -> float:
    """The geometric mean, over groups, of what was measured to what was believed."""
    ratios = []
    for group, names in groups.items():
        believed = [sensitivity.groups[sensitivity.tensors[name].group].weight for name in names]
        if (mean := fsum(believed) / len(believed)) > 0 and weights[group].weight > 0:
            ratios.append(log(weights[group].weight / mean))
    return exp(fsum(ratios) / len(ratios)) if ratios else 1.0


def _affordable(
    sensitivity: Sensitivity,
    probe: Probe,
    names: Sequence[str],
    minutes: float | None,
    known: Mapping[str, GroupWeight],
    levels: tuple[float, ...],
) -> tuple[Work, float]:
    """The finest groups that the time allows, or those that are known; seconds that it takes."""
    changing = _seconds_per_weight(sensitivity, probe, names, levels) * sum(
        probe.swapper.weights(name) for name in names
    )
    seconds = None
    for groups in groupings(names):
        if known.keys() <= groups.keys():
            work = Work(groups, known, levels)
            share = len(work.left) / len(groups)
            seconds = work.passes * probe.seconds + share * len(levels) * changing
            if known or minutes is None or seconds <= 60 * minutes:
                return work, seconds
    if seconds is None:
        raise SensitivityError(f"{min(known)}: known of another model, or in other groups")
    raise UsageError(
        f"probing takes {seconds / 60:.2g} minutes at least, wanted {minutes:.2g}: allow more, "
        "or read fewer chunks"
    )


def _seconds_per_weight(
    sensitivity: Sensitivity, probe: Probe, names: Sequence[str], levels: Sequence[float]
) -> float:
    """How long it takes to change a weight and to put it back, tried on the largest tensor."""
    largest = max(names, key=probe.swapper.weights)
    start = perf_counter()
    with probe.swapper.swapped({largest: change(sensitivity.tensors[largest], max(levels))}):
        pass
    return (perf_counter() - start) / probe.swapper.weights(largest)
