"""What was read, kept in a file from one run to the next."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gemcut.cli.common import say
from gemcut.errors import EngineError, OutputError
from gemcut.outputs import check_outputs

if TYPE_CHECKING:
    from gemcut.runtime.chat.chat import Chat


@contextmanager
def prompt_cache(chat: "Chat", path: Path | None) -> Iterator[None]:
    """Begin with what a file remembers, and let it remember what was read in the end.

    Raises:
        OutputError: the file is there and no such memory: it is not overwritten.
    """
    if path is None:
        yield
        return
    known = _restore(chat, path)
    try:
        yield
    finally:
        if chat.generator.read and chat.generator.read != known:
            _save(chat, path)


def _restore(chat: "Chat", path: Path) -> list[int]:
    """The tokens that the file remembers; none, if it is not there or of another model."""
    from gemcut.llama.session import is_session

    check_outputs([path])
    if not path.exists():
        return []
    if not is_session(path):
        raise OutputError(f"{path}: is there, and no prompt cache: take another name")
    try:
        say(f"{path}: {chat.generator.restore(path)} tokens are known")
    except EngineError as error:
        say(f"{error}; it will be replaced")
    return list(chat.generator.read)


def _save(chat: "Chat", path: Path) -> None:
    try:
        chat.generator.save(path)
    except (EngineError, OutputError) as error:
        say(f"the prompt cache is not kept: {error}")
