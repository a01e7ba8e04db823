"""What a file is, read from its headers: the types of its tensors, and where it comes from."""

from collections.abc import Iterator
from numbers import Real
from pathlib import Path

from gemcut.eval.comparison import Anatomy
from gemcut.gguf_parts import GGUFParts
from gemcut.provenance import imatrix, made

_KEYS = {
    "model": "general.name",
    "architecture": "general.architecture",
    "base model": "general.base_model.0.name",
    "base model's home": "general.base_model.0.repo_url",
    "license": "general.license",
    "quantized by": "general.quantized_by",
}


def dissect(path: Path, name: str) -> Anatomy:
    """The anatomy of a GGUF, shown under a name. Raises GGUFError if it cannot be read."""
    with GGUFParts(path) as file:
        types = tuple((info.name, info.type.name, info.nbytes) for info in file.tensors)
        predicted = getattr(made(file.metadata), "predicted", None)
        kld = predicted.get("kld") if isinstance(predicted, dict) else None
        return Anatomy(
            name,
            types,
            float(kld) if isinstance(kld, Real) and not isinstance(kld, bool) else None,
            dict(_provenance(file)),
        )


def _provenance(file: GGUFParts) -> Iterator[tuple[str, str]]:
    """What it was made from and how, in words; no paths."""
    for what, key in _KEYS.items():
        if value := file.metadata.get(key):
            yield what, str(value.data)
    if plan := made(file.metadata):
        yield "plan", _request(plan.request)
    if importance := imatrix(file.metadata):
        yield "importance of", str(importance.dataset or importance.file or "a text")


def _request(request: object) -> str:
    """What was asked for, as "size 14000000000, aim quality"."""
    if not isinstance(request, dict):
        return ""
    return ", ".join(f"{name} {value}" for name, value in sorted(request.items()) if value)
