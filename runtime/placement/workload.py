"""What a run is for: how long a typical request's prompt and answer are.

A run is planned for it: long prompts want large ubatches and cards that compute with the host's
experts, long answers want as much of the model as possible on cards.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gemcut.errors import UsageError
from gemcut.sizes import parse_context

_LONGEST = 100  # characters of a text that is quoted


@dataclass(frozen=True)
class Workload:
    """A typical request: tokens that are read, and tokens that are written for them."""

    name: str
    prompt: int
    answer: int

    @property
    def tokens(self) -> int:
        """Tokens that a sequence's context has to hold for it."""
        return self.prompt + self.answer

    def seconds(self, prefill: float, decode: float) -> float:
        """What a request takes at these speeds, in tokens per second."""
        return self.prompt / prefill + self.answer / decode

    def __str__(self) -> str:
        """As it is said to people: "chat: 1000 tokens read, 500 written"."""
        return f"{self.name}: {self.prompt} tokens read, {self.answer} written"


WORKLOADS: Mapping[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("chat", 1000, 500),  # a turn of a conversation, or a question with an example
        Workload("long", 24000, 1000),  # a question about a book, a repository or a long session
        Workload("batch", 4000, 100),  # many documents, of each a summary or a label
    )
}
CHAT = WORKLOADS["chat"]
_LENGTHS = re.compile(r"([^:]+):([^:]+)")


def parse_workload(text: str) -> Workload:
    """The workload that a word means: a name, or lengths as in "4000:500" or "16k:1k".

    Raises:
        UsageError: neither, or no tokens at all.
    """
    word = text.strip().lower()
    if word in WORKLOADS:
        return WORKLOADS[word]
    match = _LENGTHS.fullmatch(word[:_LONGEST])
    if match is None:
        raise UsageError(
            f"workload {text!r:.40}: wanted {', '.join(WORKLOADS)}, or the tokens of a prompt and "
            "its answer, as in 4000:500"
        )
    prompt, answer = parse_context(match[1]), parse_context(match[2])
    if not prompt or not answer or prompt + answer >= 1 << 31:
        raise UsageError(f"workload {text!r:.40}: wanted 1 token or more each, as in 4000:500")
    return Workload(word, prompt, answer)
