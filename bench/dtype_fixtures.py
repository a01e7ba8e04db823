"""Record what torch, transformers and llama.cpp's converter make of small floats and torch files.

python bench/dtype_fixtures.py LLAMA_CPP      (a source tree; needs the `train` extra)
"""

import sys
from collections import OrderedDict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.integrations.mxfp4 import _convert_moe_packed_tensors

FOLDER = Path("tests/fixtures")
FOURS = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]

Arrays = dict[str, npt.NDArray[Any]]


def tables() -> Arrays:
    """The value of every code."""
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    types = {
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E8M0": torch.float8_e8m0fnu,
    }
    return {name: codes.view(dtype).to(torch.float32).numpy() for name, dtype in types.items()}


def eights(generator: torch.Generator) -> Arrays:
    """Blocks of 16 x 32 with the last ones cut off, and scales in three types."""
    codes = torch.randint(0, 256, (37, 70), generator=generator, dtype=torch.uint8)
    scale = torch.rand(3, 3, generator=generator) / 100
    found = {"eights/codes": codes.numpy(), "eights/scale": scale.numpy()}
    powers = torch.randint(100, 140, (3, 3), generator=generator, dtype=torch.uint8)
    found["eights/powers"] = powers.numpy()
    forms = {
        "F32": scale,
        "BF16": scale.bfloat16().to(torch.float32),
        "F8_E8M0": powers.view(torch.float8_e8m0fnu).to(torch.float32),
    }
    for weight in (torch.float8_e4m3fn, torch.float8_e5m2):
        for name, values in forms.items():
            whole = values.repeat_interleave(16, 0).repeat_interleave(32, 1)[:37, :70]
            kind = "F8_E4M3" if weight == torch.float8_e4m3fn else "F8_E5M2"
            found[f"eights/{kind}/{name}"] = (codes.view(weight).to(torch.float32) * whole).numpy()
    return found


def mxfp4(generator: torch.Generator, llama_cpp: Path) -> Arrays:
    """gpt-oss's layout, decoded by transformers, and in blocks by llama.cpp's converter."""
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    converter = import_module("conversion.gpt_oss").GptOssModel
    blocks = torch.randint(0, 256, (2, 6, 3, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(90, 160, (2, 6, 3), generator=generator, dtype=torch.uint8)
    values = _convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    laid_out = converter.transform_nibble_layout(None, blocks)
    encoded = torch.concat((scales.unsqueeze(-1), laid_out), dim=-1).view(2, 6, 3 * 17)
    return {
        "mxfp4/blocks": blocks.numpy(),
        "mxfp4/scales": scales.numpy(),
        "mxfp4/values": values.transpose(1, 2).contiguous().numpy(),
        "mxfp4/encoded": encoded.numpy(),
    }


def nvfp4(generator: torch.Generator) -> Arrays:
    """As ModelOpt (multiplied) and compressed-tensors (divided) decode it."""
    codes = torch.randint(0, 256, (6, 32), generator=generator, dtype=torch.uint8)
    scale = torch.randint(0, 127, (6, 4), generator=generator, dtype=torch.uint8)
    second = torch.rand(1, generator=generator) * 100
    fours = torch.tensor(FOURS)
    values = torch.stack([fours[(codes & 15).long()], fours[(codes >> 4).long()]], -1)
    groups, scales = values.view(6, 4, 16), scale.view(torch.float8_e4m3fn).to(torch.float32)
    return {
        "nvfp4/codes": codes.numpy(),
        "nvfp4/scale": scale.numpy(),
        "nvfp4/second": second.numpy(),
        "nvfp4/multiplied": (groups * (scales * second)[:, :, None]).view(6, 64).numpy(),
        "nvfp4/divided": (groups * (scales / second)[:, :, None]).view(6, 64).numpy(),
    }


def torch_files(generator: torch.Generator) -> Arrays:
    """Write files, and return what is in them as plain numbers of the same width."""
    base = torch.randn(5, 12, generator=generator)
    held = OrderedDict(
        f32=base,
        tied=base,
        part=base[2:],
        parameter=torch.nn.Parameter(base.bfloat16()),
        f16=base.half(),
        f64=base.double(),
        e4m3=base.to(torch.float8_e4m3fn),
        e5m2=base.to(torch.float8_e5m2),
        e8m0=base.abs().to(torch.float8_e8m0fnu),
        i64=torch.arange(7),
        u16=torch.tensor([1, 65535]).to(torch.uint16),
        mask=torch.tensor([[True, False]]),
        scalar=torch.tensor(1.5),
        empty=torch.zeros(0, 4),
    )
    held._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    torch.save(held, FOLDER / "dtypes.bin")
    torch.save({"turned": base.t()}, FOLDER / "dtypes_strided.bin")
    old = FOLDER / "dtypes_old.bin"
    torch.save({"f32": base[0]}, old, _use_new_zipfile_serialization=False)
    widths = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {
        f"file/{name}": value.detach().contiguous().view(widths[value.element_size()]).numpy()
        for name, value in held.items()
    }


def main() -> None:
    """Write the fixtures of tests/test_dtypes.py, test_compressed.py and test_torch_file.py."""
    generator = torch.Generator().manual_seed(7)
    recorded: dict[str, Any] = tables() | eights(generator) | mxfp4(generator, Path(sys.argv[1]))
    recorded |= nvfp4(generator) | torch_files(generator)
    np.savez_compressed(FOLDER / "dtypes.npz", **recorded)


if __name__ == "__main__":
    main()
