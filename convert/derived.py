"""Metadata that gguf-py derives from a checkpoint: its name, licence, origins, tags.

gguf-py can only write what it finds; so it writes into a writer without a file, which is read.
"""

import logging
from collections.abc import Callable
from datetime import date
from typing import Any

import gguf

from gemcut.convert.checkpoint import Checkpoint
from gemcut.errors import CheckpointError
from gemcut.gguf_file import Value

_KINDS = {"UINT32": "u32", "INT32": "i32", "FLOAT32": "f32", "BOOL": "bool"}


def derived(
    checkpoint: Checkpoint, what: str, prefix: str, write: Callable[[gguf.GGUFWriter], None]
) -> dict[str, Value]:
    """What `write` puts into a gguf-py writer, for keys that begin with `prefix`.

    Raises:
        CheckpointError: gguf-py cannot make sense of the files; `what` says of which.
    """
    logging.getLogger("gguf").setLevel(logging.ERROR)  # its talk is not ours
    writer = gguf.GGUFWriter(None, checkpoint.config.get("model_type", ""))
    try:
        write(writer)
    except Exception as error:  # whatever gguf-py and the YAML parser under it happen to raise
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(f"{checkpoint.folder}: {what}: {said}") from error
    pairs = writer.kv_data[0].items()
    found = {key: _plain(value) for key, value in pairs if key.startswith(prefix)}
    return {key: value for key, value in found.items() if value is not None}


def _plain(value: Any) -> Value | None:
    """The value in its kind; nothing where a model card has a list or a mapping for a word."""
    if value.type is gguf.GGUFValueType.ARRAY:
        return Value("[str]", [str(item) for item in value.value if _is_plain(item)])
    if value.type is gguf.GGUFValueType.STRING:
        return Value("str", str(value.value)) if _is_plain(value.value) else None
    return Value(_KINDS[value.type.name], value.value)


def _is_plain(item: object) -> bool:
    """Whether it is short as text: YAML's aliases make lists that no memory can spell out."""
    return isinstance(item, str | int | float | date)
