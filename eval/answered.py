"""The reference's own answers, drawn once: kept in the user's cache, and found there again."""

from collections.abc import Callable, Sequence
from hashlib import sha256
from importlib.metadata import version
from json import dumps
from pathlib import Path

from gemcut.engine import ContextOptions, ModelOptions
from gemcut.errors import OutputError
from gemcut.eval.files import File, check_same
from gemcut.eval.texts import own
from gemcut.eval.texts.text import Text
from gemcut.llama import Context, Model
from gemcut.user_cache import cache_folder

SEED = 1
MOST_TOKENS = 256  # of an answer


def answers(
    file: File,
    prompts: Sequence[Text],
    n_ctx: int,
    options: ModelOptions | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    folder: Path | None = None,
) -> list[own.Answer]:
    """What a file says to prompts.

    Args:
        folder: where answers are kept; None: in the user's cache.

    Raises:
        TextError: a prompt fills the context, or what is kept is damaged.
        EngineError: the file cannot be loaded or run, or was changed meanwhile.
        OutputError: the answers cannot be kept.
    """
    folder = folder or cache_folder() / "answers"
    path = folder / f"{_key(file, prompts, n_ctx)}.jsonl"
    if not path.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be made: {error.strerror}") from error
        how = ContextOptions(n_ctx, threads=threads, n_outputs=1)
        with Model.load(file.path, options) as model, Context(model, how) as context:
            asked = context, prompts, file.fingerprint, SEED, None, MOST_TOKENS, None, progress
            said = list(own.answers(*asked))
            check_same(file)
            own.write(path, said, model)
    with Model.load(file.path, ModelOptions(vocab_only=True)) as vocabulary:
        return own.read(path, vocabulary)


def _key(file: File, prompts: Sequence[Text], n_ctx: int) -> str:
    asked = [[*prompt.messages] for prompt in prompts]
    how = [file.fingerprint, version("llama-cpp-python"), SEED, MOST_TOKENS, n_ctx]
    return sha256(dumps([how, asked]).encode()).hexdigest()[:32]
