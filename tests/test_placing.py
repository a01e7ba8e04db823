"""llama.cpp's flags on the command line, and what is said of a plan."""

from threading import Event

import click
import pytest
from click.testing import CliRunner

from gemcut import api, llama
from gemcut.cli import placing
from gemcut.cli.outline import described
from gemcut.cli.placing import placement_options
from gemcut.errors import GemcutError, UsageError
from gemcut.gguf_file import GGUFFile
from gemcut.runtime.machine.cards import named
from gemcut.runtime.placement.given import ALL, Given
from gemcut.runtime.placement.placement import plan_run
from tests.hollow import hollow, machine


def understood(*words, parallel=1):
    """What the flags mean, and their exit status."""
    found = []

    @click.command()
    @placement_options(parallel=parallel)
    def command(wanted):
        found.append(wanted)

    done = CliRunner().invoke(command, list(words))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return found[0] if found else done


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("", Given()),
        ("-c 32k -np 4 -b 1024 -ub 256 -t 3", Given(32768, 4, 1024, 256, threads=3)),
        ("-ctk q8_0 -ctv Q8_0 -fa on", Given(type_k="q8_0", type_v="q8_0", flash_attention=True)),
        ("-fa off", Given(flash_attention=False)),
        ("-fa auto -ngl auto", Given()),
        ("-ngl 12", Given(gpu_layers=12)),
        ("--gpu-layers all", Given(gpu_layers=-1)),
        ("-ncmoe 7", Given(cpu_moe=7)),
        ("--cpu-moe", Given(cpu_moe=ALL)),
        ("-ot a=CPU,b=CUDA0", Given(overrides=(("a", "CPU"), ("b", "CUDA0")))),
        ("-ot a=CPU -ot c=d=CPU", Given(overrides=(("a", "CPU"), ("c=d", "CPU")))),
        ("-ts 3,1 -sm row -mg 1", Given(tensor_split=(3, 1), split_mode="row", main_gpu=1)),
        ("-ts 3/1", Given(tensor_split=(3, 1))),
        ("-dev CUDA1,CUDA0", Given(devices=("CUDA1", "CUDA0"))),
        ("-dev none", Given(devices=())),
        ("--rpc 10.0.0.2:50052,10.0.0.3:50052", Given(rpc=("10.0.0.2:50052", "10.0.0.3:50052"))),
        ("--no-mmap", Given(load_mode="none")),
        ("--mlock", Given(load_mode="mmap_mlock")),
        ("--mlock --no-mmap", Given(load_mode="mlock")),
        ("--load-mode dio", Given(load_mode="direct_io")),
        ("--load-mode auto --no-mmap", Given(load_mode="none")),
        ("--no-repack --no-host", Given(repack=False, no_host=True)),
        ("-nr", Given(repack=False)),
        ("--repack", Given(repack=True)),
        ("--no-op-offload --swa-full", Given(op_offload=False, swa_full=True)),
    ],
)  # fmt: skip
def test_flags(words, given):
    assert understood(*words.split()).given == given


@pytest.mark.parametrize(
    "words",
    [
        "-ngl many", "-ot x", "-ot =CPU", "-ts a,b", "-ctk q9", "-sm half", "--load-mode slow",
        "--workload fast", "--vram much", "--ram 0", "-ts -1",
    ],
)  # fmt: skip
def test_words_that_mean_nothing(words):
    """One line that says what was wanted."""
    with pytest.raises(GemcutError, match="wanted|is not a size|write|needs"):
        understood(*words.split())


@pytest.mark.parametrize(
    ("words", "one", "other"),
    [
        ("--load-mode mmap --no-mmap", "--no-mmap", "--load-mode mmap"),
        ("--load-mode dio --mlock", "--mlock", "--load-mode dio"),
        ("-cmoe -ncmoe 0", "-cmoe", "-ncmoe 0"),
        ("-sm none -ts 1,1", "-sm none", "-ts 1,1"),
        ("-b 256 -ub 512", "-b 256", "-ub 512"),
        ("-dev none -ngl 9", "-dev none", "-ngl 9"),
        ("-dev none -ts 1,1", "-dev none", "-ts 1,1"),
        ("-dev none --rpc a:1", "-dev none", "--rpc a:1"),
    ],
)
def test_words_that_contradict_each_other(words, one, other):
    """Both are named; neither is left out in silence."""
    with pytest.raises(UsageError, match=f"^{one} and {other} contradict"):
        understood(*words.split())


@pytest.mark.parametrize(
    "words", ["--load-mode none --no-mmap", "--load-mode mlock --mlock", "-dev none -ngl 0"]
)
def test_words_that_say_the_same(words):
    assert understood(*words.split()).given


@pytest.mark.parametrize("words", ["-ub 0", "-t 0", "-np 300", "-c x", "-fa maybe", "-ncmoe -1"])
def test_words_that_click_refuses(words):
    assert understood(*words.split()).exit_code == 2


def test_the_machine_and_the_workload():
    found = understood(
        *"--machine rtx-3060+rtx-3060 --vram 8G --ram 16G --workload 4000:100".split(), parallel=4
    )
    profile = found.profile()
    assert found.given == Given(n_seq=4)
    assert (found.workload.prompt, found.workload.answer) == (4000, 100)
    assert [card.memory for card in profile.cards] == [8 * 10**9]
    assert profile.host.memory == 16 * 10**9


@pytest.mark.parametrize("machine", ["ddr4-3200", "rtx-3060", "rtx-3060+rtx-3060"])
def test_five_lines(q8_0, machine):
    """What goes where, memory, context, speed, notes."""
    with GGUFFile(q8_0) as file:
        lines = described(plan_run(file, named(machine), Given(n_ctx=4096)))
    assert len(lines) == 5
    assert lines[0].startswith("planned: cpu ") and "of experts" in lines[0]
    assert "free" in lines[1] and "kept for others" in lines[1]
    assert "4096 tokens, keys and values in f16" in lines[2]
    assert "tokens/s written" in lines[3] and "±" in lines[3]
    assert lines[4].startswith("notes: ")


@pytest.mark.parametrize(("architecture", "refused"), [("nonesuch", True), ("qwen3moe", False)])
def test_what_llama_cpp_will_not_load_is_said(tmp_path, architecture, refused):
    """A plan needs no more than headers; the note is the first one."""
    path = hollow(tmp_path / "m.gguf", architecture=architecture)
    notes = api.prepare(path, profile=machine()).notes
    assert [f"has no architecture {architecture}" in note for note in notes[:1]] == [True] * refused


@pytest.mark.parametrize(
    ("given", "cards"),
    [
        (Given(), True),
        (Given(gpu_layers=0), True),  # of weights on the host all the same
        (Given(no_host=True), True),  # not pinned, but as the file has them
        (Given(no_host=True, op_offload=False), False),
        (Given(op_offload=False), False),
    ],
)
def test_who_computes_prompts(q8_0, given, cards):
    """What is said is what was planned."""
    with GGUFFile(q8_0) as file:
        placement = plan_run(file, named("rtx-3060"), given)
    assert cards == ("cards compute prompts" in described(placement)[2])


def test_waiting_for_a_busy_server_is_said(monkeypatch):
    """It serves one client at a time, and says nothing to others."""
    told, said = Event(), []
    monkeypatch.setattr(placing, "_PATIENCE", 0.0)
    monkeypatch.setattr(placing, "say", lambda text: (said.append(text), told.set()))
    monkeypatch.setattr(llama, "add_rpc", lambda endpoint: told.wait(60))
    monkeypatch.setattr(api, "machine_for", lambda given, *rest: machine())

    understood("--rpc", "127.0.0.1:50052").profile()

    assert ["waiting for 127.0.0.1:50052, which serves one client at a time"] == said
