"""How cost grows with the work: layers, experts, vocabulary, context, files; and what follows.

    PYTHONPATH=. python bench/scale.py [--verbs inspect plan ...] [--true]

Every command runs on models of three sizes along each axis, all else equal, in a process of its own
with one thread; counted are its CPU seconds (a busy machine does no harm), its peak memory and what
it leaves on the disk. What reads headers alone gets sparse checkpoints of Gemma 4 26B-A4B's widths,
the rest small ones of random weights. From the sizes x, f x, f^2 x the exponent of growth is
log_f((c3 - c2) / (c2 - c1)), whatever the fixed cost; and a line fitted through all points of a
command says what 26B-A4B and 120B-A15B would take. With --true it is held against what was run.
build/bench/scale.json keeps what was measured; of several runs that of the least CPU time counts.
"""

import argparse
import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common import CHECKPOINT, FOLDER, GEMCUT, SHOW, demo_text, measure, record
from growth import AXES, BLOCKS, SMALL, TRUE, Point, Size, along, extrapolated, growth, true
from memory import checkpoint
from shaped import QWEN, fill, qwen, random_checkpoint

from gemcut.gguf_layout import Layout
from tests import checkpoints

HOME, RESULT = FOLDER / "scale", FOLDER / "scale.json"
MACHINE = "rtx-3060+ddr5-5600x2@8"
_PLACES = ((2e9, 0.12), (8e9, 0.25))  # bytes of VRAM and RAM: fixed, and a share of the source
CLAIM = (
    "What the commands take as layers, experts, the vocabulary or files grow. An exponent of 1 is "
    "linear, 0 no growth; a few tenths above 1 are within what a busy machine adds."
)
NOTES = (
    "inspect, plan and run (`--dry-run`) read sparse files of 26B-A4B's widths; the others work on "
    "random weights of width 512, in the page cache: of larger files the system's reading and "
    "writing comes on top. measure is without probes, imatrix and eval read 2,048 tokens; most of "
    "their memory is the model in Q8_0, which is mapped.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--verbs", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--true", action="store_true", help="run the true shapes, too")
    parser.add_argument("--again", action="store_true", help="what is known already, too")
    parser.add_argument(SHOW, action="store_true", help="what was measured before, alone")
    arguments = parser.parse_args()
    known = load()
    for verb in () if arguments.show else arguments.verbs:
        sizes = [size for axis in AXES[verb] for size in along(verb, axis)]
        for size in dict.fromkeys([*sizes, *(true(verb) if arguments.true else [])]):
            same = [one for one in known if (one.verb, one.size) == (verb, size)]
            if same and not arguments.again:
                continue
            point = min([*same, run(verb, size)], key=lambda one: one.cpu)
            known = [one for one in known if (one.verb, one.size) != (verb, size)] + [point]
            print(f"{verb:9} {describe(size)}: {shown(point)}", flush=True)
            RESULT.write_text(json.dumps([asdict(each) for each in known], indent=1) + "\n")
    tables = [growth(known), extrapolated(known)]
    print("\n\n".join(map(str, tables)))
    record("scale", CLAIM, tables, NOTES, RESULT.stat().st_mtime)


def load() -> list[Point]:
    """What was measured before."""
    if not RESULT.exists():
        return []
    found: list[dict[str, Any]] = json.loads(RESULT.read_text())
    return [Point(**{**one, "size": Size(**one["size"])}) for one in found]


def run(verb: str, size: Size) -> Point:
    """One command in a folder of its own, which is thrown away."""
    shutil.rmtree(HOME, ignore_errors=True)
    (out := HOME / "out").mkdir(parents=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(out / "cache")}
    command = words(verb, size, out)
    shutil.rmtree(out)
    out.mkdir()
    done = measure([*GEMCUT, verb, *map(str, command)])
    disk = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    shutil.rmtree(HOME)
    return Point(verb, size, done.cpu, done.memory, disk)


def words(verb: str, size: Size, out: Path) -> list[object]:
    """The arguments of a command; what it works on is made first."""
    text = ["--text", demo_text(), "-c", size.context, "--chunks", size.tokens // size.context]
    one = ["-t", 1]
    if verb in ("inspect", "plan"):
        source = true_checkpoint(size)
        return [source, "--json"] if verb == "inspect" else [source, *limits(size), "--json"]
    if verb == "run":
        return [hollow(size), "--dry-run", "--json", *limits(size)]
    if verb in ("imatrix", "eval"):
        kinds = ("q8_0", *("q4_0", "q4_1", "q5_0", "q5_1")[: size.files])
        model, *others = [shaped(size, kind) for kind in kinds]
        if verb == "imatrix":
            return [model, "-o", out / "imatrix.gguf", *text, *one]
        plain = ["--floor", 0, "--routing", 0]
        return [*others, "--reference", model, "--json", *plain, *text, *one]
    name = "two-blocks-of-26b-a4b" if size in BLOCKS.values() else "scale/checkpoint"
    source = random_checkpoint(name, replace(recipe(size), full_every=2))
    if verb == "measure":
        return [source, "-o", out / "sensitivity.json", "--types", "q4_0,q4_k,q6_k", *one]
    kind = ["--type", "q4_0"] if verb == "quantize" else []
    return [source, "-o", out / "model.gguf", *kind, *one]


def limits(size: Size) -> list[object]:
    """A machine that grows with the model: about seven bits a weight fit into it."""
    vram, ram = (int(fixed + share * 2 * size.weights) for fixed, share in _PLACES)
    return ["--machine", MACHINE, "--vram", vram, "--ram", ram, "-c", size.context]


def recipe(size: Size) -> checkpoints.Recipe:
    """A checkpoint in Gemma's shape."""
    own = {name: getattr(size, name) for name in ("layers", "experts", "vocabulary")}
    wide = {name: getattr(size, name) for name in ("hidden", "expert", "dense")}
    plain = checkpoints.REAL if size.hidden > SMALL.hidden else checkpoints.Recipe()
    return replace(plain, **own, **wide, shards=size.files)


def true_checkpoint(size: Size) -> Path:
    """A sparse checkpoint: one of those that bench/memory.py makes, or one of its widths."""
    for name, known in TRUE.items():
        if size == known:
            return checkpoint(name)
    return checkpoints.build(HOME / "checkpoint", CHECKPOINT, recipe(size), hollow=True)


def shaped(size: Size, kind: str) -> Path:
    """A file of random weights in Qwen3-MoE's shape."""
    path = HOME / f"{kind}.gguf"
    fill(path, *qwen(kind, 0, numbers(size), size.vocabulary), spread=3.0)
    return path


def hollow(size: Size) -> Path:
    """The same in Q4_0, without the weights."""
    values, infos = qwen("q4_0", 0, numbers(size), size.vocabulary)
    layout, path = Layout(values, tuple(infos)), HOME / "hollow.gguf"
    path.write_bytes(layout.header)
    os.truncate(path, layout.size)
    return path


def numbers(size: Size) -> dict[str, int]:
    """Qwen3-MoE's hyper-parameters."""
    return QWEN | {
        "block_count": size.layers,
        "context_length": 1 << 18,
        "embedding_length": size.hidden,
        "feed_forward_length": size.dense,
        "attention.head_count": size.hidden // 64,
        "attention.head_count_kv": size.hidden // 256,
        "attention.key_length": 64,
        "attention.value_length": 64,
        "expert_count": size.experts,
        "expert_used_count": size.used,
        "expert_feed_forward_length": size.expert,
    }


def describe(size: Size) -> str:
    """What is not as in the smallest model."""
    names = "layers", "experts", "vocabulary", "context", "files"
    return ", ".join(f"{getattr(size, name):,} {name}" for name in names)


def shown(point: Point) -> str:
    return f"{point.cpu:.2f} s CPU, {point.memory / 1e6:.0f} MB, {point.disk / 1e6:.1f} MB on disk"


if __name__ == "__main__":
    main()
