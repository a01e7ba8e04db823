"""The engine: a family's tables applied to a checkpoint give the tensors of a GGUF, unread.

The whole layout comes from headers. What a tensor holds is a list of views of the mapped source,
and a view costs nothing: stacking, splitting, transposing are all views. Rows are decoded to
float32 a tile at a time, when somebody asks for them.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from gemcut import ggml
from gemcut.convert.checkpoint import Checkpoint
from gemcut.convert.derived import derived
from gemcut.convert.families import FAMILIES
from gemcut.convert.family import Config, Family, Rule, find
from gemcut.errors import CheckpointError
from gemcut.gguf_file import Value

_SOURCE_TYPES = {np.dtype("<u2"): "bf16", np.dtype("<f2"): "f16", np.dtype("<f4"): "f32"}


@dataclass(frozen=True)
class Tensor:
    """A tensor of the result: its name and shape, and where its rows come from.

    `parts` are arrays or views of the source; one after the other, with their leading dimensions
    flattened, they give the rows of `shape`. `kept` tensors stay F32, whatever type is asked for.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[npt.NDArray[Any], ...]
    kept: bool

    @property
    def source_type(self) -> str:
        """The type the source holds, as ggml names it."""
        return _SOURCE_TYPES[self.parts[0].dtype]

    @property
    def columns(self) -> int:
        """Length of a row."""
        return self.shape[-1]

    @property
    def rows(self) -> int:
        """Number of rows over all leading dimensions."""
        return prod(self.shape[:-1])

    @property
    def weights(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def matrices(self) -> int:
        """Number of matrices: the experts of a stacked tensor, else 1."""
        return prod(self.shape[:-2])

    def raw(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows [stop - start, columns] as the source holds them (BF16 as uint16 bits)."""
        ends, blocks = self._blocks
        pieces = []
        index = bisect_right(ends, start)
        while start < stop:
            begin = ends[index] - len(blocks[index])
            piece = blocks[index][start - begin : stop - begin]
            pieces.append(piece)
            start, index = start + len(piece), index + 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def read(self, start: int, stop: int) -> ggml.Floats:
        """Rows [stop - start, columns] as float32."""
        rows = self.raw(start, stop)
        if rows.dtype == np.uint16:
            return (rows.astype(np.uint32) << 16).view(np.float32)
        return rows.astype(np.float32, copy=False)

    @cached_property
    def _blocks(self) -> tuple[list[int], list[npt.NDArray[Any]]]:
        """The parts as matrices, and the row where each ends."""
        blocks = [matrix for part in self.parts for matrix in _matrices(part)]
        return np.cumsum([len(block) for block in blocks]).tolist(), blocks


def _matrices(part: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """A part's matrices as views; reshaping a strided view instead would copy all of it."""
    if part.ndim <= 2:
        yield np.atleast_2d(part)
        return
    for matrix in part:
        yield from _matrices(matrix)


@dataclass(frozen=True)
class Model:
    """What a source becomes: metadata and tensors, before any type is chosen."""

    architecture: str
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    notes: tuple[str, ...] = ()  # what was left out
    files: frozenset[Path] = frozenset()  # of the source, which is never written to
    release: Callable[[], None] = lambda: None  # gives back the memory of rows that were read

    @property
    def weights(self) -> int:
        """Number of weights of all tensors."""
        return sum(tensor.weights for tensor in self.tensors)


def open_model(checkpoint: Checkpoint) -> Model:
    """Apply the family's tables to a checkpoint.

    Raises:
        CheckpointError: unknown architecture, missing, unsupported or misshapen tensors, a
            config or tokenizer that lacks what is needed.
    """
    try:
        return _open_model(checkpoint)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        # A field of another kind than it should be; what is merely missing is said more exactly.
        what = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{checkpoint.folder}: config.json or a tokenizer file is damaged: {what}"
        ) from error


def _open_model(checkpoint: Checkpoint) -> Model:
    family = find(FAMILIES, checkpoint.config)
    config = family.text_config(checkpoint.config)
    metadata = {
        f"{family.name}.{field.key}": Value(field.kind, data)
        for field in family.fields
        if (data := field.read(config)) is not None
    }
    names, notes = _strip_prefixes(family, checkpoint)
    tensors = tuple(_tensors(family, config, checkpoint, names))
    vocabulary = family.vocabulary(checkpoint, config.positive("vocab_size"))
    general = _general(family, checkpoint, tensors)
    found = (path for path in checkpoint.folder.iterdir() if path.suffix != ".gguf")
    files = frozenset(path.resolve() for path in found)
    return Model(
        family.name,
        {**general, **metadata, **vocabulary},
        tensors,
        notes,
        files,
        checkpoint.release,
    )


def _strip_prefixes(
    family: Family, checkpoint: Checkpoint
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Names as the rules have them -> names in the checkpoint; and notes on what is skipped."""
    names: dict[str, str] = {}
    skipped: dict[str, int] = {}
    for name in checkpoint.tensors:
        what = next((w for prefix, w in family.skipped.items() if name.startswith(prefix)), None)
        if what is not None:
            skipped[what] = skipped.get(what, 0) + 1
            continue
        prefix = next(p for p in (*family.prefixes, "") if name.startswith(p))
        short = name[len(prefix) :]
        if short in names:
            raise CheckpointError(f"{checkpoint.folder}: {name} and {names[short]} are one tensor")
        names[short] = name
    return names, tuple(f"{count} {what} tensors left out" for what, count in skipped.items())


def _tensors(
    family: Family, config: Config, checkpoint: Checkpoint, names: dict[str, str]
) -> Iterator[Tensor]:
    left = dict(names)
    for layer, rule in _expected(family, config):
        source = rule.source.format(layer=layer)
        full_name = left.pop(source, None)
        if rule.target is None:
            continue
        if full_name is None:
            raise CheckpointError(
                f"{checkpoint.folder}: no tensor {source}, which {config.who} has"
            )
        sizes = family.sizes(config, layer)
        wanted = tuple(sizes[size] for size in rule.shape)
        found = checkpoint.tensors[full_name]
        if found.shape != wanted:
            raise CheckpointError(
                f"{found.path.name}: {full_name} has shape {list(found.shape)}; "
                f"config.json makes it {list(wanted)}"
            )
        view = checkpoint.view(full_name)
        view = rule.transform(view) if rule.transform else view
        kept = rule.kept or view.ndim == 1
        yield Tensor(rule.target.format(layer=layer), view.shape, (view,), kept)
    if left:
        raise CheckpointError(
            f"{checkpoint.folder}: unsupported tensor {min(left.values())}"
            + (f" and {len(left) - 1} more" if len(left) > 1 else "")
        )
    for name, values in family.generated(config).items():
        yield Tensor(name, values.shape, (values,), kept=True)


def _expected(family: Family, config: Config) -> Iterator[tuple[int, Rule]]:
    """Every rule with every block it holds for; rules without a block come first."""
    yield from ((0, rule) for rule in family.rules if "{layer}" not in rule.source)
    for layer in range(family.n_layers(config)):
        sizes = family.sizes(config, layer)
        for rule in family.rules:
            if "{layer}" in rule.source and (rule.layers is None or sizes[rule.layers]):
                yield layer, rule


def _general(
    family: Family, checkpoint: Checkpoint, tensors: tuple[Tensor, ...]
) -> dict[str, Value]:
    """`general.*`: name, size label, licence, sampling defaults."""

    def write(writer: gguf.GGUFWriter) -> None:
        for tensor in tensors:
            kind = np.dtype(np.float32)
            writer.add_tensor_info(tensor.name, tensor.shape, kind, 4 * tensor.weights)
        total, shared, expert, experts = writer.get_total_parameter_count()
        described = gguf.Metadata.load(None, checkpoint.folder, None, total)
        described.name = described.name or checkpoint.folder.name
        if described.size_label is None:
            described.size_label = gguf.size_label(total, shared, expert, experts)
        writer.add_type(gguf.GGUFType.MODEL)
        described.set_gguf_meta_model(writer)

    found = derived(checkpoint, "model card", "general.", write)
    return {**found, "general.architecture": Value("str", family.name)}
