"""Conversations as tokens: what a model has read when it begins to answer, and how answers end."""

from collections.abc import Sequence
from datetime import datetime

from gemcut.engine import Thought
from gemcut.errors import UsageError
from gemcut.eval.texts.text import Turn
from gemcut.llama import Model
from gemcut.runtime.language.prompt import prompt_tokens, written
from gemcut.runtime.language.template import Template
from gemcut.runtime.language.thoughts import CHANNEL, THOUGHT_MARKS, speaks_harmony, thought_of

# What templates are told if they ask for the date: the same text has the same tokens tomorrow.
_DAY = datetime(2025, 1, 1)
# Says nothing of the text that is then framed as the answer to it.
_NEUTRAL: Sequence[Turn] = (("user", "Write a text."),)


class Dialogue:
    """A file's chat template at work.

    Raises:
        UsageError: the file has none.
        EngineError: it has one that is not valid.
    """

    def __init__(self, vocabulary: Model) -> None:
        source = vocabulary.chat_template
        if not source:
            raise UsageError(
                f"{vocabulary.path}: there is no chat template in it; frame the text raw or bos"
            )
        bos, eos = written(vocabulary, vocabulary.bos), written(vocabulary, vocabulary.eos)
        self._template = Template(source, bos, eos, today=_DAY)
        self._vocabulary = vocabulary

    def prompt(self, messages: Sequence[Turn], think: bool | None = None) -> list[int]:
        """A conversation and the start of the model's turn; `think` as for `Template.render`.

        Raises:
            EngineError: the template refuses the conversation.
        """
        text = self._template.render(_as_messages(messages), think=think)
        return prompt_tokens(self._vocabulary, text, special=True)

    def opening(self, messages: Sequence[Turn] = _NEUTRAL) -> list[int]:
        """The same as far as the model's answer itself: thoughts are off, or over already.

        Models that are trained to think expect an empty thought before an answer without one.
        Without a conversation, a short one that is about nothing.

        Raises:
            EngineError: the template refuses the conversation.
        """
        text = self._template.render(_as_messages(messages), think=False)
        thought = thought_of(self._vocabulary, text, think=False)
        if thought and thought.begun:
            text += self._end_of(thought)
        return prompt_tokens(self._vocabulary, text, special=True)

    def ending(self, messages: Sequence[Turn]) -> list[int]:
        """What the template writes after the last turn, as far as the token that ends an answer.

        Raises:
            EngineError: the template refuses the conversation.
        """
        text = self._template.render(_as_messages(messages), think=False, generate=False)
        _, found, rest = text.rpartition(messages[-1][1].strip())
        if not found:  # the template writes the answer in other words
            return []
        tokens = self._vocabulary.tokenize(rest, add_special=False, parse_special=True).tolist()
        ends = [at for at, token in enumerate(tokens) if self._vocabulary.is_end(token)]
        return tokens[: ends[0] + 1] if ends else []

    def _end_of(self, thought: Thought) -> str:
        """How a thought that is open ends: Gemma's and harmony's without white space."""
        if thought.close == THOUGHT_MARKS[CHANNEL] or speaks_harmony(self._vocabulary):
            return thought.close
        return f"\n{thought.close}\n\n"


def _as_messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]
