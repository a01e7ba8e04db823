"""Whether weights lie on the lattice of ggml's Q4_0: what quantization-aware training leaves.

On it, every group of 32 neighbours in a row is d * k with one d and whole k from -8 to 7. If d is
the group's extremum divided by -8, as ggml chooses it (`quantize_row_q4_0_ref` in ggml-quants.c),
then ggml finds the way back. If training has left another k at the extremum, it does not, and its
choice of d moves every weight of the group. A checkpoint trained for Q4_0 and stored as BF16 holds
such values up to BF16's rounding.
"""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from gemcut.errors import EngineError
from gemcut.ggml import Bytes, Floats
from gemcut.gguf_file import TensorInfo

Read = Callable[[str, int, int], Floats]  # a tensor's name, its first row and that after its last
Doubles = npt.NDArray[np.float64]

GROUP = 32
CLAIMED = 0.9  # share of groups from which a tensor is said to be on the lattice
_TENSORS, _ROWS = 3, 16  # that are read of each role
_NEVER_CUT = ("norm", "router", "other")

# What k an extremum can have, up to the sign of d; ggml's own choice first.
_EXTREMA = (-8, 7, 6, 5, 4, 3, 2, 1)
_LEAST, _MOST = -8, 7

# Value and extremum are both rounded to 8 significant bits, each by up to 2^-8 of its size.
_TOLERANCE = 2.0**-7 * 1.01


def on_q4_0_lattice(rows: Floats) -> float:
    """The share of the groups of rows [n, columns] that lie on a Q4_0 lattice.

    Groups of zeros say nothing and are not counted; 0 if there are no others, or if the columns do
    not divide into groups.

    Of random weights, one falls near enough to a whole multiple in 4 to 6 % of cases, so all 31
    beside the extremum do in fewer than 1 of 10^36 groups. Other lattices share some groups, an
    MXFP4 one up to a tenth, which is why `CLAIMED` is far above; a ternary one is part of it.
    """
    if rows.shape[-1] % GROUP or not rows.size:
        return 0.0
    groups = rows.reshape(-1, GROUP)
    groups = groups[np.isfinite(groups).all(axis=1) & groups.any(axis=1)]
    if not len(groups):
        return 0.0
    return float(np.any([_fits(groups, _scales(groups, each)) for each in _EXTREMA], axis=0).mean())


def encode_q4_0(rows: Floats) -> Bytes:
    """Rows [n, columns] on a Q4_0 lattice as Q4_0 [n, row_bytes], each group with its own d.

    The d of least squares, given the k of all 32 weights, is nearer to the one that training had
    than the rounded extremum is. A block is d as F16, then the k, 8 more than they are, in 4 bits:
    the first 16 in the low halves of its bytes, the others in the high ones.

    Raises:
        EngineError: a weight is not finite, or too large.
    """
    groups = rows.reshape(-1, GROUP)
    if not np.isfinite(groups).all():
        raise EngineError("the weights hold NaN or infinite values: is the source damaged?")
    whole = _whole(groups, _scales(groups, _EXTREMA[0]))
    left = np.flatnonzero(~_fits(groups, _scales(groups, _EXTREMA[0])))
    whole[left] = _nearest(groups[left])
    squares = np.square(whole).sum(axis=1)
    scales = (groups * whole).sum(axis=1) / np.maximum(squares, 1)
    if not (np.abs(scales) <= np.finfo(np.float16).max).all():
        raise EngineError("q4_0: not finite after encoding: the weights are too large")
    levels = (whole - _LEAST).astype(np.uint8)
    packed = levels[:, : GROUP // 2] | levels[:, GROUP // 2 :] << 4
    blocks = np.concatenate([scales.astype("<f2")[:, None].view(np.uint8), packed], axis=1)
    return blocks.reshape(len(rows), -1)


def _scales(groups: Floats, extremum: int) -> Doubles:
    """Every group's d [n, 1], if its extremum has this k; 1 where all are zero."""
    # In float64: float32's rounding, or an extremum that is denormal, would blur the whole numbers.
    values = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)
    return np.where(values, values.astype(np.float64) / extremum, 1)


def _whole(groups: Floats, scales: Doubles) -> Doubles:
    """The nearest k of every weight."""
    return np.clip(np.rint(groups / scales), _LEAST, _MOST)


def _fits(groups: Floats, scales: Doubles) -> npt.NDArray[np.bool_]:
    """Which groups lie on the lattice with this d: [n]."""
    levels, whole = groups / scales, _whole(groups, scales)
    return np.asarray((np.abs(levels - whole) <= _TOLERANCE * np.abs(whole)).all(axis=1))


def _nearest(groups: Floats) -> Doubles:
    """The k of every weight, for the extremum's k that leaves the least squared error."""
    best, least = np.zeros(groups.shape), np.full(len(groups), np.inf)
    for extremum in _EXTREMA:
        scales = _scales(groups, extremum)
        whole = _whole(groups, scales)
        errors = np.square(groups - scales * whole).sum(axis=1)
        better = errors < least
        best[better], least[better] = whole[better], errors[better]
    return best


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
