"""Damage to zip archives, to numpy's arrays and pickles within, and to headers of safetensors."""

import io
import lzma
import struct
import warnings
import zipfile
import zlib
from random import Random

from tests.fuzz.mutate import BYTES, Mutator, json_values

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_UNREADABLE = (
    *(zipfile.BadZipFile, OSError, ValueError, zlib.error, lzma.LZMAError, RuntimeError, EOFError),
    struct.error,
)
_SHAPES = (
    *(
        "()",
        "(0,)",
        "(1,)",
        "(-1,)",
        "(1000000000000,)",
        "(2, 2)",
        "(1, 1, 1)",
        "(True,)",
        "(1e3,)",
    ),
    *("[1]", "None", "(" * 200, "(1" + "," * 3, "((1,),)", "{}", "'x'"),
)
_KINDS = (
    "'<f4'",
    "'<f8'",
    "'|O'",
    "'|b1'",
    "'<i8'",
    "'>f4'",
    "[('a', '<f4')]",
    "'|V0'",
    "'<U9'",
    "3",
)


def members(random: Random, data: bytes) -> bytes:
    """A member of the archive is damaged, renamed, packed otherwise, gone or there twice."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except _UNREADABLE:
        return random.choice(BYTES)(random, data)
    if not found:
        return random.choice(BYTES)(random, data)
    at = random.randrange(len(found))
    name, content = found[at]
    match random.randrange(8):
        case 0:
            del found[at]
        case 1:
            found[at] = (random.choice(("", "../x", "/x", "x/data.pkl", name + "x")), content)
        case 2:
            found[at] = (name, random.choice(found)[1])
        case 3 if content.startswith(b"\x93NUMPY"):
            found[at] = (name, array(random, content))
        case _:
            found[at] = (name, random.choice(BYTES)(random, content))
    out = io.BytesIO()
    method = random.choice((*_METHODS, 0, 0, 0))
    with zipfile.ZipFile(out, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that is there twice
        for each, inner in found:
            archive.writestr(zipfile.ZipInfo(each or "x"), inner, archive.compression)
    return out.getvalue()


def array(random: Random, data: bytes) -> bytes:
    """An array whose header says something else; with as many bytes behind it as before."""
    (length,) = struct.unpack_from("<H", data.ljust(10, b"\0"), 8)
    order, shape, kind = (
        random.choice(("False", "True", "0")),
        random.choice(_SHAPES),
        random.choice(_KINDS),
    )
    text = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}"
    raw = text.encode().ljust(length - 1)[: max(length - 1, len(text))] + b"\n"
    return data[:8] + struct.pack("<H", len(raw)) + raw + data[10 + length :]


ARCHIVE: tuple[Mutator, ...] = (*[members] * 8, *BYTES)


def safetensors_header(random: Random, data: bytes) -> bytes:
    """The header's JSON is another; its length is right."""
    (length,) = struct.unpack_from("<Q", data) if len(data) >= 8 else (0,)
    text = json_values(random, data[8 : 8 + length])
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


SAFETENSORS: tuple[Mutator, ...] = (*[safetensors_header] * 8, *BYTES)
