"""What the ledger and the throughput model predict for the demo's model, beside what is measured.

    PYTHONPATH=. python bench/ledger.py [--types q8_0 q4_0 bf16] [--threads N]

The profile is measured here, and so are the speeds; the memory is what llama.cpp says that it
plans. The demo's model is tiny: of a token's time, far more than in a large model goes into what is
no product of weights.
"""

import argparse

from common import demo_file

from gemcut.engine import ContextOptions, ModelOptions, default_threads
from gemcut.gguf_file import GGUFFile
from gemcut.llama.memory import probe
from gemcut.profile import HOST, Profile
from gemcut.runtime.ledger import Placed, fixed
from gemcut.runtime.profiles import this_machine
from gemcut.runtime.speed import speed
from gemcut.runtime.throughput import active_shares, decode_speed, prefill_speed

PROMPT, GENERATED = 512, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--types", nargs="+", default=["q8_0", "q4_0", "bf16"])
    parser.add_argument("--threads", type=int, default=default_threads())
    arguments = parser.parse_args()
    profile = this_machine(arguments.threads)
    print(
        f"{profile.name}: {profile.host.bandwidth / 1e9:.1f} GB/s, "
        f"{profile.host.flops / 1e9:.0f} GFLOP/s, {1e6 * profile.overhead:.0f} us a token besides"
    )
    for kind in arguments.types:
        _compare(kind, profile, arguments.threads)


def _compare(kind: str, profile: Profile, threads: int) -> None:
    path = demo_file(kind)
    options = ContextOptions(PROMPT + GENERATED, n_batch=PROMPT, threads=threads, n_outputs=1)
    with GGUFFile(path) as file:
        needs = fixed(file.metadata, options)
        placed = [
            Placed(info.name, info.type.name, info.nbytes, info.weights, HOST)
            for info in file.tensors.values()
        ]
        shares = active_shares(file.metadata, list(file.tensors))
    memory = probe(path, ModelOptions(devices=()), options)
    measured = speed(path, PROMPT, GENERATED, threads=threads)
    decode = decode_speed(profile, needs, placed, shares)
    prefill = prefill_speed(profile, needs, placed, shares)
    print(f"{kind}: predicted, measured")
    print(f"  caches  {_mib(sum(needs.caches))}, {_mib(sum(c.bytes for c in memory.caches))}")
    print(f"  compute {_mib(needs.compute)}, {_mib(memory.compute['CPU'])}")
    for name, found, truth in (
        ("decode", decode, measured.decode),
        ("prefill", prefill, measured.prefill),
    ):
        error = found.per_second * found.se / found.seconds
        print(f"  {name:7} {found.per_second:.0f} +- {error:.0f} tokens/s, {truth:.0f}")


def _mib(size: int) -> str:
    return f"{size / 2**20:.2f} MiB"


if __name__ == "__main__":
    main()
