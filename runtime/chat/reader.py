"""What a sequence of a context has read, so that a prompt is not read twice."""

from collections.abc import Sequence

from gemcut.llama import Checkpoint, Context

_STEP = 1024  # tokens that are compared at once


class Reader:
    """The tokens that one sequence's cache holds.

    Attributes:
        read: those tokens.
    """

    def __init__(self, context: Context, seq: int = 0) -> None:
        self._context, self._seq = context, seq
        self.read: list[int] = []
        self._mark: Checkpoint | None = None  # of tokens that `read` begins with

    def kept(self, tokens: Sequence[int]) -> int:
        """How many tokens of a prompt need not be read; the last one must, for its logits."""
        shared = min(shared_prefix(tokens, self.read), len(tokens) - 1)
        if self._context.reaches(self._seq, shared):
            return shared
        return self._mark.held if self._mark and self._mark.held <= shared else 0

    def keep(self, tokens: Sequence[int]) -> int:
        """Go back to what a prompt shares with the cache; how many of its tokens that are."""
        kept, mark = self.kept(tokens), self._mark
        if mark and kept == mark.held and not self._context.reaches(self._seq, kept):
            kept = self._context.rewind(self._seq, mark)
        else:
            kept = self._context.forget(self._seq, kept)
        self.read = list(tokens[:kept])
        if mark and mark.held > kept:
            self._mark = None
        return kept

    def mark(self) -> None:
        """Remember this position, where a cache could not go back to it.

        The next turn of a conversation often differs from this one's end: templates leave thoughts
        out. A window has then passed, and all would have to be read again.
        """
        if self.read and not self._context.goes_back:
            self._mark = None  # its memory is free before more is taken
            self._mark = self._context.checkpoint(self._seq)

    def retreat(self) -> None:
        """Go back to the last mark, if there is one: what is kept for later may go on otherwise."""
        if self._mark:
            del self.read[self._context.rewind(self._seq, self._mark) :]

    def drop(self) -> None:
        """Empty the cache."""
        self._context.forget(self._seq)
        self.read, self._mark = [], None


def shared_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences have in common from the start."""
    length, same = min(len(first), len(second)), 0
    while same < length and first[same : same + _STEP] == second[same : same + _STEP]:
        same += _STEP
    same = min(same, length)
    while same < length and first[same] == second[same]:
        same += 1
    return same
