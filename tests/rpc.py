"""A second process that stands in for a GPU: it offers its CPU over the loopback interface."""

import ctypes
import resource
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from gemcut.llama import backends
from tests.child import child_environment, run_code


def beside_a_device(code, *arguments):
    """Run code in a process of its own, with a device beside the CPU.

    Its arguments are the device's endpoint and then these; returns the endpoint and what it wrote
    to stdout. Skips the test where llama.cpp was built without RPC.
    """
    if "RPC" not in backends():
        pytest.skip("llama-cpp-python was built without RPC")
    with rpc_server() as endpoint:
        done = run_code(code, endpoint, *arguments)
    assert 0 == done.returncode, done.stderr
    return endpoint, done.stdout


SERVER = """
import sys
from gemcut.llama import devices, serve_rpc
from tests.rpc import limit_memory
endpoint, room = sys.argv[1], int(sys.argv[2])
devices()  # what has to be loaded is
if room:
    limit_memory(room)
serve_rpc(endpoint, 1)
"""
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt
_MESSAGE, _MESSAGES = 2 << 20, 6  # bytes of a message to the server at most, and how many at once
_WALL = 64 << 10  # bytes between them, so that they do not become one


def limit_memory(room):
    """Let this process have so many bytes more, and what messages to it take (Linux).

    These are kept as holes in the heap, too small for the buffers of weights and computing: where
    there is no room for a message the server ends, which no card does.
    """
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.mallopt(_MMAP_THRESHOLD, _MESSAGE + (64 << 10))
    libc.mallopt(_TRIM_THRESHOLD, 1 << 30)
    holes = [(libc.malloc(_MESSAGE), libc.malloc(_WALL))[0] for _ in range(_MESSAGES)]
    for hole in holes:
        libc.free(hole)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + room, held + room))


def free_port():
    """A port of the loopback interface that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def rpc_server(room=0):
    """A process that offers its CPU over loopback.

    Args:
        room: bytes of memory that it can have beside what it needs itself; 0: as much as there is.
    """
    port = free_port()
    endpoint = f"127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, endpoint, str(room)],
        # One heap: a thread's own would take address space, which is what is limited.
        env=child_environment() | {"MALLOC_ARENA_MAX": "1"},
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(port)
        yield endpoint
    finally:
        server.kill()
        server.wait()


def wait_for(port):
    for _ in range(600):
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"nothing listens on {port}")
