"""Chat templates: of a file beside the tokenizer, or of tokenizer_config.json, one or several."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemcut.convert.checkpoint import Checkpoint
from gemcut.errors import CheckpointError
from gemcut.gguf_file import Value

KEY = "tokenizer.chat_template"
_FOLDER = "additional_chat_templates"
_MAX_BYTES = 4_000_000


def chat_templates(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> dict[str, Value]:
    """A checkpoint's chat templates as metadata: the default one, others under their names.

    tokenizer_config.json's counts more than chat_template.jinja, which counts more than
    chat_template.json, as in llama.cpp's converter.

    Raises:
        CheckpointError: a file that cannot be read, or is larger than any template.
    """
    found = settings.get("chat_template")
    if found is None:
        found = _beside(checkpoint)
    if isinstance(found, str):
        return {KEY: Value("str", found)}
    named = {}
    for entry in found if isinstance(found, list) else []:
        name, template = entry.get("name"), entry.get("template")
        if isinstance(name, str) and name and isinstance(template, str):
            named[re.sub(r"[^0-9A-Za-z]", "_", name)] = template
    default = named.pop("default", None)
    values = {f"{KEY}.{name}": Value("str", template) for name, template in named.items()}
    if named:
        values["tokenizer.chat_templates"] = Value("[str]", sorted(named))
    return values if default is None else {**values, KEY: Value("str", default)}


def _beside(checkpoint: Checkpoint) -> Any:
    if "chat_template.jinja" not in checkpoint.files.names():
        return checkpoint.json("chat_template.json", {}).get("chat_template")
    default = _read(checkpoint.files.path("chat_template.jinja"))
    found = (checkpoint.folder / _FOLDER).glob("*.jinja")
    more = sorted(path for path in found if path.is_file())  # a link to a device has no end
    if not more:
        return default
    others = [{"name": path.stem, "template": _read(path)} for path in more]
    return [{"name": "default", "template": default}, *others]


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{path}: larger than {_MAX_BYTES} bytes; no chat template is")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
