"""Special tokens and chat templates: which of the files that name them counts."""

import json
from pathlib import Path
from typing import Any

import pytest

from gemcut.errors import CheckpointError
from tests import vocabularies
from tests.checkpoints import edit
from tests.vocabularies import change_json, read


@pytest.fixture
def qwen(tmp_path):
    return vocabularies.checkpoint("qwen2", tmp_path / "model")


def special(name: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": name, "type_id": 0}}


A, B = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
EOS, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"  # ids 640, 641, 642


def around(folder: Path, single, pair, **settings) -> dict[str, object]:
    """Special tokens' metadata with a post-processor's templates and other settings."""
    template = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {}}
    change_json(folder, lambda document: document.update(post_processor=template))
    edit(folder / "tokenizer_config.json", lambda found: found.update(settings))
    keys = ["bos_token_id", "eos_token_id", "eot_token_id", "seperator_token_id"]
    keys += ["add_bos_token", "add_eos_token", "add_sep_token"]
    found = read("qwen2", folder)
    return {k: v.data for k in keys if (v := found.get(f"tokenizer.ggml.{k}"))}


def test_the_post_processor_says_more_than_the_settings(qwen):
    found = around(qwen, [special(START), A], [special(START), A, B], bos_token=START)

    assert {"bos_token_id": 641, "eos_token_id": 642, "add_bos_token": True} == found


def test_a_first_token_without_a_name_is_the_beginning(qwen):
    found = around(qwen, [special(START), A], [])

    assert (641, True) == (found["bos_token_id"], found["add_bos_token"])


def test_another_last_token_is_the_end_of_the_text(qwen):
    """What the settings call so then ends a turn."""
    found = around(qwen, [A, special(EOS)], [])

    assert (640, 642, True) == (
        found["eos_token_id"],
        found["eot_token_id"],
        found["add_eos_token"],
    )


def test_a_token_between_two_texts_is_a_separator(qwen):
    found = around(qwen, [A, B], [A, special(END), B])

    assert (642, True) == (found["seperator_token_id"], found["add_sep_token"])


def test_a_beginning_that_nothing_names_is_refused(qwen):
    edit(qwen / "tokenizer_config.json", lambda found: found.update(add_bos_token=True))
    change_json(qwen, lambda document: document.update(post_processor=None))

    with pytest.raises(CheckpointError, match="to begin with a token .* that no file names"):
        read("qwen2", qwen)


def test_config_fills_in_ids(qwen):
    """Of the model, or of its text model's part; those beyond the vocabulary are left out."""
    ids = {"bos_token_id": 640, "unk_token_id": 5000, "text_config": {"sep_token_id": 641}}
    edit(qwen / "config.json", lambda config: config.update(ids))
    found = read("qwen2", qwen)

    assert 640 == found["tokenizer.ggml.bos_token_id"].data
    assert 641 == found["tokenizer.ggml.seperator_token_id"].data
    assert "tokenizer.ggml.unknown_token_id" not in found


def test_a_negative_id_in_the_config_is_refused(qwen):
    edit(qwen / "config.json", lambda config: config.update(bos_token_id=-1))

    with pytest.raises(CheckpointError, match="config.json: token 'bos' has the id -1"):
        read("qwen2", qwen)


def test_a_familys_roles_need_their_tokens(tmp_path):
    folder = vocabularies.checkpoint("qwen2", tmp_path / "model")

    with pytest.raises(
        CheckpointError, match=r"no added token '\[gMASK\]', which is to be its bos"
    ):
        read("glm4", folder)


ENDING_LISTS = [
    ([640, 642, 645, 650, 655], {"eom": 645, "eot": 650}),  # the first two are known
    (645, {"eom": 645}),
    (642, {}),
    (None, {}),
    ("x", {}),
    ([645.0, True, -1, 9999], {}),
]


@pytest.mark.parametrize(("listed", "expected"), ENDING_LISTS)
def test_endings_beyond_what_llama_cpp_knows_get_a_role(listed, expected, qwen):
    """As long as there is room: the file's format has two such roles."""
    (qwen / "generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
    found = read("qwen2", qwen)

    roles = {role: found.get(f"tokenizer.ggml.{role}_token_id") for role in ("eom", "eot")}
    assert expected == {role: value.data for role, value in roles.items() if value}


def template_values(folder: Path) -> dict[str, object]:
    metadata = read("qwen2", folder)
    return {key: value.data for key, value in metadata.items() if "chat_template" in key}


def test_named_templates_are_all_kept(qwen):
    named = [{"name": "default", "template": "one"}, {"name": "tool-use", "template": "two"}]
    edit(qwen / "tokenizer_config.json", lambda found: found.update(chat_template=named))

    assert template_values(qwen) == {
        "tokenizer.chat_template": "one",
        "tokenizer.chat_template.tool_use": "two",
        "tokenizer.chat_templates": ["tool_use"],
    }


def test_templates_in_files_of_their_own(qwen):
    edit(qwen / "tokenizer_config.json", lambda found: found.pop("chat_template"))
    assert template_values(qwen) == {}
    (qwen / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert template_values(qwen) == {"tokenizer.chat_template": "json"}
    (qwen / "chat_template.jinja").write_text("jinja", encoding="utf-8")
    assert template_values(qwen) == {"tokenizer.chat_template": "jinja"}
    (qwen / "additional_chat_templates").mkdir()
    (qwen / "additional_chat_templates" / "rag.jinja").write_text("rag", encoding="utf-8")
    assert template_values(qwen) == {
        "tokenizer.chat_template": "jinja",
        "tokenizer.chat_template.rag": "rag",
        "tokenizer.chat_templates": ["rag"],
    }


def test_a_template_that_is_no_text_is_refused(qwen):
    edit(qwen / "tokenizer_config.json", lambda found: found.pop("chat_template"))
    (qwen / "chat_template.jinja").write_bytes(b"\xff\xfe\xff")

    with pytest.raises(CheckpointError, match="chat_template.jinja: cannot be read"):
        read("qwen2", qwen)
