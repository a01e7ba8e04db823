"""Hold a GGUF's logits against transformers', the original implementation.

Two environments, because torch and llama.cpp need not be installed together:

    python bench/logits.py reference CHECKPOINT TEXT OUT.npz    torch + transformers
    python bench/logits.py compare OUT.npz MODEL.gguf ...       gemcut
    python bench/logits.py fixture CHECKPOINT TEXT OUT.npz      a small one, for the tests

TEXT is a file, or `held-out` for the demo's evaluation text. transformers runs in float32 with
eager attention. Windows of one context each begin with BOS, and every position is compared, with
no truncation, as the file runs and without flash attention. `compare` also checks that llama.cpp
cuts the text into the same tokens.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gemcut.demo.text import held_out_text
from gemcut.score import log_softmax

CLAIM = "A converted file computes what transformers computes with the checkpoint."
WAYS: dict[str, dict[str, Any]] = {
    "no flash attention, keys and values in F32": {
        "flash_attention": False,
        "type_k": "f32",
        "type_v": "f32",
    },
    "as it runs": {},
}
COLUMNS = ("file", "", "positions", "mean KLD", "median", "99 %", "largest", "same top")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    verbs = parser.add_subparsers(required=True)
    for name, verb in (("reference", write_reference), ("fixture", write_fixture)):
        command = verbs.add_parser(name)
        command.add_argument("checkpoint", type=Path)
        command.add_argument("text")
        command.add_argument("out", type=Path)
        command.add_argument("--windows", type=int, default=4 if name == "reference" else 1)
        command.add_argument("--n-ctx", type=int, default=512 if name == "reference" else 256)
        command.set_defaults(verb=verb)
    command = verbs.add_parser("compare")
    command.add_argument("reference", type=Path)
    command.add_argument("models", nargs="+", type=Path)
    command.set_defaults(verb=compare)
    arguments = parser.parse_args()
    arguments.verb(arguments)


def write_reference(arguments: argparse.Namespace) -> None:
    """Text, all its token ids, windows [n, n_ctx] and log-probabilities [n, n_ctx, V] float32."""
    text, ids, windows, log_p = _transformers(arguments)
    log_p = log_p.astype(np.float32)
    np.savez(arguments.out, text=np.array(text), ids=ids, windows=windows, log_p=log_p)
    print(
        f"{arguments.out}: {windows.size} positions, perplexity {_perplexity(windows, log_p):.4f}"
    )


def write_fixture(arguments: argparse.Namespace) -> None:
    """The same without the text, in 16 bits per log-probability."""
    _, _, windows, log_p = _transformers(arguments)
    write_coded(arguments.out, windows, log_p)
    print(f"{arguments.out}: {windows.size} positions, {arguments.out.stat().st_size} bytes")


def write_coded(output: Path, windows: Any, log_p: Any) -> None:
    """Write windows [n, n_ctx] and log-probabilities [n, n_ctx, V] in 16 bits each.

    Each row is stored as steps from its lowest log-probability to its highest: some 2e-4 nats per
    step, an error of 1e-9 nats in KL divergence, where float16 would bring 1e-6.
    """
    low = log_p.min(axis=-1, keepdims=True).astype(np.float32)
    step = ((log_p.max(axis=-1, keepdims=True) - low) / 65535).astype(np.float32)
    codes = np.rint((log_p - low) / step).astype(np.uint16)
    np.savez_compressed(output, windows=windows, low=low, step=step, codes=codes)


def compare(arguments: argparse.Namespace) -> None:
    """Print how far GGUFs' distributions are from the reference's, per position."""
    from common import Table, record

    reference = np.load(arguments.reference)
    rows = [
        [path.name, how, *_compared(path, reference, changes)]
        for path in arguments.models
        for how, changes in WAYS.items()
    ]
    table = Table("", COLUMNS, rows)
    print(table)
    record("logits", CLAIM, [table])


def _compared(path: Path, reference: Any, changes: dict[str, Any]) -> list[int | str]:
    """Of one file in one way: number of positions, divergences, how often the top is the same."""
    from gemcut.engine import ContextOptions
    from gemcut.llama import Context, Model

    windows, log_p = reference["windows"], reference["log_p"]
    options = replace(ContextOptions(n_ctx=windows.shape[1]), **changes)
    kld, same = [], []
    with Model.load(path) as model, Context(model, options) as context:
        ids = model.tokenize(str(reference["text"]), add_special=False)
        equal = np.array_equal(ids, reference["ids"])
        print(f"tokens of the text: {len(ids)}, equal to transformers': {equal}")
        for window, p in zip(windows, log_p, strict=True):
            context.forget()
            q = log_softmax(context.decode(window, outputs="all"))
            kld.append((np.exp(p, dtype=np.float64) * (p - q)).sum(axis=1))
            same.append(p.argmax(axis=1) == q.argmax(axis=1))
    divergence, agreement = np.concatenate(kld), np.concatenate(same)
    found = divergence.mean(), *np.quantile(divergence, [0.5, 0.99, 1])
    figures = [f"{each:.1e}" for each in found]
    return [len(divergence), *figures, f"{100 * agreement.mean():.2f} %"]


def _transformers(arguments: argparse.Namespace) -> tuple[str, Any, Any, Any]:
    """Text, ids, windows and float64 log-probabilities by the original implementation."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    demo = arguments.text == "held-out"
    text = held_out_text() if demo else Path(arguments.text).read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(arguments.checkpoint)
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
    body = ids[: arguments.windows * (arguments.n_ctx - 1)].reshape(arguments.windows, -1)
    windows = np.pad(body, ((0, 0), (1, 0)), constant_values=tokenizer.bos_token_id)
    model = AutoModelForCausalLM.from_pretrained(
        arguments.checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        logits = [model(torch.from_numpy(w.astype(np.int64))[None]).logits[0] for w in windows]
    return text, ids, windows, log_softmax(np.stack([part.numpy() for part in logits]))


def _perplexity(windows: Any, log_p: Any) -> float:
    """Over all positions but each window's last, whose next token is not in it."""
    picked = np.take_along_axis(log_p[:, :-1], windows[:, 1:, None].astype(np.int64), axis=-1)
    return float(np.exp(-picked.mean(dtype=np.float64)))


if __name__ == "__main__":
    main()
