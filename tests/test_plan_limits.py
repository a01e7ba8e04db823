"""Plans keep their limits: bytes of the file, memory, speed, loss; refusals say what would do."""

import re
import shutil
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemcut import api
from gemcut.api import Target
from gemcut.convert.model import Model
from gemcut.engine import ContextOptions
from gemcut.errors import BudgetError, GemcutError
from gemcut.gguf_file import GGUFFile, Value
from gemcut.profile import Profile
from tests import checkpoints
from tests.plans import (
    EVERYTHING,
    GB,
    NEEDS_IMPORTANCE,
    QUICK,
    check,
    check_ledger,
    importance_of,
    make,
    pc,
    small,
    would_do,
)


@pytest.fixture(scope="module")
def real(checkpoint, tmp_path_factory):
    """The 26B-A4B, its 262144 tokens left out: they would only take time."""
    folder = tmp_path_factory.mktemp("real") / "model"
    model = api.open_source(checkpoints.build(folder, checkpoint, checkpoints.REAL, hollow=True))
    kept = {k: v for k, v in model.metadata.items() if "tokenizer" not in k}
    yield replace(model, metadata=kept | {"gemma4.vocab_size": Value("u32", 262144)})
    shutil.rmtree(folder)


@given(size=st.integers(0, EVERYTHING), weighted=st.booleans())
@settings(max_examples=15)
def test_a_file_is_never_larger_than_asked(demo, size, weighted):
    """And little is left over: less than the largest step of one tensor."""
    try:
        plan = make(demo, weighted=weighted, size=size or 1).plan
    except BudgetError as error:
        assert size < would_do(error, "file")
        return

    written = api.planned_size(demo, plan)
    assert written <= size
    assert written > size - 200_000 or size > 15_000_000
    check(demo, plan, weighted)


@pytest.mark.parametrize("size", [14_000_000_001])
def test_a_file_of_the_real_model_is_never_larger_than_asked(real, size):
    plan = make(real, size=size, weighted=False).plan

    assert size - 50_000_000 < api.planned_size(real, plan) <= size
    assert plan.predicted["kld"] > 0
    check(real, plan, weighted=False)


@pytest.mark.parametrize("size", [3_800_000, 4_567_890, 10_000_000])
def test_a_written_file_has_the_planned_size(size, demo, tmp_path):
    importance = importance_of(demo)
    plan = make(demo, size=size, types=QUICK).plan

    api.quantize_model(demo, tmp_path / "a.gguf", Target(plan=plan), importance)

    assert size >= (tmp_path / "a.gguf").stat().st_size == api.planned_size(demo, plan)
    with GGUFFile(tmp_path / "a.gguf") as file:
        types = {name: str(info.type) for name, info in file.tensors.items()}
        assert types == {name: entry.type for name, entry in plan.tensors.items()}
        assert plan.size == file.tensor_bytes


def test_a_tensor_without_importance_gets_no_type_that_needs_it(demo):
    """As of a text that reached no expert of a block, or a file of llama-imatrix's."""
    some = importance_of(demo, without="_exps")
    plan = api.make_plan(demo, Target(size=3_200_000), some)

    experts = {entry.type for name, entry in plan.tensors.items() if "_exps.weight" in name}
    assert not experts & NEEDS_IMPORTANCE


def test_enough_room_keeps_every_weight(demo):
    plan = make(demo, size=EVERYTHING).plan

    assert {entry.type for entry in plan.tensors.values()} == {"bf16", "f32"}
    assert plan.predicted["kld"] == 0


@given(bpw=st.floats(3.3, 17), weighted=st.booleans())
@settings(max_examples=8)
def test_bits_per_weight_are_never_more_than_asked(demo, bpw, weighted):
    plan = make(demo, weighted=weighted, bpw=bpw).plan

    assert bpw - 0.2 < plan.bpw <= bpw or bpw > 16
    check(demo, plan, weighted)


@given(
    vram=st.integers(0, 10_000_000),
    ram=st.integers(0, 10_000_000),
    prefer=st.sampled_from(["speed", "balance", "quality"]),
)
@settings(max_examples=6)
def test_memory_is_kept(demo, vram, ram, prefer):
    """And where it is too little, what is said to be enough is enough."""
    machine = small(demo, vram, ram)
    try:
        plan = make(demo, machine, prefer=prefer).plan
    except BudgetError as refused:
        for what in ("RAM", "VRAM on gpu0"):
            if (enough := would_do(refused, what)) is not None:
                check_enough(demo, machine, what, enough, prefer)
        return
    check_ledger(machine, plan)
    check(demo, plan)


def check_enough(model: Model, machine: Profile, what: str, enough: int, prefer: str) -> None:
    """So much of a memory does, and a good deal less does not."""
    for size in (enough, enough - (10 << 20)):
        host, (card,) = machine.host, machine.cards
        if what == "RAM":
            host = replace(host, memory=size)
        else:
            card = replace(card, memory=size)
        other = replace(machine, host=host, cards=(card,))
        if size == enough:
            check_ledger(other, make(model, other, prefer=prefer).plan)
        elif what == "RAM":
            with pytest.raises(BudgetError):
                make(model, other, prefer=prefer)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("machine", [None, pc()])
def test_the_size_that_a_refusal_names_can_be_had(demo, weighted, machine):
    """And a little less cannot."""
    with pytest.raises(BudgetError) as refused:
        make(demo, machine, weighted, size=1_000_000)
    enough = would_do(refused.value, "file")
    assert enough is not None

    plan = make(demo, machine, weighted, size=enough).plan
    assert api.planned_size(demo, plan) <= enough
    with pytest.raises(BudgetError):
        make(demo, machine, weighted, size=int(0.99 * enough))


def test_the_speed_and_the_loss_that_a_refusal_names_can_be_had(demo):
    machine = pc()
    with pytest.raises(BudgetError, match="per second would do") as slow:
        make(demo, machine, min_speed=1e6)
    with pytest.raises(BudgetError, match="loss of .* would do") as bad:
        make(demo, machine, max_kld=1e-9, floors={}, types=("q4_0", "q8_0"))
    (speed,) = map(float, re.findall(r"([\d.e+]+) tokens", str(slow.value)))
    (loss,) = map(float, re.findall(r"loss of ([\d.e-]+) would", str(bad.value)))

    assert (make(demo, machine, min_speed=speed).chosen.decode or 0) >= speed
    lossy = make(demo, machine, max_kld=loss, types=("q4_0", "q8_0"))
    assert lossy.chosen.kld <= loss


def test_bounds_hold_together(demo):
    """Bytes, seconds and loss."""
    machine = pc()
    found = make(demo, machine, size=5_000_000, min_speed=330.0, max_kld=0.02)

    assert api.planned_size(demo, found.plan) <= 5_000_000
    assert (found.chosen.decode or 0) >= 330 and found.chosen.kld <= 0.02


@pytest.mark.parametrize("spec", ["rtx-4070", "rtx-3060+rtx-3060"])
def test_without_ram_all_experts_are_on_cards(demo, spec):
    """On the host is only what rows are looked up in."""
    plan = make(demo, pc(ram=0, spec=spec), prefer="quality").plan

    devices = {name: entry.device for name, entry in plan.tensors.items()}
    assert {place for name, place in devices.items() if name.startswith("blk.")} <= {"gpu0", "gpu1"}


def test_without_ram_and_cards_there_is_no_place(demo):
    with pytest.raises(GemcutError, match="RAM"):
        make(demo, pc(ram=0, spec="ddr5-5600"))


@pytest.mark.parametrize(("vram", "ram"), [(8, 32)])
def test_the_real_model_fits_the_machine(real, vram, ram):
    machine = pc(vram * GB, ram * GB)
    plan = make(real, machine, prefer="speed", context=ContextOptions(n_ctx=32768, n_outputs=1))
    check_ledger(machine, plan.plan)
    check(real, plan.plan, floors=(4.25, 5.5))
    names = {name for name, entry in plan.plan.tensors.items() if entry.device == "cpu"}
    homes = [entry.device for name, entry in plan.plan.tensors.items() if "attn_norm" in name]
    assert homes == ["gpu0"] * 30
    assert all("_exps" in name or name == "token_embd.weight" for name in names)
