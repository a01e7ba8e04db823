"""How models think aloud: the marks around a thought, in the families in common use."""

import re
from collections.abc import Mapping

from gemcut.engine import Thought
from gemcut.llama import Model

CHANNEL = "<|channel>"  # Gemma 4's: the line after it holds the channel's name
THOUGHT_MARKS: Mapping[str, str] = {
    CHANNEL: "<channel|>",
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|inner_prefix|>": "<|inner_suffix|>",
    "◁think▷": "◁/think▷",
}
# OpenAI's harmony: <|start|>ROLE<|channel|>NAME<|message|>TEXT<|end|>, one after another.
START, NAME, TEXT, END = HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
_FINAL = f"{NAME}final{TEXT}"
_OPENING = re.compile("(" + "|".join(map(re.escape, THOUGHT_MARKS)) + r")(?:(?<=l>)thought)?\Z")


def opens_thought(prompt: str) -> bool:
    """Whether a prompt ends inside a thought, as some templates make the model think."""
    return _OPENING.search(prompt.rstrip()) is not None


def thought_of(model: Model, prompt: str, think: bool | None = None) -> Thought | None:
    """Where a grammar has to wait, given the rendered prompt: `Sampling.thought`.

    Args:
        think: whether thoughts were asked for; None: as the template likes.
    """
    if speaks_harmony(model):
        return None if prompt.endswith(_FINAL) else Thought(_FINAL, begun=True)
    if begun := _OPENING.search(prompt.rstrip()):
        return Thought(THOUGHT_MARKS[begun[1]], begun=True)
    known = [mark for mark in THOUGHT_MARKS if token_of(model, mark) is not None]
    return Thought(THOUGHT_MARKS[known[0]], known[0]) if known and think is not False else None


def speaks_harmony(model: Model) -> bool:
    """Whether the model's answers are in OpenAI's harmony format."""
    return all(token_of(model, mark) is not None for mark in (NAME, TEXT))


def token_of(model: Model, mark: str) -> int | None:
    """The one token that a mark is, if it is one; otherwise models spell it."""
    tokens = model.tokenize(mark, add_special=False, parse_special=True)
    single = len(tokens) == 1 and model.piece(int(tokens[0]), special=True) == mark.encode()
    return int(tokens[0]) if single else None
