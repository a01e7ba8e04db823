"""`gemcut rpc-server`, a process as users start it."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

from gemcut.engine import ContextOptions, ModelOptions
from gemcut.llama import Context, Model, backends
from tests.child import child_environment, run_code
from tests.rpc import free_port, wait_for

GEMCUT = [sys.executable, "-c", "from gemcut.cli import main; main()"]
CLIENT = """
import sys
import numpy as np
from gemcut.engine import ContextOptions, ModelOptions
from gemcut.llama import Context, Model
endpoint, path, out = sys.argv[1:]
options = ContextOptions(n_ctx=256, n_ubatch=64, threads=1)
with Model.load(path, ModelOptions(rpc=(endpoint,))) as model, Context(model, options) as context:
    assert any(name.startswith("RPC0") for name in model.memory.weights), model.memory
    np.save(out, context.decode(model.tokenize("def f(x):")))
"""
pytestmark = pytest.mark.skipif("RPC" not in backends(), reason="llama.cpp was built without RPC")


@contextmanager
def started(*arguments):
    """The command, running; ended if the test did not."""
    process = subprocess.Popen(
        [*GEMCUT, "rpc-server", *map(str, arguments)],
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def refused(*arguments):
    """What the command says when it does not start."""
    done = subprocess.run(
        [*GEMCUT, "rpc-server", *map(str, arguments)],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode and "Traceback" not in done.stderr
    return done.stderr


def test_a_client_computes_there(bf16, tmp_path):
    """On loopback unless told otherwise, without a warning; the logits are those of the CPU."""
    import numpy as np

    port = free_port()
    with started("--port", port, "-t", 1) as server:
        wait_for(port)
        out = tmp_path / "logits.npy"
        asked = run_code(CLIENT, f"127.0.0.1:{port}", bf16, out)
        assert 0 == asked.returncode, asked.stderr
        server.send_signal(signal.SIGINT)
        said = server.communicate(timeout=60)[1]

    assert (0, "stopped") == (server.returncode, said.strip())
    options = ContextOptions(n_ctx=256, n_ubatch=64, threads=1)
    with Model.load(bf16, ModelOptions(devices=())) as model, Context(model, options) as context:
        alone = context.decode(model.tokenize("def f(x):"))
        assert np.abs(alone - np.load(out)).mean() < 0.02


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(number):
    """While nobody is connected: C is waiting then, and would hear nothing."""
    port = free_port()
    with started("--port", port) as server:
        wait_for(port)
        os.kill(server.pid, number)
        assert "Traceback" not in server.communicate(timeout=60)[1]
        assert 0 == server.returncode


def test_beyond_loopback_it_warns():
    """Only with an explicit address."""
    port = free_port()
    with started("--host", "0.0.0.0", "--port", port) as server:
        wait_for(port)
        server.send_signal(signal.SIGINT)
        said = server.communicate(timeout=60)[1]
    assert "0.0.0.0 can be reached from outside" in said and "insecure" in said


def test_a_port_in_use():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}: cannot be served" in refused("--port", port)


def test_an_address_that_is_none():
    assert "not an IPv4 address" in refused("--host", "localhost", "--port", 50123)
    assert "cannot be served" in refused("--host", "203.0.113.7", "--port", 50123)


def test_an_unknown_device():
    assert "no device 'TPU7'; llama.cpp has" in refused("--device", "TPU7")
