"""A stand-in for the Hub with a checkpoint in three shards: fixtures, and what tests ask of it."""

import shutil
from collections import namedtuple

import pytest
from huggingface_hub import close_session, constants

from gemcut.convert import transfer
from gemcut.convert.files import weight_files
from gemcut.convert.listing import Place
from gemcut.errors import CheckpointError
from tests.checkpoints import INDEX, Recipe, build
from tests.hub_server import Repository, serve

NAME = "someone/small-moe"
SHARDS = tuple(f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))
SMALL = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "README.md",
    INDEX,
}
UNWANTED = {
    "consolidated.safetensors": b"1",
    "pytorch_model.bin": b"2",
    "model.gguf": b"3",
    "tf_model.h5": b"4",
    "flax_model.msgpack": b"5",
    "original/params.json": b"6",
    "onnx/model.onnx": b"7",
    "picture.png": b"8",
}


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory, checkpoint):
    """A checkpoint in three shards of some 500 KB."""
    recipe = Recipe(shards=3)
    folder = build(tmp_path_factory.mktemp("hub") / "checkpoint", checkpoint, recipe)
    (folder / "README.md").write_text("A model.\n")
    return folder


@pytest.fixture
def empty_hub(tmp_path, monkeypatch):
    """The stand-in without a repository; nobody's token, no telemetry, no pauses."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # it would leave the machine
    monkeypatch.setattr(transfer, "PAUSE", 0)
    with serve() as hub:
        yield hub
    close_session()


@pytest.fixture
def hub(empty_hub, hub_folder):
    """The stand-in with the checkpoint, and much that a conversion does not need."""
    empty_hub.repositories[NAME] = Repository.of(hub_folder)
    empty_hub.repositories[NAME].files |= UNWANTED
    return empty_hub


@pytest.fixture
def hub_place(hub, tmp_path):
    """The repository there, and a cache of its own."""

    def make(repository=NAME, **more):
        return Place(repository, cache=tmp_path / "cache", endpoint=hub.endpoint, **more)

    return make


def contents(files):
    """The weights, whole."""
    return {name: files.path(name).read_bytes() for name in weight_files(files)}


def large_files(path):
    """The names of the whole or partial shards below a folder."""
    return sorted(p.name for p in path.rglob("*") if p.is_file() and p.stat().st_size > 50_000)


def refusal(call, *args, **options):
    """What a call raises: one line."""
    with pytest.raises(CheckpointError) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def set_free(monkeypatch, size):
    """Let every disk have this much room."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, size))
