"""Sizes as people write and read them: "12G", "14.5 GB", "5.07 MB", a context of "32k".

K, M, G and T, with or without B, are decimal; KiB, MiB, GiB and TiB are binary; a plain number is
bytes. Only a context counts k as 1024.
"""

import re
from fractions import Fraction

from gemcut.errors import UsageError

_PREFIXES = "KMGT"
_SIZE = re.compile(r"(\d+(?:\.\d+)?|\.\d+) *(?:B|([KMGT])(iB|B)?)?", re.IGNORECASE | re.ASCII)
_CONTEXT = re.compile(r"(\d+(?:\.\d+)?|\.\d+) *([KM])?", re.IGNORECASE | re.ASCII)
_LONGEST = 40  # characters: bounded, so that no text makes a number of a million digits


def parse_size(text: str) -> int:
    """The bytes that `text` means, rounded down: "12G", "14.5 GB", "12GiB", "5000000".

    Raises UsageError for anything else, a fraction of a byte included.
    """
    match = _SIZE.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    if match is None:
        raise UsageError(
            f"{text[:_LONGEST]!r} is not a size: write 12G or 14.5GB (decimal), 12GiB (binary),"
            " or a plain number of bytes"
        )
    number, prefix, suffix = Fraction(match[1]), match[2], match[3] or ""
    if prefix is None and number.denominator > 1:
        raise UsageError(f"{text!r} is not a whole number of bytes: is a unit missing, as in 1.5G?")
    base = 1024 if suffix.lower() == "ib" else 1000
    power = _PREFIXES.index(prefix.upper()) + 1 if prefix else 0
    return int(number * base**power)


def parse_context(text: str) -> int:
    """The tokens that a context length means: "8192", or "32k" with k as 1024 and m as 1024 k.

    Raises UsageError for anything else, a fraction of a token included.
    """
    match = _CONTEXT.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    tokens = Fraction(match[1]) * 1024 ** " KM".index((match[2] or " ").upper()) if match else None
    if tokens is None or tokens.denominator > 1:
        raise UsageError(
            f"{text[:_LONGEST]!r} is not a context length: write a number of tokens, as in 8192 or"
            " 32k (k is 1024)"
        )
    return int(tokens)


def format_size(size: int) -> str:
    """A number of bytes for people, decimal and with its unit: "5.07 MB", "512 B", "-1.20 GB"."""
    sign, rest = ("-" if size < 0 else ""), abs(size)
    if rest < 1000:
        return f"{sign}{rest} B"
    power = 1
    # Two decimals: 999,995 bytes would round up to "1000.00 KB".
    while power < len(_PREFIXES) and rest >= 999_995 * 1000 ** (power - 1):
        power += 1
    return f"{sign}{rest / 1000**power:.2f} {_PREFIXES[power - 1]}B"
