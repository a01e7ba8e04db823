"""Placement: what trying everything finds, within memory, around what was given."""

from dataclasses import replace
from itertools import combinations_with_replacement, product

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as drawn
from hypothesis import strategies as st

from gemcut.engine import Cache, Memory
from gemcut.errors import BudgetError, GemcutError, PlanError
from gemcut.gguf_file import GGUFFile, Value
from gemcut.runtime.placement.candidates import Candidate, Loading
from gemcut.runtime.placement.contents import contents_of
from gemcut.runtime.placement.fitting import Fitter
from gemcut.runtime.placement.freedom import freedom
from gemcut.runtime.placement.given import UNSAID, Given
from gemcut.runtime.placement.needs import Needs
from gemcut.runtime.placement.placement import plan_run
from gemcut.runtime.placement.problem import SECONDS
from gemcut.runtime.placement.program import _shared_out, solve
from gemcut.runtime.placement.workload import CHAT, WORKLOADS, Workload, parse_workload
from tests.hollow import GIB, HOST, MIB, check, experts_on_host, hollow, machine

ONE = Given(n_ctx=4096, n_ubatch=512, op_offload=True)  # leaves one candidate


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Four blocks, a third of a GB of experts each."""
    path = tmp_path_factory.mktemp("hollow") / "m.gguf"
    with GGUFFile(hollow(path, experts=96)) as opened:
        yield opened


# --- the best ---


def fitter_of(file, profile, given=ONE, workload=CHAT):
    contents = contents_of(file)
    names = [card.name for card in profile.cards]
    free = freedom(contents, given, names)
    return Fitter(contents, profile, free, workload, Needs(contents, workload, None), {})


def everything(file, fitter, candidate):
    """All placements there are: homes in order, experts at home or on the host."""
    layers = fitter.contents.blocks + 1
    places = [place.name for place in fitter.profile.places]
    kinds = [t.name for t in fitter.contents.tensors if t.routed]
    for homes in combinations_with_replacement(places, layers):
        free = [n for n in kinds if homes[int(n.split(".")[1])] != "cpu"]
        for stay in product([False, True], repeat=len(free)):
            back = {name for name, stays in zip(free, stay, strict=True) if stays}
            placed = []
            for tensor in fitter.contents.tensors:
                layer = fitter.contents.layer(tensor)
                place = "cpu" if layer is None or tensor.name in back else homes[layer]
                placed.append(replace(tensor, place=place))
            yield fitter.fitted(candidate, placed, homes)


@pytest.mark.parametrize("vram", [[3 * GIB], [1900 * MIB], [2000 * MIB, 2400 * MIB]])
@pytest.mark.parametrize("name", ["chat", "long"])
def test_no_placement_is_faster(tmp_path, vram, name):
    """Of all that fit and keep blocks on cards; experts are told one from another."""
    profile, workload = machine(*vram), WORKLOADS[name]
    with GGUFFile(hollow(tmp_path / "m.gguf", blocks=2, experts=96)) as file:
        found = plan_run(file, profile, ONE, workload)
        fitter = fitter_of(file, profile, workload=workload)
        loading = Loading("none", True, False, True)
        fits = everything(file, fitter, candidate_of(found, loading))
        best = min(fit.seconds for fit in fits if fit.fits and "cpu" not in fit.homes)

    check(found)
    assert found.seconds == pytest.approx(best, rel=2e-3)
    assert found.seconds >= best * (1 - 1e-9)


def candidate_of(placement, loading):
    return Candidate(loading, placement.context)


@pytest.mark.parametrize("given", [UNSAID, Given(gpu_layers=3), Given(load_mode="mmap")])
@pytest.mark.parametrize("workload", WORKLOADS.values())
def test_the_program_counts_what_the_speeds_say(file, given, workload):
    """The seconds that are minimised are those of a whole request."""
    given = replace(given, n_ctx=32768, n_ubatch=1024, op_offload=True)
    profile = machine(3 * GIB)
    found = plan_run(file, profile, given, workload)
    fitter = fitter_of(file, profile, given, workload)
    loading = Loading(given.load_mode or "none", True, False, True)
    problem = fitter.problem(candidate_of(found, loading))
    solution = solve(replace(problem, aim=SECONDS), 1e-3)

    assert solution.seconds == pytest.approx(found.seconds, rel=1e-2)
    assert found.seconds == pytest.approx(
        workload.prompt * found.prefill.seconds + workload.answer * found.decode.seconds
    )


def test_where_cards_are_too_small_the_search_begins_with_full_ones(file):
    """HiGHS alone may have left much of them empty when its time is over."""
    profile = machine(1900 * MIB, 1900 * MIB)
    found = plan_run(file, profile, replace(ONE, n_ctx=4096))
    loading = Loading("none", True, False, True)
    problem = fitter_of(file, profile).problem(candidate_of(found, loading))
    begun = _shared_out(problem, 1e-2)

    assert {1, 2} <= set(begun.homes)
    assert problem.overhead < begun.seconds < 1.1 * solve(problem, 1e-3).seconds


def test_long_prompts_want_larger_ubatches(file):
    """Experts that are handed to a card cost the same however many tokens they are for."""
    long, short = (
        plan_run(file, machine(3 * GIB), Given(n_ctx=32768), Workload("w", *lengths))
        for lengths in ((24000, 10), (100, 2000))
    )
    assert long.context.n_ubatch > short.context.n_ubatch == 512
    assert long.prefill.per_second > short.prefill.per_second


def test_a_slow_link_leaves_prompts_to_the_host(file):
    """Then its weights lie in the CPU's own layout, which no card reads."""
    found = plan_run(file, machine(2 * GIB, link=1e8), Given(n_ctx=4096), Workload("w", 600, 10))
    assert experts_on_host(found)
    assert (found.context.op_offload, found.model.no_host) == (False, True)
    given = Given(n_ctx=32768, n_ubatch=2048)
    usual = plan_run(file, machine(2 * GIB, link=5e10), given, Workload("w", 24000, 10))
    assert (usual.context.op_offload, usual.model.no_host) == (True, False)
    assert usual.model.load_mode == "none"


def test_without_cards_the_file_is_mapped(file):
    found = plan_run(file, machine())
    assert (found.model.gpu_layers, found.model.devices) == (0, ())
    assert (found.model.load_mode, found.model.repack) == ("mmap", True)
    assert set(found.places.values()) == {"cpu"}
    check(found)


def test_the_largest_context_that_costs_little(file):
    """All that was trained where there is room; less where experts would have to go."""
    roomy, tight = plan_run(file, machine(12 * GIB)), plan_run(file, machine(2200 * MIB))
    assert roomy.context.n_ctx == 65536
    assert 8192 <= tight.context.n_ctx < 65536
    smallest = plan_run(file, machine(2200 * MIB), Given(n_ctx=8192))
    assert tight.seconds <= 1.06 * smallest.seconds


def test_what_is_too_large_is_reduced_and_said(file):
    """Keys and values of 8 bits first, then a smaller context."""
    needed = plan_run(file, machine(), Given(n_ctx=65536))
    ram = HOST.memory - needed.ledger["cpu"]["free"]
    small = plan_run(file, machine(ram=ram - 100 * MIB), Given(n_ctx=65536))
    assert (small.context.type_k, small.context.type_v) == ("q8_0", "q8_0")
    assert "q8_0: in f16 they do not fit" in small.notes[0]
    least = plan_run(file, machine(), Given(n_ctx=512)).ledger["cpu"]["free"]
    tiny = plan_run(file, machine(ram=HOST.memory - least), workload=WORKLOADS["long"])
    assert tiny.context.n_ctx < 24000
    assert any("shorter than a typical request" in note for note in tiny.notes)


# --- refusing ---


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """What the tensors of a 26B-A4B take, 18.7 GB, beside that model's caches."""
    path = tmp_path_factory.mktemp("gemma") / "26b.gguf"
    numbers = {
        "context_length": 262144,
        "attention.head_count_kv": [8, 8, 8, 8, 8, 2] * 5,
        "attention.key_length": 512,
        "attention.value_length": 512,
        "attention.key_length_swa": 256,
        "attention.value_length_swa": 256,
        "attention.sliding_window": 1024,
        "attention.sliding_window_pattern": [True, True, True, True, True, False] * 5,
    }
    shape = {"blocks": 30, "hidden": 3072, "wide": 768, "experts": 158, "kind": "q4_k"}
    with GGUFFile(hollow(path, architecture="gemma4", tied=True, **shape, **numbers)) as opened:
        yield opened


def test_a_context_that_would_thrash_is_refused(gemma):
    """On 24,105 MiB of RAM llama.cpp's own fitting takes 262144 tokens, which do not fit."""
    assert gemma.tensor_bytes == pytest.approx(18747 * MIB, rel=0.01)
    profile = machine(ram=24105 * MIB)
    given = Given(n_ctx=262144, type_k="f16", type_v="f16")
    with pytest.raises(BudgetError, match=r"GB of memory are lacking .*it fits with -c \d+") as e:
        plan_run(gemma, profile, given)
    way = int(str(e.value).split("-c ")[1].split(",")[0])
    check(plan_run(gemma, profile, replace(given, n_ctx=way)))
    open_ = plan_run(gemma, profile)
    check(open_)
    assert open_.context.n_ctx < 262144


def test_a_file_that_does_not_fit_is_refused(gemma):
    with pytest.raises(BudgetError, match="does not fit this machine .* cut a smaller file"):
        plan_run(gemma, machine(4 * GIB, ram=8 * GIB))


def test_what_was_taken_beyond_the_formulas_is_left_free(file):
    """Of a place that turned out to need more."""
    given, profile = Given(n_ctx=4096), machine(3 * GIB)
    before = plan_run(file, profile, given)
    after = plan_run(file, profile, given, taken={"gpu0": 600 * MIB})
    assert after.ledger["gpu0"]["beyond formulas"] == 600 * MIB
    assert len(experts_on_host(after)) > len(experts_on_host(before))
    check(after)


def test_an_unknown_architecture_is_asked_about(tmp_path):
    """Of llama.cpp, once for a context."""
    asked = []

    def probe(model, context):
        asked.append(context)
        cache = Cache("full", 100 * MIB, context.n_ctx, ("CPU",) * 2)
        return Memory({}, (cache,), {"CPU": 50 * MIB}, MIB)

    path = hollow(tmp_path / "m.gguf", blocks=2, architecture="deepseek4")
    with GGUFFile(path) as file:
        found = plan_run(file, machine(), probe=probe)
    check(found)
    assert found.ledger["cpu"]["kv"] == 100 * MIB
    assert found.ledger["cpu"]["compute"] == 50 * MIB
    assert "as llama.cpp says" in found.notes[-1]
    assert len(asked) == 1


# --- what holds for any ---


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@drawn(
    cards=st.lists(st.integers(1200, 8000), max_size=2),
    ram=st.integers(2000, 16000),
    name=st.sampled_from(sorted(WORKLOADS)),
    sequences=st.sampled_from([1, 3]),
)
def test_what_is_planned_fits(file, cards, ram, name, sequences):
    """Or it is refused, for what a user can understand."""
    profile = machine(*(size * MIB for size in cards), ram=ram * MIB)
    try:
        found = plan_run(file, profile, Given(n_seq=sequences), WORKLOADS[name])
    except BudgetError as error:
        assert "does not fit this machine" in str(error)
        return
    check(found)
    assert found.prefill.seconds > 0 < found.decode.seconds
    assert set(found.places) == set(file.tensors)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@drawn(vram=st.integers(1300, 6000), more=st.integers(0, 3000))
def test_more_memory_is_never_slower(file, vram, more):
    """Up to what two solutions may differ by."""
    given = Given(n_ctx=8192)
    small, large = (plan_run(file, machine(s * MIB), given) for s in (vram, vram + more))
    assert large.seconds <= small.seconds * 1.012


# --- workloads and files ---


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("chat", (1000, 500)),
        (" LONG ", (24000, 1000)),
        ("4000:500", (4000, 500)),
        ("16k:1k", (16384, 1024)),
    ],
)
def test_workloads(text, lengths):
    found = parse_workload(text)
    assert (found.prompt, found.answer) == lengths


@pytest.mark.parametrize(
    "text", ["", "fast", "10", "0:5", "5:0", "1:2:3", "a:b", ":", "9" * 99 + ":1"]
)
def test_no_workloads(text):
    with pytest.raises(GemcutError):
        parse_workload(text)


def test_a_file_without_a_model(tmp_path):
    from gemcut.gguf_layout import Layout

    path = tmp_path / "x.gguf"
    path.write_bytes(Layout({"a": Value("u32", 1)}, ()).header + b"\0")
    with GGUFFile(path) as file, pytest.raises(PlanError, match="there is no model in it"):
        plan_run(file, machine())
