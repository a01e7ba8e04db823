"""The engine: a family's tables applied to a checkpoint give the tensors of a GGUF, unread.

The whole layout comes from headers. What a tensor holds is described lazily (`convert.lazy`):
stacking, splitting and transposing cost nothing until somebody asks for rows.
"""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from itertools import takewhile
from os.path import abspath
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np

from gemcut import ggml
from gemcut.convert.checkpoint import Checkpoint
from gemcut.convert.derived import derived
from gemcut.convert.families import FAMILIES
from gemcut.convert.family import Config, Family, Rule, find
from gemcut.convert.lazy import Array, stack, stored
from gemcut.convert.model import STRICT, Model, Reading, Tensor, is_cut, releasing
from gemcut.convert.precision import is_quantizable, stays_f32
from gemcut.convert.transforms import Sizes
from gemcut.errors import CheckpointError
from gemcut.gguf_file import Value

# Buffers that every implementation computes for itself.
_COMPUTED = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")


def open_model(checkpoint: Checkpoint, reading: Reading = STRICT) -> Model:
    """Apply the family's tables to a checkpoint.

    Raises:
        CheckpointError: unknown architecture, missing, unsupported or misshapen tensors, a
            config or tokenizer that lacks what is needed.
    """
    try:
        with _no_collecting():
            return _open_model(checkpoint, reading)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        # A field of another kind than it should be; what is merely missing is said more exactly.
        what = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{checkpoint.where}: config.json or a tokenizer file is damaged: {what}"
        ) from error


@contextmanager
def _no_collecting() -> Iterator[None]:
    """Stop looking for garbage among millions of tokens and merges that are all in use."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _open_model(checkpoint: Checkpoint, reading: Reading) -> Model:
    family = find(FAMILIES, checkpoint.config)
    config = family.text_config(checkpoint.config)
    names, notes = _strip_prefixes(family, config, checkpoint, reading.ignore)
    sources = {short: checkpoint.tensors[name] for short, name in names.items()}
    config.update(family.inferred(config, sources))
    _check_layers(family.layers(config), len(names))
    metadata = {
        f"{family.name}.{field.key}": Value(field.kind, data)
        for field in family.fields
        if (data := field.read(config)) is not None
    }
    layout = _Layout(family, config, checkpoint, names, reading)
    tensors = tuple(layout.tensors())
    checkpoint.shards.lay_out(layout.last)
    vocabulary = family.vocabulary(checkpoint, config.positive("vocab_size"), reading.pre_tokenizer)
    general = _general(family, checkpoint, tensors)
    return Model(
        family.name,
        {**general, **metadata, **vocabulary},
        tensors,
        family.title,
        notes,
        files=_own_files(checkpoint.folder),
        identity=checkpoint.files.identity,
        fetch=checkpoint.files.fetch,
        check=checkpoint.files.check,
        release=releasing(tensors, checkpoint.shards.release),
    )


def _check_layers(layers: int, tensors: int) -> None:
    """Before anybody makes a list of so many."""
    if layers > tensors:
        raise CheckpointError(
            f"config.json: {layers} blocks (num_hidden_layers), in a checkpoint of {tensors} "
            "tensors: is a file missing?"
        )


def _own_files(folder: Path) -> frozenset[Path]:
    """Never written to. A GGUF that lies there is a result, which may be written again."""
    return frozenset(path.resolve() for path in folder.iterdir() if path.suffix != ".gguf")


def _strip_prefixes(
    family: Family, config: Config, checkpoint: Checkpoint, ignore: Sequence[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Names as the rules have them -> names in the checkpoint; and notes on what is skipped."""
    names: dict[str, str] = {}
    skipped: dict[str, int] = {}
    left_out = {**family.skipped, **family.left_out(config)}
    for name in checkpoint.tensors:
        what = next((w for prefix, w in left_out.items() if name.startswith(prefix)), None)
        if what is None and any(fnmatchcase(name, pattern) for pattern in ignore):
            what = "ignored"
        if what is not None:
            skipped[what] = skipped.get(what, 0) + 1
            continue
        if name.endswith(_COMPUTED):
            continue
        prefix = next(p for p in (*family.prefixes, "") if name.startswith(p))
        short = name[len(prefix) :]
        if short in names:
            raise CheckpointError(f"{checkpoint.where}: {name} and {names[short]} are one tensor")
        names[short] = name
    return names, tuple(map(_note, skipped.items()))


def _note(skipped: tuple[str, int]) -> str:
    what, count = skipped
    text = f"{count} {what} tensor{'s'[: count != 1]} left out"
    if what in ("vision", "audio"):
        text += f" ({what} needs llama.cpp's own mmproj file beside the text model)"
    return text


class _Layout:
    """A family's rules matched with the tensors of one checkpoint."""

    def __init__(
        self,
        family: Family,
        config: Config,
        checkpoint: Checkpoint,
        names: Mapping[str, str],
        reading: Reading,
    ) -> None:
        self.family, self.config, self.checkpoint = family, config, checkpoint
        self.names, self.reading = names, reading
        self.used: set[str] = set()
        self.ranks = {file: rank for rank, file in enumerate(checkpoint.shards.names)}
        self.last: dict[str, int] = {}  # of every file, the highest rank of a tensor that needs it

    def tensors(self) -> Iterator[Tensor]:
        """All tensors, in the order of the rules and the blocks."""
        outside = [rule for rule in self.family.rules if "{layer}" not in rule.source]
        inside = [rule for rule in self.family.rules if "{layer}" in rule.source]
        yield from self._block(outside, 0)
        for layer in range(self.family.layers(self.config)):
            yield from self._block(inside, layer)
        if left := self.names.keys() - self.used:
            first = self.names[min(left)]
            raise CheckpointError(
                f"{self.checkpoint.where}: unsupported tensor {first}"
                + (f" and {len(left) - 1} more" if len(left) > 1 else "")
                + "; --ignore PATTERN leaves out what is not needed"
            )
        for name, values in self.family.generated(self.config).items():
            yield self._tensor(name, partial(stored, values), 0)

    def _block(self, rules: Sequence[Rule], layer: int) -> Iterator[Tensor]:
        sizes = self.family.sizes(self.config, layer)
        missing: dict[str, str] = {}
        made: dict[str, Sequence[str]] = {}
        for rule in rules:
            if rule.when is not None and not sizes[rule.when]:
                continue
            found = self._sources(rule, layer, sizes)
            self.used.update(found)
            if rule.target is None:
                continue
            target = rule.target.format(layer=layer, **sizes)
            if found and target not in made:
                made[target] = found
                yield self._made(target, rule, found, sizes)
            elif found and made[target] != found:
                self._refuse_both(made[target][0], found[0])
            elif not found and not rule.optional:
                missing.setdefault(target, rule.source.format(layer=layer, expert=0))
        if lost := [source for target, source in missing.items() if target not in made]:
            raise CheckpointError(
                f"{self.checkpoint.where}: no tensor {lost[0]}, which {self.config.who} has"
            )

    def _sources(self, rule: Rule, layer: int, sizes: Sizes) -> list[str]:
        """The rule's tensors that the checkpoint has: none, one, or every expert's."""
        if "{expert}" not in rule.source:
            name = rule.source.format(layer=layer)
            return [name] if name in self.names else []
        wanted = (rule.source.format(layer=layer, expert=e) for e in range(sizes["experts"]))
        found = list(takewhile(self.names.__contains__, wanted))
        if found and len(found) < sizes["experts"]:
            lost = rule.source.format(layer=layer, expert=len(found))
            raise CheckpointError(f"{self.checkpoint.where}: no tensor {lost}")
        return found

    def _refuse_both(self, one: str, other: str) -> None:
        raise CheckpointError(
            f"{self.checkpoint.where}: {self.names[one]} and {self.names[other]} are the same "
            "weights in two layouts; --ignore PATTERN leaves out one of them"
        )

    def _made(self, target: str, rule: Rule, found: Sequence[str], sizes: Sizes) -> Tensor:
        sources = [self.checkpoint.tensors[self.names[name]] for name in found]
        wanted = tuple(sizes[size] for size in rule.shape)
        for source in sources:
            if source.shape != wanted:
                raise CheckpointError(
                    f"{source.files[0]}: {source.name} has shape {list(source.shape)}; "
                    f"config.json makes it {list(wanted)}"
                )

        def build() -> Array:
            arrays = [source.open() for source in sources]
            array = stack(arrays) if "{expert}" in rule.source else arrays[0]
            return rule.transform(array, sizes) if rule.transform else array

        files = {file for source in sources for file in source.files}
        rank = max(self.ranks[file] for file in files)
        self.last |= {file: max(rank, self.last.get(file, 0)) for file in files}
        return self._tensor(target, build, rank)

    def _tensor(self, name: str, build: Callable[[], Array], rank: int) -> Tensor:
        array = build()  # hollow: shape and type are known, no data is touched
        kept = "f32" if stays_f32(name, len(array.shape)) else None
        kind = ggml.type_named(array.type)
        if is_cut(kind) and not self.reading.requantize:
            kept = kind.name
        quantizable = is_quantizable(name, array.shape)
        nonfinite = self.reading.nonfinite
        return Tensor(name, array.shape, array.type, build, kept, quantizable, nonfinite, rank)


@contextmanager
def _named_folder(checkpoint: Checkpoint) -> Iterator[Path]:
    """The folder under the model's name, which gguf-py takes apart; the cache's are hashes."""
    name = _name(checkpoint)
    if name == checkpoint.folder.name:
        yield checkpoint.folder
        return
    with TemporaryDirectory() as place:
        named = Path(place) / name
        named.symlink_to(checkpoint.folder.resolve())
        yield named


def _name(checkpoint: Checkpoint) -> str:
    """The last part of the folder's or the repository's name, also where that is given as "."."""
    return Path(abspath(checkpoint.where)).name


def _general(
    family: Family, checkpoint: Checkpoint, tensors: tuple[Tensor, ...]
) -> dict[str, Value]:
    """`general.*`: name, size label, licence, sampling defaults."""

    def write(writer: gguf.GGUFWriter) -> None:
        for tensor in tensors:
            kind = np.dtype(np.float32)
            writer.add_tensor_info(tensor.name, tensor.shape, kind, 4 * tensor.weights)
        total, shared, expert, experts = writer.get_total_parameter_count()
        with _named_folder(checkpoint) as folder:
            described = gguf.Metadata.load(None, folder, None, total)
        described.name = described.name or _name(checkpoint)
        if described.size_label is None:
            described.size_label = gguf.size_label(total, shared, expert, experts)
        writer.add_type(gguf.GGUFType.MODEL)
        described.set_gguf_meta_model(writer)

    found = derived(checkpoint, "model card", "general.", write)
    return {**found, "general.architecture": Value("str", family.name)}
