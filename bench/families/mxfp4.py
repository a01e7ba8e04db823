"""MXFP4 decoded, exactly: for transformers on a machine without its kernels, and for llama.cpp,
which would round the activations to Q8_0 before it multiplies them with MXFP4."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
VALUES = np.concatenate([VALUES, -VALUES])


def decoded(blocks: Any, scales: Any) -> Any:
    """Float32 [E, columns, rows] of blocks [E, rows, columns / 32, 16] and their exponents.

    The low half of a byte is the first of its two values.
    """
    values = np.stack([VALUES[blocks & 15], VALUES[blocks >> 4]], axis=-1)
    values = values.reshape(*scales.shape, 32) * np.exp2(scales.astype(np.float32) - 127)[..., None]
    return values.reshape(*scales.shape[:2], -1).swapaxes(1, 2)


def decode_checkpoint(folder: Path, output: Path) -> Path:
    """Write a gpt-oss checkpoint without MXFP4, in float32."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    for path in folder.glob("*.json"):
        shutil.copyfile(path, output / path.name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["quantization_config"]
    (output / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_blocks")]:
        base = name.removesuffix("_blocks")
        blocks, scales = tensors.pop(name), tensors.pop(f"{base}_scales")
        values = decoded(blocks.numpy(), scales.numpy())
        tensors[base] = torch.from_numpy(np.ascontiguousarray(values))
    save_file(tensors, output / "model.safetensors", {"format": "pt"})
    return output


def decode_gguf(path: Path, output: Path) -> Path:
    """Write a GGUF whose MXFP4 tensors are F32 instead."""
    from gemcut import ggml
    from gemcut.gguf_file import GGUFFile, TensorInfo
    from gemcut.gguf_writer import GGUFWriter

    f32 = ggml.type_named("f32")
    with GGUFFile(path) as file:
        coded = {name for name, info in file.tensors.items() if str(info.type) == "mxfp4"}
        infos = [
            TensorInfo(name, info.shape, f32 if name in coded else info.type, 0)
            for name, info in file.tensors.items()
        ]
        with GGUFWriter(output, file.metadata, infos) as writer:
            for name, info in file.tensors.items():
                rows = file.rows(name)
                if name in coded:
                    values = ggml.dequantize(info.type, rows, info.shape[-1])
                    rows = values.view(np.uint8)
                writer.write(name, 0, rows)
    return output
