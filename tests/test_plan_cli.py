"""`gemcut plan` and planning in `gemcut quantize`: what they print, write and refuse."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gemcut import api
from gemcut.demo.text import held_out_text
from gemcut.gguf_file import GGUFFile
from gemcut.plan import Measured, Plan
from gemcut.quantize.export import tensor_types
from gemcut.quantize.planner import plan_model
from gemcut.quantize.statistics import Entry, Statistics, write_statistics
from tests import checkpoints
from tests.shell import refused, run

MACHINE = ["--machine", "rtx-4070+ddr5-5600", "-c", "1k"]


@pytest.fixture(scope="module")
def plan_file(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of the demo's checkpoint, for a machine."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    result = run("plan", checkpoint, *MACHINE, "-o", path)
    assert result.exit_code == 0, result.output
    return path


def test_plan_prints_what_was_chosen_and_what_else_there_was(checkpoint: Path):
    """Tables on stdout, all predicted; talk and the next step on stderr."""
    result = run("plan", checkpoint, *MACHINE)

    for words in (
        "balance: a file of",
        "frontier",
        "lossless",
        "what more would buy",
        "16k more context",
        "1 GB more VRAM on gpu0",
        "where the bytes go",
        "experts gate+up",
        "margin",
    ):
        assert words in result.stdout
    assert len(re.findall(r"predicted", result.stdout)) >= 5
    assert len(re.findall(r"^ ?>\*? ", result.stdout, re.M)) == 2  # the chosen one, and the legend
    assert "priors were used" in result.stderr
    assert "next: keep the plan with -o plan.json" in result.stderr


def test_plan_is_data_with_json(checkpoint: Path):
    """The frontier holds the chosen one, and at every place the bytes add up to its memory."""
    found = json.loads(run("plan", checkpoint, *MACHINE, "--json").stdout)

    plan, sizes = found["plan"], [point["size"] for point in found["frontier"]]
    assert len(sizes) >= 6
    assert sizes == sorted(sizes)
    assert found["chosen"] in found["frontier"]
    machine = {
        place["name"]: place for place in [plan["machine"]["host"], *plan["machine"]["cards"]]
    }
    for name, page in plan["ledger"].items():
        assert sum(page.values()) == machine[name]["memory"]
    assert {entry["device"] for entry in plan["tensors"].values()} <= machine.keys()


def test_a_plan_is_made_once_and_cut_by(checkpoint: Path, plan_file: Path, tmp_path: Path):
    """The file holds the plan: its types, its machine, and no path."""
    output = tmp_path / "m.gguf"

    result = run("quantize", checkpoint, "-o", output, "--plan", plan_file)

    plan = Plan.read(plan_file)
    assert result.exit_code == 0
    with GGUFFile(output) as file:
        carried = file.metadata["gemcut.plan"].data
        assert {n: t.type.name for n, t in file.tensors.items()} == {
            n: e.type for n, e in plan.tensors.items()
        }
    assert json.loads(carried)["machine"]["name"] == "rtx-4070+ddr5-5600"
    assert str(tmp_path) not in carried
    assert str(checkpoint) not in carried


def test_quantize_plans_with_the_same_options(checkpoint: Path, plan_file: Path, tmp_path: Path):
    """What `plan` chooses, `quantize` chooses; and it says that nothing was measured."""
    output, saved = tmp_path / "m.gguf", tmp_path / "p.json"

    result = run("quantize", checkpoint, "-o", output, *MACHINE, "--save-plan", saved)

    assert result.exit_code == 0
    assert Plan.read(saved).tensors == Plan.read(plan_file).tensors
    assert "priors were used" in result.stderr
    assert re.search(r"predicted: KL divergence \S+ ±\d+%, \S+ tokens/s ±", result.stderr)


def test_a_size_alone_needs_no_machine(checkpoint: Path, tmp_path: Path):
    """Types alone are chosen; with a context or a card, places too."""
    saved = tmp_path / "p.json"
    arguments = [
        "quantize",
        checkpoint,
        "-o",
        tmp_path / "m.gguf",
        "--dry-run",
        "--save-plan",
        saved,
    ]

    assert run(*arguments, "--size", "6M").exit_code == 0
    assert not Plan.read(saved).machine
    assert run(*arguments, "--size", "6M", *MACHINE).exit_code == 0
    assert Plan.read(saved).machine
    assert Plan.read(saved).size < 6_000_000


def test_an_intent_can_stand_in_a_file(checkpoint: Path, tmp_path: Path):
    """The command line wins over it."""
    file, saved = tmp_path / "intent.toml", tmp_path / "p.json"
    file.write_text('bpw = 7\ntypes = "q8_0,q4_0"\nrules = ["blk.0.*=q8_0"]\n')
    arguments = [
        "quantize",
        checkpoint,
        "-o",
        tmp_path / "m.gguf",
        "--dry-run",
        "--save-plan",
        saved,
    ]

    assert run(*arguments, "--intent", file).exit_code == 0
    plan = Plan.read(saved)
    assert {e.type for n, e in plan.tensors.items() if e.type[0] == "q"} == {"q8_0", "q4_0"}
    assert plan.tensors["blk.0.ffn_down_exps.weight"].type == "q8_0"
    assert run(*arguments, "--intent", file, "--size", "9M", "--types", "default").exit_code == 0
    assert Plan.read(saved).request["size"] == 9_000_000


def test_floors_and_rules_hold(checkpoint: Path, tmp_path: Path):
    """A role's least type, a tensor's place."""
    saved = tmp_path / "p.json"
    rules = ["--rule", "blk.1.ffn_*_exps.weight=cpu", "--floor", "attention=q8_0", "--bpw", "5"]

    result = run("plan", checkpoint, *MACHINE, *rules, "-o", saved)

    plan = Plan.read(saved)
    assert result.exit_code == 0
    assert plan.tensors["blk.1.ffn_down_exps.weight"].device == "cpu"
    assert plan.tensors["blk.0.ffn_down_exps.weight"].device == "gpu0"
    assert plan.tensors["blk.0.attn_q.weight"].type in ("q8_0", "bf16", "f16", "f32")


def test_a_tensor_is_explained(checkpoint: Path):
    """All that it could have been, the taken one marked."""
    name = "blk.0.ffn_down_exps.weight"
    result = run("plan", checkpoint, *MACHINE, "--explain", name)
    data = json.loads(run("plan", checkpoint, *MACHINE, "--explain", name, "--json").stdout)

    assert name in result.stdout
    assert "taken" in result.stdout
    alternatives = data[0]["alternatives"]
    assert sum(each["taken"] for each in alternatives) == 1
    assert len(alternatives) > 5
    line = refused(run("plan", checkpoint, *MACHINE, "--explain", "blk.0.nothing"))
    assert "no tensor has this name" in line


def test_a_plan_is_exported_for_llama_cpp(checkpoint: Path, tmp_path: Path):
    """While planning, and out of a saved plan: the same."""
    types, again, plan = tmp_path / "types", tmp_path / "again", tmp_path / "p.json"

    first = run(
        "plan", checkpoint, *MACHINE, "-o", plan, "--export-tensor-types", types, "--llama-args"
    )
    second = run("plan", "--plan", plan, "--export-tensor-types", again, "--llama-args")

    assert (first.exit_code, second.exit_code) == (0, 0)
    assert types.read_text() == again.read_text() == tensor_types(Plan.read(plan))
    assert first.stdout == second.stdout
    assert first.stdout.startswith("llama-server -m FILE.gguf -c 1024 ")
    assert "llama-quantize --tensor-type-file" in second.stderr
    words = json.loads(run("plan", "--plan", plan, "--llama-args", "--json").stdout)
    assert words == shlex.split(first.stdout)


def test_scored_files_correct_the_prediction(checkpoint: Path, plan_file: Path, tmp_path: Path):
    """--validated takes plans with what was measured; one without is an error."""
    plan, scored = Plan.read(plan_file), tmp_path / "scored.json"
    kld = plan.predicted["kld"]
    plan.holding(Measured(3 * kld, 0.0, kld, "", 8, "q8_0")).write(scored)

    found = json.loads(run("plan", checkpoint, *MACHINE, "--validated", scored, "--json").stdout)

    assert found["chosen"]["kld"] == pytest.approx(3 * kld, rel=0.01)
    line = refused(run("plan", checkpoint, *MACHINE, "--validated", plan_file))
    assert "its file was not scored" in line


def test_only_what_was_predicted_alike_corrects(checkpoint: Path, plan_file: Path, tmp_path: Path):
    """Not a file of another model; and one of another sensitivity says nothing."""
    path, plan = tmp_path / "s.json", Plan.read(plan_file)
    plan = plan.holding(Measured(1.0, 0.0, plan.predicted["kld"], "", 8, "q8_0"))
    arguments = ["plan", checkpoint, *MACHINE, "--validated", path, "--json"]

    replace(plan, sources={**plan.sources, "model": "0" * 64}).write(path)
    assert "s.json: its file was cut from another source" in refused(run(*arguments))

    replace(plan, sources={**plan.sources, "sensitivity": "0" * 64}).write(path)
    found = run(*arguments)
    assert "by another sensitivity, so it corrects nothing" in found.stderr
    assert json.loads(found.stdout)["chosen"]["kld"] < 0.1


def test_a_plan_of_other_sources_is_told_of(checkpoint: Path, plan_file: Path, tmp_path: Path):
    """Its types fit; its predictions are another checkpoint's, or another importance's."""
    path, plan = tmp_path / "p.json", Plan.read(plan_file)
    arguments = ["quantize", checkpoint, "-o", tmp_path / "m.gguf", "--plan", path, "--dry-run"]
    told = {
        "the plan was made from another source": {"model": "0" * 64},
        "is cut with an importance matrix: give --imatrix": {"imatrix": "0" * 64},
    }

    for words, changed in told.items():
        replace(plan, sources={**plan.sources, **changed}).write(path)
        result = run(*arguments)
        assert result.exit_code == 0
        assert words in result.stderr
    plan.write(path)
    assert "the plan was made" not in run(*arguments).stderr


@pytest.mark.parametrize("what", [["--type", "q4_0"], ["--size", "4500000"]])
def test_a_file_cut_with_importance_says_so_and_keeps_its_size(
    checkpoint: Path, tmp_path: Path, what: list[str]
):
    """The keys take bytes, which the planner counts."""
    output, imatrix = tmp_path / "m.gguf", tmp_path / "i.gguf"
    name = "blk.0.attn_q.weight"
    entry = Entry(np.ones((1, 256), np.float32), np.full(1, 8, np.float32))
    write_statistics(imatrix, Statistics({name: entry}, ("a" * 2000,), 8, 512))
    arguments = ["quantize", checkpoint, "-o", output, *what, "--imatrix", imatrix]

    result = run(*arguments, "--json")

    assert result.exit_code == 0
    assert json.loads(result.stdout)["size"] == output.stat().st_size
    assert what[0] == "--type" or 4_490_000 < output.stat().st_size <= 4_500_000
    with GGUFFile(output) as file:
        assert file.get("quantize.imatrix.digest")


def test_a_saved_plan_is_exported_alone(checkpoint: Path, plan_file: Path, tmp_path: Path):
    """Without a source, and with something to export."""
    assert "goes with" in refused(run("plan", checkpoint, "--plan", plan_file, "--llama-args"), 2)
    assert "what of --plan to export" in refused(run("plan", "--plan", plan_file), 2)
    assert "say what to plan for" in refused(run("plan"), 2)
    fixed = run("plan", "--plan", plan_file, "--llama-args", "--size", "5M")
    assert "goes with" in refused(fixed, 2)


def damaged(plan: Plan, change) -> str:
    document = plan.to_dict()
    change(document)
    return json.dumps(document)


DAMAGES = {
    "an unknown tensor": (
        lambda d: d["tensors"].__setitem__("blk.0.odd.weight", {"type": "q8_0"}),
        "the plan is for another model: blk.0.odd.weight",
    ),
    "a missing tensor": (
        lambda d: d["tensors"].pop("blk.0.attn_q.weight"),
        "the plan is for another model: blk.0.attn_q.weight",
    ),
    "an unknown type": (
        lambda d: d["tensors"]["blk.0.attn_q.weight"].__setitem__("type", "q9_k"),
        "unknown type 'q9_k'",
    ),
    "a type that does not fit": (
        lambda d: d["tensors"].__setitem__("blk.0.ffn_down_exps.weight", {"type": "q4_k"}),
        "do not divide into q4_k's blocks",
    ),
    "another version": (lambda d: d.__setitem__("version", 99), "a plan of another version"),
    "an unknown place": (
        lambda d: d["tensors"]["blk.0.attn_q.weight"].__setitem__("device", "CUDA0"),
        "wanted cpu, gpu0, gpu1",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_plan_that_does_not_fit_is_refused(
    checkpoint: Path, plan_file: Path, tmp_path: Path, name: str
):
    """A plan of another version, or with tensors or types that are not the model's."""
    change, words = DAMAGES[name]
    path = tmp_path / "damaged.json"
    path.write_text(damaged(Plan.read(plan_file), change))

    line = refused(run("quantize", checkpoint, "-o", tmp_path / "m.gguf", "--plan", path))

    assert words in line
    assert list(tmp_path.iterdir()) == [path]


def test_a_plan_of_another_checkpoint_is_refused(checkpoint: Path, plan_file: Path, tmp_path: Path):
    """Another model of the same family has other blocks."""
    other = checkpoints.build(tmp_path / "other", checkpoint)

    line = refused(run("quantize", other, "-o", tmp_path / "m.gguf", "--plan", plan_file))

    assert "the plan is for a gemma4 model of" in line


def test_a_sensitivity_of_another_checkpoint_is_refused(checkpoint: Path, tmp_path: Path):
    """Measured errors are one model's."""
    other, measured = checkpoints.build(tmp_path / "other", checkpoint), tmp_path / "s.json"
    arguments = ["quantize", checkpoint, "-o", tmp_path / "m.gguf", "--bpw", "5", "--dry-run"]

    assert run("measure", other, "-o", measured, "--rows", "16", "-t", "1").exit_code == 0

    line = refused(run(*arguments, "--sensitivity", measured))
    assert "measured on another model" in line
    fits = run(
        *(other if each is checkpoint else each for each in arguments), "--sensitivity", measured
    )
    assert fits.exit_code == 0
    assert "priors were used" not in fits.stderr


def test_outputs_are_never_inputs(checkpoint: Path, plan_file: Path, tmp_path: Path):
    """What is read stays, whatever it is for."""
    before = plan_file.read_bytes()
    for arguments in (
        ["plan", checkpoint, *MACHINE, "-o", plan_file, "--validated", plan_file],
        ["plan", "--plan", plan_file, "--export-tensor-types", plan_file],
        ["quantize", checkpoint, "-o", plan_file, "--plan", plan_file],
        [
            "quantize",
            checkpoint,
            "-o",
            tmp_path / "m",
            "--save-plan",
            plan_file,
            "--plan",
            plan_file,
        ],
    ):
        assert "is read or written here, too" in refused(run(*arguments))
    assert plan_file.read_bytes() == before


def test_the_command_line_and_the_library_plan_alike(checkpoint: Path, plan_file: Path):
    """There is one planner."""
    from gemcut.quantize.intent import understand
    from gemcut.runtime.machine.cards import named

    model, intent = api.open_source(checkpoint), understand({"context": "1k"})
    task = api.make_task(
        model,
        intent.request,
        machine=named("rtx-4070+ddr5-5600"),
        context=intent.options(trained=None),
    )

    assert plan_model(task, alternatives=False).plan.to_json() + "\n" == plan_file.read_text()


def test_one_command_measures_plans_writes_and_validates(checkpoint: Path, tmp_path: Path):
    """What was measured lies beside the file, and the plans say what the file was found to lose.

    A second run measures nothing.
    """
    model = checkpoints.build(tmp_path / "model", checkpoint)
    output, saved, text = tmp_path / "m.gguf", tmp_path / "p.json", tmp_path / "text.txt"
    text.write_text(held_out_text()[:28_000], encoding="utf-8")
    arguments = ["quantize", model, "-o", output, *MACHINE, "--measure", "--text", text]

    first = run(*arguments, "--validate", "--save-plan", saved, "--json")

    assert first.exit_code == 0, first.stderr
    folder, found = tmp_path / "m.gguf.gemcut", json.loads(first.stdout)
    assert output.stat().st_size == found["size"]
    assert found["plan"]["predicted"]["kld_by"] == "probe"
    assert "priors were used" not in first.stderr
    assert "held against q8_0" in first.stderr
    for path in (saved, folder / "plan.json"):
        assert [vars(one) for one in Plan.read(path).measured] == [found["measured"]]
    assert not (folder / "q8_0.gguf").exists()
    second = run(*arguments, "--bpw", "6")
    assert "sensitivity.json: is used as it is there" in second.stderr
    assert "6.00 bits per weight" in second.stderr
