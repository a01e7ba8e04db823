"""Questions with answers to choose from, as all formats of files are read."""

from dataclasses import dataclass

from gemcut.errors import TextError

MOST_CHOICES = 100  # llama.cpp's limit, too
HELLASWAG, WINOGRANDE = "hellaswag", "winogrande"
MULTIPLE_CHOICE, JSONL = "multiple-choice", "jsonl"
KINDS = (HELLASWAG, WINOGRANDE, MULTIPLE_CHOICE, JSONL)


@dataclass(frozen=True)
class Item:
    """A question: which of the choices makes the likeliest text?

    A text is context + joint + choice + ending. Where there is an ending, it is what is scored,
    given the choice (Trinh and Le, "A Simple Method for Commonsense Reasoning", arXiv 1806.02847);
    otherwise the choice itself is.

    correct: numbers of the right choices. domain: what the question is about, if the file says.
    """

    context: str
    choices: tuple[str, ...]
    correct: frozenset[int]
    joint: str = " "
    ending: str = ""
    domain: str = ""

    def __post_init__(self) -> None:
        if not 2 <= len(self.choices) <= MOST_CHOICES:
            raise TextError(f"{len(self.choices)} choices, wanted 2 to {MOST_CHOICES}")
        if not all(self.choices):
            raise TextError("a choice is empty")
        if not self.correct or not all(0 <= each < len(self.choices) for each in self.correct):
            given = ", ".join(map(str, sorted(self.correct))) or "none"
            raise TextError(f"right choices: {given}; wanted some of 0 to {len(self.choices) - 1}")

    def texts(self) -> tuple[str, ...]:
        """The whole texts, one for each choice."""
        return tuple(self.begun(choice) + self.ending for choice in self.choices)

    def begun(self, choice: str) -> str:
        """The text up to the end of a choice."""
        return self.context + self.joint + choice


@dataclass(frozen=True)
class Task:
    """A file of questions, with the digest of its bytes."""

    name: str
    kind: str
    sha256: str
    items: tuple[Item, ...]
