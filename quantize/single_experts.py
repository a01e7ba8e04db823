"""Stacks of experts written as single tensors, each in a type of its own, where a plan says so.

Nothing is read: an expert's tensor asks its stack for one matrix. What a plan pads or splits has
become so before; the plan's names and types are those of whole stacks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from gemcut import ggml
from gemcut.convert.lazy import Array
from gemcut.convert.model import Model, Tensor, releasing
from gemcut.errors import PlanError
from gemcut.gguf_experts import expert_name, stack_of
from gemcut.plan import Entry, Plan
from gemcut.quantize.importance import Importance


@dataclass(frozen=True, kw_only=True)
class _Expert(Tensor):
    """One matrix of a stack, as a tensor."""

    stack: Tensor

    @cached_property
    def lattice(self) -> float:
        """The stack's: an expert is encoded as it would be there."""
        return self.stack.lattice


def written(tensor: Tensor, entry: Entry) -> Iterator[tuple[Tensor, ggml.Type]]:
    """The tensors that one of the model's becomes, with their types: itself, or its experts.

    Raises:
        PlanError: an unknown type, or types per expert for what has no such experts.
    """
    if entry.experts is None:
        yield tensor, ggml.type_named(entry.type)
        return
    _check(tensor, entry)
    for number, name in enumerate(entry.experts):
        yield _expert(tensor, number), ggml.type_named(name)


def singled(model: Model, plan: Plan) -> Model:
    """The model with single experts where the plan gives them types; without any, as it is."""
    if not has_experts(plan):
        return model
    tensors = tuple(new for old in model.tensors for new, _ in written(old, plan.tensors[old.name]))
    return replace(model, tensors=tensors, release=releasing(tensors, model.release))


def singled_importance(importance: Importance, plan: Plan) -> Importance:
    """Importance [matrices, columns] by the names of the singled model."""
    found = {}
    for name, weights in importance.items():
        if plan.tensors[name].experts is None:
            found[name] = weights
        else:
            found |= {expert_name(name, n): weights[n : n + 1] for n in range(len(weights))}
    return found


def has_experts(plan: Plan) -> bool:
    """Whether a plan gives types to single experts."""
    return any(entry.experts is not None for entry in plan.tensors.values())


def _check(tensor: Tensor, entry: Entry) -> None:
    name, kinds = tensor.name, entry.experts or ()
    if len(tensor.shape) != 3 or stack_of(expert_name(name, 0)) is None:
        raise PlanError(f"{name}: the plan has types per expert, but this is no stack of experts")
    if len(kinds) != tensor.matrices:
        raise PlanError(f"{name}: {len(kinds)} types for {tensor.matrices} experts: plan anew")
    if tensor.kept or not tensor.quantizable:
        stays = tensor.kept or "in 16 bits or more"
        raise PlanError(f"{name}: the plan has types per expert, but this tensor stays {stays}")
    if entry.device not in (None, "cpu"):
        raise PlanError(
            f"{name}: the plan has types per expert on {entry.device}, and cards compute whole "
            "stacks only; wanted them on the cpu"
        )
    if entry.type not in kinds:
        raise PlanError(f"{name}: the plan says {entry.type}, which none of its experts has")


def _expert(tensor: Tensor, number: int) -> Tensor:
    shape = tensor.shape[1:]
    return _Expert(
        name=expert_name(tensor.name, number),
        shape=shape,
        source_type=tensor.source_type,
        build=lambda: Array(shape, (tensor.matrix(number),)),
        nonfinite=tensor.nonfinite,
        rank=tensor.rank,
        stack=tensor,
    )
