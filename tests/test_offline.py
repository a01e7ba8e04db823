"""Nothing that runs a file reaches for the network: the kernel would refuse, and nothing asks."""

import json
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.child import run_code
from tests.offline import gemcut, why_not
from tests.rpc import free_port, wait_for

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
TRY = """
import errno, socket, sys
from tests.offline import shut
shut(server=sys.argv[1] == "server")

def refused(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return error.errno == errno.EACCES
    return False

tcp, udp, six = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.AF_INET6
print([refused(socket.socket, socket.AF_INET, kind) for kind in (tcp, udp)])
print([refused(socket.socket, six, kind) for kind in (tcp, udp)])
if sys.argv[1] == "server":
    with socket.socket() as listening, socket.socket() as going:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        elsewhere = "192.0.2.1", 9
        print([refused(going.connect, to) for to in (listening.getsockname(), elsewhere)])
socket.socketpair()
"""


def ended(process, seconds=120):
    """What a process wrote and said before it ended well."""
    wrote, said = process.communicate(timeout=seconds)
    assert 0 == process.returncode, said
    return wrote, said


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("client", ["[True, True]", "[True, True]"]),
        ("server", ["[False, True]", "[True, True]", "[True, True]"]),
    ],
)
def test_the_filter_bites(kind, expected):
    """No socket of the internet; a server may listen, and connect to nothing."""
    done = run_code(TRY, kind)
    assert expected == done.stdout.splitlines(), done.stderr


def test_run_answers(q4_k_m):
    wrote, _ = ended(
        gemcut(
            *("run", q4_k_m, "-p", "def f(", "--raw", "-n", 4, "--temp", 0, "-c", 512, "-t", 1),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    )
    assert wrote.strip()


def test_eval_scores(q4_k_m, q8_0, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("def add(first, second):\n    return first + second\n" * 40)
    wrote, _ = ended(
        gemcut(
            *("eval", q4_k_m, "--reference", q8_0, "--text", text),
            *("-c", 128, "--chunks", 2, "-t", 1, "--json"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    )
    assert json.loads(wrote)


def test_bench_measures(q4_k_m):
    wrote, _ = ended(
        gemcut(
            *("bench", q4_k_m, "-p", 64, "-n", 8, "-r", 1, "-t", 1, "--json"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    )
    assert json.loads(wrote)


def test_serve_serves(q4_k_m):
    """It listens on loopback, and connects to nothing."""
    port = free_port()
    server = gemcut(
        *("serve", q4_k_m, "--port", port, "-c", 512, "-t", 1),
        server=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        wait_for(port)
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions",
            json.dumps({"model": "x", "prompt": "def f(", "max_tokens": 4}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["choices"][0]["text"]
        assert {"127.0.0.1"} == listening(port)
    finally:
        server.terminate()
        server.communicate(timeout=60)


def listening(port):
    """The addresses on which something listens on a port (Linux)."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            address, number = line.split()[1].rsplit(":", 1)
            if int(number, 16) == port and line.split()[3] == "0A":
                found.add(".".join(str(b) for b in bytes.fromhex(address)[::-1][:4]))
    return found


@pytest.mark.parametrize("command", ["run", "serve", "bench", "eval"])
def test_a_hub_id_says_that_there_is_no_network(command, tmp_path):
    """Not that there is no such file, and no traceback."""
    more = {"eval": ("--text", tmp_path / "none.txt"), "run": ("-p", "hello")}.get(command, ())
    process = gemcut(
        *(command, "someone/nothing:model.gguf", *more),
        server=command == "serve",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        environment={"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"},
    )
    _, said = process.communicate(timeout=120)

    assert 1 == process.returncode
    assert "someone/nothing:model.gguf: not in the cache" in said and "check the network" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("how", ["--offline", "HF_HUB_OFFLINE"])
def test_offline_is_obeyed(how, tmp_path):
    """Then it is not even tried."""
    process = gemcut(
        *("run", "someone/nothing:model.gguf", "-p", "hello"),
        *(["--offline"] if how == "--offline" else []),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        environment={"HF_HOME": str(tmp_path)} | ({how: "1"} if how != "--offline" else {}),
    )
    _, said = process.communicate(timeout=120)

    assert 1 == process.returncode
    assert "not in the cache, and this is offline" in said
