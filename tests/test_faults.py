"""A few faults of `make faults`, in a process of their own; see tests/faults."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gemcut import api
from gemcut.api import Target
from gemcut.errors import CheckpointError, GGUFError
from tests.child import run_code
from tests.faults.commands import CHECKPOINT, shard

ROOT = Path(__file__).parent.parent
PATIENCE = 900  # seconds, for machines that are busy

MAPPED = """
import mmap, os, sys
from gemcut import last_words
last_words.install()
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
os.truncate(sys.argv[1], 5000)
print(len(bytes(mapped)))
"""


def test_a_few_kills_and_signals(tmp_path):
    """The driver runs, and what it finds is counted."""
    command = [sys.executable, "-m", "tests.faults", "--kills", "3", "--folder", str(tmp_path)]
    few = ["--commands", "convert, sharded", "--only", "kills,two at once", "--seed", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *few],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert 3 <= found["kills"]["convert, sharded"]["kills"]
    assert {"refused": 1} == found["two at once"]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="there is no SIGBUS")
def test_a_mapped_file_that_is_cut_short_ends_the_process_with_words(tmp_path):
    """Which file it was, and code 1; without this it ends by a signal, in silence."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(1 << 20))
    done = run_code(MAPPED, path)
    assert (1, "") == (done.returncode, done.stdout)
    assert "Error: " in done.stderr and "run the same command again" in done.stderr
    if sys.platform == "linux":
        assert f"{path}: was cut short while it was read" in done.stderr


@pytest.mark.parametrize("how", ["touched", "longer", "gone"])
def test_a_source_that_changes_while_it_is_read_makes_no_file(how, tmp_path):
    """A mixture of two sources would look like a model."""
    source = shard(CHECKPOINT, tmp_path / "source", 2)
    file = sorted(source.glob("*.safetensors"))[-1]
    (tmp_path / "out").mkdir()
    changes = {"touched": lambda: os.utime(file), "gone": file.unlink}
    changes["longer"] = lambda: os.truncate(file, file.stat().st_size + 1)
    changed = []

    def progress(_):
        if not changed:
            changed.append(True)
            changes[how]()

    with pytest.raises(CheckpointError, match="was changed while it was read|cannot be read"):
        api.convert_checkpoint(
            api.open_source(source), tmp_path / "out" / "a.gguf", progress=progress
        )
    left = [path.name for path in (tmp_path / "out").iterdir()]
    assert changed and "a.gguf" not in left
    assert how == "gone" or [] == left  # a file that comes back is gone on with


def test_a_gguf_that_changes_while_it_is_read_makes_no_file(bf16, tmp_path):
    source, out = tmp_path / "source.gguf", tmp_path / "out"
    source.write_bytes(bf16.read_bytes())
    out.mkdir()
    with pytest.raises(GGUFError, match="source.gguf: was changed while it was read"):
        api.quantize_model(
            api.open_source(source),
            out / "a.gguf",
            Target("q8_0"),
            progress=lambda _: os.utime(source, (1, 1)),
        )
    assert [] == list(out.iterdir())
