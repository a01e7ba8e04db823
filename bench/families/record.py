"""Record tiny random checkpoints of every family: tests/fixtures/families.

    python bench/families/record.py record CASE...    torch + transformers
    python bench/families/record.py check CASE...     gemcut with llama.cpp

A case is an entry of `CASES` in one of this folder's files, and `all` stands for every one. What
`record` does, with LLAMA_CPP the folder of llama.cpp's sources (convert_hf_to_gguf.py is there):

1. asks transformers for the names and shapes of the checkpoint that the config stands for, and
   draws the ranges of values: config.json, generation_config.json, tensors.json;
2. builds the checkpoint with tests/families.py, exactly as the tests will, in build/families;
3. lets transformers compute a window's log-probabilities in float32: expected.npz. Of some windows
   it takes the one whose experts are chosen most clearly, so that rounding does not flip them;
4. redraws the tensors, one kind in one block at a time, and fails unless the logits tell (`--quick`
   leaves that out): with a tensor mapped wrongly no test could pass unseen;
5. lets llama.cpp's converter write F32 and BF16.

`check` keeps the digests of these two in converted.json, loads them into llama.cpp, and fails
unless the F32 file computes what transformers does (with MXFP4 tensors decoded to F32, if any).

Recorded so far with transformers 5.23 and the llama.cpp of llama-cpp-python 0.3.36. The tokenizers
are those of bench/tokenizer_fixtures.py and gemma4_tokenizer.py; when one changes, so does what the
converter writes of it, and its cases have to be recorded again.
"""

import argparse
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path += [str(HERE.parent), str(HERE.parent.parent)]  # bench, and the repository's root

from converter import NAMED_AFTER_FOLDER, digest, write_fixture  # noqa: E402
from families.case import Case  # noqa: E402
from families.mxfp4 import decode_checkpoint, decode_gguf  # noqa: E402
from logits import write_coded  # noqa: E402

from gemcut.score import log_softmax  # noqa: E402
from tests import families  # noqa: E402

BUILD = Path("build/families")
WINDOWS, LENGTH = 16, 40
LEAST = 1e-3  # nats of KL divergence that any tensor's redrawing has to cause
MOST = 1e-5  # and that llama.cpp may be from transformers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("verb", choices=["record", "check"])
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--quick", action="store_true", help="do not redraw tensors")
    arguments = parser.parse_args()
    cases = found_cases()
    for name in cases if arguments.cases == ["all"] else arguments.cases:
        if arguments.verb == "check":
            check(name)
        else:
            record(name, cases[name], arguments.quick)


def found_cases() -> dict[str, Case]:
    """The cases of all files beside this one that have some."""
    found: dict[str, Case] = {}
    for path in sorted(HERE.glob("*.py")):
        if path.stem != "record":
            found |= getattr(importlib.import_module(f"families.{path.stem}"), "CASES", {})
    return found


def record(name: str, case: Case, quick: bool) -> None:
    """Write all files of a case's recording."""
    recording = families.FAMILIES / name
    recording.mkdir(parents=True, exist_ok=True)
    write_json(recording / "config.json", case.config)
    write_json(recording / "generation_config.json", generation(case))
    scratch = fresh(BUILD / name)
    write_tensors(recording / "tensors.json", case, scratch / "saved")
    folder = scratch / "checkpoint"
    families.build(folder, name)
    window, log_p, gap = clearest(folder, case)
    write_coded(recording / "expected.npz", window[None], log_p[None])
    print(f"{name}: smallest gap between chosen and next expert {gap:.2e}")
    if not quick:
        redraw(name, case, window, log_p)
    convert(name, case)
    print(f"{name}: entropy {-(np.exp(log_p) * log_p).sum(-1).mean():.2f}")


def generation(case: Case) -> dict[str, Any]:
    """generation_config.json: the tokenizer's special tokens, and what the case adds."""
    path = families.TOKENIZERS / case.tokenizer / "generation_config.json"
    tokens: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return tokens | dict(case.generation)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_tensors(path: Path, case: Case, scratch: Path) -> None:
    """tensors.json: one line for each tensor, so that versions can be compared."""
    entries = {key: case.entry(key, shape) for key, shape in published(case, scratch).items()}
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(e)}" for key, e in entries.items())
    kind = json.dumps(case.tokenizer)
    path.write_text(f'{{"tokenizer": {kind}, "tensors": {{\n{lines}\n}}}}\n', encoding="utf-8")


def published(case: Case, scratch: Path) -> dict[str, tuple[int, ...]]:
    """The names and shapes that transformers gives a saved checkpoint, and the case's own."""
    from safetensors import safe_open

    write_json(fresh(scratch) / "config.json", case.config)
    architecture(case)(configuration(scratch)).save_pretrained(scratch)
    with safe_open(scratch / "model.safetensors", "np") as file:
        saved = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    return case.published(saved)


def architecture(case: Case) -> Any:
    import transformers

    return getattr(transformers, case.config["architectures"][0])


def configuration(folder: Path) -> Any:
    import transformers

    return transformers.AutoConfig.from_pretrained(folder)


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def clearest(folder: Path, case: Case) -> tuple[Any, Any, float]:
    """Of random windows, the one with the largest smallest gap; its log-probabilities; the gap."""
    random = np.random.default_rng(0)
    model = loaded(folder, case)
    best: tuple[Any, Any, float] = (None, None, -1)
    for _ in range(WINDOWS):
        window = random.choice(case.words, LENGTH).astype(np.int32)
        window[0] = case.text.get("bos_token_id", window[0])
        with smallest_gap() as gaps:
            log_p = computed(model, window)
        if (gap := min(gaps, default=np.inf)) > best[2]:
            best = (window, log_p, gap)
    return best


def loaded(folder: Path, case: Case) -> Any:
    """The model in float32 with eager attention, every tensor of the checkpoint in its place."""
    import torch

    torch.set_num_threads(1)
    if "quantization_config" in case.config:
        folder = decode_checkpoint(folder, folder.with_name("decoded"))
    model, report = architecture(case).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    report["unexpected_keys"] = {
        key for key in report["unexpected_keys"] if not re.fullmatch(case.unused, key)
    }
    if wrong := {key: names for key, names in report.items() if names}:
        raise SystemExit(f"{folder}: not loaded as it should: {wrong}")
    return model.eval()


def computed(model: Any, window: Any) -> Any:
    """Log-probabilities [n, V] after each token of a window."""
    import torch

    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(window.astype(np.int64))[None]).logits[0]
    return log_softmax(logits.float().numpy())


@contextmanager
def smallest_gap() -> Iterator[list[float]]:
    """Collects, for each choice of the k largest values, by how much the last is chosen."""
    import torch

    gaps: list[float] = []
    original = torch.topk

    def topk(values: Any, k: int, *rest: Any, **named: Any) -> Any:
        if values.shape[-1] > k:
            ordered = values.sort(dim=-1, descending=True).values
            gaps.append(float((ordered[..., k - 1] - ordered[..., k]).min()))
        return original(values, k, *rest, **named)

    torch.topk = topk
    try:
        yield gaps
    finally:
        torch.topk = original


def redraw(name: str, case: Case, window: Any, log_p: Any) -> None:
    """Fail unless every kind of tensor in every block changes the logits when it is redrawn."""
    entries = json.loads((families.FAMILIES / name / "tensors.json").read_text(encoding="utf-8"))
    used = [key for key in entries["tensors"] if not re.fullmatch(case.unused, key)]
    kinds = dict.fromkeys(re.sub(r"experts\\\.\d+", r"experts\\.\\d+", re.escape(k)) for k in used)
    folder = BUILD / name / "redrawn"
    weak = {}
    for kind in kinds:
        shutil.rmtree(folder, ignore_errors=True)
        families.build(folder, name, kind)
        other = computed(loaded(folder, case), window)
        kld = (np.exp(log_p) * (log_p - other)).sum(axis=-1).mean()
        if kld < 10 * LEAST:
            print(f"  {kld:.1e} {kind}")
        if kld < LEAST:
            weak[kind] = float(kld)
    if weak:
        raise SystemExit(f"{name}: tensors that hardly matter; raise their gains: {weak}")


def convert(name: str, case: Case) -> None:
    """Run llama.cpp's converter."""
    for outtype in ("f32", "bf16"):
        output = BUILD / name / f"{outtype}.gguf"
        script = [sys.executable, str(HERE / "llama_converter.py"), case.tokenizer]
        options = [str(BUILD / name / "checkpoint"), "--outtype", outtype, "--outfile", str(output)]
        subprocess.run([*script, *options], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def check(name: str) -> None:
    """Keep the converted files' digests; fail unless the F32 one computes what transformers did."""
    files = {kind: BUILD / name / f"{kind}.gguf" for kind in ("f32", "bf16")}
    digests = {kind: digest(path) for kind, path in files.items()}
    for entries in digests.values():
        entries.pop(NAMED_AFTER_FOLDER, None)
    write_fixture(digests, families.FAMILIES / name / "converted.json")
    if any(entry[0] == "mxfp4" for entry in digests["f32"].values()):
        files["exact"] = decode_gguf(files["f32"], BUILD / name / "exact.gguf")
    klds = {kind: divergence(name, path) for kind, path in files.items()}
    if klds.get("exact", klds["f32"]) > MOST:
        raise SystemExit(f"{name}: llama.cpp computes something else")


def divergence(name: str, path: Path) -> float:
    """Mean KL divergence of a GGUF from the recorded log-probabilities, which it also prints."""
    from gemcut.engine import ContextOptions
    from gemcut.llama import Context, Model

    window, log_p = families.expected(name)
    exact = ContextOptions(len(window), flash_attention=False, type_k="f32", type_v="f32")
    with Model.load(path) as model, Context(model, exact) as context:
        log_q = log_softmax(context.decode(window, outputs="all"))
    kld = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    print(f"{name} {path.stem}: mean KLD {kld.mean():.2e}, max {kld.max():.2e}")
    return float(kld.mean())


if __name__ == "__main__":
    main()
