"""Plans in llama.cpp's words mean to llama.cpp what they mean here."""

import json
import random
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut import api
from gemcut.api import Target
from gemcut.engine import ContextOptions
from gemcut.errors import GemcutError, PlanError
from gemcut.gguf_file import GGUFFile
from gemcut.plan import Entry, Plan
from gemcut.quantize import stock
from gemcut.quantize.export import (
    layout,
    mixture,
    server_arguments,
    tensor_types,
)
from gemcut.quantize.planner import plan_model
from gemcut.quantize.request import Request, parse_rule
from gemcut.runtime.machine.cards import named
from gemcut.runtime.placement.layout import expressions
from tests import families, oracle
from tests.rpc import beside_a_device, rpc_server

TOOL = Path(__file__).parents[1] / "build/peers/0.3.36/llama.cpp/bin/llama-quantize"
CONTEXT = ContextOptions(n_ctx=1024, type_k="q8_0", type_v="q8_0", n_outputs=1)


@pytest.fixture(scope="module")
def model(checkpoint):
    """The demo's."""
    return api.open_source(checkpoint)


def planned(model, *rules, machine="rtx-4070", **asked) -> Plan:
    """A plan that llama-quantize can make, too."""
    request = Request(plain=True, rules=tuple(map(parse_rule, rules)), **asked)
    profile = machine and named(machine)
    task = api.make_task(model, request, machine=profile, context=CONTEXT)
    return plan_model(task, alternatives=False).plan


def mixed(model, seed: int) -> Plan:
    """A plan with a type drawn for every tensor, of those that fit any row of the demo's."""
    draw, plan = random.Random(seed), planned(model, machine=None, bpw=5.0)
    kinds = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "bf16", "f16", "f32"]
    drawn = {tensor.name: Entry(tensor.kept or draw.choice(kinds)) for tensor in model.tensors}
    return replace(plan, tensors=drawn)


# --- types ---


@pytest.mark.parametrize("seed", range(4))
def test_llama_cpp_makes_the_same_types(model, bf16, tmp_path, seed):
    """Told of the exported types, llama.cpp's quantizer would write those of the plan."""
    plan = mixed(model, seed)

    lines = oracle.quantize(
        bf16, tmp_path / "x.gguf", mixture(plan), dry_run=True, tensor_types=tensor_types(plan)
    )

    assert oracle.types(lines) == {name: entry.type for name, entry in plan.tensors.items()}


def test_llama_cpp_makes_the_same_file(model, bf16, tmp_path):
    """All bytes of all tensors, of a plan that the planner made."""
    plan = planned(model, machine=None, bpw=5.0)
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"

    api.quantize_model(model, ours, Target(plan=plan))
    with GGUFFile(ours) as file:
        number = file.metadata["general.file_type"].data
    kind = next(name for name, (each, _) in stock.MIXTURES.items() if each == number)
    oracle.quantize(bf16, theirs, kind, tensor_types=tensor_types(plan))

    oracle.assert_same(ours, theirs)


@pytest.mark.skipif(not TOOL.is_file(), reason="llama-quantize is not built")
def test_the_tool_itself_reads_the_file(model, bf16, tmp_path):
    """llama-quantize with --tensor-type-file."""
    plan, file = mixed(model, 9), tmp_path / "types.txt"
    file.write_text(tensor_types(plan))

    done = subprocess.run(
        [TOOL, "--tensor-type-file", file, "--dry-run", bf16, mixture(plan), "1"],
        capture_output=True,
        text=True,
        errors="replace",
        check=True,
    )

    lines = (done.stdout + done.stderr).splitlines()
    assert oracle.types(lines) == {name: entry.type for name, entry in plan.tensors.items()}


def test_the_file_is_short_and_without_what_is_never_cut(model):
    """Blocks of one type stand in one line; norms and routers are left out."""
    plan = planned(model, machine=None, types=("q8_0",))

    text = tensor_types(plan)

    assert text.count("\n") < 20
    assert "norm" not in text
    assert "ffn_gate_inp" not in text
    assert mixture(plan) == "Q8_0"


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        (Entry("q8_0", padded_to=96), "pads"),
        (Entry("q8_0", split=True), "splits"),
        (Entry("q8_0", experts=("q8_0", "q4_0")), "has types within"),
    ],
)
def test_what_llama_quantize_cannot_do_is_refused(model, entry, word):
    """With the tensor's name, and another way."""
    plan = planned(model, machine=None, bpw=5.0)
    name = "blk.0.ffn_down_exps.weight"

    with pytest.raises(PlanError, match=f"the plan {word} {name}.* plan with --plain, or"):
        tensor_types(replace(plan, tensors={**plan.tensors, name: entry}))


@pytest.mark.parametrize(
    "name", ["blk.0.Attn.weight", "a b", "a=b", "a,b", "blk.0.weigh\u0074\u0301", ""]
)
def test_names_that_options_cannot_hold_are_refused(name):
    """llama-quantize reads patterns as lower case, and both tools split at some characters."""
    with pytest.raises(PlanError, match="cannot name this tensor"):
        expressions([name])


# --- expressions ---


@pytest.mark.parametrize("family", families.recorded())
@given(data=st.data())
def test_expressions_match_the_tensors_and_no_others(family, data):
    """Each of them once, whichever are chosen, of all names of a family."""
    names = sorted(families.converted(family))
    chosen = data.draw(st.sets(st.sampled_from(names)))

    found = expressions(chosen)

    for name in names:
        assert sum(bool(re.search(each, name)) for each in found) == (name in chosen)
    assert not set(",= ") & set("".join(found))


def test_blocks_are_told_apart():
    """Block 1 is not block 11; names that differ in length do not match each other."""
    found = expressions([f"blk.{i}.ffn_{w}_exps.weight" for i in (1, 2) for w in ("up", "down")])

    assert found == [r"^blk\.(1|2)\.(ffn_down_exps\.weight|ffn_up_exps\.weight)$"]
    assert not re.search(found[0], "blk.11.ffn_up_exps.weight")
    assert not re.search(found[0], "blk.1.ffn_up_exps.weight_scale")


# --- places ---


def test_a_plan_without_a_machine_has_no_command_line(model):
    """It says what to do."""
    plan = planned(model, machine=None, bpw=5.0)

    with pytest.raises(PlanError, match="plan for a machine"):
        server_arguments(plan, "m.gguf")
    with pytest.raises(PlanError, match="says nothing of places"):
        layout(plan)


def test_the_command_line_says_what_was_planned(model):
    """Context, cache types and places, in llama-server's words."""
    words = server_arguments(planned(model, "blk.1.ffn_*_exps.weight=cpu"), "m.gguf")

    pairs = dict(zip(words[1::2], words[2::2], strict=True))
    blocks = 1 + max(int(t.name.split(".")[1]) for t in model.tensors if t.name[:4] == "blk.")
    assert words[0] == "llama-server"
    assert (pairs["-m"], pairs["-c"], pairs["-np"], pairs["-ub"]) == ("m.gguf", "1024", "1", "512")
    assert (pairs["-ctk"], pairs["-ctv"], pairs["-fa"]) == ("q8_0", "q8_0", "on")
    assert pairs["-ngl"] == str(blocks + 1)
    assert re.fullmatch(r"\^blk\\\.1\\\.\(ffn_down_exps.*\)\$=CPU", pairs["-ot"])
    assert "-ts" not in pairs


def test_without_a_card_nothing_is_offloaded(model):
    """All layers stay."""
    found = layout(planned(model, machine="ddr4-3200"))

    assert (found.gpu_layers, found.split, found.host) == (0, (), ())


def test_all_cards_of_the_machine_are_told_of(model):
    """llama.cpp would divide layers over all that it sees."""
    first, second = (
        layout(planned(model, f"*norm.weight={card}", machine="rtx-4070+rtx-4070"))
        for card in ("gpu0", "gpu1")
    )

    assert (first.split, second.split) == ((7, 0), (0, 7))


def test_a_long_ubatch_is_a_long_batch(model):
    """Which llama-server would cut it to."""
    plan = planned(model)
    longer = replace(plan, context={**plan.context, "n_ubatch": 4096})

    assert "-b" not in server_arguments(plan, "m.gguf")
    assert "-b 4096 -ub 4096" in " ".join(server_arguments(longer, "m.gguf"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: replace(p, context={"n_ctx": "x"}), "context is none"),
        (lambda p: replace(p, context={"x": 1}), "context is none"),
        (lambda p: replace(p, machine={**p.machine, "cards": 3}), "not a machine profile"),
        (
            lambda p: replace(p, tensors={"blk.999999999.x.weight": Entry("f32", device="cpu")}),
            "1 tensors, one of them in block 999999999",
        ),
    ],
)
def test_a_damaged_plan_has_no_command_line(model, damage, words):
    """Plans are files, which may hold anything."""
    with pytest.raises(GemcutError, match=words):
        server_arguments(damage(planned(model)), "m.gguf")


def test_places_that_llama_cpp_cannot_be_told_of_are_refused(model):
    """Layers out of order, or a tensor on another card than its layer."""
    plan = planned(model)
    moved = {n: replace(e, device="cpu") for n, e in plan.tensors.items() if n[:6] == "blk.1."}
    alone = {"blk.0.ffn_down_exps.weight": Entry("q8_0", device="gpu1")}

    with pytest.raises(PlanError, match="fills the host first"):
        layout(replace(plan, tensors={**plan.tensors, **moved}))
    with pytest.raises(PlanError, match="to live at gpu1, its layer at gpu0"):
        layout(replace(plan, tensors={**plan.tensors, **alone}))


# In a process of its own: a device stays registered, and every later load would use it.
CLIENT = """
import json, sys
from gemcut import llama
from gemcut.engine import ContextOptions, ModelOptions
from gemcut.plan import Plan
from gemcut.quantize.export import layout
*endpoints, path = sys.argv[1:]
with llama.Model.load(path, ModelOptions(vocab_only=True)) as model:
    pass
from gemcut.gguf_file import GGUFFile
with GGUFFile(path) as file:
    plan = Plan.from_json(file.metadata["gemcut.plan"].data, path)
where = layout(plan)
options = ModelOptions(
    gpu_layers=where.gpu_layers,
    overrides=tuple((each, "CPU") for each in where.host),
    rpc=tuple(endpoints),
    tensor_split=tuple(map(float, where.split)),
    load_mode="none",
    repack=False,
)
context = ContextOptions(**plan.context, threads=1, n_outputs=1)
with llama.Model.load(path, options) as model, llama.Context(model, context) as run:
    print(json.dumps([model.memory.weights, run.memory.to_dict()]))
"""
SPLITS = {
    "all on the card": ([], 1),
    "experts on the host": (["blk.1.ffn_*_exps.weight=cpu"], 1),
    "one kind of experts on the host": (["blk.*.ffn_down_exps.weight=cpu"], 1),
    "a block on the host": (["blk.0.*=cpu"], 1),
    "two cards": (["blk.0.*=gpu0", "blk.1.*=gpu1", "blk.0.ffn_down_exps.weight=gpu0"], 2),
    "only the second of two cards": (["blk.*=gpu1", "output_norm.weight=gpu1"], 2),
    "only the first of two cards": (["blk.*=gpu0", "output_norm.weight=gpu0"], 2),
    "two cards and the host": (
        ["blk.0.attn_*=cpu", "blk.1.attn_*=gpu0", "output_norm.weight=gpu1"],
        2,
    ),
}


@pytest.mark.parametrize("name", SPLITS)
def test_llama_cpp_puts_every_byte_where_the_plan_does(model, name, tmp_path):
    """Its buffers for weights and caches, on every device, are those of the plan's ledger."""
    rules, cards = SPLITS[name]
    plan, path = planned(model, *rules, machine="+".join(["rtx-4070"] * cards)), tmp_path / "m.gguf"
    api.quantize_model(model, path, Target(plan=plan))
    if cards == 1:
        endpoint, stdout = beside_a_device(CLIENT, path)
        endpoints = [endpoint]
    else:
        with rpc_server() as other:
            endpoint, stdout = beside_a_device(CLIENT, other, path)
            endpoints = [endpoint, other]
    weights, memory = json.loads(stdout.splitlines()[-1])

    for number, place in enumerate(["cpu", *(f"gpu{i}" for i in range(cards))]):
        page = plan.ledger[place]
        buffer = f"RPC0[{endpoints[number - 1]}]" if number else "CPU"
        planned_ = sum(size for kind, size in page.items() if kind.startswith("weights"))
        assert weights.get(buffer, 0) == pytest.approx(planned_, rel=2e-3, abs=20_000), place
    caches = memory["caches"]
    layers = [device for cache in caches for device in cache["devices"]]
    for number, place in enumerate(["cpu", *(f"gpu{i}" for i in range(cards))]):
        device = f"RPC{number - 1}" if number else "CPU"
        assert bool(plan.ledger[place].get("kv")) == (device in layers), place
