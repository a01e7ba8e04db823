"""SentencePiece's own file, `tokenizer.model`: pieces with their scores and kinds.

It is a protobuf message (sentencepiece_model.proto); the few fields that are needed are read here,
each length checked against the bytes that are left.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gemcut.convert.vocabulary.document import NORMAL
from gemcut.errors import CheckpointError

_MAX_BYTES = 100_000_000
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types
_BPE = 2  # TrainerSpec.ModelType; the default, 1, is Unigram


@dataclass(frozen=True)
class Piece:
    """One token. The numbers of the kinds are llama.cpp's token types, too."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePiece:
    """A model: its pieces, and whether a text gets a space in front."""

    pieces: tuple[Piece, ...]
    prefix: bool


def read(path: Path) -> SentencePiece:
    """Read a SentencePiece model.

    Raises:
        CheckpointError: not one, cut short, or of another kind than BPE.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{path}: larger than {_MAX_BYTES} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return _model(path, data)
    except (ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: not a SentencePiece model: {error}") from error


def _model(path: Path, data: bytes) -> SentencePiece:
    pieces, prefix, kind = [], True, 1
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            pieces.append(_piece(value))
        elif field == 2 and isinstance(value, bytes):
            kind = _number(value, 3, kind)
        elif field == 3 and isinstance(value, bytes):
            prefix = bool(_number(value, 3, int(prefix)))
    if not pieces:
        raise ValueError("it has no pieces")
    if kind != _BPE:
        raise CheckpointError(f"{path}: SentencePiece model of kind {kind}, wanted {_BPE}, BPE")
    return SentencePiece(tuple(pieces), prefix)


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif field == 2 and isinstance(value, bytes):
            score = struct.unpack("<f", value)[0]
        elif field == 3 and isinstance(value, int):
            kind = value
    if not 1 <= kind <= 6:
        raise ValueError(f"the piece {text!r} has the type {kind}")
    return Piece(text, score, kind)


def _number(data: bytes, wanted: int, default: int) -> int:
    """A message's whole number; the last one counts."""
    found = [value for field, value in _fields(data) if field == wanted and isinstance(value, int)]
    return found[-1] if found else default


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """A message's fields: number, and whole number or bytes."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        if tag & 7 == _VARINT:
            value, position = _varint(data, position)
            yield tag >> 3, value
            continue
        length = {_FIXED64: 8, _FIXED32: 4}.get(tag & 7)
        if tag & 7 == _BYTES:
            length, position = _varint(data, position)
        if length is None or length > len(data) - position:
            raise ValueError(f"a damaged field at byte {position}")
        yield tag >> 3, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position == len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"a damaged number at byte {position}")
