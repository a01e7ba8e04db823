"""Loading: planned runs become real ones, or smaller ones that say so.

Processes on the loopback interface stand in for cards (`tests.rpc`); where memory is to run out
they have a limit, so that allocations fail as on a card that is full.
"""

import json
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

from gemcut import api, gguf_parts
from gemcut.engine import Cache, ContextOptions, Device, Memory, ModelOptions
from gemcut.errors import BudgetError, EngineError, GGUFError, OutOfMemory
from gemcut.gguf_file import GGUFFile
from gemcut.gguf_parts import GGUFParts
from gemcut.llama import Context, Model, backends, loadable
from gemcut.profile import Processor, Profile
from gemcut.runtime.loading import loading
from gemcut.runtime.loading.ladder import Ladder, changes
from gemcut.runtime.memory.ledger import CARD_MARGIN
from gemcut.runtime.placement.given import Given
from gemcut.runtime.placement.held import Names, beyond, held, predicted, resident
from gemcut.runtime.placement.placement import plan_run
from tests.child import run_code
from tests.rpc import rpc_server

TEXT = "def add(first, second):\n    return"
MIB = 1 << 20
HOST = Processor("cpu", "host", 16 << 30, 1 << 30, 5e9, flops=5e10)

# Opens a run on lent devices and tells what came of it.
CLIENT = """
import json, sys
from pathlib import Path
import numpy as np
from gemcut import api, gguf_parts
from gemcut.errors import BudgetError
from gemcut.runtime.placement.given import Given
from tests.test_loading import TEXT, machine
spec = json.loads(sys.argv[1])
said = []
given = Given(rpc=tuple(spec["endpoints"]), threads=1, **spec["given"])
try:
    with api.open_run(
        Path(spec["path"]), given, profile=machine(*spec["cards"]), tell=said.append
    ) as run:
        np.save(spec["out"], run.context.decode(run.model.tokenize(TEXT), outputs="last"))
        context, held, failure = run.placement.to_dict()["context"], run.held, None
except BudgetError as error:
    context, held, failure = None, None, str(error)
print(json.dumps({"said": said, "context": context, "held": held, "failure": failure}))
"""


def machine(*cards):
    """A machine whose cards have so many MiB beside the margin that plans leave free."""
    return Profile(
        "test",
        HOST,
        tuple(
            Processor(f"gpu{n}", "card", size * MIB + CARD_MARGIN, 0, 500e9, flops=5e12)
            for n, size in enumerate(cards)
        ),
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Runs of tests are nothing to correct predictions by."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def opened(bf16, tmp_path):
    """Opens a run of the demo's model beside lent devices, in a process of its own."""
    if "RPC" not in backends():
        pytest.skip("llama.cpp was built without RPC")

    def run(*rooms, cards=None, **given):
        with ExitStack() as stack:
            endpoints = [stack.enter_context(rpc_server(room * MIB)) for room in rooms]
            spec = {"endpoints": endpoints, "path": str(bf16), "given": given}
            spec |= {"cards": cards or [100] * len(rooms), "out": str(tmp_path / "logits.npy")}
            done = run_code(CLIENT, json.dumps(spec))
        assert 0 == done.returncode, done.stderr[-2000:]
        found = json.loads(done.stdout.splitlines()[-1])
        return found, np.load(tmp_path / "logits.npy") if found["context"] else None

    return run


@pytest.fixture(scope="module")
def alone(bf16):
    """The logits of the CPU alone."""
    options = ContextOptions(n_ctx=512, n_ubatch=64, threads=1, n_outputs=1)
    with Model.load(bf16, ModelOptions(devices=())) as model, Context(model, options) as context:
        return context.decode(model.tokenize(TEXT), outputs="last").copy()


def alike(first, second):
    """Equal but for rounding."""
    return np.abs(first - second).mean() < 0.05


def test_all_of_it_on_a_card(opened, alone):
    """Where there is room nothing is said; what is held is what the ledger says."""
    found, logits = opened(0)
    card = found["held"]["gpu0"]

    assert [] == found["said"]
    assert alike(logits, alone)
    assert card["weights"] > 14 * MIB and card["kv"] > 3 * MIB


def test_experts_on_the_host(opened, alone):
    """A card too small for all of it keeps attention and caches."""
    found, logits = opened(0, cards=[20])

    assert [] == found["said"]
    assert alike(logits, alone)
    assert found["held"]["cpu"]["weights"] > 4 * MIB
    assert found["held"]["gpu0"]["kv"] and "kv" not in found["held"]["cpu"]


def test_two_cards(opened, alone):
    found, logits = opened(0, 0, cards=[20, 20])

    assert alike(logits, alone)
    assert all(found["held"][place]["weights"] > 2 * MIB for place in ("gpu0", "gpu1"))


def test_a_full_card_gives_experts_to_the_host(opened, alone):
    """It was believed to have 100 MiB and has 20: step by step, each said, and the answer is the
    same."""
    found, logits = opened(20)

    assert "no memory for" in found["said"][0] and "on RPC0" in found["said"][0]
    assert any("of weights more on the host" in line for line in found["said"])
    assert found["held"]["cpu"]["weights"] > 2 * MIB
    assert (2048, "f16") == (found["context"]["n_ctx"], found["context"]["type_k"])
    assert alike(logits, alone)


def test_then_types_and_contexts(opened, alone):
    """Where weights are kept on the card by the user: keys and values in 8 bits, and then fewer."""
    fixed = {"overrides": [["blk", "RPC0"]], "gpu_layers": 99}
    # How much of an address space a server takes itself differs from one to the next.
    tried = (opened(room, **fixed) for room in (20, 21, 22, 23, 24))
    found, logits = next((found, logits) for found, logits in tried if found["context"])

    assert any("keys and values in q8_0" in line for line in found["said"])
    assert any("context 2048 -> 1024 tokens" in line for line in found["said"])
    assert "q8_0" == found["context"]["type_k"]
    assert alike(logits, alone)


def test_what_the_user_fixed_stays(opened):
    """Then nothing is left to try, and all that was tried is said."""
    fixed = {"type_k": "f16", "type_v": "f16", "n_ctx": 2048, "n_ubatch": 512}
    found, _ = opened(20, overrides=[["blk", "RPC0"]], gpu_layers=99, **fixed)

    assert "out of memory, and nothing smaller is left to try" in found["failure"]
    assert "Tried: context 2048, keys and values f16/f16, ubatch 512" in found["failure"]
    assert "RPC0" in found["failure"]


# --- before loading ---


def test_not_a_file_of_ours(tmp_path):
    """Nothing, a text, and a folder."""
    (tmp_path / "text.gguf").write_text("once upon a time")
    nothing = ("none.gguf", "No such file"), (".", "cannot be read")
    for name, why in (*nothing, ("text.gguf", "not a GGUF")):
        with pytest.raises(GGUFError, match=why):
            api.open_run(tmp_path / name, profile=machine())


def test_a_file_cut_short(q4_k_m, tmp_path):
    """Its last tensor is missing: found in the header, before a byte is read."""
    data = q4_k_m.read_bytes()
    (tmp_path / "short.gguf").write_bytes(data[:-5000])

    with pytest.raises(GGUFError, match=r"short\.gguf: truncated"):
        api.open_run(tmp_path / "short.gguf", profile=machine())


def test_parts(checkpoint, tmp_path):
    """Any part stands for all of them; a missing or short one is named."""
    path = tmp_path / "split.gguf"
    api.quantize_model(api.open_source(checkpoint), path, api.Target("q4_k_m"), split_size=2 << 20)
    parts = sorted(tmp_path.glob("split-*.gguf"))
    assert len(parts) > 1
    with api.open_run(parts[-1], Given(n_ctx=512), profile=machine()) as run:
        assert run.context.decode(run.model.tokenize(TEXT), outputs="last").any()

    data = parts[1].read_bytes()
    parts[1].write_bytes(data[:-100])
    with pytest.raises(GGUFError, match=f"{parts[1].name}: truncated"):
        api.prepare(parts[0], profile=machine())
    parts[1].unlink()
    with pytest.raises(GGUFError, match=f"{parts[1].name}: missing"):
        api.prepare(parts[0], profile=machine())


def test_an_unknown_architecture(q4_k_m, tmp_path):
    """llama.cpp is asked, and says so."""
    path = tmp_path / "m.gguf"
    path.write_bytes(q4_k_m.read_bytes().replace(b"gemma4", b"gemma9"))
    with pytest.raises(EngineError, match="unknown model architecture: 'gemma9'"):
        api.open_run(path, profile=machine())


# --- what is asked of llama.cpp before ---


def plans(path, *cards):
    with GGUFParts(path) as file:
        return plan_run(file, machine(*cards), Given(devices=(), n_ctx=1024))


def test_llama_cpp_is_asked_where_it_is_close(q4_k_m, monkeypatch):
    """A plan with room to spare is believed; with little, the memory is asked for."""
    asked = []

    def probe(path, model, context):
        asked.append(context)
        return Memory()

    monkeypatch.setattr(loading, "probe", probe)
    with api.open_run(q4_k_m, Given(n_ctx=1024), profile=machine()):
        assert [] == asked
    page = plans(q4_k_m).ledger["cpu"]
    little = replace(HOST, memory=HOST.memory - page["free"] + MIB)
    with api.open_run(q4_k_m, Given(n_ctx=1024), profile=Profile("small", little)):
        assert 1024 == asked[0].n_ctx


def test_a_plan_that_is_not_accepted(q4_k_m, monkeypatch):
    """Needs more than the ledger says: planned again, which is said, or refused."""
    page = plans(q4_k_m).ledger["cpu"]
    little = replace(HOST, memory=HOST.memory - page["free"] + MIB)

    def probe(path, model, context):
        return Memory(compute={"CPU": page["compute"] + context.n_ctx * 2000})

    monkeypatch.setattr(loading, "probe", probe)
    said = []
    with api.open_run(q4_k_m, profile=Profile("small", little), tell=said.append) as run:
        assert run.placement.context.n_ctx < 2048
    assert "llama.cpp needs more than was planned" in said[0]
    assert 1 == len(said)
    with pytest.raises(BudgetError, match="does not fit"):
        api.open_run(q4_k_m, Given(n_ctx=2048, type_k="f16"), profile=Profile("small", little))


def test_what_is_held_is_what_is_planned(q4_k_m):
    """Place by place, as the log and the ledger have it."""
    with api.open_run(q4_k_m, Given(n_ctx=1024), profile=machine()) as run:
        said = predicted(run.placement)["cpu"]
        found = run.held["cpu"]
    assert found["kv"] == pytest.approx(said["kv"], rel=0.01)
    assert found["outputs"] == said["outputs"]
    assert found["compute"] <= said["compute"]


@pytest.mark.parametrize(
    ("buffer", "place"),
    [
        ("CUDA0", "gpu0"),
        ("CUDA1", "gpu1"),
        ("CUDA10", "cpu"),
        ("CUDA_Host", "cpu"),
        ("CPU_Mapped", "cpu"),
        ("CPU_REPACK", "cpu"),
        ("RPC0[127.0.0.1:50052]", "gpu2"),
        ("RPC0[127.0.0.1:50053]", "gpu3"),
        ("RPC1", "gpu3"),
        ("MTL0_Mapped", "gpu4"),
        (None, "cpu"),
    ],
)
def test_buffers_have_places(buffer, place):
    devices = "CUDA0", "CUDA1", "RPC0", "RPC1", "MTL0"
    buffers = "CUDA0", "CUDA1", "RPC0[127.0.0.1:50052]", "RPC0[127.0.0.1:50053]", "MTL0"
    assert place == Names(devices, buffers).place(buffer)


def test_caches_are_shared_out_by_layer():
    memory = Memory(
        {"CPU_Mapped": 5, "CUDA0": 7},
        (Cache("full", 400, 1, ("CUDA0", "CUDA0", "CUDA0", "CPU")),),
        {"CUDA0": 11},
        13,
    )
    assert held(memory, Names(("CUDA0",), ("CUDA0",))) == {
        "cpu": {"weights": 5, "kv": 100, "outputs": 13},
        "gpu0": {"weights": 7, "kv": 300, "compute": 11},
    }


@pytest.mark.parametrize(
    ("buffers", "weights"),
    [
        ({"CPU_Mapped": 2}, 2),  # all of it
        ({"CPU_Mapped": 2, "CPU_REPACK": 1.5}, 2),  # copies in the place of what is mapped
        ({"CPU_Mapped": 2, "CUDA0": 1}, 2),  # tensors of the card's lie between the host's
        ({"CPU_Mapped": 2, "CPU_REPACK": 3}, 3),  # more than was said
        ({"CPU": 1, "CPU_REPACK": 1.5}, 2.5),  # read, not mapped
        ({"CUDA0": 2}, 0),
    ],
)
def test_of_a_mapped_file_its_tensors_count(q4_k_m, buffers, weights):
    placement = plans(q4_k_m)
    said = predicted(placement)["cpu"]["weights"]
    memory = Memory({name: int(said / 2 * share) for name, share in buffers.items()})
    found = resident(memory, Names(("CUDA0",), ("CUDA0",)), placement)["cpu"]
    assert found.get("weights", 0) == pytest.approx(said / 2 * weights, abs=2)


def test_a_header_is_read_once(q4_k_m, monkeypatch):
    """However often a run is planned and its file looked at."""
    opened = []

    class Counted(GGUFFile):
        def __init__(self, path):
            opened.append(path)
            super().__init__(path)

    monkeypatch.setattr(gguf_parts, "GGUFFile", Counted)
    loadable._check.cache_clear()
    with api.open_run(q4_k_m, Given(n_ctx=512), profile=machine()):
        assert [q4_k_m] == opened


def test_what_is_beyond_the_ledger(q4_k_m):
    """Of caches and computing; that computing takes less is not set against caches' more."""
    placement = plans(q4_k_m)
    page = predicted(placement)["cpu"]
    memory = Memory({}, (Cache("full", page["kv"], 1, ("CPU",)),), {"CPU": page["compute"] + 5})
    assert {"cpu": 5} == beyond(placement, memory, Names())
    assert {} == beyond(placement, replace(memory, compute={"CPU": 1}), Names())


# --- the ladder without llama.cpp ---


def test_a_ladder_takes_what_the_device_says_is_free(q4_k_m):
    """Another program took memory since: one step does."""
    asked = []
    with GGUFParts(q4_k_m) as file:

        def plan(given, taken):
            asked.append(taken)
            return plan_run(file, machine(100), given, taken=taken)

        left = Device("CUDA0", "", "gpu", CARD_MARGIN + 12 * MIB, 1 << 30)
        names = Names(("CUDA0",), ("CUDA0",))
        ladder = Ladder(plan, Given(devices=("CUDA0",), n_ctx=1024), names, lambda: [left])
        first = ladder.take({})
        second = ladder.lower(first, OutOfMemory("no memory", "CUDA0", 1))

    assert asked[-1]["gpu0"] == 88 * MIB
    assert "more on the host" in changes(first, second)
