"""Files with types per expert, made of stock files."""

import numpy as np

from gemcut import ggml
from gemcut.gguf_experts import expert_name, marked
from gemcut.gguf_file import GGUFFile, TensorInfo
from gemcut.gguf_layout import layouts
from gemcut.gguf_writer import GGUFWriter


def is_stack(info):
    return len(info.shape) == 3 and info.name.endswith("_exps.weight")


def encoded(info, rows, kind):
    """Rows of a tensor's, as they are or in another type."""
    if kind == info.type:
        return rows
    return ggml.quantize(kind, ggml.dequantize(info.type, rows, info.shape[-1]))


def write(path, stock, types=None, split_size=None, metadata=None):
    """Write a stock file's weights with a type for every expert; the (first) path.

    Args:
        types: gives the name of a type for a stack's name and an expert's number, or None for a
            stack that stays one tensor; without it every expert has the stack's own.
    """
    with GGUFFile(stock) as file:
        tensors = {}
        for info in file.tensors.values():
            if is_stack(info) and (types is None or types(info.name, 0)):
                tensors |= _experts(file, info, types)
            else:
                tensors[info] = file.rows(info.name)
        values = marked(file.metadata) | (metadata or {})
        made = layouts(path, values, list(tensors), split_size)
        data = {info.name: rows for info, rows in tensors.items()}
        for each, layout in made.items():
            with GGUFWriter(each, layout.metadata, layout.tensors) as writer:
                for info in layout.tensors:
                    writer.write(info.name, 0, np.array(data[info.name]))
    return next(iter(made))


def write_stock(path, stock, kind):
    """The same file with all stacks of experts in one type."""
    with GGUFFile(stock) as file:
        infos = [
            TensorInfo(
                info.name, info.shape, ggml.type_named(kind) if is_stack(info) else info.type
            )
            for info in file.tensors.values()
        ]
        with GGUFWriter(path, file.metadata, infos) as writer:
            for old, new in zip(file.tensors.values(), infos, strict=True):
                writer.write(new.name, 0, np.array(encoded(old, file.rows(old.name), new.type)))
    return path


def _experts(file, info, types):
    count, rows, columns = info.shape
    found = {}
    for number in range(count):
        kind = ggml.type_named(types(info.name, number)) if types else info.type
        data = encoded(info, file.rows(info.name, number * rows, (number + 1) * rows), kind)
        found[TensorInfo(expert_name(info.name, number), (rows, columns), kind)] = data
    return found
