"""The files under comparison: their names, sizes and fingerprints, and whether they change."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from gemcut.errors import EngineError, GGUFError, UsageError, printable
from gemcut.gguf_file import GGUFFile, state_of
from gemcut.gguf_parts import part_paths

CHANGED = "was changed while it was scored: run again when it is at rest"
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16


@dataclass(frozen=True)
class File:
    """A GGUF model: one file, or the first of a split model with all its parts counted.

    size: bytes on disk. bpw: tensor bits over weights. fingerprint: see `fingerprint`.
    n_ctx_train: tokens of the contexts it was trained on; 0: it does not say.
    """

    path: Path
    name: str
    size: int
    bpw: float
    fingerprint: str
    n_ctx_train: int = 0


def select(files: Sequence[Path], reference: Path | None) -> tuple[File, ...]:
    """The files to load: the reference first if there is one, each file once.

    The reference may be among the files (as with a glob); it is then taken once. Raises UsageError
    if there is nothing to score or a file is listed twice, GGUFError if one cannot be read.
    """
    resolved = [*map(_resolved, files)]
    for path, resolution in zip(files, resolved, strict=True):
        if resolved.count(resolution) > 1:
            raise UsageError(f"{path}: listed more than once; name each file once")
    kept = [path for path, r in zip(files, resolved, strict=True) if not _same(r, reference)]
    chosen = [*([reference] if reference else []), *kept]
    if not chosen:
        raise UsageError("no file to score: name at least one GGUF")
    pairs = zip(chosen, _names([*map(_resolved, chosen)]), strict=True)
    return tuple(_describe(path, printable(name)) for path, name in pairs)


def fingerprint(paths: Sequence[Path]) -> str:
    """A digest that tells files apart without reading all of them.

    SHA-256 over each file's size and 64 KiB at each of 64 even steps from its first to its last
    byte: a few MB, whatever the size. It is not the digest of the whole file.
    """
    digest = sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with open(path, "rb") as file:
            for step in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * step // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def parts(path: Path) -> tuple[Path, ...]:
    """All files of a model: `path` alone, or every part of a split one. Raises GGUFError."""
    found = tuple(part_paths(path))
    for part in found:
        if len(found) > 1 and not part.is_file():
            raise GGUFError(f"{part}: missing part of a split model of {len(found)} files")
    return found


def state(path: Path) -> tuple[tuple[int, ...], ...] | None:
    """What tells a model's files from what they are once they are changed; None: one is gone."""
    try:
        return tuple(map(state_of, parts(path)))
    except (OSError, GGUFError):
        return None


def is_same(file: File) -> bool:
    """Whether a file is what it was when it was described."""
    try:
        return fingerprint(parts(file.path)) == file.fingerprint
    except (OSError, GGUFError):  # it is gone
        return False


def check_same(file: File) -> None:
    """Raise EngineError unless a file is what it was when it was described."""
    if not is_same(file):
        raise EngineError(f"{file.path}: {CHANGED}")


def _names(paths: Sequence[Path]) -> list[str]:
    """What files are called: with as many of their folders as it takes to tell them apart."""
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    alone = Counter(path.name for path in paths)
    return [path.name if alone[path.name] == 1 else "/".join(path.parts[-depth:]) for path in paths]


def _same(resolved: Path, reference: Path | None) -> bool:
    return reference is not None and resolved == _resolved(reference)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead round and round
        raise GGUFError(f"{path}: cannot be found: {error}") from error


def _describe(path: Path, name: str) -> File:
    paths = parts(path)
    bits = weights = trained = 0
    for part in paths:
        with GGUFFile(part) as gguf:
            bits += 8 * gguf.tensor_bytes
            weights += gguf.weights
            trained = trained or _n_ctx_train(gguf)
    size = sum(part.stat().st_size for part in paths)
    return File(path, name, size, bits / max(weights, 1), fingerprint(paths), trained)


def _n_ctx_train(gguf: GGUFFile) -> int:
    architecture = gguf.metadata.get("general.architecture")
    value = gguf.metadata.get(f"{architecture.data}.context_length") if architecture else None
    return int(value.data) if value and isinstance(value.data, int) else 0
