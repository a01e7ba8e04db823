"""A grammar over an answer: it waits while the model thinks, then forbids what would not fit."""

from time import thread_time

from gemcut.engine import Thought
from gemcut.errors import EngineError, UsageError
from gemcut.llama.candidates import Candidates
from gemcut.llama.library import log, require
from gemcut.llama.model import Model
from gemcut.llama.owner import Owner

# Of computing, while other answers wait: at once, and for each token on the average. Where the
# drawn token is forbidden, all of the vocabulary is asked about: 0.03 to 0.1 s for JSON and 262144.
_MOST_SECONDS, _SECONDS_EACH = 1.0, 0.1
# Tokens that are asked about before the time is looked at: an ambiguous grammar may take a
# millisecond for each.
_PART = 512


class Constraint(Owner):
    """llama.cpp's grammar sampler behind checks: what it is not asked first ends the process.

    Args:
        grammar: has passed `gemcut.gbnf.check_grammar`.

    llama.cpp has a grammar that waits for a trigger, too; the trigger is then part of what the
    grammar has to allow, and a regular expression is matched against the whole thought for every
    token of it.
    """

    def __init__(self, model: Model, grammar: str, thought: Thought | None) -> None:
        self._c, self._model, self._thought = require(), model, thought
        mark = log.count
        handle = self._c.llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root")
        if not handle:
            raise EngineError(f"llama.cpp refuses the grammar: {log.reason(mark)}")
        super().__init__("grammar", handle, self._c.llama_sampler_free)
        self._start()

    def _start(self) -> None:
        self._begun = False  # whether the grammar has taken a token
        self._waiting = self._thought is not None and self._thought.begun
        self._seen = b""  # the end of the thought so far
        self._left, self._since = _MOST_SECONDS, 0.0

    def reset(self) -> None:
        """Start a new answer."""
        self._c.llama_sampler_reset(self.handle)
        self._start()

    def allows(self, candidates: Candidates, token: int) -> bool:
        """Whether the answer may go on with a token."""
        if self._waiting or self._opens(token):
            return True
        return candidates.allows(self.handle, token)

    def restrict(self, candidates: Candidates) -> None:
        """Forbid whatever does not fit.

        Raises:
            UsageError: it takes so long that other answers would wait for this one.
        """
        self._since = thread_time()
        for _ in candidates.apply_by_parts(self.handle, _PART):
            self._check_time()

    def accept(self, token: int) -> None:
        """Go on with a token that `allows` allowed. Raises UsageError, as `restrict`."""
        if self._waiting:
            self._think(token)
        elif self._opens(token):
            self._waiting = True
        else:
            self._since = thread_time()
            self._c.llama_sampler_accept(self.handle, token)
            self._begun = True
            self._left = min(_MOST_SECONDS, self._left + _SECONDS_EACH)
            self._check_time()

    def _opens(self, token: int) -> bool:
        if self._begun or self._thought is None or not self._thought.open:
            return False
        return self._model.piece(token, special=True) == self._thought.open.encode()

    def _think(self, token: int) -> None:
        """Look for the end of the thought, in its text: the mark may be several tokens."""
        close = self._thought.close.encode() if self._thought else b""
        self._seen += self._model.piece(token, special=True)
        if close in self._seen:
            self._waiting, self._begun, self._seen = False, True, b""
        else:
            self._seen = self._seen[-len(close) :]

    def _check_time(self) -> None:
        """An ambiguous grammar can double the ways it follows with each character."""
        self._left += self._since
        self._since = thread_time()
        self._left -= self._since
        if self._left < 0:
            raise UsageError(
                f"the grammar takes more than {_MOST_SECONDS} s at once, or {_SECONDS_EACH} s for "
                "each token: it is too ambiguous, let its alternatives begin differently"
            )
