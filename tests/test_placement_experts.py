"""Placement of files with types per expert: stacks on the host, computed there, read by type."""

from dataclasses import replace

import pytest

from gemcut import ggml
from gemcut.errors import UsageError
from gemcut.gguf_file import GGUFFile
from gemcut.profile import Kernels
from gemcut.runtime.memory.tensors import homes, staged_bytes
from gemcut.runtime.placement.contents import contents_of
from gemcut.runtime.placement.given import Given
from gemcut.runtime.placement.needs import Needs
from gemcut.runtime.placement.placement import plan_run
from gemcut.runtime.placement.problem import HOST, LOSS, Aim, Item, Option, Problem
from gemcut.runtime.placement.program import solve
from gemcut.runtime.placement.workload import CHAT
from gemcut.runtime.speed.throughput import Prices
from tests.hollow import GIB, check, experts_on_host, hollow, machine

MIXED = ("q3_k", "q6_k", "q6_k", "q6_k")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("hollow") / "m.gguf"
    with GGUFFile(hollow(path, experts=8, singles=MIXED)) as opened:
        yield opened


def test_a_stack_is_one_tensor_of_several_types(file):
    contents = contents_of(file)
    (gate,) = [t for t in contents.tensors if t.name == "blk.2.ffn_gate_exps.weight"]
    rows, kinds = 1024, [ggml.type_named(kind) for kind in ("q6_k", "q3_k")]

    assert len(file.tensors) == 3 + 4 * (4 + 3 * 8)
    assert len(contents.tensors) == 3 + 4 * (4 + 3)
    assert contents.per_expert and gate.single and gate.routed
    assert gate.kinds == (
        ("q6_k", 6 * rows * kinds[0].row_bytes(2048)),
        ("q3_k", 2 * rows * kinds[1].row_bytes(2048)),
    )
    assert (gate.type, gate.size) == ("q6_k", sum(size for _, size in gate.kinds))
    assert gate.weights == 8 * rows * 2048
    assert contents.shares[gate.name] == 0.25


@pytest.mark.parametrize("vram", [(), (12 * GIB,), (2 * GIB, 2 * GIB)])
def test_stacks_live_on_the_host(file, vram):
    """All else goes to the cards, and no card makes room for them."""
    found = plan_run(file, machine(*vram), Given(n_ctx=4096, n_ubatch=512, op_offload=True))

    check(found)
    stacks = [tensor for tensor in contents_of(file).tensors if tensor.single]
    assert experts_on_host(found) == sorted(tensor.name for tensor in stacks)
    assert found.ledger["cpu"]["weights: experts"] == sum(tensor.size for tensor in stacks)
    assert found.model.load_mode == "none"
    assert "exps" not in str(found.model.overrides)  # who loads the file says where they are
    if vram:
        assert "cpu" not in {found.places[f"blk.{n}.attn_q.weight"] for n in range(4)}
        assert "weights: experts" not in found.ledger["gpu0"]


def test_no_card_takes_them_over_to_compute_prompts(file):
    contents, profile = contents_of(file), machine(12 * GIB)
    on_card = [
        replace(t, place="cpu" if t.routed or contents.layer(t) is None else "gpu0")
        for t in contents.tensors
    ]
    stock = [replace(t, kinds=()) for t in on_card]
    needs = Needs(contents, CHAT, None)(plan_run(file, profile).context)

    assert homes(on_card, 4) == ("gpu0",) * 4
    assert (staged_bytes(on_card), staged_bytes(stock) > 0) == (0, True)
    prices = Prices(profile, replace(needs, offloads=True), contents.shares, CHAT.prompt)
    slow, fast = (
        sum(map(prices.ubatch, (t for t in tensors if t.routed))) for tensors in (on_card, stock)
    )
    assert slow > 2 * fast


def test_bytes_are_read_at_the_rates_of_their_types(file):
    contents = contents_of(file)
    host = replace(machine().host, by_type={"q3_k": 1e9, "q6_k": 4e9})
    profile = replace(machine(), host=host)
    needs = Needs(contents, CHAT, None)(plan_run(file, profile).context)
    prices = Prices(profile, needs, contents.shares)
    (stack,) = [t for t in contents.tensors if t.name == "blk.0.ffn_up_exps.weight"]
    sizes = dict(stack.kinds)

    expected = 0.25 * (sizes["q3_k"] / host.rate("q3_k") + sizes["q6_k"] / host.rate("q6_k"))
    assert prices.token(stack) == pytest.approx(expected)


@pytest.mark.parametrize("pattern", ["exps", r"blk\.1\.ffn_down_exps\.weight"])
def test_overrides_onto_cards_are_refused(file, pattern):
    given = Given(overrides=((pattern, "CUDA0"),), devices=("CUDA0",))

    with pytest.raises(UsageError, match=r"ffn_\w+_exps.weight is to live on a card.*CPU alone"):
        plan_run(file, machine(12 * GIB), given)


def test_overrides_onto_the_host_say_what_is_so(file):
    found = plan_run(file, machine(12 * GIB), Given(overrides=(("exps", "CPU"),)))

    assert found.model.overrides[0] == ("exps", "CPU")
    check(found)


@pytest.mark.parametrize(
    "given", [Given(gpu_layers=-1), Given(cpu_moe=2), Given(split_mode="none")]
)
def test_layers_onto_cards_leave_them_where_they_are(file, given):
    found = plan_run(file, machine(12 * GIB), replace(given, n_ctx=4096))

    check(found)
    assert found.model.gpu_layers == 5
    assert len(experts_on_host(found)) == 12


def test_they_are_not_mapped(file):
    with pytest.raises(UsageError, match="load mode mmap"):
        plan_run(file, machine(), Given(load_mode="mmap"))


@pytest.mark.parametrize(("rate", "rearranged"), [(2e10, False), (9e10, True)])
def test_beside_a_card_they_are_rearranged_only_where_that_is_faster(file, rate, rearranged):
    """They are so by what is said, pinned memory or not."""
    profile = machine(2 * GIB)
    kernels = Kernels(by_type={"q3_k": rate, "q6_k": rate})
    profile = replace(profile, host=replace(profile.host, rearranged=kernels))
    found = plan_run(file, profile, Given(n_ctx=4096, n_ubatch=512))
    assert rearranged == found.model.repack


def test_prompts_count_where_time_is_minimised_and_not_where_it_is_bounded():
    """What takes longer to read may still be decoded as fast as was asked for."""
    options = (
        Option("stock", 100, loss=2.0, seconds=(1.0, 1.0)),
        Option("mixture", 100, loss=1.0, seconds=(1.0, 1.0), hosted=True, reading=3.0),
    )
    item = Item("t", options, block=0, roams=True)
    problem = Problem((item,), room=(1e3, 1e3), caches=(0,), seconds=1.5)
    taken = [
        solve(replace(problem, aim=Aim(loss=1, seconds=price, size=0.1)))
        for price in (0, 0.3, 0.4, 100)
    ]

    assert [one.chosen["t"].option.name for one in taken] == 2 * ["mixture"] + 2 * ["stock"]
    assert [(one.seconds, one.reading) for one in taken] == 2 * [(1, 3)] + 2 * [(1, 0)]


def test_the_program_keeps_hosted_options_on_the_host():
    """They beat stock ones at the same size, but where the host has no room there are none."""
    options = (
        Option("stock", 100, loss=2.0, seconds=(0.0, 0.0)),
        Option("mixture", 100, loss=1.0, seconds=(0.0, 0.0), hosted=True),
    )
    item = Item("blk.0.ffn_up_exps.weight", options, block=0, roams=True)
    problem = Problem((item,), (1000.0, 1000.0), caches=(10,), aim=LOSS)
    free = solve(problem).chosen[item.name]
    bound = solve(replace(problem, room=(50.0, 1000.0))).chosen[item.name]

    assert (free.option.name, free.place) == ("mixture", HOST)
    assert (bound.option.name, bound.place) == ("stock", 1)
