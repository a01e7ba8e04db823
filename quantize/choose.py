"""Making plans from what a user asks for: one type, a stock mixture, or a size.

Each function looks at names and shapes alone; no weight is read.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from gemcut import ggml
from gemcut.convert.model import Model, Tensor
from gemcut.errors import BudgetError, PlanError, UsageError
from gemcut.gguf_file import TensorInfo, Value
from gemcut.gguf_layout import file_size
from gemcut.plan import Entry, Plan
from gemcut.quantize import budget, stock
from gemcut.quantize.candidates import fallback


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


def plan_size(
    model: Model, size: int, describe: Callable[[Plan], Mapping[str, Value]], weighted: budget.Names
) -> Plan:
    """The best types by priors whose finished file is not larger than `size` bytes.

    Args:
        describe: gives the metadata of the file that a plan makes; its bytes count.
        weighted: the tensors that there is importance for.

    Raises:
        BudgetError: not even the smallest choice fits.
    """
    room = size
    least = budget.smallest(model, weighted)
    while True:  # the plan travels in the file, and its length depends on the choice
        plan = plan_weights(model, max(room, least), {"size": size}, weighted)
        excess = file_size(describe(plan), infos(model, plan)) - size
        if excess <= 0:
            return plan
        if plan.size <= least:
            told = replace(plan, request={"size": size + excess})  # a longer number takes room, too
            wanted = file_size(describe(told), infos(model, told))
            raise BudgetError(
                f"{size} bytes are too few: the smallest file of this model takes {wanted} "
                f"({plan.bpw:.2f} bits per weight)"
            )
        room = plan.size - excess


def plan_bpw(model: Model, bpw: float, weighted: budget.Names) -> Plan:
    """The best types by priors at no more than `bpw` bits per weight over all tensors.

    Raises:
        BudgetError: not even the smallest choice fits.
    """
    if not math.isfinite(bpw * model.weights):
        raise UsageError(f"{bpw} bits per weight: wanted a number, as 4.5")
    return plan_weights(model, int(bpw * model.weights / 8), {"bpw": bpw}, weighted)


def plan_weights(
    model: Model, room: int, request: Mapping[str, int | float], weighted: budget.Names
) -> Plan:
    """The best types by priors whose tensors take no more than `room` bytes."""
    types, ranges = budget.solve(model, room, weighted)
    entries = {name: Entry(kind.name) for name, kind in types.items()}
    solver = {"name": "priors", "ranges": ranges}
    return _plan(model, entries, request, solver)


def refit(model: Model, plan: Plan) -> Plan:
    """The plan with its weights and bytes counted on this model: it may have been edited."""
    size = sum(info.nbytes for info in infos(model, plan))
    return replace(plan, weights=model.weights, size=size)


def infos(model: Model, plan: Plan) -> list[TensorInfo]:
    """The tensors as the plan's file will hold them."""
    missing = {tensor.name for tensor in model.tensors} ^ set(plan.tensors)
    if missing:
        raise PlanError(
            f"the plan is for another model: {min(missing)} is only in one of the two"
            + (f" ({len(missing)} such tensors)" if len(missing) > 1 else "")
        )
    return [_info(tensor, plan.tensors[tensor.name]) for tensor in model.tensors]


def _info(tensor: Tensor, entry: Entry) -> TensorInfo:
    if entry.padded_to or entry.split or entry.experts:
        raise PlanError(f"{tensor.name}: padding, splitting and types per expert are not written")
    kind = ggml.type_named(entry.type)
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
    return refit(model, Plan(model.architecture, model.weights, 0, request, solver, entries))


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
