"""What measuring is tried on: the demo's model, and activations as uneven as real ones."""

import numpy as np

from gemcut.convert.model import Model
from gemcut.quantize.statistics import Entry, Statistics

CHEAP = ["q4_0", "q8_0", "q2_k", "mxfp4", "bf16"]


def uneven(model: Model) -> Statistics:
    """Activations of columns and experts as uneven as real ones; one expert was never reached."""
    random = np.random.default_rng(3)
    entries = {}
    for tensor in model.tensors:
        if tensor.name.startswith("blk.") and not tensor.kept:
            counts = np.rint(300 * np.exp(random.standard_normal(tensor.matrices)))
            counts[1:2] = 0
            means = np.exp(random.standard_normal((tensor.matrices, tensor.columns)))
            sums = (counts[:, None] * means).astype(np.float32)
            entries[tensor.name] = Entry(sums, counts.astype(np.float32))
    return Statistics(entries, ("random",), 4, 512)
