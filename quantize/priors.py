"""What errors are believed to cost, before the model itself is asked."""

from collections.abc import Collection
from dataclasses import replace
from statistics import fmean

import numpy as np

from gemcut import ggml
from gemcut.convert.model import Model, Tensor
from gemcut.quantize.candidates import error, measured, paddable
from gemcut.quantize.groups import Groups, group_tensors
from gemcut.quantize.importance import importance_for
from gemcut.quantize.roles import prior
from gemcut.quantize.statistics import Statistics
from gemcut.quantize.tensor_errors import expert_mass, routed
from gemcut.roles import role_of
from gemcut.sensitivity import GroupWeight, Sensitivity
from gemcut.tensor_sensitivity import LocalError, TensorSensitivity

_DOUBT = 1.0  # standard error of a prior, relative to it: they hold to a factor of about two


def prior_weights(model: Model, groups: Groups) -> dict[str, GroupWeight]:
    """What a group's relative error is believed to cost, before the model itself was asked."""
    tied = all(tensor.name != "output.weight" for tensor in model.tensors)
    weights = {}
    for group, names in groups.items():
        weight = fmean(prior(role_of(name), tied) for name in names)
        weights[group] = GroupWeight(weight, _DOUBT * weight, "prior")
    return weights


def prior_sensitivity(
    model: Model, weighted: Collection[str], statistics: Statistics | None = None
) -> Sensitivity:
    """A sensitivity out of beliefs alone: errors of normally distributed weights, and priors.

    No weight is read.

    Args:
        weighted: the tensors that there is importance for.
        statistics: of that importance; then it says, too, what each expert adds.
    """
    cut = {t.name: t for t in model.tensors if not t.kept and t.quantizable}
    groups = group_tensors(list(cut), 1)
    importance = {} if statistics is None else importance_for(statistics, model.tensors)
    tensors = {}
    for group, names in groups.items():
        for name in names:
            entry = TensorSensitivity(group, _errors(cut[name], name in weighted))
            tensors[name] = _of_experts(cut[name], entry, statistics, importance.get(name))
    weights = prior_weights(model, groups)
    return Sensitivity(model.architecture, "", None, None, {}, weights, tensors)


def _errors(tensor: Tensor, importance: bool) -> dict[str, LocalError]:
    source = tensor.source_type
    ways = measured(tensor.columns, source, importance, paddable(tensor.name))
    return {str(way): LocalError(error(way.type, source, importance)) for way in ways}


def _of_experts(
    tensor: Tensor,
    entry: TensorSensitivity,
    statistics: Statistics | None,
    importance: ggml.Floats | None,
) -> TensorSensitivity:
    """With each expert's share of the error: as much as its rows and their inputs weigh."""
    shares = routed(statistics, tensor)
    if shares is None or importance is None:
        return entry
    energies = expert_mass(statistics, tensor) * importance.mean(axis=1, dtype=np.float64)
    experts = tuple((energies / energies.sum()).tolist())
    return replace(entry, experts=experts, routed=tuple(shares.tolist()))
