"""What the tensors of a file are made of: types by role, and where in the model they lie."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from gemcut import ggml
from gemcut.eval.comparison import Anatomy
from gemcut.roles import role_of

# In the order of a token's way through the model; what is never cut comes last.
_ROLES = {
    "embedding": "embedding",
    "per_layer_embedding": "per-layer embedding",
    "attention": "attention: q, k, v",
    "attention_output": "attention: output",
    "recurrent": "recurrent",
    "dense": "dense FFN",
    "shared": "shared experts",
    "experts_gate_up": "experts: gate, up",
    "experts": "experts: gate, up",
    "experts_down": "experts: down",
    "per_layer": "per-layer projections",
    "output": "output",
    "other": "other",
    "router": "router",
    "norm": "norms, scales",
}
ROLES = tuple(dict.fromkeys(_ROLES.values()))
UNCUT = ("router", "norms, scales")
_STOCK = re.compile(r"(^|, )type ")  # of a request: a mixture's name
_NEARLY_ALL = 0.98  # of the weights


@dataclass(frozen=True)
class Cell:
    """Tensors of one role in one block: the type of most weights, and bits per weight of all."""

    type: str
    mixed: bool  # other types hold more than a bias or so
    bits: float


def tensor_role(name: str, kind: str) -> str:
    """A tensor's role in words; what has none of its own and stays in F32 is with the norms."""
    role = role_of(name).name
    return _ROLES["norm" if (role, kind) == ("other", "f32") else role]


def type_counts(anatomy: Anatomy) -> dict[str, Counter[str]]:
    """How many tensors of each type a role has, in the order of ROLES."""
    found: dict[str, Counter[str]] = {role: Counter() for role in ROLES}
    for name, kind, _ in anatomy.types:
        found[tensor_role(name, kind)][kind] += 1
    return {role: counts for role, counts in found.items() if counts}


def block_types(anatomy: Anatomy) -> dict[str, dict[int, Cell]]:
    """For every role that is cut, its cell in each block; outside the blocks it is block -1."""
    kinds: dict[tuple[str, int], dict[str, int]] = {}
    for name, kind, size in anatomy.types:
        role, layer = tensor_role(name, kind), role_of(name).layer
        if role in UNCUT:
            continue
        cell = kinds.setdefault((role, -1 if layer is None else layer), {})
        cell[kind] = cell.get(kind, 0) + size
    found: dict[str, dict[int, Cell]] = {role: {} for role in ROLES}
    for (role, layer), sizes in kinds.items():
        found[role][layer] = _cell(sizes)
    return {role: cells for role, cells in found.items() if cells}


def bits(kind: str) -> float:
    """Bits per weight of a ggml type by name; 0 for a name that ggml does not have."""
    known = ggml.types().get(kind.lower())
    return known.bpw if known else 0.0


def is_planned(anatomy: Anatomy) -> bool:
    """Whether gemcut chose the types of this file, one by one: a stock mixture has a plan, too."""
    plan = anatomy.provenance.get("plan")
    return anatomy.predicted is not None or bool(plan and not _STOCK.search(plan))


def _cell(sizes: Mapping[str, int]) -> Cell:
    weights = {kind: size / bits(kind) for kind, size in sizes.items() if bits(kind)}
    total = sum(weights.values())
    if not total:
        return Cell(next(iter(sizes)), False, 0.0)
    main = max(weights, key=lambda kind: weights[kind])
    mean = sum(sizes[kind] for kind in weights) / total
    return Cell(main, weights[main] < _NEARLY_ALL * total, mean)
