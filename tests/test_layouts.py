"""How weights lie on the host: as they are in the file, or rearranged for the CPU, as measured."""

from dataclasses import replace

import pytest

from gemcut.cli.outline import described
from gemcut.gguf_file import GGUFFile
from gemcut.profile import Kernels
from gemcut.runtime.placement.candidates import Loading, candidates
from gemcut.runtime.placement.choosing import _best_of_ubatches
from gemcut.runtime.placement.given import Given
from gemcut.runtime.placement.placement import plan_run
from gemcut.runtime.placement.workload import CHAT, Workload
from gemcut.runtime.speed.forecast import forecast_of
from tests.hollow import GIB, hollow, machine
from tests.test_placement import fitter_of

WRITING, READING = Workload("writing", 100, 2000), Workload("reading", 8000, 10)
GIVEN = Given(n_ctx=16384)


def measured(profile, decode=1.2, batches=1.2, experts=0.5, kind="q4_k"):
    """The machine with a layout of its own for a type, so many times as fast as the plain one."""
    host = replace(
        profile.host,
        by_type={kind: 40e9},
        batches={kind: 5e11},
        experts={kind: 5e11},
        rearranged=Kernels({kind: decode * 40e9}, {kind: batches * 5e11}, {kind: experts * 5e11}),
    )
    return replace(profile, host=host)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return hollow(tmp_path_factory.mktemp("hollow") / "m.gguf", experts=64)


@pytest.fixture(scope="module")
def file(path):
    with GGUFFile(path) as opened:
        yield opened


@pytest.mark.parametrize(("workload", "repack"), [(WRITING, True), (READING, False)])
def test_the_faster_request_counts(file, workload, repack):
    """Rearranged experts of Q4_K are slower with a batch and faster one by one; and the plan says
    which it took, and what the other would have cost."""
    profile = measured(machine())
    found = plan_run(file, profile, GIVEN, workload)
    other = plan_run(file, profile, replace(GIVEN, repack=not repack), workload)
    lines = described(found)

    assert (repack, "mmap") == (found.model.repack, found.model.load_mode)
    assert found.seconds < other.seconds
    assert f"{other.seconds:.3g} s instead of {found.seconds:.3g} s" in lines[4]
    assert lines[2].endswith("mapped, in the CPU's own layout" if repack else "mapped")
    assert "instead of" not in "".join(described(other))


@pytest.mark.parametrize("repack", [True, False])
def test_what_is_given_is_kept(file, repack):
    """However slow it is."""
    found = plan_run(file, measured(machine()), replace(GIVEN, repack=repack), READING)
    assert found.model.repack == repack


@pytest.mark.parametrize(("link", "effort"), [(None, 1.05), (0.0, 1.05), (5e10, 1.0)])
def test_a_copy_is_charged_where_one_is_made(link, effort):
    """Beside a card that copies reach, llama.cpp pins weights before it would rearrange any."""
    profile = machine() if link is None else machine(4 * GIB, link=link)
    assert effort == Loading("mmap", True, False, True).effort(profile)
    assert 1.0 == Loading("mmap", False, False, True).effort(profile)
    assert 1.05 == Loading("mmap", True, True, False).effort(profile)
    assert 1.0 == Loading("none", True, True, False).effort(profile)


@pytest.mark.parametrize(("decode", "repack"), [(1.04, False), (1.2, True)])
def test_a_copy_has_to_be_worth_it(file, decode, repack):
    """Where the file could just be mapped; where cards take part it is read in any case."""
    changes = {"decode": decode, "experts": 1.0}
    alone = plan_run(file, measured(machine(), **changes), GIVEN, WRITING)
    beside = machine(4 * GIB, link=0.0)  # a lent device
    read = plan_run(file, measured(beside, **changes), replace(GIVEN, cpu_moe=4), WRITING)

    assert alone.model.repack == repack
    assert (True, "none") == (read.model.repack, read.model.load_mode)


def test_types_without_another_layout_stay_as_they_are(file):
    """Then there is nothing to choose, and nothing to say."""
    found = plan_run(file, measured(machine(), kind="q4_0"), GIVEN, WRITING)
    assert (False, ()) == (found.model.repack, found.notes)


def test_what_nobody_measured_is_left_to_llama_cpp(file):
    """Of a machine out of data sheets nobody knows which layout is faster."""
    found = plan_run(file, machine(), GIVEN, READING)
    assert (True, ()) == (found.model.repack, found.notes)
    assert described(found)[2].endswith("mapped")


def test_pinned_weights_are_not_rearranged():
    """llama.cpp takes memory that cards read before the CPU's own layouts."""
    profile = measured(machine(GIB))
    assert Loading("none", True, False, True).priced(profile).host == profile.host
    own = Loading("none", True, True, False).priced(profile).host
    assert 1.2 * 40e9 == own.rate("q4_k")
    assert 0.5 * 5e11 == own.batch_rate("q4_k", routed=True)


def test_cards_leave_prompts_to_a_cpu_that_is_faster(file):
    """Over a slow link: with plain weights where the rearranged are slow with a batch."""
    profile = measured(machine(4 * GIB, link=1e8))
    found = plan_run(file, profile, replace(GIVEN, cpu_moe=4), READING)
    assert (False, True) == (found.model.repack, found.model.no_host)
    assert not found.context.op_offload


@pytest.mark.parametrize("n_ubatch", [512, 2048])
def test_larger_contexts_are_loaded_as_the_best_small_one(path, n_ubatch):
    """Of each ubatch, the way to load that was faster."""
    with GGUFFile(path) as file:
        fitter = fitter_of(file, measured(machine()), GIVEN, WRITING)
        each = candidates(Given(n_ubatch=n_ubatch), fitter.profile, 16384, ("f16", "f16"), 2048)
        tried = [fitter.fit(candidate) for candidate in each]
    assert [False, True] == [fit.candidate.loading.repack for fit in tried]
    (best,) = _best_of_ubatches(tried)
    assert best.loading.repack


@pytest.mark.parametrize("repack", [True, False])
def test_a_forecast_knows_the_layout(file, repack):
    """What is measured later is held against the layout that was loaded."""
    found = plan_run(file, measured(machine()), replace(GIVEN, repack=repack), CHAT)
    forecast = forecast_of(file, found)
    assert forecast.decode(1250).seconds == pytest.approx(found.decode.seconds)
    assert forecast.prefill(0, CHAT.prompt).seconds == pytest.approx(found.prefill.seconds)
