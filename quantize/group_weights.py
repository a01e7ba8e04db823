"""What the error of a group of tensors costs the whole model, measured on the model itself.

All tensors of a group get an error of one size at once, and the KL divergence on a text is read.
The error is that of a fast type, made larger or smaller until it has the wanted size: so all groups
are compared at the same size, and the answer does not depend on the type.

The divergence has a floor. Any change, however small, makes llama.cpp round its activations in
another way from there on, and sends near ties to other experts; that costs nearly the same whatever
tensor of a block was changed, and less the later the block. So the floor is measured once for every
depth, by an error too small to matter, and subtracted chunk by chunk:

    weight = (divergence - floor) / (size of the error x number of tensors)

Errors of the size that types of three to four bits have stand out of the floor, and predictions
are most needed there. A measurement can still come out negative though no error does any good: the
weight is what is to be expected of the true one, given the measurement and that it is positive.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gemcut import ggml
from gemcut.quantize.groups import Groups, first_block
from gemcut.quantize.probe import Probe
from gemcut.quantize.swapping import Change
from gemcut.roles import role_of
from gemcut.score import Floats
from gemcut.sensitivity import GroupWeight, Point
from gemcut.tensor_sensitivity import TensorSensitivity

LEVELS = (0.03,)  # relative squared errors
_FLOOR = 1e-4  # the one that the floor is measured with
# Fast to encode; the first with an error is taken. That of MXFP4 comes last: it is not fitted to
# importance, and so is of another shape than those to be predicted.
_TYPES = ("q4_0", "q3_k", "q5_0", "mxfp4")
_LARGEST_STRENGTH = 4.0  # beyond, an error is no longer like one of a type

OnResult = Callable[[str, GroupWeight], None]  # told a group and what was found
Progress = Callable[[int, int], None]  # passes over the text done, and in all
Errors = Mapping[str, TensorSensitivity]


@dataclass(frozen=True)
class Work:
    """The groups to probe, and at which sizes of their error."""

    groups: Groups
    known: Mapping[str, GroupWeight] = field(default_factory=dict)  # of an earlier run
    levels: tuple[float, ...] = LEVELS

    @property
    def left(self) -> Groups:
        """What is not known yet."""
        return {name: found for name, found in self.groups.items() if name not in self.known}

    @property
    def depths(self) -> dict[int, str]:
        """The blocks in which errors begin, each with the tensor that its floor is measured on."""
        members = sorted(name for names in self.groups.values() for name in names)
        tensors = {first_block([name]): name for name in reversed(members)}
        blocks = {first_block(names) for names in self.left.values()}
        if None in blocks:  # an embedding's errors go through all blocks
            blocks |= {min((block for block in tensors if block is not None), default=None)}
        return {block: tensors[block] for block in blocks if block is not None}

    @property
    def passes(self) -> int:
        """Passes over the text that are left."""
        return len(self.left) * len(self.levels) + len(self.depths)


def probeable(name: str, errors: Errors, levels: Collection[float] = LEVELS) -> bool:
    """Whether the tensor can be given errors of these sizes."""
    return name in errors and _type(errors[name], max(levels)) is not None


def weigh(
    probe: Probe,
    errors: Errors,
    work: Work,
    on_result: OnResult | None = None,
    progress: Progress | None = None,
) -> dict[str, GroupWeight]:
    """Measure what is left to do: the weights of all groups, with the known ones.

    The same work on the same text gives the same weights.

    Args:
        errors: what each tensor loses in the types that have been measured.
        on_result: told every group's weight as it is found, so that it can be kept.

    Raises:
        PlanError, EngineError: see `Probe.divergence`.
    """
    done = 0

    def measure(names: Sequence[str], level: float) -> Floats:
        nonlocal done
        found = probe.divergence({name: change(errors[name], level) for name in names})
        done += 1
        if progress:
            progress(done, work.passes)
        return found

    floors = {depth: measure([name], _FLOOR) for depth, name in sorted(work.depths.items())}
    weights = dict(work.known)
    for group, names in work.left.items():
        floor = _floor(names, floors)
        points = [
            _point(level * len(names), measure(names, level) - floor) for level in work.levels
        ]
        weights[group] = weight_of(points)
        if on_result:
            on_result(group, weights[group])
    return weights


def change(tensor: TensorSensitivity, level: float) -> Change:
    """What gives a tensor an error of this size."""
    name = _type(tensor, level) or _TYPES[0]
    return Change(ggml.type_named(name), math.sqrt(level / tensor.errors[name].mean))


def weight_of(points: Sequence[Point]) -> GroupWeight:
    """The slope of divergences over errors: the mean of the points', weighted by precision."""
    slopes = np.array([kld / error for error, kld, _ in points])
    errors = np.array([max(se, 1e-12) / error for error, _, se in points])
    precision = errors**-2 / (errors**-2).sum()
    se = float(np.sqrt((precision**2 * errors**2).sum()))
    return GroupWeight(positive(float(precision @ slopes), se), se, "probe", tuple(points))


def positive(mean: float, se: float) -> float:
    """The expectation of a positive amount that was measured as mean +/- se.

    That of a normal distribution cut off at zero: mean + se * density / distribution, both taken
    at mean / se.
    """
    z = max(mean / se, -5.0)  # what lies further below is a mistake, and not to be believed
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return se * (z + density / (math.erfc(-z / math.sqrt(2)) / 2))


def _type(tensor: TensorSensitivity, level: float) -> str | None:
    """The type whose error is to be enlarged or reduced to the level."""
    least = level / _LARGEST_STRENGTH**2
    known = (name for name in _TYPES if name in tensor.errors)
    return next((name for name in known if tensor.errors[name].mean > least), None)


def _floor(names: Sequence[str], floors: Mapping[int, Floats]) -> Floats | float:
    """What any change there costs. After the blocks nothing is rounded any more."""
    depth = first_block(names)
    if depth is None and (not floors or all(role_of(name).name == "output" for name in names)):
        return 0.0
    return floors[min(floors) if depth is None else depth]


def _point(error: float, divergences: Floats) -> Point:
    """The chunks' mean with its standard error."""
    spread = float(divergences.std(ddof=1) / np.sqrt(len(divergences)))
    return error, float(divergences.mean()), spread
