"""The memory a run would take, asked of llama.cpp itself without reading a weight.

In another process: where llama.cpp meets a combination it does not support, it aborts.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

from gemcut.engine import ContextOptions, Memory, ModelOptions
from gemcut.errors import EngineError, GemcutError
from gemcut.llama.context import Context
from gemcut.llama.model import Model

_CHILD = "from gemcut.llama.memory import answer; answer()"


def probe(
    path: Path | str,
    model: ModelOptions | None = None,
    context: ContextOptions | None = None,
    timeout: float = 300,
) -> Memory:
    """Bytes of caches and computation that a run with these options takes, per device.

    The weights are not in it: llama.cpp logs 0 for what it does not load. Takes seconds, most of
    them for a large vocabulary.

    Args:
        timeout: seconds.

    Raises:
        EngineError: llama.cpp refuses the file or the options, aborts, or takes too long.
    """
    planned = replace(model or ModelOptions(), no_alloc=True, load_mode="none")
    request = {
        "path": str(path),
        "model": asdict(planned),
        "context": asdict(context or ContextOptions()),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "PYTHONPATH": _search_path(), "GGML_NO_BACKTRACE": "1"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EngineError(f"{path}: the memory probe took more than {timeout:g} s") from None
    return _read_answer(path, done)


def answer() -> None:
    """The child: read a request from stdin, write the answer to stdout as its last line."""
    request = json.load(sys.stdin)
    try:
        with Model.load(request["path"], ModelOptions(**request["model"])) as model:
            memory = Context(model, ContextOptions(**request["context"])).memory
        reply: dict[str, object] = {"memory": memory.to_dict()}
    except GemcutError as error:
        reply = {"error": str(error)}
    sys.stdout.write("\n" + json.dumps(reply))


def _read_answer(path: Path | str, done: "subprocess.CompletedProcess[str]") -> Memory:
    last = done.stdout.rpartition("\n")[2]
    if done.returncode or not last:
        how = signal.strsignal(-done.returncode) if done.returncode < 0 else "failed"
        said = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise EngineError(f"{path}: the memory probe ended ({how}), saying: {said}")
    reply = json.loads(last)
    if "error" in reply:
        raise EngineError(reply["error"])
    return Memory.from_dict(reply["memory"])


def _search_path() -> str:
    """Where this process finds its modules, so that the child finds the same ones."""
    return os.pathsep.join(folder or os.getcwd() for folder in sys.path)
