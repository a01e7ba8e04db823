"""What errors are believed to cost, before the model itself is asked."""

from statistics import fmean

from gemcut.convert.model import Model
from gemcut.quantize.groups import Groups
from gemcut.quantize.roles import role_of
from gemcut.sensitivity import GroupWeight

# The priors are divergences of tensors in IQ2_XXS, whose relative error on normally distributed
# weights this is. They hold to a factor of about two.
_PRIOR_ERROR = 0.09
_PRIOR_DOUBT = 1.0  # standard error of a prior, relative to it


def prior_weights(model: Model, groups: Groups) -> dict[str, GroupWeight]:
    """What a group's relative error is believed to cost, before the model itself was asked."""
    layers = 1 + max((role_of(tensor.name).layer or 0 for tensor in model.tensors), default=0)
    tied = all(tensor.name != "output.weight" for tensor in model.tensors)
    weights = {}
    for group, names in groups.items():
        weight = fmean(role_of(name).prior(layers, tied) for name in names) / _PRIOR_ERROR
        weights[group] = GroupWeight(weight, _PRIOR_DOUBT * weight, "prior")
    return weights
