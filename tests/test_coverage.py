"""Coverage: how often each expert was reached, as numbers and as a picture."""

import sys
from pathlib import Path

import numpy as np
import pytest

from gemcut.errors import OutputError, UsageError
from gemcut.quantize.coverage import coverage, draw, require_plotting, to_dict
from gemcut.quantize.statistics import Entry, Statistics


def statistics(*layers) -> Statistics:
    """Layers of experts with these counts, their fused and their down projection."""
    entries = {"blk.0.attn_q.weight": Entry(np.ones((1, 8), np.float32), np.ones(1, np.float32))}
    for number, counts in enumerate(layers):
        sums = np.ones((len(counts), 8), np.float32)
        rows, gates = np.array(counts, np.float32), np.array(counts, np.float32) * np.float32(0.5)
        one = Entry(sums, rows, gates)
        for role in ("down", "gate_up"):
            entries[f"blk.{number}.ffn_{role}_exps.weight"] = one
    return Statistics(entries)


def test_every_layer_is_counted_once():
    first, second = coverage(statistics([10, 0, 30, 0], [5, 5, 5, 5]))

    assert (4, 40, 2) == (first.experts, first.rows, first.reached)
    assert (0, 20, 4) == (second.layer + second.experts - 5, second.rows, second.reached)
    np.testing.assert_allclose(first.load, [1, 0, 3, 0])
    np.testing.assert_allclose(second.effective, 4, rtol=1e-6)
    assert 1 < first.effective < 2


def test_plain_numbers_are_json():
    (layer,) = to_dict(coverage(statistics([10, 0, 30, 4])))

    assert [10, 0, 30, 4] == layer["counts"]
    assert [5.0, 0.0, 15.0, 2.0] == layer["gates"]
    assert (0, 7.0, 30) == (layer["least"], layer["median"], layer["most"])


def test_there_is_nothing_of_models_without_experts():
    assert () == coverage(statistics())
    with pytest.raises(UsageError, match="nothing to draw"):
        draw((), Path("never.png"))


def test_a_picture_is_a_png(tmp_path):
    """Layers may have different numbers of experts."""
    draw(coverage(statistics([10, 0, 30, 4], [1, 2])), tmp_path / "load.png")

    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputError, match="cannot be written"):
        draw(coverage(statistics([1, 2])), tmp_path / "none" / "load.png")


def test_a_missing_matplotlib_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    with pytest.raises(UsageError, match=r"gemcut\[plot\]"):
        require_plotting()
