"""Room on the disk while a checkpoint comes from the Hub: asked first, and shard by shard."""

import pytest
from huggingface_hub import constants

from gemcut import api
from gemcut.convert import hub_cache, transfer
from gemcut.convert.checkpoint import Checkpoint
from gemcut.convert.engine import open_model
from gemcut.convert.files import LocalFiles, weight_files
from gemcut.convert.hub import open_repository
from gemcut.convert.listing import Place
from gemcut.errors import OutputError
from tests.hub import NAME, SHARDS, contents, large_files, refusal, set_free


def test_the_disk_is_asked_first(hub, hub_place, hub_folder, monkeypatch):
    """Too little room: nothing of the weights is downloaded. What is cached does not count."""
    files = open_repository(hub_place())
    files.path(SHARDS[0])
    sizes = [(hub_folder / name).stat().st_size for name in SHARDS]
    hub.requests.clear()
    set_free(monkeypatch, sizes[1] + sizes[2] - 1)
    said = refusal(files.fetch)

    assert "free" in said and "HF_HOME" in said and "--frugal" in said
    assert [] == hub.fetched()
    set_free(monkeypatch, sizes[1] + sizes[2])
    files.fetch()


def test_frugal_has_one_shard_at_a_time(hub, hub_place, hub_folder, tmp_path):
    """A shard is fetched when it is asked for and gone when it is dropped, cache and all."""
    scratch = tmp_path / "scratch"
    files = open_repository(hub_place(), scratch=scratch)
    files.fetch()
    identities = [files.identity]
    assert [] == large_files(scratch)
    for name in weight_files(files):
        assert (hub_folder / name).read_bytes() == files.path(name).read_bytes()
        assert [name] == large_files(scratch)
        identities.append(files.identity)
        files.drop(name)
        identities.append(files.identity)

    assert 1 == len(set(identities))
    assert not scratch.exists()
    assert not set(SHARDS) & set(large_files(hub_place().store))
    assert identities[0] == open_repository(hub_place()).identity


def test_frugal_resumes_a_shard(hub, hub_place, hub_folder, tmp_path):
    """After a broken run the part is found again, and a dropped shard is left alone."""
    scratch = tmp_path / "scratch"
    files = open_repository(hub_place(), scratch=scratch)
    files.path(SHARDS[0])
    files.drop(SHARDS[0])
    hub.breaks[SHARDS[1]] = [100_000] + [0] * transfer.TRIES
    refusal(files.path, SHARDS[1])
    hub.breaks.clear()
    hub.requests.clear()
    again = open_repository(hub_place(), scratch=scratch)

    assert (hub_folder / SHARDS[1]).read_bytes() == again.path(SHARDS[1]).read_bytes()
    assert [(SHARDS[1], "bytes=100000-")] == [(r.name, r.span) for r in hub.requests if r.large]


def test_frugal_needs_room_for_the_largest_shard(hub, hub_place, hub_folder, tmp_path, monkeypatch):
    """Which is asked before the work begins, and again for each shard."""
    files = open_repository(hub_place(), scratch=tmp_path / "scratch")
    largest = max((hub_folder / name).stat().st_size for name in SHARDS)
    set_free(monkeypatch, largest - 1)
    assert "one shard" in refusal(files.fetch)

    set_free(monkeypatch, largest)
    files.fetch()
    set_free(monkeypatch, 1000)
    assert "one shard" in refusal(files.path, SHARDS[0])


def test_frugal_uses_what_the_cache_has(hub, hub_place, tmp_path):
    """A shard that another program has fetched is read there, and stays."""
    cached = open_repository(hub_place())
    cached.fetch()
    hub.requests.clear()
    files = open_repository(hub_place(), scratch=tmp_path / "scratch")
    files.drop(SHARDS[0])

    assert contents(cached) == contents(files)
    assert [] == hub.fetched()


def test_a_file_too_large_for_http_is_left_to_the_client(
    hub, hub_place, hub_folder, tmp_path, monkeypatch
):
    """Past 50 GB the Hub hands files out by a protocol of its own, which the client speaks.

    The stand-in does not: the client is told to do without. In all other tests it never tries.
    """
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hub_cache, "is_for_the_client", lambda remote: True)
    files = open_repository(hub_place())
    files.fetch()
    frugal = open_repository(
        Place(NAME, cache=tmp_path / "other", endpoint=hub.endpoint), scratch=tmp_path / "own"
    )

    assert contents(files) == contents(frugal) == contents(LocalFiles(hub_folder))
    for name in SHARDS:
        frugal.drop(name)
    assert [] == large_files(tmp_path / "own")


def test_the_room_for_the_result_comes_first(hub, hub_place, tmp_path):
    """A folder that is not there is not found out after hours of downloading."""
    model = open_model(Checkpoint(open_repository(hub_place())))
    hub.requests.clear()

    with pytest.raises(OutputError, match="a.gguf: cannot be written: make the folder"):
        api.convert_checkpoint(model, tmp_path / "none" / "a.gguf")
    assert [] == hub.fetched()


def test_frugal_leaves_nothing_however_often_it_works(hub, hub_place, tmp_path):
    """A model may be written twice; what is fetched again is removed again."""
    scratch = tmp_path / "scratch"
    model = open_model(Checkpoint(open_repository(hub_place(), scratch=scratch)))
    for kind in ("bf16", "f16"):
        api.convert_checkpoint(model, tmp_path / f"{kind}.gguf", kind)
        assert not scratch.exists()
