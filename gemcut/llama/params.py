"""Options as llama.cpp's parameters for loading a model."""

import ctypes
from collections.abc import Sequence
from typing import Any

from gemcut.engine import ModelOptions
from gemcut.errors import EngineError
from gemcut.llama.devices import buffer_type, device_handle


class _Override(ctypes.Structure):
    """`struct llama_model_tensor_buft_override` of llama.h."""

    _fields_ = [("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p)]


def model_params(
    c: Any, options: ModelOptions, first: Sequence[tuple[str, int]] = ()
) -> tuple[Any, list[Any]]:
    """llama.cpp's parameters, and what must stay alive while they are used.

    Args:
        first: expressions of tensor names with ggml's handles of the memory that takes them; they
            win over those of the options.
    """
    params, kept = c.llama_model_default_params(), []
    params.n_gpu_layers = options.gpu_layers
    params.main_gpu = options.main_gpu
    params.split_mode = _constant(c, "LLAMA_SPLIT_MODE_", options.split_mode)
    params.load_mode = _constant(c, "LLAMA_LOAD_MODE_", options.load_mode)
    params.use_extra_bufts, params.no_host = options.repack, options.no_host
    params.check_tensors = options.check_tensors
    params.vocab_only, params.no_alloc = options.vocab_only, options.no_alloc
    if options.no_alloc and options.load_mode != "none":
        raise EngineError(f"no_alloc needs load_mode 'none', got {options.load_mode!r}")
    if options.overrides or first:
        given = ((pattern, buffer_type(name)) for pattern, name in options.overrides)
        kept.append(_overrides(c, [*first, *given]))
        params.tensor_buft_overrides = ctypes.cast(kept[-1], ctypes.c_void_p)
    if options.devices is not None:
        handles = [*map(device_handle, options.devices), None]
        kept.append((ctypes.c_void_p * len(handles))(*handles))
        params.devices = ctypes.cast(kept[-1], ctypes.c_void_p)
    if options.tensor_split:
        kept.append((ctypes.c_float * c.llama_max_devices())(*options.tensor_split))
        params.tensor_split = kept[-1]
    return params, kept


def _overrides(c: Any, overrides: Sequence[tuple[str, int]]) -> Any:
    """The array of patterns and buffer types that llama.cpp reads up to an empty entry."""
    limit = c.llama_max_tensor_buft_overrides()
    if len(overrides) >= limit:
        raise EngineError(f"{len(overrides)} overrides, llama.cpp takes {limit - 1}: join patterns")
    entries = [_Override(pattern.encode(), handle) for pattern, handle in overrides]
    return (_Override * (len(entries) + 1))(*entries)


def _constant(c: Any, prefix: str, name: str) -> int:
    value = getattr(c, prefix + name.upper(), None)
    if value is None:
        known = sorted(n.removeprefix(prefix).lower() for n in vars(c) if n.startswith(prefix))
        raise EngineError(f"{name!r} is none of llama.cpp's {', '.join(known)}")
    return int(value)
