"""A loaded model to try changes on: what does it cost, in KL divergence on a text?

The text is cut into chunks of one context, taken at even distances; the second half of each is
scored, so that every scored token has at least half a context before it. What the unchanged model
says is kept (`reference`), so a change costs one pass over the chunks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from gemcut import ggml, llama
from gemcut.closing import Closing
from gemcut.convert.gguf_source import open_gguf
from gemcut.convert.model import Model, Reading
from gemcut.cores import default_threads
from gemcut.engine import ContextOptions, ModelOptions
from gemcut.errors import EngineError, TextError, UsageError
from gemcut.quantize import reference
from gemcut.quantize.importance import Importance
from gemcut.quantize.reference import Reference
from gemcut.quantize.swapping import Change, Swapper, check_alike, check_types
from gemcut.runtime.machine.inspection import inspect_machine
from gemcut.score import Floats

Tokens = NDArray[np.int32]

MIN_CHUNKS = 2  # for a standard error
_MIN_CONTEXT = 8
_REST = 1 << 28  # bytes of the interpreter, its libraries, and what computing takes besides logits
_TILES = 1 << 25  # bytes that a thread has in hand while weights are changed


@dataclass(frozen=True)
class Sample:
    """How much of a text is read: so many chunks of `n_ctx` tokens, at even distances."""

    n_ctx: int = 512
    chunks: int = 16

    def __post_init__(self) -> None:
        if self.n_ctx < _MIN_CONTEXT or self.chunks < MIN_CHUNKS:
            raise UsageError(
                f"{self.chunks} chunks of {self.n_ctx} tokens: wanted at least {MIN_CHUNKS} of "
                f"{_MIN_CONTEXT}"
            )

    @property
    def scored(self) -> NDArray[np.bool_]:
        """Which positions of a chunk are scored, [n_ctx]: those that predict its second half."""
        mask = np.zeros(self.n_ctx, np.bool_)
        mask[self.n_ctx // 2 : self.n_ctx - 1] = True
        return mask

    @property
    def scored_count(self) -> int:
        """Scored positions of a chunk."""
        return int(self.scored.sum())

    def cut(self, tokens: Tokens, bos: int | None) -> Tokens:
        """The chunks [chunks, n_ctx] of a text's tokens, with BOS in place of each first one.

        Fewer chunks if the text has no more. Raises TextError if it has not even two.
        """
        there = len(tokens) // self.n_ctx
        if there < MIN_CHUNKS:
            raise TextError(
                f"the text is too short: {len(tokens)} tokens, wanted {MIN_CHUNKS} chunks of "
                f"{self.n_ctx} at least: use a longer text or a smaller context"
            )
        rows = tokens[: there * self.n_ctx].reshape(there, self.n_ctx)
        numbers = np.linspace(0, there - 1, min(self.chunks, there)).round().astype(np.int64)
        chosen: Tokens = rows[numbers]
        if bos is not None:
            chosen[:, 0] = bos
        return chosen


@dataclass(frozen=True)
class Probing:
    """A file of the model to try errors on, and the text that tells what they cost.

    path: a GGUF in Q8_0, or in 16 or 32 bits.
    """

    path: Path
    text: str
    sample: Sample = field(default_factory=Sample)
    options: ModelOptions | None = None  # where its weights go; how they are loaded is decided here
    parse_special: bool = False  # read "<bos>" and the like in the text as tokens

    def tokenize(self, model: llama.Model) -> Tokens:
        """The tokens of the text, [n]."""
        return model.tokenize(self.text, parse_special=self.parse_special)


class Probe(Closing):
    """A loaded model, what it says about a text, and its weights to be changed."""

    def __init__(
        self, loaded: llama.Model, swapper: Swapper, sample: Sample, tokens: Tokens
    ) -> None:
        """Read the tokens [chunks, n_ctx] with the unchanged model; see `open_probe`."""
        self._loaded, self._swapper, self._sample = loaded, swapper, sample
        self._tokens = tokens
        options = ContextOptions(
            n_ctx=sample.n_ctx,
            n_ubatch=min(sample.n_ctx, 512),
            n_outputs=sample.scored_count,
            threads=swapper.threads,
        )
        self._context = llama.Context(loaded, options)
        start = perf_counter()
        self._references = [Reference(self._logits(chunk)) for chunk in self._tokens]
        self.seconds = perf_counter() - start  # of reading the chunks once

    @property
    def swapper(self) -> Swapper:
        """The weights to change."""
        return self._swapper

    @property
    def tokens(self) -> Tokens:
        """The chunks that are read, [chunks, n_ctx]."""
        return self._tokens

    def divergence(self, changes: Mapping[str, Change]) -> Floats:
        """Mean KL(unchanged || changed) of each chunk in nats, float64 [chunks].

        Raises:
            PlanError, EngineError: see `Swapper.swapped`; or the changed model's logits are not
                finite.
        """
        with self._swapper.swapped(changes):
            means = [
                own.divergence(self._logits(chunk)).mean()
                for own, chunk in zip(self._references, self._tokens, strict=True)
            ]
        if not np.isfinite(means).all():
            raise EngineError(f"logits are not finite with {min(changes)} changed")
        return np.array(means)

    def _logits(self, chunk: Tokens) -> NDArray[np.float32]:
        self._context.forget()
        return self._context.decode(chunk, outputs=self._sample.scored)

    def close(self) -> None:
        """Free the model."""
        self._loaded.close()


def open_probe(
    probing: Probing,
    source: Model | None = None,
    importance: Importance | None = None,
    threads: int | None = None,
) -> Probe:
    """Load a file and read a text with it.

    Args:
        source: the model that the file was made from, for the exact values; None: the file's own.

    Raises:
        GGUFError, EngineError: the file cannot be loaded, its weights cannot be changed, it is of
            another model than the source, or memory is short.
        TextError: the text is too short.
    """
    threads = threads or default_threads()
    options = replace(probing.options or ModelOptions(), load_mode="none", repack=False)
    base = _base(probing.path, source)
    check_memory(base, probing.sample, options, threads)
    loaded = llama.Model.load(probing.path, options)
    try:
        swapper = Swapper(loaded, base, source, importance, threads)
        bos = loaded.bos if loaded.add_bos else None
        tokens = probing.sample.cut(probing.tokenize(loaded), bos)
        return Probe(loaded, swapper, probing.sample, tokens)
    except BaseException:
        loaded.close()
        raise


def check_probe(probing: Probing, source: Model, threads: int = 1) -> int:
    """Bytes of memory that probing will take; what would end it later ends it here.

    Raises:
        GGUFError, EngineError, TextError: see `open_probe`.
    """
    base = _base(probing.path, source)
    check_memory(base, probing.sample, probing.options or ModelOptions(), threads)
    with llama.Model.load(probing.path, ModelOptions(vocab_only=True)) as vocabulary:
        probing.sample.cut(probing.tokenize(vocabulary), None)
    return memory_needed(base, probing.sample, threads)


def _base(path: Path, source: Model | None) -> Model:
    base = open_gguf(path, Reading(requantize=True, nonfinite=True))
    check_alike(base, source or base)
    check_types(base)
    return base


def memory_needed(base: Model, sample: Sample, threads: int) -> int:
    """Bytes that probing takes, the weights included, wherever they lie."""
    weights = sum(
        t.rows * ggml.type_named(t.source_type).row_bytes(t.columns) for t in base.tensors
    )
    embedding = next((t for t in base.tensors if t.name == "token_embd.weight"), None)
    vocabulary = embedding.rows if embedding else 0
    logits = 2 * 4 * sample.scored_count * vocabulary  # where they are computed, and for reading
    kept = reference.size(sample.chunks * sample.scored_count, vocabulary)
    return weights + logits + kept + threads * _TILES + _REST


def check_memory(base: Model, sample: Sample, options: ModelOptions, threads: int) -> None:
    """Raise EngineError if this machine has too little memory left for probing the file."""
    machine = inspect_machine()
    if machine.ram_available is None:
        return
    offload = options.devices != () and options.gpu_layers != 0
    free = sum(device.free for device in machine.devices if offload and device.kind == "gpu")
    needed, there = memory_needed(base, sample, threads), machine.ram_available + free
    if needed > there:
        raise EngineError(
            f"probing takes {needed / 1e9:.1f} GB of memory, {there / 1e9:.1f} GB are free: use a "
            "Q8_0 file, fewer chunks, or priors instead"
        )
