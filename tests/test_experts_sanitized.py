"""The library for types per expert under the compiler's own watch: memory, arithmetic, threads."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gemcut import ggml
from gemcut.llama.experts_library import sources
from gemcut.runtime.experts import build
from tests.child import child_environment

HARNESS = Path(__file__).with_name("experts_harness.cpp")
FLAGS = ["-std=c++17", "-O0", "-g1", "-fno-sanitize-recover=undefined"]
# What a sanitizer says where the kernel lays memory out as it does not expect.
BEATEN = "unexpected memory mapping|DEADLYSIGNAL|LeakSanitizer has encountered a fatal error"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not build.compiler(), reason="links as compilers on Linux do"
)


@pytest.mark.parametrize(("sanitizer", "threads"), [("address,undefined", 2), ("thread", 1)])
def test_nothing_is_found(sanitizer, threads, tmp_path):
    """The library is used as llama.cpp does, by two contexts at once, and given what is wrong.

    It has no threads itself: ggml's, which the sanitizer of threads does not see, are one there.
    """
    libraries = ggml.library_folder()
    flags = [*FLAGS, f"-fsanitize={sanitizer}", f"-I{build.headers()}"]
    if subprocess.run(
        [*build.compiler(), *flags, "-x", "c++", "-", "-o", tmp_path / "nothing"],
        input=b"int main() { return 0; }",
        capture_output=True,
        timeout=60,
    ).returncode:
        pytest.skip("the compiler has no sanitizers")
    linked = [f"-l:lib{name}.so.0" for name in ("ggml", "ggml-cpu", "ggml-base")]
    flags += [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-Wl,--no-as-needed", *linked]
    folder = sources()[0].parent
    build.compile_into(tmp_path / "harness", [HARNESS], [*flags, f"-I{folder}", "-pthread"])
    done = subprocess.run(
        [tmp_path / "harness", tmp_path, str(threads)],
        env=child_environment() | {"OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode and re.search(BEATEN, done.stderr):
        pytest.skip("the sanitizer does not work under this kernel")
    assert 0 == done.returncode, done.stderr
    assert "a token's choice is no expert" in done.stderr and "Sanitizer" not in done.stderr
