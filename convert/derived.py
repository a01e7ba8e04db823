"""Metadata that gguf-py derives from a checkpoint: its names, merges and special tokens.

gguf-py can only write what it finds; so it writes into a writer without a file, which is read.
"""

import logging
from collections.abc import Callable
from typing import Any

import gguf

from gemcut.convert.checkpoint import Checkpoint
from gemcut.errors import CheckpointError
from gemcut.gguf_file import Value

_KINDS = {"UINT32": "u32", "INT32": "i32", "FLOAT32": "f32", "BOOL": "bool", "STRING": "str"}


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
    return {key: _plain(value) for key, value in pairs if key.startswith(prefix)}


def _plain(value: Any) -> Value:
    if value.type is gguf.GGUFValueType.ARRAY:
        return Value("[str]", [str(item) for item in value.value])
    return Value(_KINDS[value.type.name], value.value)
