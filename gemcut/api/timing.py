"""How fast a file runs here, beside what was predicted."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from gemcut.api.running import open_run
from gemcut.api.words import Tokens, Where, tokens_of
from gemcut.llama import probe
from gemcut.profile import Profile
from gemcut.runtime.loading.loading import Loaded, Tell
from gemcut.runtime.loading.loading import Progress as Loading
from gemcut.runtime.placement.given import UNSAID, Given
from gemcut.runtime.placement.workload import CHAT, Workload
from gemcut.runtime.speed.trial import Trial, try_run


def measure_speed(
    path: Where,
    *,
    depths: Sequence[Tokens] = (0,),
    n_prompt: int = 512,
    n_generate: int = 64,
    repeats: int = 3,
    given: Given = UNSAID,
    workload: Workload = CHAT,
    profile: Profile | None = None,
    opened: Callable[[Loaded], None] = lambda run: None,
    tell: Tell = lambda text: None,
    loading: Loading | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Trial:
    """Load a run and measure it, in a context that is just large enough unless one is given.

    Args:
        depths: tokens that are in the context before; at each, a prompt of `n_prompt` tokens is
            read and `n_generate` are written, `repeats` times.
        given, workload, profile, tell: as `open_run` takes them.
        opened: told the run, before anything is measured.
        loading: told the fraction loaded; progress: what is measured, and in all.

    Raises:
        UsageError: nothing to measure, or more than the context holds.
        as `open_run`.
    """
    before = tuple(map(tokens_of, depths))
    if given.n_ctx is None:
        n_ctx = max(1, max(before, default=0) + max(n_prompt, n_generate))
        given = replace(given, n_ctx=n_ctx * given.n_seq)
    with open_run(path, given, workload, profile, tell, loading) as run:
        opened(run)
        forecast = replace(run.recorder.forecast, probe=partial(probe, Path(path)))
        return try_run(run, forecast, before, n_prompt, n_generate, repeats, progress)
