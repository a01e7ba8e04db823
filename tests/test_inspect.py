"""inspect: what it says of a model is true; its arithmetic agrees with numbers from elsewhere."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from gguf.constants import MODEL_TENSORS, TENSOR_NAMES
from hypothesis import given
from hypothesis import strategies as st

from gemcut import api, ggml
from gemcut.engine import ModelOptions
from gemcut.gguf_file import GGUFFile, Value
from gemcut.gguf_layout import header
from gemcut.gguf_parts import GGUFParts, part_paths
from gemcut.inspection import Inspection, block_sizes
from gemcut.llama.model import Model
from gemcut.provenance import imatrix, made
from gemcut.quantize.roles import PRIORS
from gemcut.roles import role_of
from gemcut.vocabulary import templates, vocabulary
from tests import checkpoints
from tests.shell import run


@pytest.fixture(scope="module")
def real(checkpoint, tmp_path_factory) -> Inspection:
    """The 26B-A4B's shapes, without data and with a small vocabulary's tokens."""
    folder = tmp_path_factory.mktemp("real") / "model"
    checkpoints.build(folder, checkpoint, checkpoints.REAL, hollow=True)
    config = checkpoints.config(checkpoints.REAL)
    config["text_config"] |= {"top_k_experts": 8, "sliding_window": 1024}
    config["text_config"]["max_position_embeddings"] = 256 << 10
    (folder / "config.json").write_text(json.dumps(config))
    return api.inspect_source(folder)


def inspected(*arguments: object) -> str:
    result = run("inspect", *arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


# --- counting ---


def test_gemma_4_26b_has_its_published_numbers(real: Inspection):
    """25.2 B weights in all and 3.8 B for a token, of which 22.84 B lie in routed experts."""
    assert real.weights == pytest.approx(25.233e9, rel=1e-4)
    assert real.active == pytest.approx(3.822e9, rel=1e-3)
    experts = [part for part in real.parts if part.role.startswith("experts")]
    assert sum(part.weights for part in experts) == 30 * 128 * 3 * 704 * 2816
    assert all(part.active * 16 == part.weights for part in experts)
    assert (real.shape.blocks, real.shape.experts) == (30, 128)


def test_parts_add_up_to_the_file(q4_k_m: Path):
    """Every tensor is in exactly one part, with its type and its bytes."""
    found = api.inspect_source(q4_k_m)

    with GGUFFile(q4_k_m) as file:
        assert (found.size, found.weights) == (file.tensor_bytes, file.weights)
        assert {info for _, info in found.tensors} == set(file.tensors.values())
        for part in found.parts:
            assert sum(each["tensors"] for each in part.types.values()) == part.tensors
            assert sum(each["size"] for each in part.types.values()) == part.size


def test_an_embedding_of_its_own_is_not_active(tmp_path: Path):
    """A lookup reads one row; as the output it is read whole."""
    f32, tensors = ggml.type_named("f32"), {"token_embd.weight": (64, 32)}
    for extra, active, kind in (
        ({}, 64 * 32, "tied"),
        ({"output.weight": (64, 32)}, 64 * 32, "separate"),
    ):
        path = tmp_path / f"{kind}.gguf"
        write(path, {"general.architecture": Value("str", "llama")}, {**tensors, **extra}, f32)
        found = api.inspect_source(path)
        assert (found.active, found.embedding) == (active, kind)


def test_a_context_that_is_none_is_not_known(q4_k_m: Path, tmp_path: Path):
    """Of a file that names no number of tokens; its caches are shown for the least of contexts."""
    with GGUFFile(q4_k_m) as file:
        metadata = dict(file.metadata)
    for number in (-5, 0):
        path = tmp_path / "a.gguf"
        values = metadata | {"gemma4.context_length": Value("i32", number)}
        write(path, values, {"token_embd.weight": (64, 32)}, ggml.type_named("f32"))
        found = api.inspect_source(path)
        assert found.cache is not None
        assert (0, [8192]) == (found.shape.context, list(found.cache.contexts))


def test_the_real_caches_have_their_measured_numbers(real: Inspection):
    """20 KiB a token in full blocks, 204,800 bytes a cell in windows of at most 1536 cells."""
    cache = real.cache
    assert cache is not None

    assert (cache.full_blocks, cache.sliding_blocks, cache.cells) == (5, 25, 1536)
    assert (cache.per_token["f16"], cache.per_cell["f16"]) == (20 * 1024, 204_800)
    totals = {tokens >> 10: (sizes["f16"] or 0) / 2**20 for tokens, sizes in cache.contexts.items()}
    assert totals == {8: 460, 32: 940, 128: 2860, 256: 5420}


@given(columns=st.integers(1, 10_000))
def test_block_sizes_are_those_of_types_that_fit(columns):
    kinds = [kind for kind in ggml.types().values() if kind.quantized]

    assert set(block_sizes(columns)) == {kind.block for kind in kinds if kind.fits(columns)}


def test_the_real_down_projections_take_no_block_of_256(real: Inspection):
    """704 and 2112 are multiples of 32 and 64 alone."""
    for columns in (704, 2112):
        assert block_sizes(columns) == [32, 64]
    widths = {part.role: set(part.rows) for part in real.parts}
    assert (widths["experts_down"], widths["dense"]) == ({704}, {2112, 2816})


# --- roles ---


def names(*beginnings: str) -> list[str]:
    """Every tensor name of a language model that gguf knows, in block 3."""
    tensors = {tensor for tensors in MODEL_TENSORS.values() for tensor in tensors}
    found = (TENSOR_NAMES[tensor].format(bid=3) for tensor in tensors)
    return [name for name in found if name.startswith(beginnings)]


def test_every_name_of_llama_cpp_has_a_role_with_a_prior():
    """And inside a block, but for a drafting head's glue, none is left over."""
    left = set()
    for name in names("blk.", "token_embd", "output", "per_layer"):
        role = role_of(f"{name}.weight").name
        assert role in PRIORS
        if role == "other":
            left.add(name)
    assert left == {"blk.3.nextn.eh_proj"}


@pytest.mark.parametrize(
    "name, role",
    [
        ("token_embd.weight", "embedding"),
        ("token_embd_norm.weight", "norm"),
        ("per_layer_token_embd.weight", "per_layer_embedding"),
        ("per_layer_model_proj.weight", "per_layer"),
        ("output.weight", "output"),
        ("output_norm.weight", "norm"),
        ("blk.0.attn_q_norm.weight", "norm"),
        ("blk.0.attn_sinks.weight", "attention"),
        ("blk.12.attn_kv_a_mqa.weight", "attention"),
        ("blk.12.attn_output.weight", "attention_output"),
        ("blk.7.ffn_gate_inp.weight", "router"),
        ("blk.7.ffn_gate_inp_shexp.weight", "router"),
        ("blk.7.exp_probs_b.bias", "router"),
        ("blk.7.ffn_gate_up_exps.weight", "experts_gate_up"),
        ("blk.7.ffn_up_exps.bias", "experts"),
        ("blk.7.ffn_down_exps.weight", "experts_down"),
        ("blk.7.ffn_down_exps.scale", "norm"),
        ("blk.7.ffn_down_shexp.weight", "shared"),
        ("blk.7.ffn_down.weight", "dense"),
        ("blk.7.layer_output_scale.weight", "norm"),
        ("blk.7.ssm_in.weight", "recurrent"),
        ("blk.7.shortconv.in_proj.weight", "recurrent"),
        ("blk.7.inp_gate.weight", "per_layer"),
        ("rope_freqs.weight", "other"),
        pytest.param(f"blk.{'9' * 5000}.attn_q.weight", "other", id="no block has such a number"),
    ],
)
def test_names_fall_into_their_roles(name, role):
    assert role_of(name).name == role


def test_what_has_no_data_is_on_no_lattice(real: Inspection):
    assert real.lattice and not any(real.lattice.values())


# --- vocabulary, template, provenance ---


def test_ends_of_generation_are_llama_cpps(q4_k_m: Path):
    """Every token is asked."""
    with GGUFFile(q4_k_m) as file:
        found = vocabulary(file.metadata)
    assert found is not None
    with Model.load(q4_k_m, ModelOptions(vocab_only=True)) as model:
        theirs = [token for token in range(model.n_vocab) if model.is_end(token)]
        assert (found.size, found.special["bos"].id) == (model.n_vocab, model.bos)

    assert [token.id for token in found.ends] == theirs


def test_harmonys_end_of_a_message_does_not_end_the_answer():
    tokens = ["<|return|>", "<|call|>", "<|end|>", "</s>", "word"]
    metadata = {
        "tokenizer.ggml.model": Value("str", "gpt2"),
        "tokenizer.ggml.tokens": Value("[str]", tokens),
        "tokenizer.ggml.eos_token_id": Value("u32", 0),
        "tokenizer.ggml.bos_token_id": Value("u32", 99),
    }
    found = vocabulary(metadata)

    assert found is not None
    assert [token.text for token in found.ends] == ["<|return|>", "<|call|>", "</s>"]
    assert list(found.special) == ["eos"]


def test_tokens_that_are_no_texts_are_none():
    metadata = {
        "tokenizer.ggml.model": Value("str", "gpt2"),
        "tokenizer.ggml.tokens": Value("[i32]", [1, 2]),
        "tokenizer.ggml.eos_token_id": Value("u32", 0),
    }
    found = vocabulary(metadata)

    assert found is not None and (0, {}, ()) == (found.size, found.special, found.ends)


def test_templates_tell_what_they_speak_of():
    key = "tokenizer.chat_template"
    metadata = {
        f"{key}.plain": Value("str", "{{ messages }}"),
        key: Value("str", "{% if tools %}é{% endif %}{% if enable_thinking %}"),
    }
    default, plain = templates(metadata)

    assert (default.name, default.tools, default.thinking, default.size) == (None, True, True, 51)
    assert (plain.name, plain.tools, plain.thinking) == ("plain", False, False)


def test_provenance_is_read_and_never_trusted():
    """A plan that is none, or of another version, does not keep a file from being described."""
    plan = {"request": {"size": 5}, "solver": {"name": "x"}, "version": 99, "predicted": {"kld": 1}}
    found = made({"gemcut.plan": Value("str", json.dumps(plan))})
    assert found is not None and (found.request, found.predicted) == ({"size": 5}, {"kld": 1})
    endless = '{"request": ' + '{"a": ' * 200 + "1" + "}" * 201
    for damaged in ("{", "[]", "[" * 100_000, endless):
        assert made({"gemcut.plan": Value("str", damaged)}) is None

    told = {"file": "i.gguf", "dataset": "text.txt", "entries_count": 7, "chunks_count": 9}
    keys = {f"quantize.imatrix.{k}": Value("str", v) for k, v in told.items()}
    matrix = imatrix(keys)
    assert matrix is not None and tuple(vars(matrix).values()) == tuple(told.values())
    assert imatrix({}) is None


# --- files in parts ---


def write(path, metadata, shapes, kind):
    """A GGUF with zeros for tensors."""
    from gemcut.gguf_file import TensorInfo
    from gemcut.gguf_layout import laid_out

    infos = laid_out([TensorInfo(name, shape, kind) for name, shape in shapes.items()])
    data = header(metadata, infos)
    path.write_bytes(data)
    os.truncate(path, len(data) + max(info.offset + info.nbytes for info in infos))


def test_a_split_file_is_seen_whole(tmp_path: Path):
    """From any of its parts; parts that are not there are counted."""
    first, second = part_paths(tmp_path / "m-00002-of-00002.gguf")
    f32 = ggml.type_named("f32")
    write(first, {"general.architecture": Value("str", "llama")}, {"a.weight": (2, 32)}, f32)
    write(second, {"split.no": Value("u16", 1)}, {"b.weight": (3, 32)}, f32)

    for path in (first, second):
        found = api.inspect_source(path)
        assert (found.architecture, found.weights) == ("llama", 160)
        assert (found.origin.parts, found.origin.missing_parts) == (2, 0)
    first.unlink()
    assert api.inspect_source(second).origin.missing_parts == 1
    with GGUFParts(second) as parts:
        assert parts.read("b.weight", 1, 3).shape == (2, 32)


# --- the command ---


def test_json_is_the_same_for_a_checkpoint_and_what_was_cut_from_it(checkpoint, bf16):
    """But for where it came from, how it was made and the types of what is always F32."""
    source, cut = (json.loads(inspected(path, "--json")) for path in (checkpoint, bf16))

    assert source.keys() == cut.keys()
    same = ["architecture", "family", "weights", "active_weights", "shape", "tokenizer", "cache"]
    assert {key: source[key] for key in same} == {key: cut[key] for key in same}
    assert {p["role"]: p["rows"] for p in source["parts"]} == {
        p["role"]: p["rows"] for p in cut["parts"]
    }


def test_all_tensors_are_listed_if_asked_for(q4_k_m: Path):
    found = json.loads(inspected(q4_k_m, "--tensors", "--json"))

    assert "tensors" not in json.loads(inspected(q4_k_m, "--json"))
    assert sum(tensor["size"] for tensor in found["tensors"]) == found["size"]
    assert "blk.5.ffn_down_exps.weight" in inspected(q4_k_m, "--tensors")


def test_people_are_told_the_same(checkpoint: Path, q4_k_m: Path):
    """Roles, caches, rows that refuse a block of 256, and the plan."""
    for path in (checkpoint, q4_k_m):
        text = inspected(path)
        assert "experts gate+up" in text and "16 experts, 4 used" in text
        assert "rows of 64 (experts down), 192 (dense FFN): blocks of 32 and 64, not 256" in text
        assert "windows of 128 tokens take at most 768 cells" in text
    assert "asked for type q4_k_m" in text


def test_families_are_listed_without_a_source():
    """With the architectures that config.json names."""
    found = json.loads(inspected("--json"))

    assert {family["name"] for family in found} == {family.name for family in api.families()}
    assert "Gemma4ForConditionalGeneration" in inspected("--families")


def test_what_is_no_model_is_refused_in_a_line(tmp_path: Path):
    (tmp_path / "not.gguf").write_bytes(b"not a model")
    for path in (tmp_path, tmp_path / "not.gguf", tmp_path / "missing.gguf"):
        result = run("inspect", path)
        assert result.exit_code == 1 and result.stdout == ""
        assert str(path) in result.stderr and result.stderr.count("\n") == 1


def test_a_vocabulary_alone_has_no_parts(tmp_path: Path, bf16: Path):
    """Nothing is divided by its no weights."""
    with GGUFFile(bf16) as file:
        (tmp_path / "vocabulary.gguf").write_bytes(header(file.metadata, []))

    found = api.inspect_source(tmp_path / "vocabulary.gguf")

    assert (found.weights, found.bpw, found.parts, found.cache) == (0, 0, (), None)
    assert replace(found, tensors=()) == found
    inspected(tmp_path / "vocabulary.gguf")


def test_a_terminal_is_not_told_what_to_do(bf16: Path, tmp_path: Path):
    """A file's names are text: nothing in them moves the cursor or sets a window's title."""
    title = "\x1b]0;title\x07\x1b[31mred\nline"
    with GGUFFile(bf16) as file:
        metadata = {**file.metadata, "general.name": Value("str", title)}
        infos = [replace(info, name=info.name + title) for info in file.tensors.values()]
        raw = header(metadata, infos)
        (tmp_path / "a.gguf").write_bytes(raw + bytes(file.tensor_bytes + 4096))

    text = inspected(tmp_path / "a.gguf", "--tensors")

    assert "red" in text and not {"\x1b", "\x07"} & set(text)
