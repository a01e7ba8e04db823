"""What a planned run says of itself: what was reduced or chosen, and what may surprise."""

from collections.abc import Iterator
from dataclasses import replace

from gemcut.profile import HOST
from gemcut.runtime.placement.candidates import ALIKE, cache_types
from gemcut.runtime.placement.fitting import Fit, Fitter
from gemcut.runtime.placement.given import Given


def notes(fitter: Fitter, given: Given, fit: Fit) -> Iterator[str]:
    """The notes of a placed candidate."""
    context, contents = fit.candidate.context, fitter.contents
    each, trained = context.n_ctx // context.n_seq, contents.trained
    if trained and each > trained:
        yield f"a context of {each} tokens: the model was made for {trained}"
    if each < fitter.workload.tokens:
        yield (
            f"the context of {each} tokens is shorter than a typical request ({fitter.workload})"
        )
    wanted = cache_types(given)[0]
    if (context.type_k, context.type_v) != wanted:
        yield f"keys and values in {context.type_k}: in {wanted[0]} they do not fit"
    yield from _layout(fitter, given, fit)
    if given.tensor_split and given.gpu_layers is None and HOST in fit.homes:
        count = sum(home != HOST for home in fit.homes)
        yield f"{count} of {len(fit.homes)} layers on cards: more do not fit, split so"
    if given.split_mode in ("row", "tensor") and len(fitter.profile.cards) > 1:
        yield (
            f"split mode {given.split_mode} was not planned for: places, memory and speed are "
            "those of whole layers on each card"
        )
    if not fitter.needs.by_formula:
        yield "an architecture without formulas: memory is as llama.cpp says"


def _layout(fitter: Fitter, given: Given, fit: Fit) -> Iterator[str]:
    """Why the host's weights lie as they do, if that was to be chosen and makes a difference."""
    if given.repack is not None or not fitter.profile.host.rearranged.by_type:
        return
    candidate, repack = fit.candidate, fit.candidate.loading.repack
    loading = replace(candidate.loading, repack=not repack)
    other = fitter.fitted(replace(candidate, loading=loading), fit.tensors, fit.homes).seconds
    if max(fit.seconds, other) >= ALIKE * min(fit.seconds, other):
        ways = "as they are in the file", "rearranged for the CPU"
        yield (
            f"weights {ways[repack]}: {ways[not repack]}, a request would take {other:.3g} s "
            f"instead of {fit.seconds:.3g} s"
        )
