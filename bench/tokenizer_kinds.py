"""The structure of published tokenizers: all but the vocabulary, which is their makers'.

Chat templates were written for the tests, in each model's own turn markers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizer_regexes import CL100K, DEEPSEEK, DEEPSEEK3, O200K, QWEN2, QWEN35

Json = dict[str, Any]


def byte_level(use_regex: bool = False) -> Json:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def split(regex: str) -> Json:
    return {
        "type": "Split",
        "pattern": {"Regex": regex},
        "behavior": "Isolated",
        "invert": False,
    }


def sequence(*parts: Json) -> Json:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def begins_with(token: str, *before: Json) -> Json:
    """A post-processor that puts a token before the text."""
    one = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    two = [{"SpecialToken": {"id": token, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    template: Json = {"type": "TemplateProcessing", "single": one, "pair": one + two}
    template["special_tokens"] = {token: {"id": token, "ids": [0], "tokens": [token]}}
    return {"type": "Sequence", "processors": [*before, template]} if before else template


PROCESSOR = {
    "type": "ByteLevel",
    "add_prefix_space": True,
    "trim_offsets": False,
    "use_regex": True,
}
NFC: Json = {"type": "NFC"}
NOTHING: Json = {"type": "Sequence", "normalizers": []}
DECODER: Json = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
DECODER["use_regex"] = True


@dataclass(frozen=True)
class Kind:
    """One tokenizer. A special token's name begins with `~` if it's text, not control."""

    pre_tokenizer: Json | None
    last: Sequence[str]  # added tokens behind the learned ones
    settings: Json
    template: str
    eos: Sequence[str]  # generation_config.json's
    normalizer: Json | None = None
    post_processor: Json | None = field(default_factory=lambda: PROCESSOR)
    first: Sequence[str] = ()  # tokens before the learned ones
    normalized: bool = False  # added tokens are looked for in the normalized text
    ignore_merges: bool = False
    template_file: str | None = None
    listed: bool = False  # tokenizer_config.json lists the added tokens, too


def turns(before: str, each: str, last: str) -> str:
    """A chat template: text, one turn, and what the answer begins with."""
    return (
        f"{before}{{% for message in messages %}}{each}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{last}{{% endif %}}"
    )


ROLE, CONTENT = "{{ message['role'] }}", "{{ message['content'] }}"
CHATML = turns(
    "",
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}",
    "{{ '<|im_start|>assistant\\n' }}",
)

QWEN_VISION = ["<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"]
QWEN_VISION += ["<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"]
QWEN_VISION += ["<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
QWEN_TEXT = ["~<tool_call>", "~</tool_call>", "~<|fim_prefix|>", "~<|fim_middle|>"]
QWEN_TEXT += ["~<|fim_suffix|>", "~<|fim_pad|>", "~<|repo_name|>", "~<|file_sep|>"]
QWEN_TEXT += ["~<tool_response>", "~</tool_response>", "~<think>", "~</think>"]
QWEN_ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *QWEN_VISION, *QWEN_TEXT]
QWEN_SETTINGS: Json = {
    "add_bos_token": False,
    "add_prefix_space": False,
    "additional_special_tokens": ["<|im_start|>", "<|im_end|>", *QWEN_VISION],
    "bos_token": None,
    "clean_up_tokenization_spaces": False,
    "eos_token": "<|im_end|>",
    "errors": "replace",
    "model_max_length": 131072,
    "pad_token": "<|endoftext|>",
    "split_special_tokens": False,
    "tokenizer_class": "Qwen2Tokenizer",
    "unk_token": None,
}

OSS = ["<|startoftext|>", "<|endoftext|>", "<|reserved_200000|>", "<|reserved_200001|>"]
OSS += ["<|return|>", "<|constrain|>", "<|reserved_200004|>", "<|channel|>", "<|start|>"]
OSS += ["<|end|>", "<|message|>", "<|reserved_200009|>", "<|reserved_200010|>"]
OSS += ["<|reserved_200011|>", "<|call|>", "<|reserved_200013|>", "<|endofprompt|>"]

GLM = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>"]
GLM += ["<|user|>", "<|assistant|>", "<|observation|>", "<|begin_of_image|>"]
GLM += ["<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|begin_of_audio|>"]
GLM += ["<|end_of_audio|>", "<|begin_of_transcription|>", "<|end_of_transcription|>"]
GLM_CODE = ["<|code_prefix|>", "<|code_middle|>", "<|code_suffix|>", "/nothink"]
GLM_TEXT = ["~<think>", "~</think>", "~<tool_call>", "~</tool_call>", "~<tool_response>"]
GLM_TEXT += ["~</tool_response>", "~<arg_key>", "~</arg_key>", "~<arg_value>", "~</arg_value>"]

LLAMA4 = ["<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>"]
LLAMA4 += ["<|fim_suffix|>", "<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>"]
LLAMA4 += ["<|step|>", *(f"<|text_post_train_reserved_special_token_{n}|>" for n in range(6))]
LLAMA4 += ["<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>"]
LLAMA4 += ["<|image_start|>", "<|image_end|>", "<|tile_x_separator|>", "<|image|>", "<|patch|>"]

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
FIM = ["~<｜fim▁hole｜>", "~<｜fim▁begin｜>", "~<｜fim▁end｜>"]
TOOLS = [f"~<｜tool▁{name}｜>" for name in ("calls▁begin", "calls▁end", "call▁begin", "call▁end")]
TOOLS += [f"~<｜tool▁{name}｜>" for name in ("outputs▁begin", "outputs▁end", "sep")]
# Characters of the byte alphabet that no text needs were made whole tokens.
RARE = [f"~{character}" for character in "øöúÿõ÷ûýÀùÁþü"]


def deepseek_settings(pad: str) -> Json:
    def token(content: str) -> Json:
        return {
            "__type": "AddedToken",
            "content": content,
            "lstrip": False,
            "normalized": True,
            "rstrip": False,
            "single_word": False,
        }

    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": token(BOS),
        "clean_up_tokenization_spaces": False,
        "eos_token": token(EOS),
        "legacy": True,
        "model_max_length": 16384,
        "pad_token": token(pad),
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizerFast",
        "unk_token": None,
    }


KINDS = {
    "gpt-4o": Kind(
        sequence(split(O200K), byte_level()),
        OSS,
        {
            "bos_token": "<|startoftext|>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|return|>",
            "model_max_length": 1000000000,
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        turns(
            "",
            f"<|start|>{ROLE}<|message|>{CONTENT}<|end|>",
            "<|start|>assistant",
        ),
        ("<|return|>", "<|endoftext|>", "<|call|>"),
        template_file="chat_template.jinja",
        listed=True,
    ),
    "qwen2": Kind(
        sequence(split(QWEN2), byte_level()),
        QWEN_ADDED,
        QWEN_SETTINGS,
        CHATML,
        ("<|im_end|>", "<|endoftext|>"),
        normalizer=NFC,
        post_processor=byte_level(),
        listed=True,
    ),
    "qwen35": Kind(
        sequence(split(QWEN35), byte_level()),
        [*QWEN_ADDED, "<|audio_start|>", "<|audio_end|>", "<|audio_pad|>"],
        QWEN_SETTINGS,
        CHATML,
        ("<|im_end|>", "<|endoftext|>"),
        normalizer=NFC,
        post_processor=byte_level(),
        template_file="chat_template.jinja",
        listed=True,
    ),
    "glm4": Kind(
        sequence(split(CL100K), byte_level()),
        [*GLM, *GLM_CODE, *GLM_TEXT, "<|begin_of_box|>", "<|end_of_box|>"],
        {
            "additional_special_tokens": [*GLM, *GLM_CODE],
            "clean_up_tokenization_spaces": False,
            "do_lower_case": False,
            "eos_token": "<|endoftext|>",
            "extra_special_tokens": {},
            "model_max_length": 128000,
            "pad_token": "<|endoftext|>",
            "padding_side": "left",
            "remove_space": False,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        turns(
            "[gMASK]<sop>",
            "{{ '<|' + message['role'] + '|>\\n' + message['content'] }}",
            "<|assistant|>",
        ),
        ("<|endoftext|>", "<|user|>", "<|observation|>"),
        ignore_merges=True,
        template_file="chat_template.jinja",
        listed=True,
    ),
    "olmo": Kind(
        byte_level(use_regex=True),
        [*(f"~{' ' * n}" for n in range(24, 1, -1)), "|||EMAIL_ADDRESS|||"]
        + ["|||PHONE_NUMBER|||", "<|endoftext|>"],
        {
            "add_bos_token": False,
            "add_eos_token": False,
            "add_prefix_space": False,
            "bos_token": None,
            "clean_up_tokenization_spaces": True,
            "eos_token": "<|endoftext|>",
            "model_max_length": 1000000000000000019884624838656,
            "pad_token": "<|padding|>",
            "tokenizer_class": "GPTNeoXTokenizer",
            "unk_token": None,
        },
        turns(
            "{{ eos_token }}",
            "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '\\n' }}",
            "{{ '<|assistant|>\\n' }}",
        ),
        ("<|endoftext|>",),
        normalizer=NFC,
        first=("|||IP_ADDRESS|||", "<|padding|>"),
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {},
        },
        listed=True,
    ),
    "llama4": Kind(
        sequence(split(O200K), byte_level()),
        LLAMA4,
        {
            "bos_token": "<|begin_of_text|>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|eot|>",
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": 10485760,
            "pad_token": "<|finetune_right_pad|>",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        turns(
            "{{ bos_token }}",
            "{{ '<|header_start|>' + message['role'] + '<|header_end|>\\n\\n' }}"
            f"{CONTENT}<|eot|>",
            "{{ '<|header_start|>assistant<|header_end|>\\n\\n' }}",
        ),
        ("<|end_of_text|>", "<|eom|>", "<|eot|>"),
        post_processor=begins_with("<|begin_of_text|>", PROCESSOR),
        template_file="chat_template.json",
        listed=True,
    ),
    "deepseek-llm": Kind(
        sequence(
            *map(split, DEEPSEEK), {"type": "Digits", "individual_digits": True}, byte_level()
        ),
        [BOS, EOS, *RARE, *FIM, "~<｜completion｜>", "~<｜User｜>", "~<｜Assistant｜>", "~<|EOT|>"]
        + TOOLS,
        deepseek_settings(EOS),
        turns(
            "{{ bos_token }}",
            "{% if message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
            "{% else %}{{ 'User: ' + message['content'] + '\\n\\nAssistant:' }}{% endif %}",
            "",
        ),
        (EOS,),
        normalizer=NOTHING,
        normalized=True,
    ),
    "deepseek-v3": Kind(
        sequence(*map(split, DEEPSEEK3), byte_level()),
        [*(f"<｜place▁holder▁no▁{n}｜>" for n in range(4)), "~<think>", "~</think>", *FIM]
        + ["~<｜User｜>", "~<｜Assistant｜>", "~<|EOT|>", *TOOLS],
        deepseek_settings(EOS),
        turns(
            "{{ bos_token }}",
            "{% if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
            "{% elif message['role'] == 'assistant' %}"
            "{{ '<｜Assistant｜>' + message['content'] + eos_token }}"
            f"{{% else %}}{CONTENT}{{% endif %}}",
            "<｜Assistant｜>",
        ),
        (EOS,),
        normalizer=NOTHING,
        normalized=True,
        first=(BOS, EOS, "<｜▁pad▁｜>"),
    ),
}

SPM = Kind(
    None,
    [],
    {
        "add_bos_token": True,
        "add_eos_token": False,
        "additional_special_tokens": [],
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": True,
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": None,
        "sp_model_kwargs": {},
        "spaces_between_special_tokens": False,
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    },
    turns(
        "{{ bos_token }}",
        "{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
        "{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}",
        "",
    ),
    ("</s>",),
    post_processor=begins_with("<s>"),
    listed=True,
)
