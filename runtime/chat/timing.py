"""How long an answer took."""

from dataclasses import dataclass


@dataclass
class Timing:
    """How long an answer took; the time its reader needed is not counted."""

    cached: int = 0  # tokens of the prompt that an earlier turn had read
    prompt_tokens: int = 0  # tokens of the prompt read now
    prompt_seconds: float = 0.0
    answer_tokens: int = 0  # tokens computed one by one: all drawn but the first
    answer_seconds: float = 0.0

    @property
    def prefill(self) -> float:
        """Tokens of the prompt read per second."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_tokens else 0.0

    @property
    def decode(self) -> float:
        """Tokens of the answer computed per second; 0 if it had one at most."""
        return self.answer_tokens / self.answer_seconds if self.answer_tokens else 0.0
