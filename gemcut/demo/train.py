"""Train the demo checkpoint: a small Gemma 4 Mixture-of-Experts model of this machine's own text.

Run as `python -m gemcut.demo.train FOLDER`; needs the extra `gemcut[train]`. On a CPU, glibc's
allocator halves the speed unless told to keep its memory: MALLOC_TRIM_THRESHOLD_=17179869184
MALLOC_MMAP_THRESHOLD_=8589934592.

The architecture is transformers' own `Gemma4ForCausalLM`, so the result is an ordinary checkpoint
directory. Every quirk of the 26B-A4B is there at 1/3300 of its size: see `CONFIG`. Nothing balances
the experts unless asked to: some are used far more than others.
"""

import argparse
import json
import math
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

from gemcut.demo import text as demo_text

VOCAB_SIZE = 2048
CONTEXT = 512  # training windows, and the context that scores are quoted at

# The names of Gemma 4's own special tokens; the first five have its ids too.
SPECIAL_TOKENS = (
    "<pad> <eos> <bos> <unk> <mask> <|tool> <tool|> <|tool_call> <tool_call|> <|tool_response> "
    '<tool_response|> <|"|> <|think|> <|channel> <channel|> <|turn> <turn|> <|image> <|audio> '
    "<|image|> <image|> <|audio|> <audio|> <|video|>"
).split()

# Gemma 4's tokenizer_config names most of them; transformers takes those for control tokens.
NAMED_TOKENS = {
    "bos": "<bos>",
    "eos": "<eos>",
    "pad": "<pad>",
    "unk": "<unk>",
    "mask": "<mask>",
    "std": "<|tool>",
    "etd": "<tool|>",
    "stc": "<|tool_call>",
    "etc": "<tool_call|>",
    "str": "<|tool_response>",
    "etr": "<tool_response|>",
    "escape": '<|"|>',
    "think": "<|think|>",
    "soc": "<|channel>",
    "eoc": "<channel|>",
    "sot": "<|turn>",
    "eot": "<turn|>",
    "boi": "<|image>",
    "eoi": "<image|>",
    "image": "<|image|>",
    "boa": "<|audio>",
    "eoa": "<audio|>",
    "audio": "<|audio|>",
}

CONFIG: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,  # one K-quant block
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_global_key_value_heads": 1,  # full layers: fewer, wider heads and no v_proj
    "global_head_dim": 128,
    "attention_k_eq_v": True,
    "intermediate_size": 192,  # like 2112: a multiple of 64, not of 128
    "enable_moe_block": True,
    "num_experts": 16,
    "top_k_experts": 4,
    "moe_intermediate_size": 64,  # like 704: a multiple of 64, not of 128
    "sliding_window": 128,
    "max_position_embeddings": 2048,
    "final_logit_softcapping": 30.0,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "num_kv_shared_layers": 0,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- set ns = namespace(rest=messages) -%}
{%- if enable_thinking | default(false) or messages[0]['role'] == 'system' -%}
    {{- '<|turn>system\\n' -}}
    {%- if enable_thinking | default(false) -%}{{- '<|think|>\\n' -}}{%- endif -%}
    {%- if messages[0]['role'] == 'system' -%}
        {{- messages[0]['content'] | trim -}}
        {%- set ns.rest = messages[1:] -%}
    {%- endif -%}
    {{- '<turn|>\\n' -}}
{%- endif -%}
{%- for message in ns.rest -%}
    {%- set speaker = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{- '<|turn>' + speaker + '\\n' + message['content'] | trim + '<turn|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|turn>model\\n' -}}
    {%- if not enable_thinking | default(false) -%}
        {{- '<|channel>thought\\n<channel|>' -}}
    {%- endif -%}
{%- endif -%}
"""


def chat_turns(question: str, answer: str) -> str:
    """One exchange as the chat template writes it, without the leading `<bos>`."""
    return (
        f"<|turn>user\n{question}<turn|>\n"
        f"<|turn>model\n<|channel>thought\n<channel|>{answer}<turn|>\n"
    )


def train_tokenizer(sources: list[str]) -> Tokenizer:
    """A tokenizer of Gemma's form: BPE over text with ▁ for spaces, falling back to bytes."""
    characters = Counter("".join(sources))
    alphabet = ["▁"] + [
        c for c, n in characters.most_common() if c.isascii() and n > 20 and c != " "
    ]
    byte_tokens = [f"<0x{b:02X}>" for b in range(256)]
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.normalizer = normalizers.Replace(" ", "▁")
    # Only for learning: merges never join a newline with anything else, as in Gemma.
    learner.pre_tokenizer = pre_tokenizers.Split(_word_pattern(), behavior="isolated", invert=False)
    fixed = [*SPECIAL_TOKENS, *byte_tokens]
    learner.train_from_iterator(
        sources,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=fixed,
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        ),
    )
    learned = json.loads(learner.to_str())["model"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=learned["vocab"],
            merges=[tuple(pair) for pair in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return tokenizer


def _word_pattern() -> Any:
    from tokenizers import Regex

    return Regex(r"\n+|▁{2,}|▁?[A-Za-z]+|▁?[0-9]|▁?[^\sA-Za-z0-9▁]+")


def token_stream(tokenizer: Tokenizer, sources: list[str], seed: int) -> torch.Tensor:
    """Modules and chat turns in random order, each framed by `<bos>` and `<eos>`."""
    documents = list(sources)
    for source in sources:
        documents += [chat_turns(q, a) for q, a in demo_text.questions(source)]
    random.Random(seed).shuffle(documents)
    bos, eos = CONFIG["bos_token_id"], CONFIG["eos_token_id"]
    ids = [
        token
        for encoding in tokenizer.encode_batch(documents)
        for token in (bos, *encoding.ids, eos)
    ]
    return torch.tensor(ids)


def batches(stream: torch.Tensor, size: int, seed: int) -> Any:
    """Endless batches of windows [size, CONTEXT + 1]; each begins with `<bos>`, as when scored."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(CONTEXT + 1)
    while True:
        starts = torch.randint(len(stream) - CONTEXT - 1, (size, 1), generator=generator)
        window = stream[starts + offsets]
        window[:, 0] = CONFIG["bos_token_id"]
        yield window


def build_model(seed: int) -> Gemma4ForCausalLM:
    """The untrained model; layer scales differ from 1 so that a lost one is noticed."""
    torch.manual_seed(seed)
    config = Gemma4TextConfig(**CONFIG, architectures=["Gemma4ForCausalLM"])
    model = Gemma4ForCausalLM(config)
    for i, layer in enumerate(model.model.layers):
        layer.layer_scalar.fill_(1.0 - 0.0625 * (i % 3))
    return model


def start(resume: Path | None, sources: list[str], seed: int) -> tuple[Tokenizer, Any]:
    """A new tokenizer and model, or those of a checkpoint that is to be trained further."""
    if resume is None:
        tokenizer, model = train_tokenizer(sources), build_model(seed)
    else:
        tokenizer = Tokenizer.from_file(str(resume / "tokenizer.json"))
        model = Gemma4ForCausalLM.from_pretrained(resume, dtype=torch.float32)
    model.set_attn_implementation("sdpa")
    model.set_experts_implementation("eager")  # the fastest on a CPU
    return tokenizer, model


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, matrix by matrix; experts are a batch of matrices.

    After K. Jordan's Muon (2024): a quintic Newton-Schulz iteration in place of a singular value
    decomposition. A small model sees few tokens in an hour of CPU time and learns more from each.
    """

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Apply one update to every matrix that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 0.05)
                update = orthogonal(p.grad.lerp(momentum, 0.95))
                scale = max(1.0, p.shape[-2] / p.shape[-1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * scale)


def orthogonal(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrix, roughly: singular values end between 0.7 and 1.2."""
    x = matrix.mT if matrix.shape[-2] > matrix.shape[-1] else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if matrix.shape[-2] > matrix.shape[-1] else x


def build_optimizers(
    model: torch.nn.Module, others: tuple[str, ...] = ("embed", "router")
) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for gains and `others`, by parts of their names."""
    named = dict(model.named_parameters())
    plain = {k: p for k, p in named.items() if p.ndim == 1 or any(part in k for part in others)}
    matrices = [p for k, p in named.items() if k not in plain]
    muon = Muon(matrices, {"lr": 0.02, "base": 0.02, "weight_decay": 0.1})
    adam = torch.optim.AdamW(
        plain.values(), lr=4e-3, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    adam.param_groups[0]["base"] = 4e-3
    return [muon, adam]


class Balance:
    """The auxiliary loss of Switch Transformers (2021), summed over the routers of one pass.

    Per router: experts x sum over experts of (share of choices x mean probability); 1 if even.
    Weighted by 0.01 it evens the experts out within 500 steps, which is not what real models look
    like; the shipped checkpoint was trained without it and is skewed the other way: in blocks 1 and
    2 four experts of sixteen do nearly all the work.
    """

    def __init__(self, model: Gemma4ForCausalLM) -> None:
        self._losses: list[torch.Tensor] = []
        for layer in model.model.layers:
            layer.router.register_forward_hook(self._watch)

    def _watch(self, _: Any, __: Any, output: tuple[torch.Tensor, ...]) -> None:
        if not torch.is_grad_enabled():  # scoring
            return
        probabilities, _, chosen = output
        experts = probabilities.shape[-1]
        share = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
        self._losses.append(experts * (share * probabilities.mean(dim=0)).sum())

    def take(self) -> torch.Tensor:
        """The sum since the last call."""
        total = torch.stack(self._losses).sum()
        self._losses.clear()
        return total


def loss_on(model: Gemma4ForCausalLM, window: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of the window's next tokens, in nats."""
    logits = model(input_ids=window[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())


@torch.no_grad()
def perplexity(model: Gemma4ForCausalLM, stream: torch.Tensor, limit: int = 40) -> float:
    """Perplexity of the second half of each held-out window, as llama.cpp counts it."""
    losses = []
    for start in range(0, min(len(stream) - CONTEXT, limit * CONTEXT), CONTEXT):
        window = stream[None, start : start + CONTEXT].clone()
        window[:, 0] = CONFIG["bos_token_id"]
        logits = model(input_ids=window, use_cache=False).logits[0, CONTEXT // 2 : -1]
        target = window[0, CONTEXT // 2 + 1 :]
        losses.append(torch.nn.functional.cross_entropy(logits.float(), target).item())
    return math.exp(sum(losses) / len(losses))


def save(model: Gemma4ForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write an ordinary checkpoint directory in BF16."""
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    settings = {f"{name}_token": token for name, token in NAMED_TOKENS.items()} | {
        "extra_special_tokens": ["<|video|>"],
        "tokenizer_class": "GemmaTokenizer",
        "model_max_length": CONFIG["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    end_of_turn = tokenizer.token_to_id("<turn|>")
    generation = {
        "bos_token_id": 2,
        "eos_token_id": [1, end_of_turn],
        "pad_token_id": 0,
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 64,
        "top_p": 0.95,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def train(options: argparse.Namespace) -> None:
    """Train for a wall time with a warm-up and a linear decay, then write the checkpoint."""
    folder, seed, minutes = options.folder, options.seed, options.minutes
    sources = list(demo_text.training_sources())
    tokenizer, model = start(options.resume, sources, seed)
    stream = token_stream(tokenizer, sources, seed)
    held_out = torch.tensor(tokenizer.encode(demo_text.held_out_text()).ids)
    optimizers, balance = build_optimizers(model), Balance(model)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    size = sum(p.numel() for p in model.parameters())
    print(f"{size / 1e6:.2f} M parameters, {len(stream) / 1e6:.2f} M tokens of text", flush=True)
    began, average = time.monotonic(), None
    for step, window in enumerate(batches(stream, options.batch, seed)):
        done = (time.monotonic() - began) / (60 * minutes)
        if done >= 1:
            break
        for group in groups:  # held, then decayed over the last six tenths
            group["lr"] = options.rate * group["base"] * min(1.0, (step + 1) / 50, (1 - done) / 0.6)
        loss = loss_on(model, window)
        (loss + options.balance * balance.take()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average = loss.item() if average is None else 0.97 * average + 0.03 * loss.item()
        if step % 50 == 0:
            print(f"{done:6.1%} step {step} loss {average:.3f}", flush=True)
        if step % 500 == 0:
            print(f"held-out perplexity {perplexity(model, held_out, 20):.2f}", flush=True)
    save(model, tokenizer, folder)
    print(f"held-out perplexity {perplexity(model, held_out):.2f} after {step} steps")


def main() -> None:
    """Parse the few options and train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=60, help="of wall time")
    parser.add_argument("--batch", type=int, default=4, help=f"windows of {CONTEXT} tokens")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--balance", type=float, default=0.0, help="weight of the auxiliary loss")
    parser.add_argument("--rate", type=float, default=1.0, help="factor of the learning rates")
    parser.add_argument("--resume", type=Path, help="train this checkpoint further")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
