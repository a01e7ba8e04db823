"""Scoring where there is a card: where files go, what fits together, and the same numbers."""

import json

import numpy as np
import pytest

from gemcut.eval.scoring.scoring import score_columns
from tests import scored
from tests.rpc import beside_a_device

# In a process of its own: a device stays registered, and every later load would use it.
CLIENT = """
import json, sys
from pathlib import Path

from gemcut.engine import ModelOptions
from gemcut.eval.scoring import fitting
from gemcut.eval.scoring.cards import Cards
from gemcut.eval.scoring.fitting import Fitting, placed
from gemcut.eval.scoring.scoring import score_columns
from gemcut.llama import add_rpc
from gemcut.profile import Processor, Profile
from tests import scored

endpoint, *paths = sys.argv[1:]
add_rpc(endpoint)
columns = scored.columns(*map(Path, paths))
host = Processor("cpu", "host", 8 << 30, 0, 1e10)

def cards(room):
    card = Processor("gpu0", "card", room + (256 << 20), 0, 1e11, flops=1e12)
    return Cards(1, Profile("test", host).with_cards((card,)))

def fits(room, options):
    fitting._cards = lambda threads: cards(room)
    return Fitting(64, 31, options, 1).together(columns, False)

context = columns[0].context(64, 31, 1)
demands = [cards(1 << 30).demand(c.file.path, context, ModelOptions()).tensors for c in columns]
taken = [sum(demand.get("gpu0", 0) for demand in demands[:n]) for n in (1, 2)]
fitting._cards = lambda threads: cards(1 << 30)
options = placed(columns, 64, 31, 1)
chunks = scored.some_chunks(columns[0].file.path, 2)
found = score_columns(columns, chunks, options, threads=1)
print(json.dumps({
    "sizes": [column.file.size for column in columns],
    "tensors": [demand["gpu0"] for demand in demands],
    "fits": [fits(1 << 30, options), fits(taken[1], options), fits(taken[1] + (8 << 20), options)],
    "without": fits(1, dict.fromkeys(options, ModelOptions(devices=()))),
    "layers": [each.gpu_layers for each in options.values()],
    "kld": found.scores[columns[1]].divergence.kld.tolist(),
}))
"""


@pytest.fixture(scope="module")
def answer(f32, q4_k_m):
    _, said = beside_a_device(CLIENT, f32, q4_k_m)
    return json.loads(said)


def test_files_are_together_while_the_card_has_room(answer):
    assert answer["fits"] == [2, 1, 2] and answer["without"] == 2
    for tensors, size in zip(answer["tensors"], answer["sizes"], strict=True):
        assert 0.8 * size < tensors < size


def test_numbers_are_near_those_of_the_host(answer, f32, q4_k_m):
    columns = scored.columns(f32, q4_k_m)
    found = score_columns(columns, scored.some_chunks(f32, 2), threads=1)

    assert all(layers for layers in answer["layers"])
    # The host multiplies with 4-bit weights in another layout, and rounds otherwise.
    assert np.mean(answer["kld"]) == pytest.approx(
        found.scores[columns[1]].divergence.kld.mean(), rel=0.1
    )
