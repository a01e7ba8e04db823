"""BPE over characters, with ▁ for spaces and bytes as a last resort: llama.cpp's `llama`.

SentencePiece joins the pair that makes the piece with the highest score, tokenizer.json the pair
that is first in a list. transformers made that list from the scores, so the scores can be had back:
a piece's is its place among those that merges make. llama.cpp's converter gives every token the
same score if there is no tokenizer.model, and such a file splits text otherwise than the model
learned it; with a tokenizer.model its result is the one here.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

from gemcut.convert.vocabulary.document import (
    BYTE,
    BYTE_TOKEN,
    NORMAL,
    UNUSED,
    Document,
    distinct,
    unique,
)
from gemcut.convert.vocabulary.sentencepiece import Piece, SentencePiece
from gemcut.convert.vocabulary.structure import parts
from gemcut.errors import CheckpointError
from gemcut.gguf_file import Value

MODEL = "tokenizer.model"
_ADDED_SCORE, _UNUSED_SCORE = -1000.0, -10000.0


def from_document(document: Document, size: int) -> dict[str, Value]:
    """The metadata of a tokenizer.json that was made from a SentencePiece model.

    Raises:
        CheckpointError: more tokens than rows; another structure; merges without scores.
    """
    prefix, scores = _prefix(document), _scores(document)
    pieces = [_piece(token, scores) for token in document.table(size)]
    return _values(document, pieces, prefix, size)


def from_sentencepiece(document: Document, model: SentencePiece, size: int) -> dict[str, Value]:
    """The metadata of a SentencePiece model.

    Args:
        document: the tokens that were added to it later.

    Raises:
        CheckpointError: more pieces than rows, or no bytes among them.
    """
    if len(model.pieces) > size:
        raise CheckpointError(
            f"{document.where}: {len(model.pieces)} pieces; the embedding has {size} rows"
        )
    return _values(document, model.pieces, model.prefix, size)


def _values(
    document: Document, pieces: Sequence[Piece | None], prefix: bool, size: int
) -> dict[str, Value]:
    table = [*pieces, *[None] * (size - len(pieces))]
    unique(document.where, [(token.id, token.content) for token in document.added.values()])
    for token in document.added.values():
        if token.id >= size:
            raise CheckpointError(
                f"{document.where}: token {token.content!r} has the id {token.id}; "
                f"the embedding has {size} rows"
            )
        table[token.id] = Piece(token.text, _ADDED_SCORE, token.kind)
    full = [piece or Piece(f"[PAD{n}]", _UNUSED_SCORE, UNUSED) for n, piece in enumerate(table)]
    texts = distinct(document.where, [piece.text for piece in full])
    if lost := {f"<0x{byte:02X}>" for byte in range(256)}.difference(texts):
        raise CheckpointError(
            f"{document.where}: no token {min(lost)}, which llama.cpp needs for unknown characters"
        )
    said = document.settings.get("add_prefix_space")
    values = {
        "tokenizer.ggml.model": Value("str", "llama"),
        "tokenizer.ggml.pre": Value("str", "default"),
        "tokenizer.ggml.tokens": Value("[str]", texts),
        "tokenizer.ggml.scores": Value("[f32]", [piece.score for piece in full]),
        "tokenizer.ggml.token_type": Value("[i32]", [piece.kind for piece in full]),
    }
    if isinstance(said, bool) or not prefix:  # llama.cpp's default is a space in front of a text
        said = said if isinstance(said, bool) else prefix
        values["tokenizer.ggml.add_space_prefix"] = Value("bool", said)
    return values


def _piece(token: str | None, scores: Mapping[str, float]) -> Piece | None:
    if token is None:
        return None
    if BYTE_TOKEN.fullmatch(token):
        return Piece(token, 0.0, BYTE)
    return Piece(token, scores.get(token, 0.0), NORMAL)


def _scores(document: Document) -> dict[str, float]:
    """Pieces' scores: merged ones in the order of their merges, then what is left, by id.

    Raises:
        CheckpointError: two tokens that make a third have no merge, but llama.cpp would join them.
    """
    pairs = set(document.merges)
    merged = dict.fromkeys(left + right for left, right in document.merges)
    spelled = {token for token in document.ids if not BYTE_TOKEN.fullmatch(token)}
    lengths = {len(token) for token in spelled}
    for token in spelled - document.added.keys():
        for left, right in _halves(token, lengths):
            if left in spelled and right in spelled and (left, right) not in pairs:
                raise CheckpointError(
                    f"{document.where}: no merge of {left!r} and {right!r}, though {token!r} is a "
                    "token: not a SentencePiece model's merges, and llama.cpp would join them"
                )
    rest = sorted(spelled - merged.keys() - document.added.keys(), key=document.ids.__getitem__)
    return {token: float(-place) for place, token in enumerate([*merged, *rest])}


def _halves(token: str, lengths: Collection[int]) -> Iterator[tuple[str, str]]:
    """Its two parts, cut wherever both are as long as some token: of a token of megabytes seldom,
    and each cut copies all of it."""
    cuts = sorted(cut for cut in lengths if 0 < cut < len(token) and len(token) - cut in lengths)
    return ((token[:cut], token[cut:]) for cut in cuts)


def _prefix(document: Document) -> bool:
    """Whether a text gets a space in front, which like all others becomes ▁.

    Raises:
        CheckpointError: something else is done to a text, too.
    """
    content = document.content
    found = [
        *parts(content.get("normalizer"), "normalizers"),
        *parts(content.get("pre_tokenizer"), "pretokenizers"),
    ]
    match [{**part} for part in found]:
        case [{"type": "Metaspace", "replacement": "▁", "split": False} as space]:
            return bool(space.get("prepend_scheme", "always") != "never")
        case [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]:
            return True
        case [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]:
            return False
    raise CheckpointError(
        f"{document.where}: {found} does something else to a text than a SentencePiece model "
        "without normalization, which is what llama.cpp can do"
    )
