"""Standard GGUF: what the checker says of files of every kind, and Modelfiles of them."""

import json
import shutil
import struct
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest

from gemcut import api, standard
from gemcut.errors import GGUFError, UsageError
from gemcut.gguf_file import GGUFFile, TensorInfo, Value
from gemcut.gguf_layout import Layout
from gemcut.modelfile import Run, modelfile
from tests import per_expert
from tests.shell import run

LINE = "a line\nof another"


def verdicts(path: Path) -> dict[str, bool | None]:
    return {check.name.partition(" ")[0]: check.ok for check in api.check_file(path).checks}


@pytest.fixture(scope="module")
def model(checkpoint):
    return api.open_source(checkpoint)


@pytest.fixture(scope="module")
def split(model, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("split") / "m.gguf"
    return api.quantize_model(model, output, "q4_k_m", split_size="2M").path


@pytest.fixture(scope="module")
def padded(checkpoint, tmp_path_factory) -> Path:
    """Types for a machine, with every freedom: padded experts, tensors that are split."""
    output = tmp_path_factory.mktemp("padded") / "m.gguf"
    plan = api.make_plan(checkpoint, machine="rtx-4070+ddr5-5600", context="2k", size="4.2M")
    return api.quantize_model(checkpoint, output, plan).path


def test_what_is_written_is_standard(q4_k_m, padded, split):
    """Cut to a mixture, planned for a machine, in several parts: all three readers agree."""
    for path in (q4_k_m, padded, split):
        found = verdicts(path)
        assert api.check_file(path).standard
        assert {"file", "experts", "layout", "gguf-py", "llama.cpp"} <= found.keys()
        assert all(found[name] for name in ("file", "layout", "gguf-py", "llama.cpp"))
    assert {"parts"} == verdicts(split).keys() - verdicts(q4_k_m).keys()


def test_types_per_expert_are_not_standard(q4_k_m, tmp_path, split):
    """Nor is a file of which a part is missing; llama.cpp is not asked then."""
    path = per_expert.write(tmp_path / "x.gguf", q4_k_m)
    alone = tmp_path / split.name
    alone.write_bytes(split.read_bytes())

    assert verdicts(path) | {"experts": False} == verdicts(path)
    assert "llama.cpp" not in verdicts(path) and not api.check_file(path).standard
    assert verdicts(alone)["file"] is False
    with pytest.raises(UsageError, match="types per expert.*gemcut convert"):
        api.ollama_modelfile(path)


def test_what_llama_cpp_misses_is_found(q4_k_m, tmp_path):
    """A file without one of its tensors, which is a sane GGUF all the same."""
    path = tmp_path / "a.gguf"
    rewrite(q4_k_m, path, leave_out="blk.0.attn_q.weight")

    found = {check.name: check for check in api.check_file(path).checks}

    (asked,) = (check for name, check in found.items() if name.startswith("llama.cpp"))
    assert asked.ok is False and "blk.0.attn_q.weight" in asked.found
    assert next(check for name, check in found.items() if name.startswith("gguf-py")).ok


def test_gaps_between_tensors_are_found(q4_k_m, tmp_path):
    """ggml refuses them, though all tensors are within the file."""
    path, raw = tmp_path / "a.gguf", bytearray(q4_k_m.read_bytes())
    with GGUFFile(q4_k_m) as file:
        last = [*file.tensors.values()][-1]
    name = last.name.encode()
    at = raw.index(struct.pack("<Q", len(name)) + name) + 8 + len(name) + 4 + 8 * len(last.shape)
    raw[at + 4 : at + 12] = struct.pack("<Q", last.offset + 32)
    path.write_bytes(raw + bytes(32))

    assert verdicts(path) | {"layout": False, "llama.cpp": False} == verdicts(path)


def test_what_is_no_gguf_is_shown_to_nobody(tmp_path, monkeypatch):
    """The strict reader goes first."""
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + bytes(20))
    monkeypatch.setattr(standard, "probe", None)  # not called

    with pytest.raises(GGUFError):
        api.check_file(path)


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ({}, "b is not in the file"),
        ({"b": Value("u32", 1), "c": Value("u32", 1)}, "c is missing"),
        ({"b": Value("i32", 1)}, "b is a UINT32, wanted i32"),
        ({"b": Value("u32", 2)}, "b is 1, wanted 2"),
    ],
)
def test_other_metadata_is_a_difference(ours, said, q4_k_m, tmp_path):
    """A key too many or too few, another type, another value."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint32("b", 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields

    found = standard._other_values(ours, {"b": fields["b"]})

    assert [said] == list(found)


def test_the_command_says_it_and_ends_with_its_status(q4_k_m, split, tmp_path):
    """0: standard; 1: not. As JSON, too."""
    alone = tmp_path / split.name
    alone.write_bytes(split.read_bytes())

    good = run("inspect", q4_k_m, "--check", "--json")
    bad = run("inspect", alone, "--check")

    assert (0, True) == (good.exit_code, json.loads(good.stdout)["standard"])
    assert 1 == bad.exit_code and "parts are missing" in bad.stdout


def test_a_modelfile_says_what_the_file_and_its_plan_say(padded, q4_k_m):
    """Context and layers as planned, sampling and ends as the file has them."""
    planned = parsed(api.ollama_modelfile(padded))
    plain = parsed(api.ollama_modelfile(q4_k_m))

    assert [("from", str(padded))] == [each for each in planned if each[0] == "from"]
    assert {("num_ctx", "2048"), ("temperature", "0.7"), ("top_k", "64")} <= {*planned}
    assert {("stop", "<eos>"), ("stop", "<turn|>")} <= {*planned}
    assert any(name == "num_gpu" for name, _ in planned)
    assert not {"num_ctx", "num_gpu"} & {name for name, _ in plain}


def test_whole_numbers_are_whole_in_a_modelfile():
    metadata = {
        "general.sampling.top_k": Value("i32", 1_000_000),
        "general.sampling.temp": Value("f32", 0.699999988079071),
    }

    said = parsed(modelfile([PurePosixPath("/a.gguf")], metadata, Run()))

    assert {("top_k", "1000000"), ("temperature", "0.7")} <= {*said}


def test_a_modelfile_is_written_beside_the_result(checkpoint, tmp_path):
    """`--modelfile`, which names the file as it is seen from there; the GGUF is told of in it."""
    (tmp_path / "sub").mkdir()
    words = ["quantize", checkpoint, "-o", tmp_path / "a b.gguf", "--type", "q8_0"]

    done = run(*words, "--modelfile", tmp_path / "sub" / "Modelfile")

    assert 0 == done.exit_code, done.output
    said = parsed((tmp_path / "sub" / "Modelfile").read_text())
    assert ("from", str(tmp_path / "a b.gguf")) in said


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_modelfile_never_takes_the_place_of_the_source(checkpoint, tmp_path, name):
    """It is refused before anything is written, as other outputs are."""
    source = shutil.copytree(checkpoint, tmp_path / "source")
    before = (source / name).read_bytes()
    words = ["quantize", source, "-o", tmp_path / "a.gguf", "--type", "q8_0"]

    done = run(*words, "--modelfile", source / name)

    assert 1 == done.exit_code and "is read or written here, too" in done.output
    assert before == (source / name).read_bytes() and not (tmp_path / "a.gguf").exists()


def test_what_a_modelfile_cannot_name_is_refused_before_the_work(checkpoint, tmp_path):
    """Not when the file is written."""
    words = ["quantize", checkpoint, "-o", tmp_path / "a\nb.gguf", "--type", "q8_0"]

    done = run(*words, "--modelfile", tmp_path / "Modelfile")

    assert 0 != done.exit_code and "rename" in done.output and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--check"], "which SRC"),
        (["--modelfile"], "which SRC"),
        (["a.gguf", "--check", "--modelfile"], "say one"),
        (["a.gguf", "--families", "--check"], "say one"),
        (["a.gguf", "--modelfile", "--json"], "without --json"),
    ],
)
def test_nothing_that_is_asked_of_inspect_is_passed_over(words, said):
    """A script that forgot the file would take the status of a list of families for a verdict."""
    done = run("inspect", *words)

    assert 2 == done.exit_code and said in done.output


def test_a_plan_of_single_tensors_leaves_the_layers_to_ollama(q4_k_m):
    """It cannot be told of experts on the host."""
    text = modelfile([PurePosixPath("m.gguf")], {}, Run(4096, None, "experts stay"))

    assert "# experts stay\n" in text and "num_gpu" not in text


@pytest.mark.parametrize("text", ["a", "<|end|>", 'a "quoted" word', "two words", " a ", "#", "'"])
def test_a_value_is_what_ollama_reads(text):
    """Whatever the token; one that cannot be written is left out."""
    names = ["<s>", text]
    metadata = {
        "tokenizer.ggml.model": Value("str", "gpt2"),
        "tokenizer.ggml.tokens": Value("[str]", names),
        "tokenizer.ggml.eos_token_id": Value("u32", 1),
    }

    assert ("stop", text) in parsed(modelfile([PurePosixPath("a.gguf")], metadata, Run()))


@pytest.mark.parametrize("text", [LINE, 'a"""b', 'ends with "', "\x1b[2J", ""])
def test_what_cannot_be_written_is_left_out(text):
    """There are no escapes; a path like that is an error."""
    metadata = {
        "tokenizer.ggml.model": Value("str", "gpt2"),
        "tokenizer.ggml.tokens": Value("[str]", [text]),
        "tokenizer.ggml.eos_token_id": Value("u32", 0),
    }

    assert "stop" not in modelfile([PurePosixPath("a.gguf")], metadata, Run())
    if text:
        with pytest.raises(UsageError, match="rename"):
            modelfile([PurePosixPath(text)], {}, Run())


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (PurePosixPath("a.gguf"), "./a.gguf"),
        (PurePosixPath("~/a.gguf"), "./~/a.gguf"),
        (PurePosixPath("/x y/a.gguf"), "/x y/a.gguf"),
        (PureWindowsPath("x") / "a.gguf", "./x/a.gguf"),
        (PureWindowsPath("C:/x/a.gguf"), "C:\\x\\a.gguf"),
    ],
)
def test_a_path_is_what_ollama_opens(path, wanted):
    """Not a model's name on the registry, nor somebody's home."""
    assert ("from", wanted) in parsed(modelfile([path], {}, Run()))


def test_all_parts_are_named(split):
    """In order, and from which Ollama on that works."""
    text = api.ollama_modelfile(split)

    files = [value for name, value in parsed(text) if name == "from"]
    assert files == sorted(files) and len(files) > 2
    assert "0.35" in text


def parsed(text: str) -> list[tuple[str, str]]:
    """Instructions as Ollama's parser reads them, of lines that hold one each."""
    found = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, _, value = line.partition(" ")
        if name == "PARAMETER":
            name, _, value = value.partition(" ")
        value = value.strip()
        for quote in ('"""', '"'):
            if value.startswith(quote):
                assert value.endswith(quote) and len(value) >= 2 * len(quote)
                value = value[len(quote) : -len(quote)]
                break
        found.append((name.lower(), value))
    return found


def rewrite(source: Path, output: Path, leave_out: str) -> None:
    """Write a GGUF anew without one of its tensors."""
    with GGUFFile(source) as file:
        kept = [info for info in file.tensors.values() if info.name != leave_out]
        infos = [TensorInfo(info.name, info.shape, info.type) for info in kept]
        layout = Layout(file.metadata, tuple(infos))
        raw = bytearray(layout.size)
        raw[: len(layout.header)] = layout.header
        for placed in layout.placed:
            begin = layout.data_offset + placed.offset
            raw[begin : begin + placed.nbytes] = file.rows(placed.name).tobytes()
    output.write_bytes(raw)


def test_a_plan_of_another_version_is_no_obstacle(padded, monkeypatch):
    """Then only the file's own metadata counts."""
    monkeypatch.setattr("gemcut.plan.VERSION", 99)

    assert "num_ctx" not in api.ollama_modelfile(padded)
