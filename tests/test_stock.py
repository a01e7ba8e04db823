"""Stock mixtures choose llama.cpp's own type for every tensor of the real Gemma 4 26B-A4B.

The oracle is llama.cpp's dry run over a file of the true shapes whose tensors are holes.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gemcut.convert.checkpoint import Checkpoint
from gemcut.convert.engine import open_model
from gemcut.convert.lazy import stored
from gemcut.convert.model import Model, Tensor
from gemcut.errors import PlanError
from gemcut.gguf_file import Value
from gemcut.gguf_layout import file_size, header, laid_out
from gemcut.quantize import stock
from gemcut.quantize.choose import infos, plan_stock, plan_uniform
from tests import checkpoints, oracle

# What an importance matrix holds is no matter to the choice of types.
NO_ENTRIES: oracle.Importance = {}


@pytest.fixture(scope="module")
def real(checkpoint, tmp_path_factory) -> Iterator[Model]:
    """The 26B-A4B as gemcut sees it: 50 GB of holes, none of which is read."""
    folder = tmp_path_factory.mktemp("real") / "model"
    checkpoints.build(folder, checkpoint, checkpoints.REAL, hollow=True)
    yield open_model(Checkpoint(folder))
    shutil.rmtree(folder)  # who copies it would copy 50 GB


@contextmanager
def hollow(model: Model, path: Path) -> Iterator[Path]:
    """The model as a BF16 GGUF whose tensors are holes, without what the choice does not need."""
    few = {k: v for k, v in model.metadata.items() if not k.startswith("tokenizer.")}
    table = laid_out(infos(model, plan_uniform(model, "bf16")))
    path.write_bytes(header(few, table))
    os.truncate(path, file_size(few, table))
    yield path
    path.unlink()


def eight_experts(model: Model) -> Model:
    return replace(model, metadata={**model.metadata, "gemma4.expert_count": Value("u32", 8)})


def few_key_heads(model: Model) -> Model:
    """Four query heads per key-value head in every block."""
    heads = Value("[i32]", [4] * checkpoints.REAL.layers)
    return replace(model, metadata={**model.metadata, "gemma4.attention.head_count_kv": heads})


def untied(model: Model) -> Model:
    """An output tensor beside the embedding."""
    shape = checkpoints.REAL.vocabulary, checkpoints.REAL.hidden
    return replace(model, tensors=(*model.tensors, zeros("output.weight", shape)))


def zeros(name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of BF16 zeros."""
    view = np.broadcast_to(np.zeros((), np.uint16), shape)
    return Tensor(name, shape, "bf16", lambda: stored(view))


def odd_width(model: Model) -> Model:
    """An embedding whose rows fit no 256-block type."""
    odd = zeros("token_embd.weight", (1000, 2112))
    return replace(model, tensors=(odd, *(t for t in model.tensors if t.name != odd.name)))


VARIANTS = [lambda model: model, eight_experts, few_key_heads, untied, odd_width]
NAMES = ["real", "eight experts", "few key heads", "untied", "odd width"]


@pytest.mark.parametrize("vary", VARIANTS, ids=NAMES)
def test_every_mixture_gives_every_tensor_llama_cpps_type(vary, real, tmp_path):
    """With and without an importance matrix; what llama.cpp refuses is refused."""
    model = vary(real)
    with hollow(model, tmp_path / "hollow.gguf") as source:
        for mixture in stock.MIXTURES:
            for importance in (None, NO_ENTRIES):
                check(model, source, mixture, importance)


def check(model: Model, source: Path, mixture: str, importance: oracle.Importance | None):
    weighted = importance is not None
    try:
        lines = oracle.quantize(source, source.with_name("x"), mixture, importance, dry_run=True)
    except oracle.Refused:
        lines = []
    if not lines or (not weighted and oracle.wants_importance(lines)):
        with pytest.raises(PlanError, match="importance|no replacement"):
            plan_stock(model, mixture, weighted)
        return

    plan = plan_stock(model, mixture, weighted)

    assert oracle.types(lines) == {name: e.type for name, e in plan.tensors.items()}, mixture
    mebibytes, bpw = oracle.size(lines)
    assert mebibytes == pytest.approx(plan.size / 2**20, abs=0.01)
    assert bpw == pytest.approx(plan.bpw, abs=0.01)


# Decimal gigabytes and bits per weight of all tensors, computed from llama.cpp's rules.
SIZES = {
    "bf16": (50.49, 16.01),
    "Q8_0": (26.84, 8.51),
    "Q6_K": (22.62, 7.17),
    "Q5_K_M": (19.12, 6.06),
    "Q5_K_S": (17.97, 5.70),
    "Q4_K_M": (16.78, 5.32),
    "Q4_K_S": (15.45, 4.90),
    "IQ4_NL": (14.42, 4.57),
    "IQ4_XS": (13.90, 4.41),
    "Q3_K_M": (13.27, 4.21),
}


@pytest.mark.parametrize(("mixture", "size"), SIZES.items(), ids=SIZES)
def test_sizes_are_those_of_the_published_files(mixture, size, real):
    plan = plan_stock(real, mixture, importance=True)

    assert size == (pytest.approx(plan.size / 1e9, abs=0.01), pytest.approx(plan.bpw, abs=0.006))


def test_q4_0_has_the_size_of_googles_own_file(real):
    """14.42 GB, for which neither side uses an importance matrix."""
    assert 14.42e9 == pytest.approx(plan_stock(real, "Q4_0").size, abs=1e7)


def test_the_real_model_has_the_tensors_it_is_known_to_have(real):
    """658 tensors, 25.2 billion weights, 266 tensors that can be quantized."""
    assert 658 == len(real.tensors)
    assert 25.233e9 == pytest.approx(real.weights, abs=1e6)
    assert 266 == sum(not tensor.kept for tensor in real.tensors)


def test_fallbacks_are_listed_with_the_type_that_was_wanted(real):
    """The 60 down projections, whose rows of 704 and 2112 take no 256-block type."""
    fallbacks = plan_stock(real, "Q4_K_M").fallbacks

    assert 60 == len(fallbacks)
    assert all("ffn_down" in name for name in fallbacks)
    assert {("q4_k", "q5_0"), ("q6_k", "q8_0")} == {(e.wanted, e.type) for e in fallbacks.values()}
