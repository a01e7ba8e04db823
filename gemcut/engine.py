"""What llama.cpp is asked for and what it answers, as plain values: options, devices, memory.

Pure Python: the functions of llama.cpp are called in `gemcut.llama` alone.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from gemcut.errors import EngineError
from gemcut.gbnf import check_grammar

PINNED = "0.3.36"  # of llama-cpp-python; its C structs have no version of their own
MOST = (1 << 31) - 1  # of what llama.cpp counts; it would take more than that modulo
MAX_THREADS = 512  # GGML_MAX_N_THREADS: ggml takes memory for each, and ends the process without
MAX_LAST = 1 << 16  # tokens that penalties look back on
_MAX_BIASES = 1 << 12
INSTALL = f"pip install llama-cpp-python=={PINNED}"


@dataclass(frozen=True)
class ModelOptions:
    """How a file is loaded and where its tensors go. The names are llama.cpp's."""

    gpu_layers: int = -1  # layers on GPU devices, the output counts as one; negative: all
    # (regular expression of tensor names, device whose memory takes them): the first match wins.
    overrides: tuple[tuple[str, str], ...] = ()
    devices: tuple[str, ...] | None = None  # None: every GPU there is; (): none, not even for KV
    rpc: tuple[str, ...] = ()  # endpoints "host:port" that are added as devices first
    split_mode: str = "layer"  # over several GPUs: none, layer, row, tensor
    tensor_split: tuple[float, ...] = ()  # shares of the GPUs; (): by their free memory
    main_gpu: int = 0  # the only one used by split_mode none
    load_mode: str = "auto"  # auto, none, mmap, mlock, mmap_mlock, direct_io
    repack: bool = True  # let the CPU hold weights in a faster layout of its own
    no_host: bool = False  # skip pinned host memory, which allows repacking beside a GPU
    check_tensors: bool = False  # read every tensor and refuse NaN or infinite blocks
    vocab_only: bool = False
    no_alloc: bool = False  # plan memory without reading a tensor; needs load_mode none


@dataclass(frozen=True)
class ContextOptions:
    """The size and kind of a context. The names are llama.cpp's; some defaults are not.

    llama.cpp's own defaults (full-size sliding-window caches, room for the logits of a whole
    batch) cost gigabytes on models with a large vocabulary or long windows.
    """

    n_ctx: int = 512  # tokens over all sequences
    n_batch: int | None = None  # most tokens of one decode; None: n_ctx
    n_ubatch: int = 512  # tokens computed at once
    n_seq: int = 1
    threads: int | None = None  # None: `default_threads()`
    flash_attention: bool | None = True  # None: llama.cpp decides
    swa_full: bool = False
    type_k: str = "f16"
    type_v: str = "f16"
    n_outputs: int | None = None  # most tokens of one decode that get logits; None: n_batch
    offload_kqv: bool = True
    op_offload: bool = True
    kv_unified: bool = False

    def __post_init__(self) -> None:
        for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq", "threads", "n_outputs"):
            value, most = getattr(self, name), MAX_THREADS if name == "threads" else MOST
            if value is not None and not 1 <= value <= most:
                raise EngineError(f"{name} is {value}, wanted 1 to {most}")


@dataclass(frozen=True)
class Thought:
    """What is around the thought that an answer may begin with; a grammar waits for its end."""

    close: str  # the text that ends it
    open: str = ""  # the one token that begins it; "": it does not begin by itself
    begun: bool = False  # the prompt left it open


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; the defaults are llama.cpp's. Temperature 0 is greedy.

    Raises:
        EngineError: a number out of its range.
        UsageError: the grammar is not one (`gemcut.gbnf`).
    """

    temperature: float = 0.8
    top_k: int = 40  # 0: all
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64  # of the answer's tokens, for the three penalties; -1: all
    seed: int | None = None  # None: another one each time
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, what is added to its logit)
    grammar: str | None = None  # in GBNF: what the answer has to be
    thought: Thought | None = None  # where the grammar does not hold yet

    def __post_init__(self) -> None:
        for name in ("top_p", "min_p", "xtc_probability", "xtc_threshold"):
            self._check(name, 0, 1)
        self._check("temperature", 0, 1e6)
        self._check("repeat_penalty", 1e-6, 1e6)
        self._check("presence_penalty", -1e6, 1e6)
        self._check("frequency_penalty", -1e6, 1e6)
        self._check("repeat_last_n", -1, MAX_LAST)
        if self.top_k > MOST:
            raise EngineError(f"top_k is {self.top_k}, wanted at most {MOST}")
        if len(self.logit_bias) > _MAX_BIASES:
            given = len(self.logit_bias)
            raise EngineError(f"{given} tokens in logit_bias, wanted at most {_MAX_BIASES}")
        if wrong := [bias for _, bias in self.logit_bias if not bias <= 1e6]:
            raise EngineError(f"logit_bias has {wrong[0]}, wanted a number up to 1e6, or -inf")
        if self.grammar is not None:
            check_grammar(self.grammar)

    def _check(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        if not least <= value <= most:
            raise EngineError(f"{name} is {value}, wanted from {least:g} to {most:g}")


@dataclass(frozen=True)
class Device:
    """Something ggml computes on. Memory in bytes, 0 where the backend does not know."""

    name: str  # as overrides and `ModelOptions.devices` call it
    description: str
    kind: str  # cpu, gpu, igpu, accel, meta
    free: int
    total: int


@dataclass(frozen=True)
class Cache:
    """One of a context's caches: keys and values ("full", "swa") or states ("recurrent")."""

    kind: str
    bytes: int
    cells: int  # tokens, or states
    devices: tuple[str, ...]  # one entry per layer


@dataclass(frozen=True)
class Memory:
    """What llama.cpp's log says it takes; the log rounds to 0.01 MiB.

    weights and compute are bytes by buffer type ("CPU", "CUDA0", ...).
    outputs is the largest host buffer for logits: n_outputs * n_vocab * 4.
    """

    weights: Mapping[str, int] = field(default_factory=dict)
    caches: tuple[Cache, ...] = ()
    compute: Mapping[str, int] = field(default_factory=dict)
    outputs: int = 0

    def cache_bytes(self, kind: str) -> int:
        """Bytes of all caches of one kind."""
        return sum(cache.bytes for cache in self.caches if cache.kind == kind)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`, lists for tuples allowed."""
        caches = (Cache(**{**c, "devices": tuple(c["devices"])}) for c in data["caches"])
        return cls(data["weights"], tuple(caches), data["compute"], data["outputs"])


_SIZE = r"size = +(\d{1,12}(?:\.\d{1,6})?) MiB"
_BUFFER = re.compile(rf"^\w+: +(\S+) +(model|compute) buffer {_SIZE}")
_CACHE_KIND = re.compile(r"creating +(non-SWA|SWA) KV cache")
_CACHE_LAYER = re.compile(r"^(\w+)[:,] layer +\d+: dev = (\S+)")
_CACHE_SIZE = re.compile(rf"^(\w+): {_SIZE} \( *(\d{{1,18}}) cells")
_MIB = 1 << 20


def read_memory(lines: Iterable[str], outputs: int = 0) -> Memory:
    """Read the sizes out of the log lines of loading a model or making a context."""
    sizes: dict[str, dict[str, int]] = {"model": {}, "compute": {}}
    caches: list[Cache] = []
    kind, devices = "full", []
    for line in lines:
        if match := _BUFFER.search(line):
            of_kind, before = sizes[match[2]], sizes[match[2]].get(match[1], 0)
            size = _bytes(match[3])
            # Devices that compute in the same memory, as an accelerator and the CPU, each tell it.
            of_kind[match[1]] = max(before, size) if match[2] == "compute" else before + size
        elif match := _CACHE_KIND.search(line):
            kind = "swa" if match[1] == "SWA" else "full"
        elif match := _CACHE_LAYER.search(line):
            devices.append(match[2])
        elif match := _CACHE_SIZE.search(line):
            kind = "recurrent" if "recurrent" in match[1] else kind
            caches.append(Cache(kind, _bytes(match[2]), int(match[3]), tuple(devices)))
            kind, devices = "full", []
    weights = {name: size for name, size in sizes["model"].items() if size}
    return Memory(weights, tuple(caches), sizes["compute"], outputs)


def _bytes(mebibytes: str) -> int:
    return round(float(mebibytes) * _MIB)
