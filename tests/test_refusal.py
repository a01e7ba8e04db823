"""What llama.cpp's log says of a refusal: whether memory was short, where, and of how much."""

import pytest

from gemcut.errors import OutOfMemory
from gemcut.llama.library import log
from gemcut.llama.refusal import refusal


@pytest.mark.parametrize(
    ("lines", "device", "wanted"),
    [
        (["ggml_aligned_malloc: insufficient memory (attempted to allocate  5.00 MB)"], None, 0),
        (
            ["x: failed to allocate buffer of size 512", "y: unable to allocate CPU buffer"],
            "CPU",
            512,
        ),
        (
            [
                "x: allocating 20.00 MiB on device 1: cudaMalloc failed: out of memory",
                "alloc_tensor_range: failed to allocate CUDA1 buffer of size 20971520",
                "error loading model: unable to allocate CUDA1 buffer",
            ],
            "CUDA1",
            20971520,
        ),
        (["failed to initialize the context: failed to allocate compute pp buffers"], None, 0),
        (["failed to initialize the context: failed to allocate buffer for kv cache"], None, 0),
        (
            ["error loading model: unable to allocate RPC0[127.0.0.1:1] buffer"],
            "RPC0[127.0.0.1:1]",
            0,
        ),
        (
            ["ggml_vulkan: Device memory allocation of size 1 failed.", "ErrorOutOfDeviceMemory"],
            None,
            0,
        ),
        (["error loading model: mmap failed: Cannot allocate memory"], None, 0),
        (["error loading model: std::bad_alloc"], None, 0),
    ],
)
def test_a_shortage_is_read_from_the_log(lines, device, wanted):
    """In the words of any backend."""
    mark = log.count
    for line in lines:
        log.take(4, f"{line}\n".encode(), None)
    error = refusal("it cannot", mark)

    assert isinstance(error, OutOfMemory)
    assert (device, wanted) == (error.device, error.wanted)
    assert str(error).startswith("it cannot: no memory for ")


def test_other_refusals_are_no_shortage():
    mark = log.count
    log.take(4, b"error loading model: unknown model architecture: 'x'\n", None)
    assert not isinstance(refusal("it cannot", mark), OutOfMemory)
