"""Hold gemcut's conversion against llama.cpp's own converter.

    python bench/converter.py compare OURS.gguf THEIRS.gguf
    python bench/converter.py fixture THEIRS-BF16.gguf THEIRS-F16.gguf tests/fixtures/converted.json

`compare` prints every difference in metadata and tensors, and ends with status 1 if there is one.
`fixture` keeps what the tests need of two files that convert_hf_to_gguf.py made from the demo's
checkpoint (gemcut/demo/checkpoint): metadata with its kinds, and a digest of every tensor. The
model's name is not kept, since it is that of the folder.

The converter is in the llama.cpp that llama-cpp-python contains, and needs torch and transformers.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gemcut.gguf_file import GGUFFile, Value

ONLY_OURS = {"gemcut.plan"}
NAMED_AFTER_FOLDER = "metadata general.name"
LONG = 16  # array entries; longer ones are kept as a digest

Digest = dict[str, list[Any]]


def digest(path: Path) -> Digest:
    """A file's metadata and tensors, small enough to keep, as JSON has them."""
    with GGUFFile(path) as file:
        found = {f"metadata {k}": _value(v) for k, v in file.metadata.items() if k not in ONLY_OURS}
        for name, info in file.tensors.items():
            content = hashlib.sha256(file.rows(name).data).hexdigest()
            found[f"tensor {name}"] = [str(info.type), list(info.shape), content]
    return found


def _value(value: Value) -> list[Any]:
    """Kind and data; of a long array its length and digest instead."""
    if not isinstance(value.data, list) or len(value.data) <= LONG:
        return [value.kind, value.data]
    text = json.dumps(value.data).encode()
    return [value.kind, len(value.data), hashlib.sha256(text).hexdigest()]


def differences(ours: Digest, theirs: Digest) -> Iterator[str]:
    """A line for every entry of two digests that is not the same in both; order is no matter."""
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            yield f"{key}: {ours.get(key)}, llama.cpp's converter has {theirs.get(key)}"


def write_fixture(files: Mapping[str, Digest], output: Path) -> None:
    """Write digests as JSON with one line per entry, so that versions can be compared."""
    parts = []
    for name, entries in files.items():
        lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(entries.items())]
        parts.append(f"{json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n}")
    output.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    fixture = commands.add_parser("fixture")
    fixture.add_argument("bf16", type=Path)
    fixture.add_argument("f16", type=Path)
    fixture.add_argument("output", type=Path)
    compare = commands.add_parser("compare")
    compare.add_argument("ours", type=Path)
    compare.add_argument("theirs", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "fixture":
        files = {"bf16": digest(arguments.bf16), "f16": digest(arguments.f16)}
        for file in files.values():
            file.pop(NAMED_AFTER_FOLDER, None)
        write_fixture(files, arguments.output)
        return
    found = list(differences(digest(arguments.ours), digest(arguments.theirs)))
    print("\n".join(found) or "no differences")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
