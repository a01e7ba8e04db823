"""What llama.cpp would end the process over is refused, with words, before it is shown the file."""

import re
from dataclasses import replace

import pytest

from gemcut import api, ggml
from gemcut.errors import EngineError
from gemcut.gguf_file import GGUFFile, TensorInfo, Value
from gemcut.gguf_parts import GGUFParts
from gemcut.gguf_writer import GGUFWriter
from gemcut.last_words import GIVES_UP
from gemcut.llama import Model, loadable
from gemcut.llama.loadable import check_loadable, faults_of, matrices_without_products
from tests import families
from tests.child import run_code

_CRASH = """
from gemcut import last_words
from gemcut.engine import ContextOptions
from gemcut.llama import Context, Model
last_words.install()
Context(Model.load({path!r}), ContextOptions(n_ctx=64, threads=1))
"""


def _of_the_model(values):
    """Metadata of the demo's architecture; "__" stands for a dot."""
    kinds = {str: "str", int: "u32"}
    return {
        f"gemma4.{key.replace('__', '.')}": Value(kinds[type(data)], data)
        for key, data in values.items()
    }


@pytest.fixture(scope="module")
def metadata(q4_k_m):
    with GGUFFile(q4_k_m) as file:
        return {**file.metadata}


@pytest.fixture
def changed(q4_k_m, tmp_path):
    """Makes the demo's file with other metadata."""

    def make(**values):
        path = tmp_path / "changed.gguf"
        with GGUFFile(q4_k_m) as file:
            metadata = {**file.metadata} | _of_the_model(values)
            with GGUFWriter(path, metadata, file.tensors.values()) as writer:
                for name in file.tensors:
                    writer.write(name, 0, file.rows(name))
        return path

    return make


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"block_count": 0}, "block_count is 0, wanted 1 to 512"),
        ({"block_count": 513}, "block_count is 513, wanted 1 to 512"),
        ({"context_length": 0xFFFFFFFF}, "context_length is 4294967295"),
        ({"attention__sliding_window": 1 << 31}, "attention.sliding_window is 2147483648"),
        ({"embedding_length": 0}, "embedding_length is 0"),
        ({"embedding_length": 0xFFFFFFFF}, "embedding_length is 4294967295"),
        ({"expert_count": 1025}, "expert_count is 1025, wanted 0 to 1024"),
        ({"expert_used_count": 99}, "expert_used_count is 99, wanted 0 to"),
        ({"expert_used_count": 0}, "expert_used_count is 0 of"),
        ({"expert_group_count": 3}, "experts in 3 groups"),
        ({"expert_group_count": 2}, "expert_group_used_count is missing"),
        ({"attention__head_count_kv": 3}, "attention.head_count .* over .3."),
        ({"attention__shared_kv_layers": 99}, "shared_kv_layers is 99 of"),
        ({"block_count": 1}, "shared_kv_layers is 0 of 1 blocks, wanted 2 with"),
        ({"rope__dimension_count": 31}, "rope.dimension_count is 31, wanted an even number"),
        ({"rope__dimension_count": 0}, "rope.dimension_count is 0, wanted 2 to"),
        ({"rope__scaling__type": "x"}, "rope.scaling.type is 'x', wanted one of"),
        ({"nextn_predict_layers": 77}, "nextn_predict_layers is 77"),
    ],
)
def test_what_llama_cpp_asserts_is_a_fault(metadata, values, why):
    assert re.search(why, next(faults_of(metadata | _of_the_model(values))))
    assert not [*faults_of(metadata)]


def test_a_file_with_a_fault_is_not_shown_to_llama_cpp(changed):
    path = changed(expert_used_count=99)
    with pytest.raises(EngineError, match="changed.gguf: damaged, or not for .* is 99, wanted 0"):
        Model.load(path)


def test_a_token_that_is_there_twice_is_refused(metadata):
    tokens = [*metadata["tokenizer.ggml.tokens"].data[:-1], "<bos>"]
    values = metadata | {"tokenizer.ggml.tokens": Value("[str]", tokens)}
    assert ["tokenizer.ggml.tokens has a token twice"] == [*faults_of(values)]


@pytest.mark.parametrize(
    ("architecture", "values"),
    [
        ("gemma4-assistant", {"block_count": 4, "attention.shared_kv_layers": 4}),
        ("hunyuan-dense", {"block_count": 2, "expert_used_count": 1}),
        ("hunyuan_vl", {"block_count": 2, "expert_count": 1}),
        ("mamba", {"block_count": 2, "attention.head_count": 0}),
        ("jamba", {"block_count": 2, "attention.head_count": 8, "attention.head_count_kv": [0, 2]}),
        ("deepseek2", {"block_count": 2, "attention.head_count": 5, "attention.head_count_kv": 1}),
    ],
)
def test_what_llama_cpp_takes_of_some_architectures_is_no_fault(architecture, values):
    """A model that looks at another's keys and values, one expert that is none, no heads, ..."""
    of_it = {
        f"{architecture}.{key}": Value("[u32]" if isinstance(data, list) else "u32", data)
        for key, data in values.items()
    }
    assert not [*faults_of({"general.architecture": Value("str", architecture)} | of_it)]


def test_tokens_without_a_name_are_apart(metadata):
    tokens = [*metadata["tokenizer.ggml.tokens"].data[:-2], "", ""]
    assert not [*faults_of(metadata | {"tokenizer.ggml.tokens": Value("[str]", tokens)})]


@pytest.mark.parametrize("name", families.recorded())
def test_what_is_converted_is_loadable(name, tmp_path):
    """Of every family."""
    model = api.open_source(families.build(tmp_path / name, name))
    assert not [*faults_of(model.metadata)]


def test_a_file_that_names_no_context_answers(changed):
    """It takes 0 for a number that is not known."""
    with api.load(changed(context_length=0), context=64, threads=1) as session:
        assert "length" == session.complete("def", 2).finish


def test_matrices_that_nothing_multiplies_are_refused(bf16, tmp_path):
    """llama.cpp would jump to where there is no function."""
    data, path = bytearray(bf16.read_bytes()), tmp_path / "damaged.gguf"
    name = b"blk.4.ffn_gate_inp.weight"
    place = data.index(name) + len(name) + 4 + 2 * 8  # behind the number of sizes, and two of them
    data[place : place + 4] = (26).to_bytes(4, "little")
    path.write_bytes(data)

    with pytest.raises(EngineError, match=r"blk\.4\.ffn_gate_inp\.weight is of the type i32"):
        Model.load(path)


@pytest.mark.parametrize("kind", ["i8", "i32", "i64", "f64"])
def test_tables_of_numbers_are_looked_up_alone(kind):
    """As those that say which token has which experts, or which token of a draft is which."""
    number = ggml.type_named(kind)
    tables = [TensorInfo(name, (9, 4), number, 0) for name in ("blk.0.ffn_gate_tid2eid", "d2t")]
    others = [TensorInfo(name, (9, 4), number, 0) for name in ("blk.0.ffn_up.weight", "output")]

    assert [] == [*matrices_without_products([*tables, replace(others[0], shape=(9,))])]
    assert 2 == len([*matrices_without_products([*tables, *others])])


def test_a_file_is_looked_at_once_until_it_changes(changed, monkeypatch):
    path, seen = changed(), []
    monkeypatch.setattr(loadable, "faults_of", lambda values: iter(seen.append(1) or ()))
    check_loadable(path)
    check_loadable(path)
    assert 1 == len(seen)
    changed(block_count=0)
    check_loadable(path)
    assert 2 == len(seen)


def test_a_header_that_was_read_is_not_read_again(changed):
    """Unless the file is another one by now."""
    path = changed()
    with GGUFParts(path) as parts:
        parts.files[0].metadata = parts.metadata | _of_the_model({"block_count": 0})
        with pytest.raises(EngineError, match="block_count is 0"):
            check_loadable(path, parts)
        changed(general__name="another")
        check_loadable(path, parts)
        changed(block_count=513)
        with pytest.raises(EngineError, match="block_count is 513"):
            check_loadable(path, parts)


def test_a_command_ends_with_words_where_llama_cpp_gives_up(changed):
    """What only llama.cpp knows of: this architecture's keys are as wide as its values."""
    path = changed(attention__value_length=16)
    code = _CRASH.format(path=str(path))
    done = run_code(code)
    last = done.stderr.strip().splitlines()[-1]
    assert (1, True) == (done.returncode, last.startswith(f"Error: {GIVES_UP} GGML_ASSERT"))
