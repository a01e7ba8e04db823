"""Cut a checkpoint with gemcut and with llama-quantize: same bytes? how long, how much memory?

    PEERS=$(bench/peers.sh) python bench/quantize.py [CHECKPOINT] [--types Q4_K_M ...]

gemcut starts from the checkpoint; llama-quantize from a BF16 GGUF, whose conversion is timed apart
(by gemcut: llama.cpp's converter needs torch). Whole processes, start-up included.
"""

import argparse
from pathlib import Path

import numpy as np
from common import CHECKPOINT, FOLDER, GEMCUT, Run, measure, peer

from gemcut.gguf_file import GGUFFile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=CHECKPOINT)
    parser.add_argument("--types", nargs="+", default=["Q8_0", "Q6_K", "Q4_K_M", "Q4_0", "IQ4_XS"])
    parser.add_argument("-t", "--threads", default="2")
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    plain, ours, theirs = (FOLDER / f"{name}.gguf" for name in ("plain", "ours", "theirs"))
    threads = ["-t", arguments.threads]
    source = str(arguments.checkpoint)
    convert = measure([*GEMCUT, "convert", source, "-o", str(plain), *threads])
    print(f"convert to BF16: {_figures(convert)}")
    for kind in arguments.types:
        own = measure([*GEMCUT, "quantize", source, "-o", str(ours), "--type", kind, *threads])
        command = [str(peer("llama-quantize")), str(plain), str(theirs), kind, arguments.threads]
        other = measure(command)
        print(f"{kind:8} gemcut         {_figures(own)}")
        print(f"{'':8} llama-quantize {_figures(other)}; same tensors: {_same(ours, theirs)}")


def _figures(run: Run) -> str:
    return f"{run.wall:7.2f} s wall {run.cpu:7.2f} s CPU {run.memory / 1e6:7.0f} MB resident"


def _same(first: Path, second: Path) -> bool:
    with GGUFFile(first) as a, GGUFFile(second) as b:
        return a.tensors.keys() == b.tensors.keys() and all(
            info.type == b.tensors[name].type and np.array_equal(a.rows(name), b.rows(name))
            for name, info in a.tensors.items()
        )


if __name__ == "__main__":
    main()
