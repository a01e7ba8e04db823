"""The library that runs types per expert: built once, found again, refused if it does not fit."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from gemcut import ggml
from gemcut.cli import main
from gemcut.errors import EngineError
from gemcut.llama import experts_library as library_module
from gemcut.runtime.experts import build
from tests import per_expert
from tests.child import run_code


@pytest.fixture(scope="module")
def several(f32, tmp_path_factory):
    """Experts in two types."""
    path = tmp_path_factory.mktemp("experts") / "mixed.gguf"
    return per_expert.write(path, f32, lambda _, expert: ("q4_0", "q8_0")[expert % 2])


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A cache without the library."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


LOAD = "import sys; from gemcut.llama import Model; Model.load(sys.argv[1])"


def test_what_is_not_built_is_said(several, elsewhere):
    """By a process that did not load it yet; stock files work there."""
    done = run_code(LOAD, several)
    assert "run `gemcut build-experts`" in done.stderr and "gemcut convert" in done.stderr
    assert "not built: run" in CliRunner().invoke(main, ["doctor"]).output


def test_it_is_built_by_a_command(elsewhere, monkeypatch):
    """Once; what the compiler says is shown where it refuses."""
    runner = CliRunner()

    def stand_in(path, *_):
        path.write_bytes(b"a library" * 8)

    with monkeypatch.context() as patch:
        patch.setattr(build, "compile_into", stand_in)
        assert "built: " in runner.invoke(main, ["build-experts"]).output
        assert "is there already" in runner.invoke(main, ["build-experts"]).output
    assert [path.suffix for path in (elsewhere / "gemcut" / "experts").iterdir()] in (
        [".so"],
        [".dylib"],
    )
    with pytest.raises(EngineError, match="does not load.*delete it and run"):
        library_module.library.__wrapped__()
    with monkeypatch.context() as patch:
        patch.setattr(library_module, "library_file", lambda: Path(ggml.library("ggml")._name))
        with pytest.raises(EngineError, match="does not load.*experts_names"):
            library_module.library.__wrapped__()

    monkeypatch.setenv("CXX", "false")
    with pytest.raises(EngineError, match="refused"):
        build.compile_into(elsewhere / "x")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EngineError, match="there is no C..? compiler"):
        build.compile_into(elsewhere / "x")


@pytest.mark.skipif(sys.platform != "linux", reason="ELF")
def test_a_library_that_is_cut_short_is_built_anew(elsewhere, experts_library, several):
    """To load it would end the process by SIGBUS."""
    whole, path = experts_library.read_bytes(), library_module.library_file()
    path.parent.mkdir(parents=True)
    for size in (0, 40, 4096, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert not build.is_built()
        with pytest.raises(EngineError, match="is not built, or is damaged: run `gemcut build"):
            library_module.library.__wrapped__()
    path.write_bytes(whole)
    assert build.is_built() and build.build() == path


def test_a_compiler_may_have_arguments(monkeypatch):
    """As in CXX="ccache g++"."""
    monkeypatch.setenv("CXX", f"'{sys.executable}' -c 0")
    assert build.compiler() == [sys.executable, "-c", "0"]
    for none in ("no-such-compiler g++", "g++ 'open", "''"):
        monkeypatch.setenv("CXX", none)
        assert not build.compiler()


def test_a_cache_that_is_no_folder_is_said(elsewhere):
    (elsewhere / "gemcut").write_text("a file")
    with pytest.raises(EngineError, match="cannot be written"):
        build.build()


def test_headers_are_wanted(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path / "a" / "b" / "lib"))
    with pytest.raises(EngineError, match="has no headers of ggml"):
        build.headers()


def test_another_ggml_is_refused(monkeypatch):
    """Names that it does not have, and insides that lie otherwise."""
    with pytest.raises(EngineError, match="ggml has no ggml_nonsense"):
        library_module._address("ggml_nonsense")

    class Other:
        def experts_names(self):
            return [None]

        def experts_begin(self, _):
            return b"buffers"

    with pytest.raises(EngineError, match="ggml's buffers have another layout"):
        library_module._introduce(Other())


def test_there_is_no_way_on_windows(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(EngineError, match="Windows: make a stock file with `gemcut convert"):
        library_module.library_file()


def test_another_source_is_another_library(monkeypatch, tmp_path):
    """So that an old one is never loaded."""
    known = library_module.library_file()
    (tmp_path / "a.cpp").write_text("// nothing")
    monkeypatch.setattr(library_module, "sources", lambda: [tmp_path / "a.cpp"])
    other = library_module.library_file()
    assert (other.parent, other.suffix) == (known.parent, known.suffix)
    assert other != known
    monkeypatch.setattr(library_module, "sources", list)
    with pytest.raises(EngineError, match="without the source"):
        library_module.library_file()
