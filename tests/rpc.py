"""A second process that stands in for a GPU: it offers its CPU over the loopback interface."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from gemcut.llama import backends

ROOT = Path(__file__).parents[1]


def beside_a_device(code, *arguments):
    """Run code in a process of its own, with a device beside the CPU.

    Its arguments are the device's endpoint and then these; returns the endpoint and what it wrote
    to stdout. Skips the test where llama.cpp was built without RPC.
    """
    if "RPC" not in backends():
        pytest.skip("llama-cpp-python was built without RPC")
    with rpc_server() as endpoint:
        done = subprocess.run(
            [sys.executable, "-c", code, endpoint, *map(str, arguments)],
            env=child_environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert 0 == done.returncode, done.stderr
    return endpoint, done.stdout


@contextmanager
def rpc_server():
    """A process that offers its CPU over loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = f"from gemcut.llama import serve_rpc; serve_rpc('127.0.0.1:{port}', 1)"
    server = subprocess.Popen(
        [sys.executable, "-c", code], env=child_environment(), stdout=subprocess.DEVNULL
    )
    try:
        wait_for(port)
        yield f"127.0.0.1:{port}"
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


def child_environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *sys.path]))}
