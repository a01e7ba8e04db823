"""A sequence's cache in a file: llama.cpp's own, with what it belongs to and a seal at its end.

llama.cpp believes such a file: its positions and token numbers are used as they are, and it says
nothing of the model's weights. So a file is sealed with a secret of this user's, and no byte of one
that was not is shown to llama.cpp. Layout, after llama.cpp's bytes: the facts (JSON), the seal
(BLAKE2b, 32 bytes, of all before and after it), the length of the facts (u32, little endian), the
magic.
"""

import hashlib
import json
import os
import secrets
import struct
from collections.abc import Sequence
from contextlib import suppress
from ctypes import byref, c_int32, c_size_t
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gemcut.engine import PINNED
from gemcut.errors import EngineError, OutputError
from gemcut.llama.identity import identity
from gemcut.user_cache import cache_folder

if TYPE_CHECKING:
    from gemcut.llama.sequences import Sequences

_MAGIC, _END, _SEAL, _SECRET = b"gemcutKV", struct.Struct("<I8s"), 32, 32
_MOST_FACTS = 4096
_PIECE = 1 << 20


def write(sequences: "Sequences", path: Path, seq: int, tokens: Sequence[int]) -> None:
    """See `Sequences.save`."""
    c, partial = sequences._c, path.with_name(f"{path.name}.{os.getpid()}.partial")
    array = (c_int32 * len(tokens))(*tokens)
    try:
        secret = _secret() or _make_secret()
        name, handle = os.fsencode(partial), sequences.handle
        if not c.llama_state_seq_save_file(handle, name, seq, array, len(tokens)):
            raise OutputError(f"{path}: cannot be written: is there room, may it be written to?")
        with partial.open("r+b") as file:
            facts = json.dumps(_facts(sequences)).encode()
            file.seek(0, os.SEEK_END)
            file.write(facts)
            end = _END.pack(len(facts), _MAGIC)
            file.write(_seal(file, file.tell(), end, secret) + end)
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def read(sequences: "Sequences", path: Path, seq: int) -> list[int] | None:
    """See `Sequences.restore`; None if llama.cpp refuses a file that is ours."""
    try:
        with path.open("rb") as file:
            found = _checked(file, path)
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror}") from error
    for name, wanted in _facts(sequences).items():
        if found.get(name) != wanted:
            raise EngineError(f"{path}: was saved with another {name}: read the text anew")
    c, count = sequences._c, c_size_t()
    array = (c_int32 * sequences.n_ctx_seq)()
    arguments = (os.fsencode(path), seq, array, len(array), byref(count))
    done = c.llama_state_seq_load_file(sequences.handle, *arguments)
    return list(array[: count.value]) if done else None


def is_session(path: Path) -> bool:
    """Whether a file looks like one of `write`, whosever it is."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _END.size))
            return file.read().endswith(_MAGIC)
    except OSError:
        return False


def _checked(file: IO[bytes], path: Path) -> dict[str, Any]:
    """The facts of a file that this user sealed."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END.size))
    end = file.read(_END.size)
    length, magic = _END.unpack(end) if len(end) == _END.size else (0, b"")
    sealed = size - _END.size - _SEAL
    if magic != _MAGIC or not 2 <= length <= min(_MOST_FACTS, sealed):
        raise EngineError(f"{path}: not a whole file of a cache as gemcut saves it")
    file.seek(sealed)
    seal, secret = file.read(_SEAL), _secret()
    if not secret or not secrets.compare_digest(seal, _seal(file, sealed, end, secret)):
        raise EngineError(
            f"{path}: was changed, or not saved by this user on this machine: read the text anew"
        )
    file.seek(sealed - length)
    facts: dict[str, Any] = json.loads(file.read(length))
    return facts


def _seal(file: IO[bytes], size: int, end: bytes, secret: bytes) -> bytes:
    """The seal of the first `size` bytes and of the last; leaves the file where it belongs."""
    digest = hashlib.blake2b(key=secret, digest_size=_SEAL)
    file.seek(0)
    while size > 0 and (piece := file.read(min(size, _PIECE))):
        digest.update(piece)
        size -= len(piece)
    digest.update(end)
    return digest.digest()


def _secret() -> bytes | None:
    """This user's secret, if there is one."""
    try:
        secret = _secret_file().read_bytes()
    except OSError:
        return None
    return secret if len(secret) == _SECRET else None


def _make_secret() -> bytes:
    """A new secret of this user's. Raises OSError."""
    path, secret = _secret_file(), secrets.token_bytes(_SECRET)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    with open(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(secret)
    fresh.replace(path)  # whole at once, so that nobody reads half of it
    return secret


def _secret_file() -> Path:
    return cache_folder() / "session.key"


def _facts(sequences: "Sequences") -> dict[str, str | int]:
    """What must be the same where a file is restored."""
    options = sequences.options
    return {
        "version of llama.cpp": PINNED,
        "model": identity(sequences.model),
        "type of keys": options.type_k,
        "type of values": options.type_v,
        "flash attention": str(options.flash_attention),
        "number of streams": 1 if options.kv_unified else options.n_seq,
    }
