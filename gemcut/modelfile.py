"""A Modelfile, by which `ollama create` imports a GGUF.

The format is read off Ollama's parser (`parser/parser.go`): a value goes on to the end of the line,
or of the quotes around it, single or triple ones; there are no escapes, and characters that cannot
be printed are dropped. Templates are left to Ollama, which has its own for the architecture or
finds one by the file's `tokenizer.chat_template`; a translation could only be wrong.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from gemcut.errors import UsageError
from gemcut.gguf_file import Value
from gemcut.vocabulary import vocabulary

# Ollama's parameters, and the keys of `general.sampling` that say the same.
_SAMPLING = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "penalty_repeat",
    "repeat_last_n": "penalty_last_n",
}
_TRIPLE = '"""'


@dataclass(frozen=True)
class Run:
    """How the file was planned to run, as far as Ollama can be told.

    n_ctx: tokens of each conversation; None: the file was made for no context.
    gpu_layers: of the last ones, the output counted as one; None: Ollama decides.
    note: what it cannot be told, and is said in a comment.
    """

    n_ctx: int | None = None
    gpu_layers: int | None = None
    note: str | None = None


def modelfile(files: Sequence[PurePath], metadata: Mapping[str, Value], run: Run) -> str:
    """The text of a Modelfile.

    Args:
        files: the GGUF, or all its parts in order, absolute or as seen from the Modelfile.

    Raises:
        UsageError: a path that a Modelfile cannot hold.
    """
    return "".join(f"{line}\n" for line in _lines(files, metadata, run))


def _lines(files: Sequence[PurePath], metadata: Mapping[str, Value], run: Run) -> Iterator[str]:
    yield "# ollama create NAME -f Modelfile"
    if len(files) > 1:
        yield "# A file in several parts takes Ollama 0.35 or newer."
    for path in files:
        yield f"FROM {path_text(path)}"
    if "tokenizer.chat_template" not in metadata:
        yield "# The file has no chat template: without a TEMPLATE here, prompts are passed bare."
    if run.n_ctx is not None:
        yield f"PARAMETER num_ctx {run.n_ctx}"
    if run.gpu_layers is not None:
        yield f"PARAMETER num_gpu {run.gpu_layers}"
    if run.note:
        yield f"# {run.note}"
    for name, key in _SAMPLING.items():
        value = metadata.get(f"general.sampling.{key}")
        if value is not None and isinstance(value.data, int | float):
            said = f"{value.data:g}" if isinstance(value.data, float) else value.data
            yield f"PARAMETER {name} {said}"
    tokens = vocabulary(metadata)
    for text in dict.fromkeys(token.text for token in tokens.ends) if tokens else ():
        if (quoted := _quoted(text)) is not None:
            yield f"PARAMETER stop {quoted}"


def path_text(path: PurePath) -> str:
    """A path as a Modelfile has it. Raises UsageError: it cannot hold it."""
    text = str(path) if path.is_absolute() else f"./{path.as_posix()}"
    if (quoted := _quoted(text)) is None:
        raise UsageError(f"{path}: a Modelfile cannot hold this path: rename the file")
    return quoted if " " in text or text != text.strip() else quoted.strip('"')


def _quoted(text: str) -> str | None:
    """A value in quotes; None: there is no way to write it."""
    if not text or not text.isprintable() or _TRIPLE in text or text.endswith('"'):
        return None
    return f"{_TRIPLE}{text}{_TRIPLE}" if '"' in text else f'"{text}"'
