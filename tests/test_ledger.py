"""The memory ledger: llama.cpp's own buffers, asked for models that exist as metadata alone."""

import json
from dataclasses import replace

import pytest

from gemcut.engine import ContextOptions
from gemcut.errors import PlanError
from gemcut.gguf_file import GGUFFile, Value
from gemcut.kv_layout import kv_layout
from gemcut.llama.context import Context
from gemcut.llama.memory import probe
from gemcut.profile import Processor, Profile
from gemcut.roles import role_of
from gemcut.runtime.memory.ledger import CARD_MARGIN, HOST_MARGIN, fixed, ledger, rooms
from gemcut.runtime.memory.tensors import Placed, homes, staged_bytes
from tests.rpc import beside_a_device
from tests.weightless import SHAPES, load, metadata_for, metadata_of

CONTEXTS = [
    ContextOptions(n_ctx=4096, n_outputs=1),
    ContextOptions(n_ctx=32768, n_ubatch=1024, type_k="q8_0", type_v="q8_0", n_outputs=1),
    ContextOptions(n_ctx=131072, n_ubatch=2048, n_outputs=1),
    ContextOptions(n_ctx=16384, n_seq=4, n_outputs=4),
    ContextOptions(n_ctx=8192, flash_attention=False, n_outputs=1),
]
# How far a formula may be off, relatively; further where a run is not planned so: with the logits
# of all tokens, or without flash attention.
UNDER, OVER, COARSE = 0.002, 0.03, 0.26
SMALL = 32 << 20  # or in bytes

CLIENT = """
import json, sys
from pathlib import Path
from gemcut.llama import add_rpc
from tests.test_ledger import CONTEXTS, compute_of
add_rpc(sys.argv[1])
experts = ((sys.argv[4], "CPU"),) if sys.argv[4] else ()
print(json.dumps(compute_of(sys.argv[2], Path(sys.argv[3]), CONTEXTS[:3], experts)))
"""


def compute_of(name, path, contexts, overrides=()):
    """Bytes of the compute buffers by device, as llama.cpp plans them for each context."""
    with load(metadata_for(name), path, overrides) as model:
        found = []
        for options in contexts:
            with Context(model, options) as context:
                found.append(dict(context.memory.compute))
        return found


def check(predicted, found, over=OVER):
    """Not below what llama.cpp takes, and not far above it."""
    assert found * (1 - UNDER) <= predicted <= max(found * (1 + over), found + SMALL)


@pytest.mark.parametrize("name", SHAPES)
def test_computing_takes_what_llama_cpp_reserves(name, tmp_path):
    """Over families, contexts, ubatches, cache types, sequences, both kinds of attention."""
    metadata = metadata_for(name)
    for options, found in zip(
        CONTEXTS, compute_of(name, tmp_path / "m.gguf", CONTEXTS), strict=True
    ):
        over = OVER if options.flash_attention else COARSE
        check(fixed(metadata, options).compute, found["CPU"], over)


@pytest.mark.parametrize("experts", ["", r"blk\.\d*[02468]\.ffn_.*_exps", r"ffn_.*_exps"])
@pytest.mark.parametrize("name", ["gemma4-26b", "qwen3-30b", "qwen3.5-35b"])
def test_a_card_takes_no_more(name, experts, tmp_path):
    """With no experts on the host, with those of every other block, and with all: then it computes
    less, since the device that stands in does not compute with the host's experts."""
    endpoint, stdout = beside_a_device(CLIENT, name, tmp_path / "m.gguf", experts)
    metadata = metadata_for(name)
    for options, found in zip(CONTEXTS, json.loads(stdout.splitlines()[-1]), strict=False):
        card = found[f"RPC0[{endpoint}]"]
        needs = fixed(metadata, options)
        assert card <= (needs.compute + needs.crossing) * (1 + UNDER)
        assert found["CPU"] <= needs.compute * (1 + UNDER)
        if experts != r"ffn_.*_exps":
            check(needs.compute + needs.crossing * bool(experts), card)


@pytest.mark.parametrize("outputs", [1, 64, None])
def test_logits_are_counted(outputs, tmp_path):
    """A large vocabulary costs memory for every token whose logits are wanted."""
    metadata = metadata_for("gemma4-26b")
    tokens = [f"tok_{i}" for i in range(65536)]
    metadata["tokenizer.ggml.tokens"] = Value("[str]", tokens)
    metadata["tokenizer.ggml.scores"] = Value("[f32]", [0.0] * len(tokens))
    metadata["gemma4.vocab_size"] = Value("u32", len(tokens))
    options = ContextOptions(n_ctx=4096, n_batch=2048, n_outputs=outputs)
    with load(metadata, tmp_path / "m.gguf") as model, Context(model, options) as context:
        found = context.memory
    needs = fixed(metadata, options)

    check(needs.compute, found.compute["CPU"], COARSE)
    assert needs.outputs == found.outputs == 4 * (outputs or 2048) * len(tokens)


def test_the_demo_takes_what_is_predicted(q4_k_m):
    """A real file, loaded as it would run."""
    options = ContextOptions(n_ctx=2048, n_outputs=1)
    with GGUFFile(q4_k_m) as file:
        needs = fixed(file.metadata, options)
    found = probe(q4_k_m, context=options)

    assert sum(needs.caches) == pytest.approx(sum(cache.bytes for cache in found.caches), rel=0.01)
    check(needs.compute, found.compute["CPU"])


@pytest.mark.parametrize("options", CONTEXTS)
@pytest.mark.parametrize("name", SHAPES)
def test_blocks_share_out_the_caches(name, options):
    """Block by block they come to what all of them take."""
    metadata = metadata_for(name)
    cache = kv_layout(SHAPES[name][0], metadata)
    needs = fixed(metadata, options)

    assert cache
    assert sum(needs.caches) == cache.sizes(options).total
    assert len(needs.caches) == len(needs.reads) == SHAPES[name][1]["block_count"]


def test_a_token_reads_its_own_sequence():
    """All of the context where that is kept, a window's cells elsewhere, states twice."""
    options = ContextOptions(n_ctx=32768, n_seq=2, n_ubatch=512)
    gemma = fixed(metadata_for("gemma4-26b"), options)
    qwen = fixed(metadata_for("qwen3.5-35b"), options)

    assert gemma.reads[5] == 16384 * 2 * 2 * (512 + 512) == gemma.caches[5] // 2
    assert gemma.reads[0] == (1024 + 512) * 8 * 2 * (256 + 256)
    assert qwen.reads[0] == qwen.caches[0]  # written, too, but of one sequence of two


def test_quantized_caches_are_copied_on_cards_alone():
    """CUDA attends to F16: to the longest keys and values of a block, one block at a time."""
    options = ContextOptions(n_ctx=131072, type_k="q8_0", type_v="q8_0")
    metadata = metadata_for("gemma4-26b")
    needs = fixed(metadata, options)

    assert needs.dequantized == 2 * 131072 * 2 * (512 + 512)
    assert fixed(metadata, replace(options, type_v="f16")).dequantized == 2 * 131072 * 2 * 512
    assert fixed(metadata, ContextOptions(n_ctx=131072)).dequantized == 0
    beside = needs.compute + needs.pool + needs.crossing
    assert needs.on_card() == beside + needs.dequantized
    assert needs.on_card(1 << 30) == beside + (1 << 30)


@pytest.mark.parametrize("changes", [{"op_offload": False}, {"n_ubatch": 16}])
def test_what_is_not_offloaded_is_not_staged(changes):
    """Small batches, and all where it is turned off, are computed where the experts are."""
    needs = fixed(metadata_for("gemma4-26b"), replace(ContextOptions(n_ctx=4096), **changes))
    assert needs.on_card(1 << 30) == needs.on_card()


@pytest.mark.parametrize("architecture", ["deepseek4", "hrm_text"])
def test_unknown_caches_are_not_planned(architecture):
    with pytest.raises(PlanError, match=f"a {architecture} model keeps"):
        fixed(metadata_of(architecture, {}), ContextOptions())


GIB = 1 << 30
MACHINE = Profile(
    "two cards",
    Processor("cpu", "host", 32 * GIB, 2 * GIB, 50e9),
    (
        Processor("gpu0", "card", 12 * GIB, GIB, 500e9),
        Processor("gpu1", "card", 8 * GIB, GIB, 300e9),
    ),
)


def tensors(places=("gpu0", "gpu1"), experts="cpu"):
    """A block at each place, its experts elsewhere."""
    yield Placed("token_embd.weight", "q6_k", 700, 800, places[-1], copied=places[-1] != "cpu")
    for block, place in enumerate(places):
        yield Placed(f"blk.{block}.attn_q.weight", "q6_k", 100, 120, place)
        yield Placed(f"blk.{block}.ffn_gate_inp.weight", "f32", 10, 2, place)
        yield Placed(f"blk.{block}.ffn_down_exps.weight", "q4_k", 5000 + block, 9000, experts)


@pytest.mark.parametrize("places", [("cpu", "cpu"), ("cpu", "gpu0"), ("gpu0", "gpu1")])
@pytest.mark.parametrize("experts", ["cpu", "gpu1"])
def test_every_byte_is_somewhere(places, experts):
    """What stands in a place's ledger is its memory, and what is left agrees with `rooms`."""
    needs = fixed(metadata_of("qwen3moe", {"block_count": 2}), ContextOptions(n_ctx=1024))
    placed = list(tensors(places, experts))
    pages = ledger(MACHINE, needs, placed, lambda name: role_of(name).name)
    room = rooms(MACHINE, needs, staged_bytes(placed))

    for at, place in enumerate(MACHINE.places):
        page = pages[place.name]
        assert sum(page.values()) == place.memory
        held = sum(size for kind, size in page.items() if kind.startswith(("weights", "kv")))
        assert page["free"] == room[at] - held + (page["compute"] == 0) * needs.on_card(
            staged_bytes(placed)
        )
    assert sum(page.get("kv", 0) for page in pages.values()) == sum(needs.caches)
    weights = sum(n for page in pages.values() for kind, n in page.items() if "weights" in kind)
    assert weights == sum(tensor.size * (1 + tensor.copied) for tensor in placed)


def test_a_ledger_says_what_is_what():
    """Roles, reserves, margins; a card without tensors computes nothing."""
    needs = fixed(metadata_of("qwen3moe", {"block_count": 1}), ContextOptions(n_ctx=1024))
    pages = ledger(MACHINE, needs, tensors(("gpu0",)), lambda name: role_of(name).name)

    assert pages["gpu0"]["weights: attention"] == 100
    assert pages["gpu0"]["weights: embedding"] == pages["cpu"]["weights: embedding"] == 700
    assert pages["gpu0"]["compute"] == needs.on_card(5000)
    assert pages["gpu0"]["kv"] == sum(needs.caches)
    assert pages["cpu"]["weights: experts_down"] == 5000
    assert pages["cpu"]["outputs"] == needs.outputs
    assert (pages["cpu"]["margin"], pages["gpu1"]["margin"]) == (HOST_MARGIN, CARD_MARGIN)
    assert pages["gpu1"]["compute"] == 0
    assert pages["gpu1"]["free"] == 7 * GIB - CARD_MARGIN


def test_blocks_are_at_home_where_their_attention_is():
    placed = list(tensors(("cpu", "gpu0", "gpu1")))
    assert homes(placed, 4) == ("cpu", "gpu0", "gpu1", "cpu")
    assert staged_bytes(placed) == 5002
    assert staged_bytes(tensors(("cpu", "gpu0"), experts="gpu0")) == 100
    assert staged_bytes(tensors(("gpu0", "gpu1"), experts="gpu0")) == 0


def test_a_card_computes_prompts_with_what_the_host_has():
    """The first that copies reach, and it needs room for it though it holds nothing; no other."""
    needs = fixed(metadata_of("qwen3moe", {"block_count": 2}), ContextOptions(n_ctx=1024))
    linked = MACHINE.with_cards(tuple(replace(card, link=1e10) for card in MACHINE.cards))
    on_host = list(tensors(("cpu", "cpu")))
    pages = ledger(linked, needs, on_host, str)
    alone = ledger(linked, replace(needs, offloads=False), on_host, str)

    assert pages["gpu0"]["compute"] == needs.on_card(5001) > needs.on_card()
    assert pages["gpu0"]["free"] == 11 * GIB - CARD_MARGIN - needs.on_card(5001)
    assert pages["gpu1"]["compute"] == alone["gpu0"]["compute"] == 0


def test_a_place_that_is_not_there():
    needs = fixed(metadata_of("qwen3moe", {"block_count": 1}), ContextOptions())
    with pytest.raises(PlanError, match="blk.0.attn_q.weight is to live at gpu7.* cpu, gpu0, gpu1"):
        ledger(MACHINE, needs, [Placed("blk.0.attn_q.weight", "f16", 2, 1, "gpu7")], str)
