"""What types per expert are worth: the loss they save, beside the time that they take.

Such experts live on the host, and no card computes with them, not even a prompt: where there is a
card they save loss and take time. So time has a price when they are chosen, unless quality was
asked for by name.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from gemcut.runtime.placement.workload import CHAT

# Of the KL divergence: for less nobody gives up llama.cpp's own loaders. Of an evenly routed model
# 0.93 and 0.94 were predicted where 0.96 and 0.99 were measured.
WORTHWHILE = 0.9
_NOTICED = 0.05  # of a speed


@dataclass(frozen=True)
class Worth:
    """Expected KL divergence with types per expert, and without.

    without: None: nothing fits. equal: that of the same without, at equal price. timed: whether
    time is in that price. seconds, seconds_without: of a typical request (`CHAT`), predicted for
    the machine; the speeds are relative to those without. None: no machine is planned for.
    """

    kld: float
    without: float | None
    equal: float = 0.0
    timed: bool = False
    seconds: float | None = None
    seconds_without: float | None = None
    decode_ratio: float | None = None
    prefill_ratio: float | None = None

    @property
    def ratio(self) -> float:
        """At equal price; 1 if nothing is lost anyway."""
        if self.without is None:
            return 0.0
        return self.kld / self.equal if self.equal else 1.0

    @property
    def enough(self) -> bool:
        """Whether a file is to have them."""
        return self.ratio <= WORTHWHILE

    def __str__(self) -> str:
        """In words."""
        if self.without is None:
            return f"nothing fits without; {self._alone}"
        text = f"predicted KL divergence x {self.ratio:.2f}"
        text += ", with the time it takes counted" if self.timed else ""
        if self.enough:
            said = f"; {self.kld:.3g} instead of {self.without:.3g}" if self.timed else ""
            return f"{text}{said}{self._price}; {self._alone}"
        hint = " (--prefer quality counts none)" if self.timed else ", all else equal"
        return f"not worth it here: {text}{hint}; every tensor has one type"

    @property
    def _alone(self) -> str:
        """What it always costs."""
        text = "such a file runs with gemcut alone"
        if self.seconds is None:
            text += ", its experts in RAM, where no card computes with them"
        return text

    @property
    def _price(self) -> str:
        """What it costs in time, if anybody would notice."""
        said = " and ".join(self._changes)
        if not said:
            return ", all else equal"
        return (
            f"; {said}: a request of {CHAT.prompt} tokens read and {CHAT.answer} written takes "
            f"{self.seconds:.3g} s instead of {self.seconds_without:.3g} s, predicted"
        )

    @property
    def _changes(self) -> Iterator[str]:
        speeds = {"prompts are read": self.prefill_ratio, "answers written": self.decode_ratio}
        for what, ratio in speeds.items():
            if ratio and abs(ratio - 1) > _NOTICED:
                how = f"{1 / ratio:.2g} times slower" if ratio < 1 else f"{ratio:.2g} times faster"
                yield f"{what} {how}"
