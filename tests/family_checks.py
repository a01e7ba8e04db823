"""What must be true of every family, held against recordings (`tests.families`)."""

import runpy
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from gemcut import api
from gemcut.engine import ContextOptions
from gemcut.llama import Context, Model
from gemcut.score import log_softmax
from tests import families, oracle

BENCH = runpy.run_path(str(Path(__file__).parent.parent / "bench" / "converter.py"))
MIXTURES = ["q8_0", "q4_k_m", "q3_k_m", "q2_k", "iq4_xs", "q4_0", "mxfp4_moe"]


@pytest.fixture(scope="module")
def made(request, tmp_path_factory):
    """Makes a recording's file in a type, once, and checks it; a module's `KNOWN` are differences
    that are meant, by recording."""
    known = getattr(request.module, "KNOWN", {})

    @cache
    def make(name: str, kind: str) -> Path:
        return check_converted(name, kind, tmp_path_factory.mktemp(name), known.get(name, ()))

    return make


def check_converted(name: str, kind: str, folder: Path, known: tuple[str, ...] = ()) -> Path:
    """Every tensor's type, shape and bytes, and all metadata but the name, are llama.cpp's.

    Args:
        known: what begins an entry that is another one on purpose; each must occur.
    """
    source = families.build(folder / "checkpoint", name)
    output = folder / f"{name}-{kind}.gguf"
    api.convert_checkpoint(api.open_source(source), output, kind, threads=1)
    ours = BENCH["digest"](output)
    theirs = families.converted(name)[kind]
    for digest in (ours, theirs):
        digest.pop(BENCH["NAMED_AFTER_FOLDER"], None)
    found = list(BENCH["differences"](ours, theirs))
    assert [] == [line for line in found if not line.startswith(known or "\0")]
    assert all(any(line.startswith(each) for line in found) for each in known)
    return output


def check_logits(name: str, model: Path, mean: float = 1e-5, same: float = 1.0) -> None:
    """The file computes what transformers computes, in the most exact way llama.cpp has.

    Args:
        same: the least share of positions with the same best token, where one is clearly best.
    """
    window, log_p = families.expected(name)
    exact = ContextOptions(
        len(window), flash_attention=False, type_k="f32", type_v="f32", threads=1
    )
    with Model.load(model) as loaded, Context(loaded, exact) as context:
        log_q = log_softmax(context.decode(window, outputs="all"))
    kld = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    assert kld.mean() < mean
    second, best = np.sort(log_p, axis=1)[:, -2:].T
    agree = log_p.argmax(axis=1) == log_q.argmax(axis=1)
    assert agree[best - second > 1e-3].mean() >= same


def check_mixtures(model: Path) -> None:
    """Every tensor gets the type that llama-quantize gives it, with all common mixtures."""
    source = api.open_source(model)
    for mixture in MIXTURES:
        lines = oracle.quantize(model, model.with_suffix(".none"), mixture, dry_run=True)
        theirs = oracle.types(lines)
        plan = api.make_plan(source, api.Target(mixture))
        ours = {name: entry.type for name, entry in plan.tensors.items()}
        assert theirs.items() <= ours.items(), mixture
