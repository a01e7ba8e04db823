"""Record what the tests of vocabularies hold gemcut against: the originals' answers.

    PYTHONPATH=. python bench/tokenizer_record.py texts
    PYTHONPATH=. python bench/tokenizer_record.py ids
    PYTHONPATH=. python bench/tokenizer_record.py metadata LLAMA_CPP

`texts` makes the texts, and merges that reach across words (see tests/vocabularies.py). `ids` has
the `tokenizers` library split the texts. `metadata` has llama.cpp's converter, in the source tree
LLAMA_CPP, convert the vocabularies; it needs torch, transformers and sentencepiece. The converter
knows a pre-tokenizer by the ids of published vocabularies, so here it is told the name.
"""

import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from converter import digest
from tokenizer_texts import texts
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tests import vocabularies
from tests.vocabularies import BYTE_LEVEL, FOLDER, READERS, RECORDED

N_MERGES = 1500
TEXTS, METADATA = RECORDED / "texts.json", RECORDED / "metadata.json"

ARCHITECTURES = {
    "gpt-4o": "GptOssForCausalLM",
    "qwen2": "Qwen3MoeForCausalLM",
    "qwen35": "Qwen3_5MoeForConditionalGeneration",
    "glm4": "Glm4MoeForCausalLM",
    "olmo": "OlmoeForCausalLM",
    "llama4": "Llama4ForConditionalGeneration",
    "deepseek-llm": "DeepseekV2ForCausalLM",
    "deepseek-v3": "DeepseekV3ForCausalLM",
    "llama-spm": "MixtralForCausalLM",
}
# What the converter asks a config for before it comes to the vocabulary.
SIZES = "hidden_size intermediate_size intermediate_size_mlp max_position_embeddings".split()
COUNTS = """num_hidden_layers num_attention_heads num_key_value_heads head_dim num_experts
    moe_intermediate_size num_local_experts num_experts_per_tok n_routed_experts n_shared_experts
    kv_lora_rank q_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim n_group topk_group
    sliding_window shared_expert_intermediate_size linear_conv_kernel_dim linear_key_head_dim
    linear_value_head_dim linear_num_key_heads linear_num_value_heads full_attention_interval
    interleave_moe_layer_step mtp_num_hidden_layers first_k_dense_replace""".split()
OTHERS = {
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    "partial_rotary_factor": 0.5,
    "layer_types": ["full_attention", "full_attention"],
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "routed_scaling_factor": 1.0,
    "num_nextn_predict_layers": 0,
}
CONVERTER = Path(__file__).parent / "families" / "llama_converter.py"


def names() -> list[str]:
    """The special tokens of all kinds, but for runs of spaces."""
    found: dict[str, None] = {}
    for kind in READERS:
        document = json.loads((FOLDER / kind / "tokenizer.json").read_text(encoding="utf-8"))
        found |= {token["content"]: None for token in document["added_tokens"]}
    return [name for name in found if name.strip()]


def write_texts() -> None:
    special = names()
    TEXTS.write_text(json.dumps(texts(special), ensure_ascii=False, indent=0), encoding="utf-8")
    more = [text for seed in range(1, 9) for text in texts([" "], seed)]
    # llama.cpp takes "</s>" and the like for an end of text by their spelling.
    plain = [text for text in more if not any(name in text for name in special)]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = N_MERGES + len(alphabet)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(plain, trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    text = json.dumps(merges, ensure_ascii=False, separators=(",", ":"))
    (RECORDED / "merges.json").write_text(text + "\n", encoding="utf-8")


def write_ids() -> None:
    given = json.loads(TEXTS.read_text(encoding="utf-8"))
    for kind, folder in folders():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in given]
        flat = np.array([number for text in ids for number in text], np.uint16)
        counts = np.array([len(text) for text in ids], np.uint16)
        np.savez_compressed(RECORDED / f"{kind}.npz", ids=flat, counts=counts)
        print(f"{kind}: {len(flat)} tokens")


def folders() -> Iterator[tuple[str, Path]]:
    """Every kind, with the tokenizer that splits its texts, as long as it is looked at."""
    for kind in READERS:
        with tempfile.TemporaryDirectory() as folder:
            make = vocabularies.crossing if kind in BYTE_LEVEL else vocabularies.checkpoint
            yield kind, make(kind, Path(folder) / kind)


def write_metadata(llama_cpp: str) -> None:
    found: dict[str, Any] = {}
    for kind, architecture in ARCHITECTURES.items():
        with tempfile.TemporaryDirectory() as place:
            folder = vocabularies.checkpoint(kind, Path(place) / kind)
            prepare(folder, architecture)
            if kind == "llama-spm":
                vocabularies.sentencepiece(folder)
            output = Path(place) / "out.gguf"
            words = [kind, str(folder), "--vocab-only", "--outfile", str(output)]
            environment = os.environ | {"HF_HUB_OFFLINE": "1", "LLAMA_CPP": llama_cpp}
            command = [sys.executable, str(CONVERTER), *words]
            subprocess.run(command, check=True, capture_output=True, env=environment)
            entries = digest(output).items()
            found[kind] = {k: v for k, v in entries if k.startswith("metadata tokenizer.")}
            print(f"{kind}: {len(found[kind])} values")
    lines = json.dumps(found, ensure_ascii=False, indent=1, sort_keys=True)
    METADATA.write_text(lines + "\n", encoding="utf-8")


def prepare(folder: Path, architecture: str) -> None:
    """Make the config one that the converter takes for a model of the architecture."""
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    text = dict.fromkeys(SIZES, 64) | dict.fromkeys(COUNTS, 2) | OTHERS | {"vocab_size": size}
    config = {"architectures": [architecture], "model_type": "any", "text_config": text}
    (folder / "config.json").write_text(json.dumps(config | text))
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")


def main() -> None:
    RECORDED.mkdir(parents=True, exist_ok=True)
    match sys.argv[1:]:
        case ["texts"]:
            write_texts()
        case ["ids"]:
            write_ids()
        case ["metadata", llama_cpp]:
            write_metadata(llama_cpp)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
