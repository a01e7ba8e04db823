"""Hold gemcut's perplexity and KL divergence against llama.cpp's own tool.

    PEERS=$(bench/peers.sh) python bench/perplexity.py [REFERENCE.gguf MODEL.gguf ... --text TEXT]

Without files: the demo's model in BF16 and Q4_K_M on its held-out text.

Runs llama-perplexity (of the llama.cpp that the installed llama-cpp-python contains) on the same
text, first to save the reference's logits, then once per model, one chunk in a batch as here. Its
numbers stand beside gemcut's over the same saved logits, and beside gemcut's in lockstep, which are
not cut off 16 nats below the top nor in 16 bits. Over the same logits all should agree to 4 digits;
what remains in lockstep is to be held against the noise floor.
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

from common import Cell, Table, demo_file, demo_text, peer, record

from gemcut.eval.compare import compare, compare_with_base
from gemcut.eval.comparison import Row
from gemcut.eval.files import select
from gemcut.eval.scope import Means, Scope
from gemcut.eval.texts.text import Text

CLAIM = "`gemcut eval` finds what llama-perplexity finds, to four digits and more."
COLUMNS = ("file", "", "llama-perplexity", "over its logits", "in lockstep", "differs by")
_NUMBERS = {
    "perplexity": re.compile(r"(?:Final estimate: PPL =|Mean PPL\(Q\) +:) +([\d.]+)"),
    "KLD": re.compile(r"Mean +KLD: +([-\d.]+)"),
    "99 % KLD": re.compile(r"99\.0% +KLD: +([-\d.]+)"),
    "top-1 %": re.compile(r"Same top p: +([\d.]+)"),
    "RMS delta p %": re.compile(r"RMS Δp +: +([\d.]+)"),
}
_TRIES = 5  # its log is written by another thread, and its end is sometimes lost on exit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("reference", type=Path, nargs="?")
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("-c", "--n-ctx", type=int, default=512)
    parser.add_argument("-t", "--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.reference is None:
        arguments.reference, arguments.models = demo_file("bf16"), [demo_file("q4_k_m")]
    arguments.text = arguments.text or demo_text()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base.kld"
        peers = _run_peer(arguments, base)
        means = Means(arguments.threads)
        over_base = compare_with_base(select(arguments.models, None), base, means=means)
    text = [Text.read(arguments.text)]
    how = arguments.n_ctx, arguments.chunks, Scope(floor=8), means
    live = compare(arguments.models, arguments.reference, text, *how)
    rows: list[list[Cell]] = []
    for theirs, same, own in zip(peers, over_base.files, live.files, strict=True):
        for name, number in theirs.items():
            ours = [_numbers(each)[name] for each in (same, own)]
            figures = [f"{each:.6f}" for each in (number, *ours)]
            rows.append([own.column.name, name, *figures, f"{ours[1] / number - 1:+.1e}"])
    floor = live.floor and live.floor.summary and live.floor.summary.kld
    note = f"noise floor of the reference: mean KLD {floor.value if floor else 0:.2e}"
    table = Table(f"{arguments.chunks} chunks of {arguments.n_ctx}", COLUMNS, rows)
    print(table, note, sep="\n")
    record("perplexity", CLAIM, [table], [note])


def _numbers(row: Row) -> dict[str, float]:
    """What the peer prints, of one of our rows."""
    assert (found := row.summary), row.failure
    assert found.kld and found.same_top and found.rms_delta_p
    return {
        "perplexity": found.perplexity.value,
        "KLD": found.kld.value,
        "99 % KLD": found.tails[0.99].value,
        "top-1 %": 100 * found.same_top.value,
        "RMS delta p %": 100 * found.rms_delta_p.value,
    }


def _run_peer(arguments: argparse.Namespace, path: Path) -> list[dict[str, float]]:
    """llama-perplexity's numbers for each model, over the reference's logits that it saves."""
    base = ["--kl-divergence-base", str(path)]
    text = ["-f", str(arguments.text), "--chunks", str(arguments.chunks)]
    _run_once(arguments, arguments.reference, [*base, *text])
    return [_run_once(arguments, model, [*base, "--kl-divergence"]) for model in arguments.models]


def _run_once(arguments: argparse.Namespace, model: Path, extra: list[str]) -> dict[str, float]:
    n_ctx = str(arguments.n_ctx)
    shape = ["-c", n_ctx, "-b", n_ctx, "-ub", n_ctx, "-t", str(arguments.threads), "-fa", "on"]
    command = [str(peer("llama-perplexity")), "-m", str(model), *shape, *extra]
    for _ in range(_TRIES):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        output = done.stdout + done.stderr
        found = {name: number.search(output) for name, number in _NUMBERS.items()}
        if found["perplexity"]:
            return {name: float(match[1]) for name, match in found.items() if match}
    raise SystemExit(f"{' '.join(command)} printed no perplexity:\n{output[-2000:]}")


if __name__ == "__main__":
    main()
