"""Which files of a folder or a repository are weights, and how a source is known again."""

import os

import pytest

from gemcut.convert.files import LocalFiles, small_files, weight_files
from gemcut.convert.hub import is_repository
from tests.checkpoints import INDEX
from tests.hub import (
    SHARDS,
    SMALL,
    UNWANTED,
    refusal,
)


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["model.safetensors", "consolidated.safetensors"], ["model.safetensors"]),
        (["model-00001-of-00001.safetensors"], ["model-00001-of-00001.safetensors"]),
        (["pytorch_model.bin", "tf_model.h5"], ["pytorch_model.bin"]),
        (["pytorch_model-2-of-2.bin", "pytorch_model-1-of-2.bin"], ["1", "2"]),
        (["consolidated.00.pth", "consolidated.01.pth"], ["00", "01"]),
        (["training_args.bin", "optimizer.bin"], []),
    ],
)
def test_safetensors_go_before_pickles(tmp_path, names, weights):
    """And pickles are better than nothing."""
    for name in names:
        (tmp_path / name).touch()
    found = weight_files(LocalFiles(tmp_path))

    assert len(weights) == len(found)
    assert all(part in name for part, name in zip(weights, found, strict=True))


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ('{"weight_map": {"a": "../model.safetensors"}}', "not a file name"),
        ('{"weight_map": {"a": "model-9.safetensors"}}', "missing"),
        ('{"weight_map": ["a"]}', "weight_map"),
        ("[" * 100_000, "weight_map"),
        ("\0", "weight_map"),
    ],
)
def test_a_bad_index_is_refused(tmp_path, index, said):
    """It names files that are there, and none outside."""
    (tmp_path / INDEX).write_text(index)

    assert said in refusal(weight_files, LocalFiles(tmp_path))


def test_a_folder_is_known_by_names_sizes_and_times(hub_folder, tmp_path):
    """What a conversion does not read, its own result for one, does not change the identity."""
    own = tmp_path / "own"
    own.mkdir()
    for path in hub_folder.iterdir():
        os.link(path, own / path.name)
    identity = LocalFiles(own).identity
    (own / "model.gguf").write_bytes(b"result")

    assert identity == LocalFiles(own).identity
    (own / "config.json").unlink()
    (own / "config.json").write_bytes((hub_folder / "config.json").read_bytes())
    assert identity != LocalFiles(own).identity
    assert small_files([*SMALL, *SHARDS, *UNWANTED]) == SMALL


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ("google/gemma-4-26B-A4B-it", True),
        ("someone/small-moe-GGUF", True),
        ("model.gguf", False),
        ("someone/model.gguf", False),
        ("./someone/model", False),
        ("/someone/model", False),
        ("someone/a/b", False),
        ("someone", False),
        ("../someone", False),
    ],
)
def test_a_repository_is_told_from_a_path(source, answer):
    """Two words and a slash, where there is no such folder."""
    assert answer == is_repository(source)
