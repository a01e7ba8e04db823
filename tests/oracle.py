"""llama.cpp's own quantizer, run in this process: what gemcut's results are compared with."""

import ctypes
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gemcut import ggml
from gemcut.gguf_file import GGUFFile
from gemcut.llama.library import log, require

Importance = Mapping[str, ggml.Floats]

_TENSOR = re.compile(r"\[ *\d+/ *\d+\] (\S+) +- \[.*\], type = +(\w+), size = .*?(?:\((\w+)\))?$")
_SIZE = re.compile(r"quant size += +([\d.]+) MiB \(([\d.]+) BPW\)")


class Refused(Exception):
    """llama.cpp did not quantize, and says why."""


def quantize(
    source: Path,
    output: Path,
    mixture: str,
    importance: Importance | None = None,
    pure: bool = False,
    dry_run: bool = False,
    requantize: bool = False,
    tensor_types: str = "",
) -> list[str]:
    """Quantize a GGUF to a mixture of llama.cpp's; returns its log.

    Args:
        tensor_types: the text of a --tensor-type-file.

    Raises:
        Refused: it failed.
    """
    c, mark = require(), log.count
    params = c.llama_model_quantize_default_params()
    kind = "ALL" if mixture == "f32" else "MOSTLY"
    params.ftype = getattr(c, f"LLAMA_FTYPE_{kind}_{mixture.upper()}")
    params.nthread, params.pure, params.dry_run = 2, pure, dry_run
    params.allow_requantize = requantize
    if importance is not None:
        flat = {k: np.ascontiguousarray(v, np.float32).reshape(-1) for k, v in importance.items()}
        params.imatrix = _imatrix(c, flat)
    if tensor_types:
        params.tt_overrides = _overrides(c, tensor_types)
    arguments = str(source).encode(), str(output).encode(), ctypes.byref(params)
    if c.llama_model_quantize(*arguments):
        raise Refused(log.reason(mark))
    lines: list[str] = log.since(mark)
    return lines


def _overrides(c, text: str):
    """The array that llama.cpp reads up to an entry without a pattern, as its tool reads a file."""
    words = [word.partition("=") for word in text.split()]
    entries = (c.llama_model_tensor_override * (len(words) + 1))()
    for entry, (pattern, _, kind) in zip(entries, words, strict=False):
        entry.pattern, entry.type = pattern.lower().encode(), ggml.type_named(kind).id
    return entries


def _imatrix(c, weights: Importance):
    """The array that llama.cpp reads up to an entry without a name; the caller keeps `weights`."""
    entries = (c.llama_model_imatrix_data * (len(weights) + 1))()
    for entry, (name, flat) in zip(entries, weights.items(), strict=False):
        entry.name, entry.size = name.encode(), flat.size
        entry.data = flat.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return entries


def types(lines: list[str]) -> dict[str, str]:
    """The type that every tensor gets, out of the log of a dry run."""
    found = [match for line in lines if (match := _TENSOR.search(line))]
    return {match[1]: (match[3] or match[2]).lower() for match in found}


def size(lines: list[str]) -> tuple[float, float]:
    """Size of all tensors in MiB, and bits per weight, out of the log."""
    match = next(match for line in lines if (match := _SIZE.search(line)))
    return float(match[1]), float(match[2])


def wants_importance(lines: list[str]) -> bool:
    """Whether the dry run says that it would not go without an importance matrix."""
    return any("will require an imatrix" in line for line in lines)


def assert_same(ours: Path, theirs: Path) -> None:
    """Two files have the same metadata, but for gemcut's plan, and the same bytes per tensor."""
    with GGUFFile(ours) as a, GGUFFile(theirs) as b:
        own = "gemcut.plan"  # llama-quantize carries over the source's
        ours_, theirs_ = ({k: v for k, v in f.metadata.items() if k != own} for f in (a, b))
        assert ours_ == theirs_
        assert a.tensors.keys() == b.tensors.keys()
        for name, info in b.tensors.items():
            mine = a.tensors[name]
            assert (mine.shape, str(mine.type)) == (info.shape, str(info.type)), name
            assert bytes(a.rows(name).data) == bytes(b.rows(name).data), name
