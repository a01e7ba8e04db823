"""Plans by name: one type, or a mixture of llama.cpp; and the tensors that any plan makes.

Each function looks at names and shapes alone; no weight is read.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain

from gemcut import ggml
from gemcut.convert.model import Model, Tensor
from gemcut.errors import PlanError
from gemcut.gguf_file import TensorInfo, Value
from gemcut.plan import Entry, Plan
from gemcut.quantize import stock
from gemcut.quantize.candidates import fallback
from gemcut.quantize.reshape import shaped
from gemcut.quantize.single_experts import written


def plan_uniform(
    model: Model, name: str, allow_fallback: bool = False, importance: bool = False
) -> Plan:
    """One type for every tensor that may be quantized.

    Raises:
        PlanError: an unknown type, one that needs an importance matrix, or rows that do not fit
            it while no fallback is allowed.
    """
    kind = ggml.type_named(name)
    if not importance and stock.needs_importance(kind.name, "", kind.name):
        raise PlanError(f"{kind} needs an importance matrix (--imatrix)")
    entries = {tensor.name: _entry(tensor, kind, allow_fallback) for tensor in model.tensors}
    return _plan(model, entries, {"type": kind.name}, {"name": "uniform"})


def plan_stock(model: Model, name: str, importance: bool = False) -> Plan:
    """llama.cpp's own choice for a mixture such as Q4_K_M; `fallbacks` lists where rows refused.

    Raises:
        PlanError: an unknown mixture, or one that needs an importance matrix.
    """
    mixture = _mixture(model, name, importance)
    base = ggml.type_named(stock.MIXTURES[mixture.name][1])
    tensors = {tensor.name: tensor for tensor in model.tensors}
    entries = {}
    for tensor in (tensors[each] for each in stock.in_order(tensors)):
        if held := _held(tensor, base):
            entries[tensor.name] = Entry(held)
            continue
        wanted = mixture.type_of(tensor.name, tensor.columns, tensor.matrices, base.block)
        entries[tensor.name] = entry = _entry(tensor, ggml.type_named(wanted), True)
        if not importance and stock.needs_importance(mixture.name, tensor.name, entry.type):
            raise PlanError(
                f"{name}: {tensor.name} in {entry.type} needs an importance matrix (--imatrix)"
            )
    request = {"type": mixture.name}
    return _plan(model, entries, request, {"name": "llama.cpp", "mixture": mixture.name})


def refit(model: Model, plan: Plan) -> Plan:
    """The plan with its bytes counted on this model: it may have been edited.

    Raises:
        PlanError: it was made for another model.
    """
    if (plan.architecture, plan.weights) != (model.architecture, model.weights):
        raise PlanError(
            f"the plan is for a {plan.architecture} model of {plan.weights} weights, this one is "
            f"a {model.architecture} of {model.weights}: plan anew"
        )
    return _counted(model, plan)


def _counted(model: Model, plan: Plan) -> Plan:
    return replace(plan, size=sum(info.nbytes for info in infos(model, plan)))


def infos(model: Model, plan: Plan) -> list[TensorInfo]:
    """The tensors as the plan's file will hold them."""
    made = shaped(model, plan)
    missing = {tensor.name for tensor in made.tensors} ^ set(plan.tensors)
    if missing:
        raise PlanError(
            f"the plan is for another model: {min(missing)} is only in one of the two"
            + (f" ({len(missing)} such tensors)" if len(missing) > 1 else "")
        )
    found = (written(tensor, plan.tensors[tensor.name]) for tensor in made.tensors)
    return [_info(*each) for each in chain.from_iterable(found)]


def _info(tensor: Tensor, kind: ggml.Type) -> TensorInfo:
    held = _held(tensor, kind)
    if held and kind.name != held:
        raise PlanError(f"{tensor.name}: the plan says {kind}; this tensor stays {held}")
    if not kind.fits(tensor.columns):
        raise PlanError(
            f"{tensor.name}: rows of {tensor.columns} do not divide into {kind}'s blocks of "
            f"{kind.block}; take {_replacement(tensor, kind)}"
        )
    return TensorInfo(tensor.name, tensor.shape, kind)


def _held(tensor: Tensor, kind: ggml.Type) -> str | None:
    """The type that the tensor has although this one is asked for, if it is one of those."""
    if tensor.kept or tensor.quantizable or not kind.quantized:
        return tensor.kept
    return tensor.float_type


def _entry(tensor: Tensor, kind: ggml.Type, allow_fallback: bool) -> Entry:
    if held := _held(tensor, kind):
        return Entry(held)
    if kind.fits(tensor.columns):
        return Entry(kind.name)
    replacement = _replacement(tensor, kind)
    if not allow_fallback:
        raise PlanError(
            f"{tensor.name}: rows of {tensor.columns} do not divide into {kind}'s blocks of "
            f"{kind.block}; --fallback would take {replacement}"
        )
    return Entry(replacement.name, wanted=kind.name)


def _replacement(tensor: Tensor, kind: ggml.Type) -> ggml.Type:
    try:
        return fallback(kind, tensor.columns)
    except PlanError as error:
        raise PlanError(f"{tensor.name}: {error}") from error


def _plan(
    model: Model,
    entries: Mapping[str, Entry],
    request: Mapping[str, str | int | float],
    solver: Mapping[str, str],
) -> Plan:
    return _counted(model, Plan(model.architecture, model.weights, 0, request, solver, entries))


def _mixture(model: Model, name: str, importance: bool) -> stock.Mixture:
    canonical = stock.canonical(name)
    if canonical is None:
        known = ", ".join(sorted(stock.MIXTURES)).upper()
        raise PlanError(f"unknown mixture {name!r}; llama.cpp has {known}")
    names = [tensor.name for tensor in model.tensors]
    values = [n for n in names if "attn_v.weight" in n or "attn_qkv.weight" in n]
    return stock.Mixture(
        name=canonical,
        layers=_first(model, "block_count"),
        experts=_first(model, "expert_count"),
        group=_group(model),
        tied="output.weight" not in names,
        importance=importance,
        values=len(values),
    )


def _group(model: Model) -> int:
    """Query heads per key-value head in the first block; 0 where it has no attention."""
    heads = _first(model, "attention.head_count")
    kv_heads = _first(model, "attention.head_count_kv", heads)
    return heads // kv_heads if kv_heads else 0


def _first(model: Model, key: str, default: int = 0) -> int:
    """A whole number of the metadata; of a list over the blocks, the first block's."""
    value = model.metadata.get(f"{model.architecture}.{key}", Value("u32", default)).data
    number = value[0] if isinstance(value, list) and value else value
    if not isinstance(number, int):
        raise PlanError(f"{model.architecture}.{key} is {value!r:.60}, wanted a number")
    return number
