"""What is decoded in tests, in what context, and what counts as the same result."""

import numpy as np

from gemcut.engine import ContextOptions

TEXT = "def add(first, second):\n    return first + second\n\n\nclass Point:\n    pass\n" * 20


def small(**changes) -> ContextOptions:
    return ContextOptions(**{"n_ctx": 256, "n_ubatch": 64, "threads": 1, **changes})


def alike(first, second) -> bool:
    """Equal but for rounding: another batch shape adds in another order, and may now and then send
    a token to another expert."""
    return np.size(first) == 0 or np.abs(np.subtract(first, second)).mean() < 0.02
