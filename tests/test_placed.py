"""What is planned is what llama.cpp does: its buffers for weights and caches, place by place."""

import json
import re
from typing import Any

import pytest

from tests.rpc import beside_a_device, rpc_server

MIB = 1 << 20
EXACT = 0.011 * MIB  # to which the log rounds a number

# In a process of its own: a device stays registered, and every later load would use it.
CLIENT = """
import json, sys
from dataclasses import replace
from pathlib import Path
from gemcut.gguf_file import GGUFFile
from gemcut.llama import Context, Model, add_rpc
from gemcut.llama.library import log
from gemcut.profile import Processor, Profile
from gemcut.runtime.placement.given import Given
from gemcut.runtime.placement.placement import plan_run

*endpoints, path, runs = sys.argv[1:]
for endpoint in endpoints:
    add_rpc(endpoint)
host = Processor("cpu", "host", 8 << 30, 0, 1e10)
card = Processor("gpu0", "card", 8 << 30, 0, 1e11, flops=1e12)
roomy = Profile("test", host).with_cards((card,) * len(endpoints))

def tight(placement, lacking):
    held = [roomy.cards[0].memory - placement.ledger[card.name]["free"] for card in roomy.cards]
    return roomy.with_cards((replace(card, memory=max(held) - lacking),) * len(held))

answers = {}
with GGUFFile(Path(path)) as file:
    for name, (said, lacking) in json.loads(runs).items():
        given = Given(rpc=tuple(endpoints), threads=1, **said)
        found, mark = plan_run(file, roomy, given), log.count
        if lacking:
            found = plan_run(file, tight(found, lacking), given)
        with Model.load(path, found.model) as model, Context(model, found.context) as context:
            lines = log.since(mark)
            context.decode([1, 2, 3], outputs="last")
            answers[name] = found.to_dict(), model.memory.weights, lines
print(json.dumps(answers))
"""
# What is given, and how many bytes the cards lack of what they would hold.
RUNS: dict[str, tuple[int, dict[str, Any], int]] = {
    "all on one card": (1, {}, 0),
    "experts on the host": (1, {"cpu_moe": 99}, 0),
    "a card that is too small": (1, {"n_ctx": 2048}, 300_000),
    "a card that is far too small": (1, {"n_ctx": 2048}, 1_500_000),
    "the last layers": (1, {"gpu_layers": 3, "n_ctx": 2048}, 0),
    "keys and values of 8 bits": (1, {"n_ctx": 2048, "type_k": "q8_0", "type_v": "q8_0"}, 0),
    "several sequences": (1, {"n_ctx": 2048, "n_seq": 3}, 0),
    "two cards": (2, {"n_ctx": 2048}, 0),
    "two cards that are too small": (2, {"n_ctx": 2048}, 6_500_000),
    "shares": (2, {"n_ctx": 2048, "tensor_split": [1, 3]}, 0),
    "one of two": (2, {"split_mode": "none", "main_gpu": 1}, 0),
    "an override": (2, {"overrides": [["blk\\.1\\.attn", "CPU"]]}, 0),
}
ON_HOST = {"cpu_moe", "gpu_layers"}


@pytest.fixture(scope="module")
def answers(q8_0):
    """What was planned and what llama.cpp said, for all runs: each number of cards once."""
    return ran(q8_0, 1) | ran(q8_0, 2)


def ran(path, cards):
    runs = json.dumps({name: rest for name, (count, *rest) in RUNS.items() if count == cards})
    if cards == 1:
        endpoint, stdout = beside_a_device(CLIENT, path, runs)
        endpoints = [endpoint]
    else:
        with rpc_server() as other:
            endpoint, stdout = beside_a_device(CLIENT, other, path, runs)
            endpoints = [endpoint, other]
    names = [f"RPC0[{endpoint}]" for endpoint in endpoints]
    found = json.loads(stdout.splitlines()[-1])
    return {name: (names, *answer) for name, answer in found.items()}


@pytest.mark.parametrize("name", RUNS)
def test_llama_cpp_puts_every_byte_where_it_was_planned(name, answers):
    """Exactly: weights and caches of all devices."""
    names, found, weights, lines = answers[name]
    held = by_place(weights.items(), names)
    caches = by_place(cache_buffers(lines), names)

    for place, page in found["ledger"].items():
        planned = sum(size for kind, size in page.items() if kind.startswith("weights"))
        assert held.get(place, 0) == pytest.approx(planned, abs=2 * EXACT), place
        assert caches.get(place, 0) == pytest.approx(page.get("kv", 0), abs=2 * EXACT), place
    experts = {place for tensor, place in found["places"].items() if "exps" in tensor}
    assert ("cpu" in experts) == (RUNS[name][2] > 0 or bool(RUNS[name][1].keys() & ON_HOST))


def cache_buffers(lines):
    for line in lines:
        if match := re.search(r"(\S+) +KV buffer size = +([\d.]+) MiB", line):
            yield match[1], round(float(match[2]) * MIB)


def by_place(buffers, names):
    """Bytes by place; what is on no card is on the host."""
    found = {}
    for buffer, size in buffers:
        place = f"gpu{names.index(buffer)}" if buffer in names else "cpu"
        found[place] = found.get(place, 0) + size
    return found
