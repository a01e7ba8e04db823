"""Which types a tensor can have: the row's length decides, and nothing is replaced silently."""

from gemcut import ggml
from gemcut.errors import PlanError
from gemcut.tensor_sensitivity import Candidate

# llama.cpp's replacements for a row that does not divide into the wanted type's blocks.
FALLBACKS = {
    **dict.fromkeys(
        ["iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"], "iq4_nl"
    ),
    **dict.fromkeys(["q2_0", "q2_k", "q3_k", "tq1_0", "tq2_0"], "q4_0"),
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
}

# Without an importance matrix; ternary and 1-bit types are for models trained in them.
PLAIN = (
    "q2_k q2_0 q3_k iq3_s mxfp4 iq4_xs iq4_nl q4_0 q4_k q4_1 q5_0 q5_k q5_1 q6_k q8_0 bf16 f32"
).split()
WITH_IMPORTANCE = ["iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs"]
# What is measured beside these: too coarse to be chosen before it is, or of the source's size.
_MEASURED = ["f16"]
_MEASURED_WITH_IMPORTANCE = ["iq1_s", "iq1_m"]
_SUPER_BLOCK = 256
# Of 256 rows of 256 standard normal numbers. Importance is log-normal (sigma 0.5), as that of most
# matrices nearly is: i-quants gain much by it, so that their order among the others is another.
# ggml takes a minute to find them out, since some of its types search large tables.
_ERRORS = {
    "q2_0": 0.518,
    "q2_k": 0.0877,
    "q3_k": 0.0229,
    "iq3_s": 0.0276,
    "iq4_xs": 0.00593,
    "mxfp4": 0.0134,
    "q4_0": 0.00744,
    "q4_k": 0.00511,
    "iq4_nl": 0.00585,
    "q4_1": 0.00612,
    "q5_0": 0.00183,
    "q5_k": 0.00132,
    "q5_1": 0.00145,
    "q6_k": 3.16e-4,
    "q8_0": 2.88e-5,
    "bf16": 2.76e-6,
    "f16": 4.24e-8,
}
_ERRORS_WITH_IMPORTANCE = {
    **_ERRORS,
    "iq1_s": 0.226,
    "iq1_m": 0.19,
    "iq2_xxs": 0.111,
    "q2_0": 0.521,
    "iq2_xs": 0.0846,
    "iq2_s": 0.0594,
    "q2_k": 0.0682,
    "iq3_xxs": 0.0305,
    "q3_k": 0.0204,
    "iq3_s": 0.0176,
    "iq4_xs": 0.00564,
    "mxfp4": 0.0134,
    "q4_0": 0.00661,
    "q4_k": 0.00486,
    "iq4_nl": 0.00554,
    "q4_1": 0.00473,
    "q5_0": 0.00161,
    "q5_k": 0.00123,
    "q5_1": 0.00111,
    "q6_k": 2.95e-4,
    "q8_0": 2.90e-5,
}


def fallback(kind: ggml.Type, columns: int) -> ggml.Type:
    """The type that llama.cpp would take for rows of this length.

    Raises:
        PlanError: llama.cpp has no replacement for this type.
    """
    if kind.fits(columns):
        return kind
    if kind.name not in FALLBACKS and kind.block > 32:
        raise PlanError(
            f"rows of {columns} do not divide into {kind}'s blocks of {kind.block}, "
            "and no replacement is defined for it"
        )
    replacement = ggml.type_named(FALLBACKS.get(kind.name, kind.name))
    return replacement if replacement.fits(columns) else ggml.type_named("f16")


def measured(columns: int, source: str, importance: bool, paddable: bool) -> list[Candidate]:
    """Every way worth measuring to write rows of this length, smallest first.

    Args:
        source: the type that the source holds; nothing larger is a candidate.
        paddable: rows may be zero-padded to whole blocks of 256, for the types that need it.
    """
    names = [*PLAIN, *_MEASURED]
    if importance:
        names += WITH_IMPORTANCE + _MEASURED_WITH_IMPORTANCE
    limit = ggml.type_named(source)
    kinds = {ggml.type_named(name) for name in names} | {limit}
    small = sorted((k for k in kinds if k.bpw <= limit.bpw), key=lambda k: (k.bpw, k.name))
    found = [Candidate(kind) for kind in small if kind.fits(columns)]
    padded = -(-columns // _SUPER_BLOCK) * _SUPER_BLOCK
    if paddable:
        found += [Candidate(k, padded) for k in small if not k.fits(columns) and k.fits(padded)]
    return found


def paddable(name: str) -> bool:
    """Whether a tensor's rows may be padded: their length is a feed-forward's own width.

    Units that are added to it have no weights, and so give zeros.
    """
    return ".ffn_down" in name


def error(kind: ggml.Type, source: str, importance: bool) -> float:
    """Relative squared error of a round trip through the type, on normally distributed weights.

    Stands for a tensor's own error until that is measured. The source's own type loses nothing.
    """
    known = _ERRORS_WITH_IMPORTANCE if importance else _ERRORS
    return 0.0 if kind.name in (source, "f32") else known[kind.name]
