"""Hold gemcut's perplexity and KL divergence against llama.cpp's own tool.

    PEERS=$(bench/peers.sh) python bench/perplexity.py [REFERENCE.gguf MODEL.gguf ... --text TEXT]

Without files: the demo's model in BF16 and Q4_K_M on its held-out text.

Runs llama-perplexity (of the llama.cpp that the installed llama-cpp-python contains) on the same
text, first to save the reference's logits, then once per model, and prints its numbers beside
gemcut's. Its KL divergence reads 16-bit logits cut off 16 nats below the top, and leaves out
tokens below that; gemcut's is exact. Perplexities should agree to 4 significant digits.
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

from common import demo_file, demo_text, peer

from gemcut.eval.compare import compare
from gemcut.eval.scope import Means
from gemcut.eval.texts.text import Text

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
    peers = _run_peer(arguments)
    comparison = compare(
        arguments.models,
        arguments.reference,
        [Text.read(arguments.text)],
        arguments.n_ctx,
        arguments.chunks,
        means=Means(arguments.threads),
    )
    print(f"{'file':30} {'':14} {'llama.cpp':>12} {'gemcut':>12} {'difference':>11}")
    for row, numbers in zip(comparison.rows, peers, strict=True):
        for name, theirs in numbers.items():
            assert (s := row.summary), row.failure
            ours = {
                "perplexity": s.perplexity.value,
                "KLD": s.kld.value if s.kld else 0.0,
                "99 % KLD": s.tails[0.99].value if s.tails else 0.0,
                "top-1 %": 100 * s.same_top.value if s.same_top else 0.0,
                "RMS delta p %": 100 * s.rms_delta_p.value if s.rms_delta_p else 0.0,
            }[name]
            relative = ours / theirs - 1
            print(f"{row.column.name:30} {name:14} {theirs:12.6f} {ours:12.6f} {relative:+11.2e}")


def _run_peer(arguments: argparse.Namespace) -> list[dict[str, float]]:
    """llama-perplexity's numbers for the reference and each model."""
    with tempfile.TemporaryDirectory() as folder:
        base = ["--kl-divergence-base", str(Path(folder) / "base.kld")]
        text = ["-f", str(arguments.text), "--chunks", str(arguments.chunks)]
        results = [_run_once(arguments, arguments.reference, [*base, *text])]
        for model in arguments.models:
            results.append(_run_once(arguments, model, [*base, "--kl-divergence"]))
    return results


def _run_once(arguments: argparse.Namespace, model: Path, extra: list[str]) -> dict[str, float]:
    shape = ["-c", str(arguments.n_ctx), "-t", str(arguments.threads), "-fa", "on"]
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
