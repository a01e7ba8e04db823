"""Code in a process of its own, which finds this checkout and all that this process does."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def child_environment():
    """This process's environment, with the folders that it imports from."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *sys.path]))}


def run_code(code, *arguments, **environment):
    """Run code with arguments to its end: what it wrote, said and returned, as text."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=child_environment() | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
