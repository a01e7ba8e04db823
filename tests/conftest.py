"""Fixtures shared by all tests: the demo's checkpoint, and files made from it once."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import gemcut
from gemcut import api
from gemcut.convert.model import Model as Source
from gemcut.llama import Model
from gemcut.llama.experts_library import library_file
from gemcut.runtime.experts.build import build, compiler
from gemcut.user_cache import cache_folder

pytest_plugins = ["tests.family_checks", "tests.hub"]

USERS = cache_folder()  # before tests have one of their own

# What a shell or CI may say of colours, widths, proxies and keys, which tests say themselves.
FOREIGN = frozenset(
    "FORCE_COLOR NO_COLOR CLICOLOR CLICOLOR_FORCE TTY_COMPATIBLE TTY_INTERACTIVE COLUMNS LINES "
    "HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY HF_HUB_OFFLINE HF_TOKEN HF_ENDPOINT "
    "GEMCUT_API_KEY".split()
)

Cut = Callable[[str], Path]


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is measured and remembered here stays out of the user's folders.

    Where llama.cpp ends a process, it asks no debugger for the reason. And an interrupt is one,
    which a shell has what it starts in the background ignore.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    own = {
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
        "XDG_STATE_HOME": str(tmp_path_factory.mktemp("state")),
        "GGML_NO_BACKTRACE": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setenv(name, value)
        for name in [name for name in os.environ if name.upper() in FOREIGN]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def experts_library(own_folders: None) -> Path:
    """The library that runs types per expert: the user's, if `make setup` built it there."""
    path = library_file()
    users = USERS / path.relative_to(cache_folder())
    if users.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(users, path)
    elif not compiler():
        pytest.skip("there is no C++ compiler")
    return build()


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The small trained checkpoint that ships with the package."""
    return Path(gemcut.__file__).parent / "demo" / "checkpoint"


@pytest.fixture(scope="module")
def demo(checkpoint: Path) -> Source:
    """The same, opened to be converted or planned for."""
    return api.open_source(checkpoint)


@pytest.fixture(scope="session")
def cut(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Cut:
    """Makes a GGUF of the checkpoint in any stock type."""

    def make(kind: str) -> Path:
        path: Path = tmp_path_factory.mktemp("cut") / f"{kind}.gguf"
        api.quantize_model(api.open_source(checkpoint), path, api.Target(kind))
        return path

    return make


@pytest.fixture(scope="session")
def f32(cut: Cut) -> Path:
    """The checkpoint as an F32 GGUF."""
    return cut("f32")


@pytest.fixture(scope="session")
def bf16(cut: Cut) -> Path:
    """The checkpoint as a BF16 GGUF."""
    return cut("bf16")


@pytest.fixture(scope="session")
def q8_0(cut: Cut) -> Path:
    """The checkpoint cut to Q8_0."""
    return cut("q8_0")


@pytest.fixture(scope="session")
def q4_k_m(cut: Cut) -> Path:
    """The checkpoint cut to Q4_K_M."""
    return cut("q4_k_m")


@pytest.fixture(scope="module")
def model(bf16: Path) -> Iterator[Model]:
    """The demo's model at work; a module may have another one under this name."""
    with Model.load(bf16) as model:
        yield model
