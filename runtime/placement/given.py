"""What a user has fixed of a run, in llama.cpp's terms; all else is planned around it."""

from dataclasses import dataclass

from gemcut.engine import MAX_THREADS, MOST
from gemcut.errors import UsageError
from gemcut.kv_cache import CACHE_TYPES

ALL = 1 << 30  # blocks: every one, however many there are
_MOST_SEQUENCES = 256  # LLAMA_MAX_SEQ
_LOAD_MODES = ("auto", "none", "mmap", "mlock", "mmap_mlock", "direct_io")
_SPLIT_MODES = ("none", "layer", "row", "tensor")
_COUNTS = ("n_ctx", "n_seq", "n_batch", "n_ubatch", "threads", "n_outputs")


@dataclass(frozen=True)
class Given:
    """What is fixed; None, or (), is planned. The names are those of `gemcut.engine`."""

    n_ctx: int | None = None  # tokens over all sequences
    n_seq: int = 1
    n_batch: int | None = None
    n_ubatch: int | None = None
    type_k: str | None = None
    type_v: str | None = None
    threads: int | None = None
    flash_attention: bool | None = None
    op_offload: bool | None = None
    swa_full: bool = False
    n_outputs: int | None = None  # None: one a sequence
    gpu_layers: int | None = None  # the last ones, the output counts as one; negative: all
    cpu_moe: int | None = None  # experts of so many first blocks stay on the host; ALL: of all
    overrides: tuple[tuple[str, str], ...] = ()  # (expression, a device of llama.cpp's or "CPU")
    tensor_split: tuple[float, ...] = ()
    split_mode: str | None = None
    main_gpu: int | None = None
    devices: tuple[str, ...] | None = None  # the cards of the profile, as llama.cpp calls them
    rpc: tuple[str, ...] = ()
    load_mode: str | None = None
    repack: bool | None = None
    no_host: bool | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant. Raises UsageError."""
        for name in _COUNTS:
            value, most = getattr(self, name), MAX_THREADS if name == "threads" else MOST
            if value is not None and not 1 <= value <= most:
                raise UsageError(f"{name} is {value}, wanted 1 to {most}")
        _check("type_k", self.type_k, CACHE_TYPES)
        _check("type_v", self.type_v, CACHE_TYPES)
        _check("load_mode", self.load_mode, _LOAD_MODES)
        _check("split_mode", self.split_mode, _SPLIT_MODES)
        if self.n_seq > _MOST_SEQUENCES:
            raise UsageError(f"{self.n_seq} sequences, llama.cpp takes {_MOST_SEQUENCES}")
        if self.cpu_moe is not None and self.cpu_moe < 0:
            raise UsageError(f"cpu_moe is {self.cpu_moe}, wanted a number of blocks")
        if any(not 0 <= share < float("inf") for share in self.tensor_split):
            raise UsageError(f"tensor_split is {self.tensor_split}, wanted shares of 0 or more")

    @property
    def places(self) -> bool:
        """Whether anything was said about where tensors live."""
        said = (self.gpu_layers, self.cpu_moe, self.split_mode, self.main_gpu)
        return any(one is not None for one in said) or bool(self.overrides or self.tensor_split)


def _check(name: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise UsageError(f"{name} is {value!r:.40}, wanted {', '.join(known)}")


UNSAID = Given()  # all is planned
