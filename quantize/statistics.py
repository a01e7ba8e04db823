"""Statistics of activations: what every matrix was multiplied with, as sums of squares.

An entry belongs to one tensor of a model and is divided by experts. The file is llama.cpp's
imatrix GGUF: `<tensor>.in_sum2` [matrices, columns] and `<tensor>.counts` [matrices, 1], with
`imatrix.datasets`, `imatrix.chunk_count` and `imatrix.chunk_size`; `<tensor>.gates` [matrices, 1]
is an addition, which llama.cpp's tools pass over (`common/imatrix-loader.cpp`). The older .dat is
read in `legacy`.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemcut import ggml
from gemcut.errors import GGUFError, PlanError
from gemcut.gguf_file import MAGIC, GGUFFile, TensorInfo, Value
from gemcut.gguf_writer import GGUFWriter
from gemcut.quantize import legacy

Doubles = npt.NDArray[np.float64]

_SUMS, _COUNTS, _GATES = ".in_sum2", ".counts", ".gates"
_DATASETS, _CHUNK_COUNT, _CHUNK_SIZE = (
    f"imatrix.{key}" for key in ("datasets", "chunk_count", "chunk_size")
)
# Of the shares. Of types per expert on two trained models, chosen with the importance of one text
# and scored on others: without it they lose 1.0 to 2.5 times what is predicted, with 0.01 to 0.03
# up to 1.6 times, and no more in fact; with 0.1 they lose up to a third more.
_EVEN = 0.02
# A string of seven bytes, as it lies in a GGUF; all tools write it among the first.
_SAYS_SO = b"general.type" + struct.pack("<IQ", 8, 7) + b"imatrix"
_HEAD = 1 << 16  # bytes
# Tensors that are multiplied with the same input, so that an entry of one serves the others:
# converters write them fused or apart.
_SAME_INPUT = (
    ("attn_qkv", "attn_q", "attn_k", "attn_v"),
    ("ffn_gate_up_exps", "ffn_gate_exps", "ffn_up_exps"),
    ("ffn_gate_up_shexp", "ffn_gate_shexp", "ffn_up_shexp"),
    ("ffn_gate_up", "ffn_gate", "ffn_up"),
)


@dataclass(frozen=True)
class Entry:
    """What was collected for one tensor.

    sums: float32 [matrices, columns], sums of squared inputs.
    counts: float32 [matrices], rows behind each matrix's sums.
    gates: float32 [matrices], sums of the weights that the router gave to these rows, if known.
    """

    sums: ggml.Floats
    counts: ggml.Floats
    gates: ggml.Floats | None = None

    @property
    def known(self) -> bool:
        """Whether any of its inputs was something else than zero."""
        return bool(self.counts.any() and self.sums.any())

    def shaped(self, matrices: int, columns: int) -> "Entry | None":
        """The entry divided into so many matrices; None if it is not of that size.

        Older files do not say where a matrix ends, or count once for all of them. There an expert
        that was never reached has ones, as have all files of that kind.
        """
        if self.sums.size != matrices * columns or len(self.counts) not in (1, matrices):
            return None
        sums = self.sums.reshape(matrices, columns)
        if len(self.counts) == matrices:
            return Entry(sums, self.counts, self.gates)
        unreached = (sums == self.counts).all(axis=1)
        counts = np.where(unreached & ~unreached.all(), 0, self.counts).astype(np.float32)
        return Entry(np.where(counts[:, None] > 0, sums, 0).astype(np.float32), counts)


@dataclass(frozen=True)
class Statistics:
    """Entries by tensor name, and what they were collected from."""

    entries: Mapping[str, Entry] = field(repr=False)
    datasets: tuple[str, ...] = ()
    chunk_count: int = 0
    chunk_size: int = 0  # tokens
    extra: Mapping[str, Value] = field(default_factory=dict)  # further metadata of the file

    def entry(self, name: str, tied: bool = False) -> Entry | None:
        """What was collected for a tensor, or for another one with the same input.

        Args:
            tied: the model's output is its embedding, so that either's entry is the other's.
        """
        alike = [name, *same_input(name)]
        if name == "output.weight" or (tied and name == "token_embd.weight"):
            alike += ["output.weight", "token_embd.weight"]
        return next((self.entries[each] for each in alike if each in self.entries), None)


def same_input(name: str) -> list[str]:
    """Names of the tensors that are multiplied with the same input, fused and apart."""
    block, _, rest = name.rpartition(".weight")[0].rpartition(".")
    for group in _SAME_INPUT:
        if block and rest in group:
            return [f"{block}.{other}.weight" for other in group if other != rest]
    return []


def routed_share(statistics: Statistics, name: str, matrices: int | None = None) -> ggml.Floats:
    """Each expert's share of the rows that the router sent: float32 [matrices], sums to 1.

    Uniform where nothing is known.

    Args:
        matrices: how many experts the tensor has; None: as many as its entry.
    """
    entry = statistics.entry(name)
    wanted = matrices or (len(entry.counts) if entry else 1)
    if entry is None or len(entry.counts) != wanted or not entry.counts.any():
        return np.full(wanted, 1 / wanted, np.float32)
    share: ggml.Floats = (entry.counts / entry.counts.sum(dtype=np.float64)).astype(np.float32)
    return share


def evened(shares: Doubles) -> Doubles:
    """Experts' shares, some of it divided evenly, since another text is routed otherwise.

    Args:
        shares: float64 [experts], sums to 1.
    """
    return (1 - _EVEN) * shares + _EVEN / len(shares)


def is_imatrix(path: Path) -> bool:
    """Whether a file is an imatrix, by its name or what stands at its beginning.

    Raises:
        GGUFError: it cannot be read.
    """
    if path.suffix == ".dat":  # llama.cpp's older kind, which says nothing of itself
        return True
    try:
        with path.open("rb") as file:
            return _SAYS_SO in file.read(_HEAD)
    except OSError as error:
        raise GGUFError(f"{path}: cannot be read: {error.strerror}") from error


def read_statistics(path: Path) -> Statistics:
    """Read llama.cpp's imatrix GGUF, or its older .dat.

    Raises:
        GGUFError: neither of them, truncated, or holding what no text can have given.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise GGUFError(f"{path}: cannot be read: {error.strerror}") from error
    statistics = _read_gguf(path) if magic == MAGIC else _read_legacy(path)
    if not statistics.entries:
        raise GGUFError(f"{path}: holds no importance of any tensor")
    for name, entry in statistics.entries.items():
        _check(f"{path}: {name}", entry)
    return statistics


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Write llama.cpp's imatrix GGUF, complete or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    arrays: dict[str, ggml.Floats] = {}
    for name, entry in sorted(statistics.entries.items()):
        arrays[name + _SUMS], arrays[name + _COUNTS] = entry.sums, entry.counts[:, None]
        if entry.gates is not None:
            arrays[name + _GATES] = entry.gates[:, None]
    metadata = {
        "general.type": Value("str", "imatrix"),
        _DATASETS: Value("[str]", list(statistics.datasets)),
        _CHUNK_COUNT: Value("u32", statistics.chunk_count),
        _CHUNK_SIZE: Value("u32", statistics.chunk_size),
    }
    kind = ggml.type_named("f32")
    infos = [TensorInfo(name, array.shape, kind) for name, array in arrays.items()]
    with GGUFWriter(path, metadata | dict(statistics.extra), infos) as writer:
        for name, array in arrays.items():
            writer.write(name, 0, np.ascontiguousarray(array, np.float32).view(np.uint8))


def merged(parts: Sequence[Statistics]) -> Statistics:
    """All parts' sums and counts together, as if their texts had been read one after the other.

    Raises:
        PlanError: they are of different models.
    """
    entries: dict[str, Entry] = {}
    for part in parts:
        if entries and entries.keys().isdisjoint(part.entries):
            raise PlanError("two importance matrices have no tensor in common: other models'?")
        for name, entry in part.entries.items():
            entries[name] = _sum(name, entries[name], entry) if name in entries else entry
    size = next((part.chunk_size for part in parts if part.chunk_size), 0)
    tokens = sum(part.chunk_count * part.chunk_size for part in parts)
    datasets = dict.fromkeys(name for part in parts for name in part.datasets)
    return Statistics(entries, tuple(datasets), round(tokens / size) if size else 0, size)


def _sum(name: str, one: Entry, other: Entry) -> Entry:
    matrices = max(len(one.counts), len(other.counts))
    columns = max(one.sums.size, other.sums.size) // matrices
    a, b = one.shaped(matrices, columns), other.shaped(matrices, columns)
    if a is None or b is None:
        raise PlanError(
            f"{name} has shape {list(one.sums.shape)} in one importance matrix and "
            f"{list(other.sums.shape)} in another: they are of different models"
        )
    with np.errstate(over="ignore"):  # looked for
        gates = None if a.gates is None or b.gates is None else a.gates + b.gates
        found = Entry(a.sums + b.sums, a.counts + b.counts, gates)
    arrays = (found.sums, found.counts, found.counts if gates is None else gates)
    if not all(np.isfinite(each).all() for each in arrays):
        raise PlanError(f"{name}: the sums of two importance matrices are beyond any float32")
    return found


def _read_gguf(path: Path) -> Statistics:
    with GGUFFile(path) as file:
        if file.get("general.type") != "imatrix":
            raise GGUFError(f"{path}: not an importance matrix: general.type is not 'imatrix'")
        names = [name.removesuffix(_SUMS) for name in file.tensors if name.endswith(_SUMS)]
        entries = {name: _entry(file, name) for name in names}
        known = {_DATASETS, _CHUNK_COUNT, _CHUNK_SIZE, "general.type"}
        extra = {key: value for key, value in file.metadata.items() if key not in known}
        datasets, count, size = (file.get(key) for key in (_DATASETS, _CHUNK_COUNT, _CHUNK_SIZE))
    return Statistics(
        entries,
        tuple(str(each) for each in datasets) if isinstance(datasets, list) else (),
        count if isinstance(count, int) else 0,
        size if isinstance(size, int) else 0,
        extra,
    )


def _entry(file: GGUFFile, name: str) -> Entry:
    sums, counts = _floats(file, name + _SUMS), _floats(file, name + _COUNTS).ravel()
    gates = _floats(file, name + _GATES).ravel() if name + _GATES in file.tensors else None
    if len(counts) != len(sums) or (gates is not None and len(gates) != len(sums)):
        raise GGUFError(f"{file.path}: {name}: {len(counts)} counts for {len(sums)} matrices")
    return Entry(sums, counts, gates)


def _floats(file: GGUFFile, name: str) -> ggml.Floats:
    info = file.tensors.get(name)
    if info is None or info.type.name != "f32":
        raise GGUFError(f"{file.path}: no F32 tensor {name}")
    return file.rows(name).view(np.float32).reshape(-1, info.shape[-1]).copy()


def _read_legacy(path: Path) -> Statistics:
    found = legacy.read(path)
    tokens = np.float32(legacy.CHUNK_SIZE)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is said by `_check`
        entries = {
            name: Entry(sums[None, :] * tokens, np.array([calls * tokens], np.float32))
            for name, (sums, calls) in found.entries.items()
        }
    return Statistics(entries, found.datasets, found.chunk_count, legacy.CHUNK_SIZE)


def _check(where: str, entry: Entry) -> None:
    """Raise GGUFError for what would end in a bad file rather than in an error."""
    for array in (entry.sums, entry.counts, *([] if entry.gates is None else [entry.gates])):
        if not (np.isfinite(array).all() and (array >= 0).all()):
            raise GGUFError(f"{where}: an importance is negative or not finite; collect it again")
    reached = entry.counts > 0
    largest = np.float64(np.finfo(np.float32).max) * entry.counts[reached, None]
    if (entry.sums[reached] > largest).any():
        raise GGUFError(f"{where}: an importance is beyond any float32; collect it again")
