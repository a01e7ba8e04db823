"""How long cutting takes, told before it begins: encoding takes the time, at a known speed."""

from collections import Counter
from collections.abc import Collection, Mapping

from gemcut import ggml
from gemcut.convert.model import Model
from gemcut.quantize.forecast import encoding_speed

WORTH = 1 << 28  # weights; fewer are encoded in seconds, and nobody needs to know before


def encoding_seconds(
    model: Model, types: Mapping[str, ggml.Type], weighted: Collection[str], threads: int
) -> float:
    """How long encoding takes on so many cores that do nothing else.

    Args:
        types: of every tensor of the model, the type that it gets.
        weighted: the tensors that there is importance for; looking for the best fit takes longer.
    """
    work: Counter[tuple[ggml.Type, bool]] = Counter()
    for tensor in model.tensors:
        if types[tensor.name].name != tensor.source_type:
            work[types[tensor.name], tensor.name in weighted] += tensor.weights
    return sum(count / encoding_speed(*how) for how, count in work.items()) / threads


def spoken(seconds: float) -> str:
    """A time as a person says it: "40 seconds", "12 minutes", "3.5 hours"."""
    if seconds < 99:
        return f"{max(1, round(seconds))} second{'s'[: round(seconds) > 1]}"
    if seconds < 99 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
