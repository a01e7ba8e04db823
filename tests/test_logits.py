"""The converted model computes what the original implementation computes.

`fixtures/logits.npz` holds log-probabilities of transformers for one window of the demo's held-out
text, made by `bench/logits.py fixture` in float32: 16 bits each, an error of 1e-9 nats of KLD.
"""

from pathlib import Path

import numpy as np
import pytest

from gemcut.engine import ContextOptions
from gemcut.llama import Context, Model
from gemcut.score import log_softmax

FIXTURE = Path(__file__).parent / "fixtures" / "logits.npz"


# Largest mean, and largest median, of the KL divergence over positions. The mean is that of the few
# positions where rounding picks another expert; the median shows everything else.
# A BF16 file holds the same weights, but ggml then rounds activations to BF16 as well.
@pytest.mark.parametrize(("name", "mean", "median"), [("f32", 1e-5, 1e-6), ("bf16", 3e-4, 1e-4)])
def test_logits_agree_with_transformers(name, mean, median, request):
    expected = np.load(FIXTURE)
    window = expected["windows"][0]
    log_p = log_softmax(expected["low"][0] + expected["step"][0] * expected["codes"][0])
    # The most exact that llama.cpp does: flash attention would round keys and values to F16.
    exact = ContextOptions(len(window), flash_attention=False, type_k="f32", type_v="f32")

    with Model.load(request.getfixturevalue(name)) as model, Context(model, exact) as context:
        log_q = log_softmax(context.decode(window, outputs="all"))

    kld = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    assert kld.mean() < mean and np.median(kld) < median
    assert (log_p.argmax(axis=1) == log_q.argmax(axis=1)).mean() > 0.99
