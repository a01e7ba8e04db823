"""Conversations with a file, without planning where it goes."""

from pathlib import Path

from gemcut.engine import ContextOptions, Sampling
from gemcut.llama import Context, Model
from gemcut.runtime.chat.chat import Chat


def open_chat(
    path: Path,
    context: ContextOptions,
    sampling: Sampling | None = None,
    system: str | None = None,
    think: bool | None = None,
) -> Chat:
    """A conversation, which closes its model."""
    return Chat(Context(Model.load(path), context), sampling, system, think)
