"""Which of a checkpoint's raw tensors make one tensor together: weights, scales, scales of scales.

Decided by the tensors that are there, not by what config.json says about modules: lists of modules
that were left alone then need no reading. Known are

* 8-bit floats with scales per tensor, row, column or block, as DeepSeek, Qwen, MiniMax, GLM,
  Mistral, fbgemm, compressed-tensors and ModelOpt publish them; 8-bit integers likewise;
* MXFP4, as gpt-oss (`_blocks`, `_scales`), DeepSeek-V4 and compressed-tensors have it;
* NVFP4, as ModelOpt (`weight_scale_2` multiplies) and compressed-tensors
  (`weight_global_scale` divides) have it.

Scales of activations and of the KV cache are dropped: llama.cpp rounds those in its own way.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from gemcut.convert.dtypes import leaf
from gemcut.convert.lazy import Array, stored
from gemcut.convert.packing import Block, Packing, eights, mxfp4, nvfp4
from gemcut.convert.source import RawTensor, Source
from gemcut.errors import CheckpointError

Raws = Mapping[str, RawTensor]

_FLOATS = ("BF16", "F16", "F32")
_EIGHT_BITS = ("F8_E4M3", "F8_E5M2", "U8", "I8")
_BLOCKS = "_blocks"
_PACKED = "_packed"

# Of a weight's name, without "_packed": how the names of its scales end.
_SCALES = ("_scale_inv", "_scale", "_weight_scale")
_SECOND_SCALES = {"_scale_2": False, "_weight_scale_2": False, "_global_scale": True}  # divides?
# In place of "weight": DeepSeek-V4's, Mistral's own format.
_STEM_SCALES = ("scale", "qscale_weight")

# input_scale, input_scale_ub, gate_up_proj_activation_scale, k_scale, qscale_act, ...
_OF_ACTIVATIONS = re.compile(
    r"(^|[._])((input|output|activation)(_global)?_scale(_ub)?|[qkv]_scale|prob_scale|qscale_act)$"
)
# Names that only packed integers have: GPTQ and AWQ, bitsandbytes, AQLM.
_OF_INTEGERS = re.compile(r"\.(qweight|qzeros|SCB|absmax|codebooks)$|\.quant_state\.")


def logical(raw: Raws, config: Mapping[str, Any]) -> dict[str, Source]:
    """The tensors that the rules know, by name, with their scales applied.

    Integers, masks and the like are there too, and refused when they are opened.

    Raises:
        CheckpointError: weights packed in a way that is not known, or without their scales, or
            with scales of a shape that does not fit.
    """
    quantization = _quantization(config)
    method = str(quantization.get("quant_method", "none"))
    _refuse_integers(raw, method)
    packings = {p.parts[0].name: p for p in _packings(raw, _configured_block(quantization))}
    used = {part.name for packing in packings.values() for part in packing.parts[1:]}
    found: dict[str, Source] = {}
    for name, tensor in raw.items():
        of_activations = _OF_ACTIVATIONS.search(name) and (packings or quantization)
        if name in used or (of_activations and name not in packings):
            continue
        source = _packed(packings[name]) if name in packings else _unpacked(tensor)
        if quantization and name not in packings and tensor.dtype in ("F8_E4M3", "F8_E5M2"):
            raise CheckpointError(
                f"{tensor.file}: {name} is {tensor.dtype} without a scale, though config.json says "
                f"that the model was quantized ({method}): is a file missing?"
            )
        if source.name in found:
            raise CheckpointError(f"{tensor.file}: {source.name} is there twice, packed and not")
        found[source.name] = source
    return found


def _packed(packing: Packing) -> Source:
    files = tuple(dict.fromkeys(part.file for part in packing.parts))
    return Source(_base(packing.parts[0].name), packing.shape, files, packing.open)


def _unpacked(tensor: RawTensor) -> Source:
    return Source(tensor.name, tensor.shape, (tensor.file,), partial(_plain, tensor))


def _quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What config.json says about quantization, wherever it does; often nothing."""
    for part in (config, config.get("text_config")):
        for key in ("quantization_config", "compression_config"):
            found = part.get(key) if isinstance(part, dict) else None
            if isinstance(found, dict):
                return found
    return {}


def _configured_block(quantization: Mapping[str, Any]) -> Block | None:
    """Rows and columns that share a scale: transformers' spelling, or compressed-tensors'."""
    groups = quantization.get("config_groups")
    groups = groups.values() if isinstance(groups, dict) else []
    schemes = [group.get("weights") for group in groups if isinstance(group, dict)]
    spelled = [scheme.get("block_structure") for scheme in schemes if isinstance(scheme, dict)]
    for block in (quantization.get("weight_block_size"), *spelled):
        if isinstance(block, list) and len(block) == 2 and all(type(n) is int for n in block):
            if min(block) > 0:
                return block[0], block[1]
    return None


def _refuse_integers(raw: Raws, method: str) -> None:
    for name, tensor in raw.items():
        if _OF_INTEGERS.search(name) or (name.endswith(_PACKED) and tensor.dtype == "I32"):
            raise CheckpointError(
                f"{tensor.file}: {name}: the weights are packed integers (quant_method: {method}), "
                "which are not read: take the original checkpoint, in BF16 or 8-bit floats"
            )


def _packings(raw: Raws, block: Block | None) -> Iterator[Packing]:
    for tensor in raw.values():
        if tensor.dtype in _EIGHT_BITS and (scale := _scale_of(tensor, raw)):
            yield _packing(tensor, scale, raw, block)


def _base(name: str) -> str:
    """The name that the weights have where they are not packed."""
    return name.removesuffix(_BLOCKS).removesuffix(_PACKED)


def _scale_of(weights: RawTensor, raw: Raws) -> RawTensor | None:
    base, stem = _base(weights.name), weights.name.removesuffix("weight")
    names = [base + ending for ending in _SCALES]
    if weights.name.endswith(_BLOCKS):
        names = [base + "_scales"]
    elif stem != weights.name:
        names += [stem + ending for ending in _STEM_SCALES]
    return next((raw[name] for name in names if name in raw), None)


def _packing(weights: RawTensor, scale: RawTensor, raw: Raws, block: Block | None) -> Packing:
    if weights.dtype.startswith("F8") or (weights.dtype == "I8" and scale.dtype in _FLOATS):
        if _base(weights.name) + "_zero_point" in raw:
            raise CheckpointError(
                f"{weights.file}: {weights.name} has zero points, which are not read: take the "
                "original checkpoint"
            )
        return eights(weights, scale, block)
    if scale.dtype in ("U8", "F8_E8M0"):
        return mxfp4(weights, scale)
    if scale.dtype == "F8_E4M3":
        for ending, divides in _SECOND_SCALES.items():
            if second := raw.get(_base(weights.name) + ending):
                return nvfp4(weights, scale, second, divides)
        raise CheckpointError(
            f"{weights.file}: {weights.name} looks like NVFP4, but has neither weight_scale_2 nor "
            "weight_global_scale: is a file missing?"
        )
    raise CheckpointError(
        f"{weights.file}: {weights.name} is {weights.dtype} with scales in {scale.dtype}, an "
        "unknown packing: take the original checkpoint, in BF16 or 8-bit floats"
    )


def _plain(tensor: RawTensor) -> Array:
    """A tensor without scales. Raises CheckpointError if it does not hold floats."""
    if tensor.dtype not in (*_FLOATS, "F64", "F8_E4M3", "F8_E5M2", "F8_E8M0"):
        raise CheckpointError(f"{tensor.file}: {tensor.name} is {tensor.dtype}, wanted floats")
    return stored(tensor.view(), partial(leaf, dtype=tensor.dtype))
