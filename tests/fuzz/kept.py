"""Targets that gemcut or its user wrote once: plans, profiles, journals, rules, conversations."""

from pathlib import Path

from gemcut import api
from gemcut.artefact import parse
from gemcut.gguf_parts import GGUFParts
from gemcut.journal import Journal
from gemcut.plan import Plan
from gemcut.profile import Profile
from gemcut.quantize import choose
from gemcut.quantize.artefacts import Artefacts
from gemcut.quantize.export import server_arguments, tensor_types
from gemcut.quantize.intent import read_intent, understand
from gemcut.quantize.rescale import pairs_of, rescale
from gemcut.runtime.chat.transcript import Transcript
from gemcut.runtime.machine.cards import named
from gemcut.runtime.placement.placement import Placement, plan_run
from gemcut.runtime.speed.records import Record, corrected, keep, kin
from gemcut.sensitivity import Sensitivity
from tests.fuzz import seeds
from tests.fuzz.mutate import BYTES, JSON, words
from tests.fuzz.target import Run, Target, on_file

_JOURNAL = b'{"key": "abc"}\n{"tiles": 3, "digest": "d"}\n{"tiles": 9, "digest": "e"}\n'
_INTENT = b"""\
vram = "12G"
ram = 32000000000
context = "32k"
kv = "q8_0"
parallel = 2
bpw = 4.5
min-speed = 10
prefer = "quality"
types = ["q4_k", "q6_k"]
rules = ["blk\\\\.0\\\\..*=q8_0", "experts=q3_k"]
per-expert = false

[floors]
experts = "q4_k"
"""
_CONVERSATION = {
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
        {"role": "assistant", "content": "hi"},
    ],
    "settings": {"temp": 0.5, "stop": ["a", "b"], "think": None, "hide": True, "seed": 3},
}
_RULES = words(
    "experts=", "*", "blk.(0-9)", "=q4_k", "(.*)*", "[[", "'''", "0x1p3", "inf", "1e999", "\n"
)


def _plan(folder: Path) -> Run:
    """A plan that is read, written for llama.cpp, and held against its model."""
    model, path = api.open_source(seeds.CHECKPOINT), folder / "plan.json"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        plan = Plan.read(path)
        plan.to_json()
        rescale(pairs_of(plan.measured))
        tensor_types(plan)
        choose.infos(model, choose.refit(model, plan))
        if any(entry.device for entry in plan.tensors.values()):
            server_arguments(plan, "x.gguf")

    return run


def _sensitivity(path: Path) -> None:
    found = Sensitivity.read(path)
    found.predict({name: "q4_0" for name in found.tensors if "#" not in name})
    found.to_json()


def _placed(profile: Profile) -> Placement:
    with GGUFParts(seeds.mixtral()) as file:
        return plan_run(file, profile)


def _machine(path: Path) -> None:
    """A profile that a run is planned on."""
    _placed(Profile.read(path)).to_dict()


def _runs(folder: Path) -> Run:
    """What earlier runs took, which corrects a prediction."""
    placement = _placed(named("rtx-4090"))

    def run(data: bytes) -> None:
        (folder / "runs.json").write_bytes(data)
        corrected(placement, folder)

    return run


def _runs_seeds() -> list[bytes]:
    def make(folder: Path) -> None:
        folder.mkdir()
        record = Record(
            kin(_placed(named("rtx-4090"))), 10, (0.5, 0.7), (0.1, 0.2), {"cpu": (1, 2)}
        )
        keep(record, folder)

    return seeds.read(seeds.made("runs", make) / "runs.json")


def _artefacts(folder: Path) -> Run:
    """What a folder of measurements says of its contents."""

    def run(data: bytes) -> None:
        (folder / "keys.json").write_bytes(data)
        Artefacts(folder).outdated("x", {}, 1.0)

    return run


def _artefact_seeds() -> list[bytes]:
    record = {"key": {"model": "x"}, "size": 1, "minutes": 2.0, "facts": {"s": 1.0}}
    return [*seeds.in_json({"imatrix.gguf": record})]


def _journal(path: Path) -> None:
    with Journal(path, path) as journal:
        journal.keep(len(journal.records)) if journal.key else None


def _conversation(path: Path) -> None:
    Transcript.read(path).write(path.with_name("again.json"))


def _understood(path: Path) -> None:
    understand(read_intent(path))


def _json(path: Path) -> None:
    try:
        parse(path.read_text("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):  # as it says
        pass


TARGETS = (
    Target("plan", lambda: seeds.read(seeds.plan()), JSON, _plan),
    Target(
        "sensitivity",
        lambda: seeds.read(seeds.sensitivity()),
        JSON,
        on_file("s.json", _sensitivity),
    ),
    Target("machine", lambda: [seeds.machine()], JSON, on_file("machine.json", _machine)),
    Target("runs", _runs_seeds, JSON, _runs),
    Target("keys", _artefact_seeds, JSON, _artefacts),
    Target("journal", lambda: [_JOURNAL], (*JSON, *BYTES), on_file("journal", _journal)),
    Target("intent", lambda: [_INTENT], _RULES, on_file("intent.toml", _understood)),
    Target(
        "conversation", lambda: seeds.in_json(_CONVERSATION), JSON, on_file("c.json", _conversation)
    ),
    Target("json", lambda: seeds.in_json(_CONVERSATION), JSON, on_file("any.json", _json)),
)
