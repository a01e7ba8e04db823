"""A column of a comparison: one file run in one way."""

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from json import dumps

from gemcut.engine import ContextOptions
from gemcut.eval.files import File

REFERENCE, CANDIDATE, FLOOR = "reference", "candidate", "floor"


@dataclass(frozen=True)
class Column:
    """A file, and how it is computed: two columns of one file differ by that alone.

    role: "reference"; "candidate"; or "floor", the reference computed in another way, whose
        divergence from it is what no comparison can see below.
    """

    file: File
    role: str = CANDIDATE
    type_k: str = "f16"
    type_v: str = "f16"
    n_ubatch: int = 512
    flash_attention: bool = True

    @property
    def name(self) -> str:
        """As it is shown: the file, and the cache types if they are not the usual ones."""
        plain = (self.type_k, self.type_v) == ("f16", "f16")
        return self.file.name if plain else f"{self.file.name} (KV {self.type_k}/{self.type_v})"

    @cached_property
    def key(self) -> str:
        """A digest of all that decides its numbers: same key, same scores of a chunk."""
        how = {k: v for k, v in asdict(self).items() if k not in ("file", "role")}
        engine = version("llama-cpp-python")
        return sha256(dumps([self.file.fingerprint, engine, how]).encode()).hexdigest()

    def context(self, n_ctx: int, n_outputs: int, threads: int | None) -> ContextOptions:
        """The context that it is scored in: whole chunks of up to n_ctx tokens at once."""
        return ContextOptions(
            n_ctx=n_ctx,
            n_ubatch=min(n_ctx, self.n_ubatch),
            threads=threads,
            flash_attention=self.flash_attention,
            type_k=self.type_k,
            type_v=self.type_v,
            n_outputs=n_outputs,
        )

    def with_cache(self, type_k: str, type_v: str) -> "Column":
        """The same file as a candidate with another cache."""
        return replace(self, role=CANDIDATE, type_k=type_k, type_v=type_v)
