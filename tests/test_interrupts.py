"""Ctrl-C at any moment: the process ends with 130, and nobody sees a traceback."""

import re
import signal
import subprocess
import sys
import weakref
from threading import Event

import pytest

from gemcut.cli import _interruptible

PATIENCE = 90  # seconds, for machines that are busy


@pytest.mark.parametrize("module", ["click.core", "gemcut.engine", "numpy", "gemcut.llama"])
def test_while_modules_are_imported(q4_k_m, module):
    """Python says each that is; the signal comes after one of them."""
    words = ["-m", "gemcut", "run", q4_k_m, "-t", "1", "-c", "256", "-p", "hi", "-n", "200"]
    command = [sys.executable, "-X", "importtime", *map(str, words)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        wanted = re.compile(rf"import time:.*\| +{re.escape(module)}\n")
        assert any(wanted.fullmatch(line.decode()) for line in process.stderr)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=PATIENCE)[1].decode()
    # Where it came amid an `exec`, as dataclasses are made by, Python ends itself by it anew.
    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in said and "Abort" not in said


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (SystemExit, 143)])
def test_what_python_drops_is_sent_again(error, code):
    """An error of a signal that comes in a callback, which cannot pass it on."""

    class Gone:
        pass

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    def callback(_: object) -> None:
        raise error

    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(SystemExit) as left, _interruptible():
            gone = Gone()
            noted = weakref.ref(gone, callback)
            del gone
            Event().wait(PATIENCE)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left.value.code == code and noted() is None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
