"""Whether weights lie on the lattice of ggml's Q4_0: what quantization-aware training leaves.

On it, every group of 32 neighbours in a row is d * k with whole k from -8 to 7, where d is the
group's extremum divided by -8 (so `quantize_row_q4_0_ref` in ggml-quants.c). A checkpoint trained
for Q4_0 and stored as BF16 holds such values up to BF16's rounding.
"""

from collections.abc import Callable, Iterable

import numpy as np

from gemcut.ggml import Floats
from gemcut.gguf_file import TensorInfo

Read = Callable[[str, int, int], Floats]  # a tensor's name, its first row and that after its last

GROUP = 32
CLAIMED = 0.9  # share of groups from which a tensor is said to be on the lattice
_TENSORS, _ROWS = 3, 16  # that are read of each role
_NEVER_CUT = ("norm", "router", "other")

# Value and extremum are both rounded to 8 significant bits, each by up to 2^-8 of its size.
_TOLERANCE = 2.0**-7 * 1.01


def on_q4_0_lattice(rows: Floats) -> float:
    """The share of the groups of rows [n, columns] that lie on a Q4_0 lattice.

    Groups of zeros say nothing and are not counted; 0 if there are no others, or if the columns do
    not divide into groups.

    Of random weights, one falls near enough to a whole multiple in 4 to 6 % of cases, so all 31
    beside the extremum do in fewer than 1 of 10^37 groups. Other lattices share some groups: an
    MXFP4 one up to a tenth, a ternary one a quarter, which is why `CLAIMED` is far above.
    """
    if rows.shape[-1] % GROUP or not rows.size:
        return 0.0
    groups = rows.reshape(-1, GROUP)
    groups = groups[np.isfinite(groups).all(axis=1) & groups.any(axis=1)]
    if not len(groups):
        return 0.0
    extremum = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)
    # In float64: float32's rounding, or an extremum that is denormal, would blur the whole numbers.
    levels = groups.astype(np.float64) / (extremum.astype(np.float64) / -8)
    whole = np.rint(levels)
    near = np.abs(levels - whole) <= _TOLERANCE * np.abs(whole)
    return float((near & (whole >= -8) & (whole <= 7)).all(axis=1).mean())


def lattice_by_role(
    tensors: Iterable[tuple[str, TensorInfo]], read: Read, seed: int = 0
) -> dict[str, float]:
    """The share of groups on a Q4_0 lattice, of a few rows of a few tensors of each role.

    Args:
        tensors: each with its role; what is quantized already and what never is are left out.
    """
    roles: dict[str, list[TensorInfo]] = {}
    for role, info in tensors:
        if role not in _NEVER_CUT and len(info.shape) > 1 and not info.type.quantized:
            roles.setdefault(role, []).append(info)
    random = np.random.default_rng(seed)
    found = {}
    for role, infos in sorted(roles.items()):
        picked = infos if len(infos) <= _TENSORS else [infos[0], infos[len(infos) // 2], infos[-1]]
        shares = [on_q4_0_lattice(_sample(info, read, random)) for info in picked]
        found[role] = float(np.mean(shares))
    return found


def _sample(info: TensorInfo, read: Read, random: np.random.Generator) -> Floats:
    rows = np.sort(random.integers(info.rows, size=min(_ROWS, info.rows)))
    return np.concatenate([read(info.name, int(row), int(row) + 1) for row in rows])
