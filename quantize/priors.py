"""What errors are believed to cost, before the model itself is asked."""

from collections.abc import Collection
from statistics import fmean

from gemcut.convert.model import Model, Tensor
from gemcut.quantize.candidates import error, measured, paddable
from gemcut.quantize.groups import Groups, group_tensors
from gemcut.quantize.roles import prior
from gemcut.roles import role_of
from gemcut.sensitivity import GroupWeight, LocalError, Sensitivity, TensorSensitivity

_DOUBT = 1.0  # standard error of a prior, relative to it: they hold to a factor of about two


def prior_weights(model: Model, groups: Groups) -> dict[str, GroupWeight]:
    """What a group's relative error is believed to cost, before the model itself was asked."""
    tied = all(tensor.name != "output.weight" for tensor in model.tensors)
    weights = {}
    for group, names in groups.items():
        weight = fmean(prior(role_of(name), tied) for name in names)
        weights[group] = GroupWeight(weight, _DOUBT * weight, "prior")
    return weights


def prior_sensitivity(model: Model, weighted: Collection[str]) -> Sensitivity:
    """A sensitivity out of beliefs alone: errors of normally distributed weights, and priors.

    No weight is read.

    Args:
        weighted: the tensors that there is importance for.
    """
    cut = {t.name: t for t in model.tensors if not t.kept and t.quantizable}
    groups = group_tensors(list(cut), 1)
    group_of = {name: group for group, names in groups.items() for name in names}
    tensors = {
        name: TensorSensitivity(group_of[name], _errors(tensor, name in weighted))
        for name, tensor in cut.items()
    }
    weights = prior_weights(model, groups)
    return Sensitivity(model.architecture, "", None, None, {}, weights, tensors)


def _errors(tensor: Tensor, importance: bool) -> dict[str, LocalError]:
    source = tensor.source_type
    ways = measured(tensor.columns, source, importance, paddable(tensor.name))
    return {str(way): LocalError(error(way.type, source, importance)) for way in ways}
