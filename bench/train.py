"""Train small Mixture-of-Experts checkpoints of other families than the demo's.

    PYTHONPATH=. python bench/train.py {qwen3_moe,balanced,olmoe} [--minutes 40]  (`train` extra)

bench/quality.py measures the choice of types on them: a model with random weights loses the same
with any choice, a trained one does not. They are ordinary checkpoint folders in
build/bench/tiny-NAME, trained on the demo's text (modules of the standard library, without the
held-out ones). One process, one thread; two may be trained at once. On a CPU, glibc's allocator
halves the speed unless told to keep its memory: MALLOC_TRIM_THRESHOLD_=17179869184
MALLOC_MMAP_THRESHOLD_=8589934592.

qwen3_moe is balanced a little, and its experts' width is no multiple of 256; balanced is that model
trained further with a strong balancing loss, so that its experts are used evenly; olmoe is not
balanced at all, and every row of it is as long as a K-quant's block, so no mixture falls back.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from tokenizer_fixtures import learned, settings
from tokenizer_kinds import KINDS, Json
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy, linear
from transformers import AutoConfig, AutoModelForCausalLM

from gemcut.demo.text import held_out_text, training_sources
from gemcut.demo.train import CONTEXT, build_optimizers, loss_on

FOLDER = Path("build/bench")
VOCAB_SIZE = 2048
END = "<|endoftext|>"  # behind every document
PLAIN = ("embed_tokens", "lm_head", "mlp.gate.")  # matrices outside the blocks, and routers
BUSIEST = 4  # the part of the experts whose share of the work is told: a fourth

COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,  # one K-quant block
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Recipe:
    """A model to be: what its config says beside `COMMON`, and the weight of the balancing loss."""

    family: str
    tokenizer: str
    balance: float
    config: Json
    start: str | None = None  # the trained model that it begins with


QWEN3_MOE = Recipe(
    "qwen3_moe",
    "qwen2",
    1e-3,
    {
        "num_hidden_layers": 6,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 512,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 96,
        "norm_topk_prob": True,
        "rope_theta": 1000000.0,
    },
)

RECIPES = {
    "qwen3_moe": QWEN3_MOE,
    "balanced": replace(QWEN3_MOE, balance=0.05, start="qwen3_moe"),
    "olmoe": Recipe(
        "olmoe",
        "olmo",
        0.0,
        {
            "num_hidden_layers": 5,
            "num_key_value_heads": 4,
            "intermediate_size": 256,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "norm_topk_prob": False,
        },
    ),
}


def make_tokenizer(recipe: Recipe) -> tuple[Json, Tokenizer]:
    """The structure of the family's published tokenizer with a vocabulary of `VOCAB_SIZE`."""
    kind = KINDS[recipe.tokenizer]
    document = learned(kind, VOCAB_SIZE - len(kind.first) - len(kind.last))
    return document, Tokenizer.from_str(json.dumps(document))


def make_model(name: str, tokenizer: Tokenizer, seed: int) -> Any:
    """The untrained model."""
    torch.manual_seed(seed)
    end = tokenizer.token_to_id(END)
    tokens = {"bos_token_id": None, "eos_token_id": end, "pad_token_id": end}
    recipe = RECIPES[name]
    config = AutoConfig.for_model(recipe.family, **COMMON, **recipe.config, **tokens)
    return AutoModelForCausalLM.from_config(config)


def prepared(model: Any) -> Any:
    """The model, faster on a CPU."""
    model.set_attn_implementation("sdpa")
    for layer in model.model.layers:
        layer.mlp.experts.forward = MethodType(run_experts, layer.mlp.experts)
    return model


def run_experts(
    experts: Any, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """What transformers computes, in half the time on a CPU: tokens are sorted by expert once.

    Args:
        hidden: [tokens, width]. chosen, weights: [tokens, experts per token].
    """
    order = chosen.flatten().argsort()
    tokens = order // chosen.shape[-1]
    counts = torch.bincount(chosen.flatten(), minlength=len(experts.down_proj)).tolist()
    matrices = zip(experts.gate_up_proj.unbind(), experts.down_proj.unbind(), strict=True)
    found = []
    for own, (gate_up, down) in zip(hidden[tokens].split(counts), matrices, strict=True):
        gate, up = linear(own, gate_up).chunk(2, dim=-1)
        found.append(linear(experts.act_fn(gate) * up, down))
    weighted = torch.cat(found) * weights.flatten()[order, None]
    return torch.zeros_like(hidden).index_add(0, tokens, weighted)


def token_stream(tokenizer: Tokenizer, seed: int) -> torch.Tensor:
    """The training modules in random order, each with an end."""
    documents = list(training_sources())
    random.Random(seed).shuffle(documents)
    end = tokenizer.token_to_id(END)
    return torch.tensor([t for e in tokenizer.encode_batch(documents) for t in (*e.ids, end)])


def windows(stream: torch.Tensor, size: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless batches [size, CONTEXT + 1]."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(CONTEXT + 1)
    while True:
        starts = torch.randint(len(stream) - CONTEXT - 1, (size, 1), generator=generator)
        yield stream[starts + offsets]


class Routing:
    """Watches the routers: how the work is shared, and the auxiliary loss that evens it out.

    The loss is that of Switch Transformers (2021): per router, experts x sum over experts of (share
    of choices x mean probability).
    """

    def __init__(self, model: Any) -> None:
        self._losses: list[torch.Tensor] = []
        self._counts: dict[int, torch.Tensor] = {}
        for number, layer in enumerate(model.model.layers):
            layer.mlp.gate.register_forward_hook(lambda _, __, out, n=number: self._watch(n, out))

    def _watch(self, layer: int, output: tuple[torch.Tensor, ...]) -> None:
        logits, _, chosen = output
        counts = torch.bincount(chosen.flatten(), minlength=logits.shape[-1])
        if torch.is_grad_enabled():
            share = counts / counts.sum()
            mean = logits.float().softmax(-1).mean(dim=0)
            self._losses.append(logits.shape[-1] * (share * mean).sum())
        else:
            self._counts[layer] = self._counts.get(layer, 0) + counts

    def loss(self) -> torch.Tensor:
        """The sum over the routers of the last pass."""
        total = torch.stack(self._losses).sum()
        self._losses.clear()
        return total

    def busiest(self) -> list[float]:
        """Per block, the share of the busiest fourth of the experts since the last call."""
        found = [
            float(counts.sort(descending=True)[0][: len(counts) // BUSIEST].sum() / counts.sum())
            for _, counts in sorted(self._counts.items())
        ]
        self._counts.clear()
        return found


def perplexity(model: Any, stream: torch.Tensor, limit: int) -> float:
    """Perplexity of the second half of each held-out window, as llama.cpp counts it."""
    losses = []
    for start in range(0, min(len(stream) - CONTEXT, limit * CONTEXT), CONTEXT):
        window = stream[None, start : start + CONTEXT]
        with torch.no_grad():
            logits = model(input_ids=window, use_cache=False).logits[0, CONTEXT // 2 : -1]
        target = window[0, CONTEXT // 2 + 1 :]
        losses.append(cross_entropy(logits.float(), target).item())
    return math.exp(sum(losses) / len(losses))


def save(model: Any, document: Json, recipe: Recipe, folder: Path) -> None:
    """Write an ordinary checkpoint folder in BF16."""
    model.to(torch.bfloat16).save_pretrained(folder)
    files = {
        "tokenizer.json": document,
        "tokenizer_config.json": settings(KINDS[recipe.tokenizer], document),
    }
    for name, content in files.items():
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def train(options: argparse.Namespace) -> None:
    """Train for a wall time with a warm-up and a linear decay, then write the checkpoint."""
    recipe, seed = RECIPES[options.name], options.seed
    folder = FOLDER / f"tiny-{options.name}"
    start = folder if options.resume else recipe.start and FOLDER / f"tiny-{recipe.start}"
    document, tokenizer = make_tokenizer(recipe)  # always the same
    if start:
        model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    else:
        model = make_model(options.name, tokenizer, seed)
    model, stream = prepared(model), token_stream(tokenizer, seed)
    held_out = torch.tensor(tokenizer.encode(held_out_text()).ids)
    optimizers, routing = build_optimizers(model, PLAIN), Routing(model)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    balance = recipe.balance if options.balance is None else options.balance
    size = sum(p.numel() for p in model.parameters())
    print(f"{size / 1e6:.2f} M parameters, {len(stream) / 1e6:.2f} M tokens of text", flush=True)
    began, average = time.monotonic(), None
    for step, window in enumerate(windows(stream, options.batch, seed)):
        done = (time.monotonic() - began) / (60 * options.minutes)
        if done >= 1:
            break
        for group in groups:  # warmed up, then decayed
            group["lr"] = options.rate * group["base"] * min((step + 1) / 20, (1 - done) / 0.7, 1)
        loss = loss_on(model, window)
        (loss + balance * routing.loss()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average = loss.item() if average is None else 0.95 * average + 0.05 * loss.item()
        if step % 25 == 0:
            print(f"{done:6.1%} step {step} loss {average:.3f}", flush=True)
        if step % 200 == 0:
            tell(model, held_out, routing, 10)
    tell(model, held_out, routing, 40)
    save(model, document, recipe, folder)
    print(f"{step} steps, {step * options.batch * CONTEXT / 1e6:.2f} M tokens")


def tell(model: Any, held_out: torch.Tensor, routing: Routing, limit: int) -> None:
    """Print the perplexity and how the work is shared."""
    routing.busiest()
    found = perplexity(model, held_out, limit)
    shares = " ".join(f"{share:.0%}" for share in routing.busiest())
    print(f"held-out perplexity {found:.2f}, busiest fourth of the experts {shares}", flush=True)


def main() -> None:
    """Parse the few options and train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--minutes", type=float, default=40, help="of wall time")
    parser.add_argument("--batch", type=int, default=4, help=f"windows of {CONTEXT} tokens")
    parser.add_argument("--balance", type=float, help="weight of the balancing loss")
    parser.add_argument("--rate", type=float, default=1, help="factor of the learning rates")
    parser.add_argument("--resume", action="store_true", help="train further; give another seed")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train(options)


if __name__ == "__main__":
    main()
