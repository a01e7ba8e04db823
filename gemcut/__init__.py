"""Cut a Mixture-of-Experts checkpoint to fit one machine, run it there, prove what the cut cost.

The verbs are in `gemcut.api`; nothing heavy is loaded until one of them is called.
"""

from gemcut.errors import GemcutError

__all__ = ["GemcutError", "__version__"]

__version__ = "0.1.0"
