"""Which types a tensor can have: the row's length decides, and nothing is replaced silently."""

from gemcut import ggml
from gemcut.errors import PlanError
from gemcut.sensitivity import Candidate

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
# On 64 rows of 256 standard normal numbers, with uniform importance where a type needs one. ggml
# takes most of a minute to find them out, since some of its types search large tables.
_ERRORS = {
    "iq1_s": 0.237,
    "iq1_m": 0.342,
    "iq2_xxs": 0.117,
    "q2_0": 0.514,
    "iq2_xs": 0.0900,
    "iq2_s": 0.0712,
    "q2_k": 0.0886,
    "iq3_xxs": 0.0459,
    "q3_k": 0.0227,
    "iq3_s": 0.0285,
    "iq4_xs": 0.00589,
    "mxfp4": 0.0132,
    "q4_0": 0.00747,
    "q4_k": 0.00511,
    "iq4_nl": 0.00580,
    "nvfp4": 0.00900,
    "q4_1": 0.00608,
    "q5_0": 0.00185,
    "q5_k": 0.00129,
    "q5_1": 0.00143,
    "q6_k": 3.09e-4,
    "q8_0": 2.89e-5,
    "bf16": 2.76e-6,
    "f16": 4.24e-8,
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


def error(kind: ggml.Type, source: str) -> float:
    """Relative squared error of a round trip through the type, on normally distributed weights.

    Stands for a tensor's own error until that is measured. The source's own type loses nothing.
    """
    return 0.0 if kind.name in (source, "f32") else _ERRORS[kind.name]
