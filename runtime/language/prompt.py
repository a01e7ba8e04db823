"""From a text to the tokens a model reads, and its chat template where the file has one."""

from gemcut.errors import ContextFull
from gemcut.llama import Model
from gemcut.runtime.language.template import Template


def open_template(model: Model) -> Template | None:
    """The file's chat template, or None.

    Raises:
        EngineError: it has one that is not valid.
    """
    source = model.chat_template
    if not source:
        return None
    return Template(source, written(model, model.bos), written(model, model.eos))


def prompt_tokens(model: Model, text: str, special: bool) -> list[int]:
    """The tokens of a prompt. Most templates write BOS themselves; a second one would harm.

    Args:
        special: read "<bos>" and the like as tokens, as a rendered template means them.

    Raises:
        TextError: the text is not Unicode.
    """
    tokens: list[int] = model.tokenize(text, add_special=False, parse_special=special).tolist()
    bos = model.bos
    if model.add_bos and bos is not None and tokens[:1] != [bos]:
        tokens.insert(0, bos)
    return tokens


def check_length(model: Model, text: str, n_ctx: int) -> None:
    """Refuse a text that cannot fit without tokenizing megabytes of it. Raises ContextFull."""
    if len(text) > n_ctx and (least := model.least_tokens(text)) >= n_ctx:
        raise ContextFull(least, n_ctx, least=True)


def written(model: Model, token: int | None) -> str:
    """A special token as a template writes it."""
    return "" if token is None else model.piece(token, special=True).decode(errors="replace")
