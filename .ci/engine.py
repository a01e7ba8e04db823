"""Install llama-cpp-python, compiled for this machine, from a cache of wheels of our own.

Compiling llama.cpp takes minutes, for the very CPU it happens on and with the options given in
CMAKE_ARGS. pip's own cache looks at neither: a wheel from there may lack the RPC backend, or stop
with an illegal instruction in a home directory shared between machines. So each combination has
its folder in the user's cache, and pip's cache is left out.

Run by the Makefile as `.venv/bin/python .ci/engine.py`; installs into the Python that runs it.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parent.parent / "pyproject.toml"
PACKAGE = "llama-cpp-python"

# The tests run hybrid offload without a GPU, over RPC on the loopback interface.
OUR_OPTIONS = "-DGGML_RPC=on"


def pinned_version() -> str:
    """The version of llama-cpp-python that pyproject.toml asks for."""
    requirements: list[str] = tomllib.loads(PROJECT.read_text())["project"]["dependencies"]
    return next(line.split("==")[1] for line in requirements if line.startswith(f"{PACKAGE}=="))


def cpu() -> str:
    """The processor's model and instruction sets, as the system tells them."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part", "isa")
        return "\n".join(sorted({x for x in info.read_text().splitlines() if x.startswith(wanted)}))
    if sys.platform == "darwin":
        command = ["sysctl", "machdep.cpu.brand_string", "hw.optional"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return platform.processor()


def key(version: str, options: str, processor: str) -> str:
    """The name of one combination's folder: what the wheel depends on, the long parts hashed."""
    parts = [shlex.join(shlex.split(options)), platform.system(), platform.machine(), processor]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return f"{version}-{sys.implementation.cache_tag}-{digest}"


def build(version: str, options: str, folder: Path) -> Path:
    """Compile the wheel; it appears in `folder` whole or not at all."""
    if not any(map(shutil.which, [os.environ.get("CXX", "c++"), "g++", "clang++"])):
        sys.exit("llama.cpp is compiled here and needs a C++ compiler: install g++ or clang")
    print(f"building llama.cpp ({options}), about 5 minutes the first time", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as unfinished:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-cache-dir", "--no-deps"]
        command += ["--no-binary", PACKAGE, "--wheel-dir", unfinished, f"{PACKAGE}=={version}"]
        subprocess.run(command, check=True, env=os.environ | {"CMAKE_ARGS": options})
        (wheel,) = Path(unfinished).glob("*.whl")
        return wheel.replace(folder / wheel.name)


def main() -> None:
    """Find or build the wheel of this machine and these options, and install it."""
    version = pinned_version()
    # The user's options come last: cmake heeds the last of two that contradict each other.
    options = f"{OUR_OPTIONS} {os.environ.get('CMAKE_ARGS', '')}".strip()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "gemcut" / "wheels" / key(version, options, cpu())
    wheel = next(folder.glob("*.whl"), None) or build(version, options, folder)
    print(f"installing {wheel}", flush=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    # Two steps: forced, since pip takes the same version built otherwise for the same thing; and
    # then what it depends on, without force.
    subprocess.run([*pip, "--force-reinstall", "--no-deps", str(wheel)], check=True)
    subprocess.run([*pip, f"{PACKAGE}=={version}"], check=True)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"{shlex.join(map(str, error.cmd))} failed with status {error.returncode}")
