"""Whether llama.cpp has an architecture: it is shown a file with nothing but the name in it."""

from pathlib import Path
from tempfile import TemporaryDirectory

from gemcut.engine import ModelOptions
from gemcut.errors import EngineError
from gemcut.gguf_file import Value
from gemcut.gguf_layout import header
from gemcut.llama.model import Model

_REFUSED = "unknown model architecture"


def is_known(architecture: str) -> bool:
    """Whether llama.cpp can load models of this architecture; takes a millisecond.

    Raises:
        EngineError: llama.cpp is missing or of another version.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "architecture.gguf"
        path.write_bytes(header({"general.architecture": Value("str", architecture)}, ()))
        try:
            Model.load(path, ModelOptions(vocab_only=True)).close()
        except EngineError as error:
            return _REFUSED not in str(error)
    return True
