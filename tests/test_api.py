"""The verbs: what `gemcut.api` offers, told of paths, sizes and sources as people write them."""

import dataclasses
import inspect
import pkgutil
from pathlib import Path

import pytest

import gemcut
from gemcut import api
from gemcut.api.session import Session
from gemcut.api.words import Wanted, bytes_of, paths_of, tokens_of
from gemcut.engine import ContextOptions
from gemcut.errors import ContextFull, EngineError, GemcutError, PlanError, UsageError
from gemcut.llama import Model
from gemcut.plan import Plan
from gemcut.quantize.intent import _READERS, understand
from tests.child import run_code


@pytest.fixture(scope="module")
def session(q4_k_m):
    with api.load(
        str(q4_k_m), context="1k", threads=1, sampling={"temperature": 0.0}, think=False
    ) as loaded:
        yield loaded


def test_all_that_is_offered_is_there():
    """Every name has one home, is what a type checker sees, and completes in a notebook."""
    homes = [name for names in api._HOMES.values() for name in names.split()]
    listed = [name for name in dir(api) if name in api.__all__]

    assert sorted(api.__all__) == sorted(homes) == sorted(listed)
    assert all(getattr(api, name) is not None for name in api.__all__)
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        api.__getattr__("quantise")  # as an attribute, a type checker finds it


def test_no_verb_is_called_as_a_package():
    """`from gemcut import eval` and `api.evaluate` are two things."""
    packages = {module.name for module in pkgutil.iter_modules(gemcut.__path__)}
    homes = {module.name for module in pkgutil.iter_modules(api.__path__)}

    assert not packages & {*api.__all__}
    assert not homes & {*api.__all__}


def test_every_verb_is_described_and_typed():
    """And no result that is data can be changed by chance."""
    for name in api.__all__:
        each = getattr(api, name)
        if callable(each):
            assert each.__doc__, name
        if dataclasses.is_dataclass(each):
            assert each.__dataclass_params__.frozen, name
        elif inspect.isfunction(each):
            assert inspect.signature(each).return_annotation is not inspect.Signature.empty, name


def test_importing_it_loads_nothing():
    """`from gemcut import api` is enough, and quick."""
    code = "import sys; from gemcut import api; print('numpy' in sys.modules, api.load.__name__)"

    done = run_code(code)

    assert ["False", "load"] == done.stdout.split(), done.stderr


def test_the_words_are_those_of_the_command_line():
    """What `make_plan` takes is what options and TOML files say."""
    assert {name.replace("_", "-") for name in Wanted.__annotations__} == {*_READERS}
    assert 16_000 == understand({"size": "16K"}).request.size
    assert understand({"vram": ("1G", 2)}).vram == (10**9, 2)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (bytes_of("12G"), 12 * 10**9),
        (bytes_of(12), 12),
        (tokens_of("32k"), 32768),
        (tokens_of(7), 7),
        (paths_of("a"), (Path("a"),)),
        (paths_of(Path("a")), (Path("a"),)),
        (paths_of(["a", Path("b")]), (Path("a"), Path("b"))),
    ],
)
def test_words_and_numbers_mean_the_same(found, wanted):
    assert wanted == found


def test_sources_and_paths_may_be_text(checkpoint, q8_0, tmp_path):
    """The same file comes of a folder's name and of the opened model; its sizes are told."""
    cut = api.quantize_model(str(checkpoint), str(tmp_path / "a.gguf"), "q8_0")

    assert (tmp_path / "a.gguf").read_bytes() == q8_0.read_bytes()
    assert (cut.path, cut.size) == (tmp_path / "a.gguf", q8_0.stat().st_size)
    assert cut.files == {cut.path: cut.size} and cut.bpw == cut.plan.bpw
    assert [str(cut.path)] == cut.to_dict()["files"]
    assert len(repr(cut)) < 1000


def test_a_plan_is_made_of_words(checkpoint, tmp_path):
    """For a size, or a machine; and it is what `quantize_model` takes."""
    model = api.open_source(checkpoint)
    sized = api.make_plan(model, size="4.75M")
    placed = api.make_plan(model, machine="ddr4-3200", context="2k", plain=True)

    cut = api.quantize_model(model, tmp_path / "a.gguf", sized)

    assert cut.size <= 4_750_000 and not sized.ledger
    assert {"cpu"} == {entry.device for entry in placed.tensors.values()}
    assert 2048 == placed.context["n_ctx"]
    assert len(repr(model)) < 1000 and len(repr(placed)) < 4000


def test_comparing_plans_gives_the_frontier(checkpoint):
    """As `gemcut plan --json` prints it."""
    told: list[str] = []

    found = api.compare_plans(
        checkpoint, machine="ddr4-3200", context="1k", size="4.5M", tell=told.append
    )

    assert found.frontier and found.plan.size <= 4_500_000
    assert {"plan", "chosen", "frontier", "gains", "notes"} == found.to_dict().keys()
    assert told == list(found.notes)


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        (("q4_k_m",), {"size": "4M"}, UsageError),
        ((), {"size": "4 parsecs"}, UsageError),
        ((), {"sise": "4M"}, UsageError),
        ((), {"size": "4M", "importance": {}}, UsageError),
        (("q4_what",), {}, PlanError),
    ],
)
def test_what_means_nothing_is_said(checkpoint, arguments, options, error):
    """By the errors of the command line."""
    with pytest.raises(error):
        api.make_plan(checkpoint, *arguments, **options)
    assert issubclass(error, GemcutError)


def test_a_plan_made_with_importance_says_so_without(checkpoint, tmp_path):
    """Told to who listens; the file is made all the same."""
    plan, told = api.make_plan(checkpoint, "q8_0"), []
    made = dataclasses.replace(plan, sources={**plan.sources, "imatrix": "0"})

    api.quantize_model(checkpoint, tmp_path / "a.gguf", made, tell=told.append)

    assert any("importance matrix" in line for line in told)


def test_a_session_answers_whole_and_in_pieces(session: Session):
    """Both join the conversation; a text that is continued does not."""
    first = session.chat("def add(a, b):", max_tokens=8)
    pieces = list(session.stream("def sub(a, b):", max_tokens=8))
    before = len(session.conversation.messages)
    more = session.complete("def add(a, b):", max_tokens=4)

    assert str(first) == first.text and first.finish in ("stop", "length")
    assert first.to_dict()["timing"]["prompt_tokens"] == first.timing.prompt_tokens > 0
    assert "".join(piece.text for piece in pieces)
    assert 4 == before == len(session.conversation.messages)
    assert more.text and session.memory.weights
    assert session.placement.context == dataclasses.replace(session.placement.context, n_ctx=1024)


def test_a_session_refuses_what_it_cannot(session: Session, q4_k_m):
    """Vectors of a model that is not made for them, a text that is too long, unknown sampling."""
    with pytest.raises(EngineError, match="not made for embeddings"):
        session.embed("x")
    with pytest.raises(ContextFull):
        session.chat("x = 1\n" * 1000)
    with pytest.raises(UsageError, match="sampling has no 'temprature'"):
        api.load(q4_k_m, context=256, threads=1, sampling={"temprature": 0.0})


def test_numbers_that_mean_nothing_are_said(session: Session, checkpoint, tmp_path):
    """Not taken for "no limit", and no error of the libraries below."""
    output = tmp_path / "a.gguf"
    for ask in (session.chat, session.stream, session.complete):
        with pytest.raises(UsageError, match="max_tokens is 0"):
            ask("hello", max_tokens=0)
    with pytest.raises(UsageError, match="threads is -1"):
        api.quantize_model(checkpoint, output, "q8_0", threads=-1)
    with pytest.raises(UsageError, match="no imatrix files"):
        api.merge_importance([], output)
    assert not output.exists()


def test_one_path_may_stand_for_several(checkpoint, tmp_path):
    """It is no list of letters."""
    with pytest.raises(PlanError, match="plan.json: cannot be read"):
        api.make_plan(checkpoint, size="5M", validated=str(tmp_path / "plan.json"))


def test_a_session_is_closed_with_its_block(q4_k_m, monkeypatch):
    """And where it cannot be begun."""
    closed: list[Model] = []
    close = Model.close
    monkeypatch.setattr(Model, "close", lambda self: (closed.append(self), close(self))[1])

    with api.load(q4_k_m, context=256, threads=1) as loaded:
        assert loaded.placement.context.n_ctx == 256 != ContextOptions().n_ctx
    count = len(closed)
    with pytest.raises(UsageError):
        api.load(q4_k_m, context=256, threads=1, sampling={"x": 1})

    assert 0 < count < len(closed)


def test_speed_is_measured_in_one_call(q4_k_m):
    """Beside what was predicted, as `gemcut bench --json` has it."""
    trial = api.measure_speed(q4_k_m, n_prompt=8, n_generate=4, repeats=1)

    assert {"rows", "memory", "placement"} <= trial.to_dict().keys()
    assert trial.rows[0].measured.decode > 0


def test_nothing_is_printed(checkpoint, tmp_path, capfd):
    """Talk goes to `tell` alone."""
    cut = api.convert_checkpoint(checkpoint, tmp_path / "a.gguf", progress=lambda _: None)
    api.inspect_source(cut.path)
    Plan.from_json(cut.plan.to_json(), "x")

    assert ("", "") == capfd.readouterr()
