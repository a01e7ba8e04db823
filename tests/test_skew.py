"""Skew of routing: what it is, and what types per expert are predicted to bring by it."""

import json

import numpy as np
import pytest

from gemcut.cli.routing import spoken
from gemcut.quantize.coverage import coverage
from gemcut.quantize.skew import SIZES, factor, skew
from gemcut.quantize.statistics import Entry, Statistics, is_imatrix, write_statistics
from tests.shell import run

EVEN = [100] * 16
SKEWED = [1000, 800, 500, 200, *[20] * 12]


def statistics(*layers) -> Statistics:
    """Blocks whose experts were given so many rows."""
    entries = {}
    for number, counts in enumerate(layers):
        rows = np.array(counts, np.float32)
        entry = Entry(np.ones((len(counts), 8), np.float32), rows)
        entries[f"blk.{number}.ffn_down_exps.weight"] = entry
    return Statistics(entries, ("text.txt",), 5, 64)


def shares(*layers):
    return [np.array(counts) / sum(counts) for counts in layers]


def test_even_routing_brings_nothing():
    found = skew(coverage(statistics(EVEN, EVEN)))

    assert (found.busiest, found.enough) == (0.25, True)
    assert found.effective == pytest.approx(1)
    assert list(found.factors.values()) == pytest.approx([1] * len(SIZES))
    assert not found.worth
    assert "not worth it, routing is balanced" in spoken(found)


def test_skewed_routing_brings_much():
    found = skew(coverage(statistics(EVEN, SKEWED)))

    assert found.busiest == pytest.approx((0.25 + 2500 / 2740) / 2)
    assert found.worth and all(0.2 < each < 0.8 for each in found.factors.values())
    assert "worth trying. Predicted" in spoken(found)
    assert json.loads(json.dumps(found.to_dict()))["types_per_expert"]["worth_it"]


def test_the_more_skew_the_more_it_brings():
    found = [factor(shares([100 + 50 * by] * 4 + [100] * 12), 4.0) for by in range(6)]

    assert found == sorted(found, reverse=True) and found[0] == pytest.approx(1)


def test_two_types_by_hand(monkeypatch):
    """Of two experts one has most of the rows: it takes the large type. Some rows go anywhere."""
    kinds = {"q4_0": 0.1, "q8_0": 0.02}
    monkeypatch.setattr("gemcut.quantize.candidates.PLAIN", list(kinds))
    monkeypatch.setattr("gemcut.quantize.candidates._ERRORS", kinds)
    least, most = 0.26 / 1.02, 0.76 / 1.02

    found = factor(shares([75, 25]), 6.5, importance=False)
    assert found == pytest.approx((most * 0.02 + least * 0.1) / 0.06)


def test_few_rows_prove_nothing():
    found = skew(coverage(statistics([3, 1, 0, 0])))

    assert not found.enough and not found.worth
    assert "too few rows" in spoken(found)


def test_inspecting_an_imatrix(tmp_path, q8_0):
    path = tmp_path / "imatrix.gguf"
    write_statistics(path, statistics(SKEWED, EVEN))
    done = run("inspect", path)
    told = json.loads(run("inspect", path, "--json").stdout)

    assert is_imatrix(path) and not is_imatrix(q8_0)
    assert "5 chunks of 64 tokens: text.txt" in done.stdout
    assert "worth trying" in " ".join(done.stdout.split())
    table = [line.split() for line in done.stdout.replace("│", " ").splitlines()]
    counts = [str(round(told["coverage"][0][name])) for name in ("least", "median", "most")]
    assert counts in [row[-3:] for row in table]
    assert (5, 2) == (told["chunks"], len(told["coverage"]))
    assert told["coverage"][0]["busiest_quarter"] == pytest.approx(2500 / 2740)
    assert told["routing"]["types_per_expert"]["worth_it"] is True


def test_without_experts_nothing_is_said_of_them(tmp_path):
    path = tmp_path / "imatrix.gguf"
    one = Entry(np.ones((1, 8), np.float32), np.ones(1, np.float32))
    write_statistics(path, Statistics({"blk.0.attn_q.weight": one}))
    done = run("inspect", path)
    told = json.loads(run("inspect", path, "--json").stdout)

    assert done.exit_code == 0 and "routing" not in done.stdout
    assert (told["coverage"], told["routing"]) == ([], None)
