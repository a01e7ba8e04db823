"""The commands under test: small ones on the embedded model, and what each has to write."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import gemcut
from tests import checkpoints
from tests.faults.running import Ended, Process, contents, start

Results = Iterator[tuple[str, Counter[str]]]  # of a group: what became of each command

CHECKPOINT = Path(gemcut.__file__).parent / "demo" / "checkpoint"
SHARDS = 5
TEXT = (
    "def walk(folder):\n    for name in sorted(folder):\n        print(name, folder[name])\n" * 90
)


@dataclass(frozen=True)
class Command:
    """A command line in an empty folder.

    share: of the kills. varying: results that hold times. passing: results that are removed in the
    end. says: whether what it prints has to be the same, too.
    """

    name: str
    line: str
    share: int = 0
    varying: tuple[str, ...] = ()
    passing: tuple[str, ...] = ()
    says: bool = False


CHAIN = "o.gguf.gemcut"
_EVAL = "-c 64 --chunks 12 --floor 2 --routing 0 -t 1 --text {text}"
COMMANDS = (
    Command("convert", "convert {model} -o o.gguf -t 2", 4),
    Command("convert, sharded", "convert {shards} -o o.gguf -t 2", 3),
    Command("convert, split", "convert {shards} -o o.gguf -t 2 --split-size 3M", 3),
    Command("quantize", "quantize {shards} -o o.gguf -t 2 --type Q4_K_M", 4),
    Command("quantize a GGUF", "quantize {q8_0} -o o.gguf -t 2 --type Q4_0", 2),
    Command("imatrix", "imatrix {q8_0} -o o.gguf -t 1 -c 64 --text {text} --chunks 16", 4),
    Command(
        "measure", "measure {shards} -o o.json -t 2 --rows 16 --types q4_0,q8_0,q4_k,q5_k,q6_k", 3
    ),
    Command(
        "measure --probe",
        "measure {tiny} -o o.json -t 1 --rows 8 --types q4_0,q8_0 --probe {tiny_q8_0} "
        "--text {text} -c 64 --chunks 2",
        3,
    ),
    Command(
        "quantize --measure",
        "quantize {tiny} -o o.gguf -t 1 --bpw 5.5 --measure --text {text}",
        3,
        (f"{CHAIN}/keys.json",),
        (f"{CHAIN}/q8_0.gguf",),
    ),
    Command("eval", f"eval {{q4_0}} --reference {{q8_0}} {_EVAL}", 2, says=True),
    Command(
        "eval -o",
        f"eval {{q4_0}} --reference {{q8_0}} {_EVAL} -o o",
        1,
        ("o/report.json", "o/report.html", "o/report.csv", "o/scores.npz"),  # speeds are in them
    ),
    Command("eval --sweep", f"eval --sweep Q8_0,Q4_0 {{shards}} {_EVAL}", 2, says=True),
)
NAMED = {command.name: command for command in COMMANDS}


@dataclass
class Workshop:
    """Folders, the commands to try, and the inputs that they share."""

    folder: Path
    commands: tuple[Command, ...] = COMMANDS
    inputs: dict[str, Path] = field(default_factory=dict)
    _count: int = 0

    def prepare(self) -> None:
        """Make the inputs."""
        self.inputs = {
            name: self.folder / "inputs" / name for name in ("model", "shards", "tiny", "text")
        }
        shutil.copytree(CHECKPOINT, self.inputs["model"])
        shard(CHECKPOINT, self.inputs["shards"])
        checkpoints.build(self.inputs["tiny"], CHECKPOINT, checkpoints.Recipe(shards=2))
        self.inputs["text"].write_text(TEXT)
        for name, source in (("q8_0", "model"), ("q4_0", "model"), ("tiny_q8_0", "tiny")):
            self.inputs[name] = self.folder / "inputs" / f"{name}.gguf"
            line = f"quantize {{{source}}} -o {{{name}}} --type {name[-4:].upper()}"
            done = self.run(Command(name, line), self.fresh())
            assert done.code == 0, done.err

    def fresh(self) -> Path:
        """A folder of one's own: of results, and beside it what is said and cached."""
        self._count += 1
        place = self.folder / f"{self._count:04}" / "results"
        place.mkdir(parents=True)
        return place

    def start(
        self,
        command: Command,
        place: Path,
        prepare: Callable[[], object] = lambda: None,
        cache: Path | None = None,
        said: Path | None = None,
        **inputs: Path,
    ) -> Process:
        """Start a command in a folder that `fresh` made."""
        known = self.inputs | inputs
        arguments = [word.format(**known) for word in command.line.split()]
        cache = place.parent / "cache" if cache is None else cache
        environment = {"XDG_CACHE_HOME": str(cache), "COLUMNS": "200"}
        return start(arguments, place, said or place.parent / "said", environment, prepare)

    def run(self, command: Command, place: Path, *prepare: Callable[[], object], **inputs) -> Ended:
        """Run a command to its end."""
        return self.start(command, place, *prepare, **inputs).end()

    def whole(self, command: Command) -> tuple[dict[str, bytes], Ended]:
        """What an undisturbed run writes, and how it goes."""
        place = self.fresh()
        done = self.run(command, place)
        assert done.code == 0, (command.name, done.err)
        seen, hidden = contents(place)
        assert hidden == [], hidden
        remove(place.parent)
        return seen, done


def remove(folder: Path) -> None:
    """Delete a folder."""
    shutil.rmtree(folder, ignore_errors=True)


def shard(model: Path, folder: Path, count: int = SHARDS) -> Path:
    """The same checkpoint with its tensors dealt out to several files."""
    folder.mkdir(parents=True)
    for path in model.iterdir():
        if path.name != "model.safetensors":
            shutil.copy(path, folder)
    entries, data = checkpoints.read_safetensors(model / "model.safetensors")
    entries.pop("__metadata__", None)
    names, weight_map = sorted(entries), dict[str, str]()
    for number in range(count):
        path = folder / f"model-{number + 1:05}-of-{count:05}.safetensors"
        own = {
            name: entries[name]
            for name in names[number * len(names) // count : (number + 1) * len(names) // count]
        }
        header = checkpoints.placed({k: (e["dtype"], e["shape"]) for k, e in own.items()})
        pieces = b"".join(data[slice(*entry["data_offsets"])] for entry in own.values())
        checkpoints.write_safetensors(path, header, pieces)
        weight_map |= dict.fromkeys(own, path.name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / checkpoints.INDEX).write_text(json.dumps(index))
    return folder
