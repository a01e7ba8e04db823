"""llama.cpp's own mixtures: the types that `Q4_K_M` and its kin mean, tensor by tensor.

The rules are those of llama-quant.cpp at the pinned version, for architectures with experts (the
special cases of Falcon, of dense 70B models and of GLM-5 are not among them). They depend on the
order in which llama.cpp meets the tensors: by block, then by name.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_FIRST_NUMBER = re.compile(r"blk\.(\d{1,9})\.")

# name -> (number in `general.file_type`, the type that most tensors get)
MIXTURES: dict[str, tuple[int, str]] = {
    "f32": (0, "f32"),
    "f16": (1, "f16"),
    "bf16": (32, "bf16"),
    "q4_0": (2, "q4_0"),
    "q4_1": (3, "q4_1"),
    "q8_0": (7, "q8_0"),
    "q5_0": (8, "q5_0"),
    "q5_1": (9, "q5_1"),
    "q2_k": (10, "q2_k"),
    "q2_k_s": (21, "q2_k"),
    "q3_k_s": (11, "q3_k"),
    "q3_k_m": (12, "q3_k"),
    "q3_k_l": (13, "q3_k"),
    "q4_k_s": (14, "q4_k"),
    "q4_k_m": (15, "q4_k"),
    "q5_k_s": (16, "q5_k"),
    "q5_k_m": (17, "q5_k"),
    "q6_k": (18, "q6_k"),
    "iq2_xxs": (19, "iq2_xxs"),
    "iq2_xs": (20, "iq2_xs"),
    "iq2_s": (28, "iq2_xs"),
    "iq2_m": (29, "iq2_s"),
    "iq3_xxs": (23, "iq3_xxs"),
    "iq3_xs": (22, "iq3_s"),
    "iq3_s": (26, "iq3_s"),
    "iq3_m": (27, "iq3_s"),
    "iq1_s": (24, "iq1_s"),
    "iq1_m": (31, "iq1_m"),
    "iq4_nl": (25, "iq4_nl"),
    "iq4_xs": (30, "iq4_xs"),
    "tq1_0": (36, "tq1_0"),
    "tq2_0": (37, "tq2_0"),
    "mxfp4_moe": (38, "mxfp4"),
    "q1_0": (40, "q1_0"),
    "q2_0": (41, "q2_0"),
}

_UNQUANTIZED = {"f32", "f16", "bf16"}
_TINY = {"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m"}
_TWO_BIT = {"iq2_s", "iq2_m"}


@dataclass
class Mixture:
    """One mixture applied to one model; it counts the tensors it has seen, as llama.cpp does."""

    name: str
    layers: int
    experts: int
    group: int  # query heads per key-value head in the first block
    tied: bool
    importance: bool
    values: int  # number of value-like attention tensors
    _seen: dict[str, int] = field(default_factory=dict)

    def type_of(self, tensor: str, columns: int, matrices: int, block: int) -> str:
        """The type this mixture wants for a quantizable tensor (before any fallback).

        Args:
            block: block size of the mixture's base type, for rows that it does not divide.
        """
        base = MIXTURES[self.name][1]
        if self.name in _UNQUANTIZED:
            return base
        if tensor == "output.weight" or (self.tied and _is_embedding(tensor)):
            return self._head(base, columns % block != 0)
        if self.name == "mxfp4_moe":
            return "mxfp4" if matrices > 1 else "q8_0"
        if _is_embedding(tensor):
            return _EMBEDDING.get(self.name, base)
        if self.name in _TINY:
            return self._tiny(tensor, base)
        if "attn_v.weight" in tensor or "attn_qkv.weight" in tensor or "attn_kv_b" in tensor:
            return self._values(base)
        if "attn_k.weight" in tensor or "attn_q.weight" in tensor:
            return self._keys_or_queries(tensor, base)
        if "attn_output.weight" in tensor:
            return self._attention_output(base)
        if "ffn_down" in tensor:
            return self._down(base, _layer(tensor))
        if "ffn_gate" in tensor or "ffn_up" in tensor:
            return self._gate_or_up(base, _layer(tensor))
        return base

    def _count(self, what: str) -> int:
        number = self._seen.get(what, 0)
        self._seen[what] = number + 1
        return number

    def _head(self, base: str, misfit: bool) -> str:
        if self.name == "mxfp4_moe" or misfit:
            return "q8_0"
        if self.name in _TINY | {"iq3_xxs"}:
            return "q5_k"
        return base if base == "q8_0" else "q6_k"

    def _tiny(self, tensor: str, base: str) -> str:
        if "attn_v.weight" in tensor or "attn_qkv.weight" in tensor or "attn_kv_b" in tensor:
            if self.group >= 4 or self.experts >= 4:
                return "q4_k"
            return "iq3_s" if self.name in _TWO_BIT else "q2_k"
        if self.experts == 8 and "attn_k.weight" in tensor:
            return "q4_k"
        if "ffn_down" in tensor:
            if self._count("down") < self.layers // 8:
                return "iq3_s" if self.name in _TWO_BIT else "q2_k"
        elif "attn_output.weight" in tensor:
            if self.experts == 8:
                return "q5_k"
            if self.name in ("iq1_s", "iq1_m"):
                return "iq2_xxs"
            return "iq3_s" if self.name in _TWO_BIT else base
        return base

    def _values(self, base: str) -> str:
        seen, wide = self._count("values"), self.group >= 4
        if self.experts == 8:
            return "q8_0"
        match self.name:
            case "q2_k":
                return "q4_k" if wide else "q3_k"
            case "iq3_xxs":
                return "q4_k" if wide else "iq3_xxs" if self.importance else "iq3_s"
            case "q2_k_s" | "iq3_xs" | "iq3_s" if wide:
                return "q4_k"
            case "iq3_m":
                return "q4_k"
            case "q3_k_m":
                return "q5_k" if seen < 2 else "q4_k"
            case "q3_k_l":
                return "q5_k"
            case "iq4_nl" | "iq4_xs" if wide:
                return "q5_k"
            case "q4_k_m" | "q5_k_m" if _more_bits(seen, self.values):
                return "q6_k"
            case "q4_k_s" if seen < 4:
                return "q5_k"
        return base

    def _keys_or_queries(self, tensor: str, base: str) -> str:
        if self.experts == 8 and "attn_k.weight" in tensor:
            return "q8_0"
        return {"iq3_xs": "iq3_xxs", "iq3_xxs": "iq2_s"}.get(self.name, base)

    def _attention_output(self, base: str) -> str:
        if self.experts == 8:
            return "q5_k" if self.name in _EIGHT_EXPERTS_OUTPUT else base
        return _OUTPUT.get(self.name, base)

    def _down(self, base: str, layer: int) -> str:
        first_eighth, more = layer < self.layers // 8, _more_bits(layer, self.layers)
        match self.name:
            case "q2_k":
                return "q3_k"
            case "q2_k_s" if first_eighth:
                return "q4_k"
            case "iq3_xxs" if not self.importance:
                return "q4_k" if first_eighth else "q3_k"
            case "q3_k_m":
                return "q5_k" if layer < self.layers // 16 else "q4_k"
            case "iq3_m" if first_eighth or (self.experts == 8 and more):
                return "q4_k"
            case "q3_k_l":
                return "q5_k"
            case "q4_k_m" | "q5_k_m" if more:
                return "q6_k"
            case "iq4_nl" | "iq4_xs" if first_eighth and not self.importance:
                return "q5_k"
            case "q4_k_s" if first_eighth:
                return "q5_k"
            case "q4_0" | "q5_0" if first_eighth and self.importance:
                return "q4_1" if self.name == "q4_0" else "q5_1"
        return base

    def _gate_or_up(self, base: str, layer: int) -> str:
        middle = self.layers // 8 <= layer < 7 * self.layers // 8
        return "iq3_xxs" if self.name == "iq3_xs" and middle else base


_EMBEDDING = {  # where the output tensor is a separate one
    **dict.fromkeys(["iq2_xxs", "iq2_xs", "iq1_s", "iq1_m"], "q2_k"),
    **dict.fromkeys(["iq2_s", "iq2_m", "iq3_xxs"], "iq3_s"),
    **dict.fromkeys(["tq1_0", "tq2_0", "q2_0"], "q4_k"),
}
_OUTPUT = {"q2_k": "q3_k", "iq3_xxs": "iq3_s", "q3_k_m": "q4_k", "q3_k_l": "q5_k", "iq3_m": "q4_k"}
_EIGHT_EXPERTS_OUTPUT = set(
    "q2_k iq3_xs iq3_xxs q3_k_s q3_k_m iq4_nl q4_k_s q4_k_m iq3_s iq3_m iq4_xs".split()
)


def canonical(name: str) -> str | None:
    """The mixture's name in lower case, or None if llama.cpp has no such mixture."""
    return name.lower() if name.lower() in MIXTURES else None


def needs_importance(mixture: str, tensor: str, kind: str) -> bool:
    """Whether llama.cpp refuses this tensor in this type without an importance matrix."""
    if _is_embedding(tensor) or tensor == "output.weight":
        return False
    low = {"iq3_xxs", "iq2_xxs", "iq2_xs", "iq2_s", "iq1_m", "iq1_s"}
    return kind in low or (kind == "q2_k" and mixture == "q2_k_s")


def file_type(types: Mapping[str, int]) -> int:
    """`general.file_type` for a free choice: that of the type with the most bytes."""
    most = max(types, key=lambda name: types[name])
    named = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m", "mxfp4": "mxfp4_moe"}
    return MIXTURES.get(named.get(most, most), (1024, ""))[0]  # 1024: guessed


def in_order(names: Iterable[str]) -> list[str]:
    """Tensor names as llama.cpp meets them: outside the blocks first, then block by block."""
    return sorted(names, key=lambda name: (_layer(name), name))


def _is_embedding(tensor: str) -> bool:
    return tensor in ("token_embd.weight", "per_layer_token_embd.weight")


def _layer(tensor: str) -> int:
    match = _FIRST_NUMBER.match(tensor)
    return int(match[1]) if match else -1


def _more_bits(index: int, count: int) -> bool:
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2
