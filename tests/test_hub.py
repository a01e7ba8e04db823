"""Checkpoints from the Hub, from a stand-in for it on the loopback interface."""

import os
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
from huggingface_hub import close_session, constants

from gemcut import api
from gemcut.convert import hub_cache, transfer
from gemcut.convert.checkpoint import Checkpoint
from gemcut.convert.engine import open_model
from gemcut.convert.files import LocalFiles, small_files, weight_files
from gemcut.convert.hub import is_repository, open_repository
from gemcut.convert.listing import Place
from gemcut.errors import CheckpointError, OutputError
from tests.checkpoints import INDEX, Recipe, build
from tests.hub_server import COMMIT, Repository, serve

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
def folder(tmp_path_factory, checkpoint):
    """A checkpoint in three shards of some 500 KB."""
    recipe = Recipe(shards=3)
    folder = build(tmp_path_factory.mktemp("hub") / "checkpoint", checkpoint, recipe)
    (folder / "README.md").write_text("A model.\n")
    return folder


@pytest.fixture
def server(folder, tmp_path, monkeypatch):
    """The stand-in with the checkpoint, and much that a conversion does not need."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # it would leave the machine
    monkeypatch.setattr(transfer, "PAUSE", 0)
    with serve() as server:
        server.repositories[NAME] = Repository.of(folder)
        server.repositories[NAME].files |= UNWANTED
        yield server
    close_session()


@pytest.fixture
def place(server, tmp_path):
    """The repository there, and a cache of its own."""

    def make(repository=NAME, **more):
        return Place(repository, cache=tmp_path / "cache", endpoint=server.endpoint, **more)

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


def test_only_what_a_conversion_needs_is_downloaded(server, place, folder):
    """Small files on opening, weights on fetching; not their duplicates in other formats."""
    files = open_repository(place())
    opened = set(server.fetched())
    files.fetch()

    assert SMALL == opened
    assert SMALL | set(SHARDS) == set(server.fetched())
    assert len(server.fetched()) == len(SMALL) + len(SHARDS)
    assert contents(files) == contents(LocalFiles(folder))


def test_the_second_run_downloads_nothing(server, place):
    """All is in the shared cache, under the names that huggingface_hub gives it."""
    first = open_repository(place())
    first.fetch()
    server.requests.clear()
    second = open_repository(place())
    second.fetch()

    assert contents(first) == contents(second)
    assert first.identity == second.identity
    assert [] == server.fetched()
    assert f"snapshots/{COMMIT}" in second.path("config.json").as_posix()


def test_headers_come_by_ranges(server, place, folder):
    """Reading the head of a shard fetches a part of it, any part, and once."""
    files = open_repository(place())
    data = (folder / SHARDS[0]).read_bytes()
    server.requests.clear()

    assert data[:8] == files.head(SHARDS[0], 8)
    assert data[8:5000] == files.head(SHARDS[0], 4992, 8)
    assert data[300_000:300_010] == files.head(SHARDS[0], 10, 300_000)
    assert data[-5:] == files.head(SHARDS[0], 100, len(data) - 5)
    assert b"" == files.head(SHARDS[0], 10, 10_000_000)
    spans = [request.span for request in server.requests]
    assert ["bytes=0-262143", "bytes=300000-300009", f"bytes={len(data) - 5}-{len(data) - 1}"] == (
        spans
    )


def test_a_server_without_ranges_does(server, place, folder):
    """Headers are read from the beginning of the answer, and a broken file starts anew."""
    server.ranges = False
    files = open_repository(place())
    data = (folder / SHARDS[0]).read_bytes()
    server.breaks[SHARDS[0]] = [200_000]

    assert data[300_000:300_010] == files.head(SHARDS[0], 10, 300_000)
    assert data == files.path(SHARDS[0]).read_bytes()


def test_a_revision_is_asked_for(server, place):
    """A branch, a tag or a commit; another one is refused with its name."""
    server.repositories[NAME].revisions = ("main", "v2", "refs/pr/1")

    assert open_repository(place(revision="v2")).identity == open_repository(place()).identity
    assert open_repository(place(revision=COMMIT)).names() >= SMALL
    assert "'v9'" in refusal(open_repository, place(revision="v9"))


def test_offline_asks_nothing(server, place):
    """Of what is in the cache; what is not there is named, with the next step."""
    assert "--offline" in refusal(open_repository, place(), offline=True)
    online = open_repository(place())
    assert SHARDS[0] in refusal(open_repository, place(), offline=True)
    online.fetch()
    server.requests.clear()
    files = open_repository(place(), offline=True)

    assert contents(online) == contents(files)
    assert (online.where, online.identity) == (files.where, files.identity)
    assert [] == server.requests


def test_without_a_network_the_cache_does(server, place, monkeypatch):
    """The Hub is down or out of reach: what is whole in the cache is used, else both are said."""
    whole = open_repository(place())
    whole.fetch()
    server.status = 503
    assert contents(whole) == contents(open_repository(place()))

    elsewhere = Place(NAME, cache=place().store / "other", endpoint="http://127.0.0.1:9")
    said = refusal(open_repository, elsewhere)
    assert "cannot be reached" in said and "cache" in said and "check the network" in said


@pytest.mark.parametrize("token", [None, "hf_other"])
def test_a_gated_repository_names_the_licence(server, place, token):
    """Whether there is no token or one of somebody who has not accepted it."""
    server.repositories[NAME].gated, server.repositories[NAME].token = True, "hf_mine"
    said = refusal(open_repository, place(token=token))

    assert "accept its licence" in said and "HF_TOKEN" in said
    assert open_repository(place(token="hf_mine")).names() >= SMALL


def test_a_missing_or_private_repository_is_refused(server, place):
    """The Hub does not tell them apart for a stranger, so both are said."""
    server.repositories[NAME].token = "hf_mine"

    for wanted in (place(), place("someone/nothing"), place("someone/nothing", token="hf_mine")):
        said = refusal(open_repository, wanted)
        assert said.startswith(wanted.repository) and "no such repository" in said
    open_repository(place(token="hf_mine")).fetch()


def test_the_token_stays_with_the_hub(server, place):
    """The server of large files, another host, is not shown it."""
    server.repositories[NAME].token = "hf_mine"
    open_repository(place(token="hf_mine")).fetch()

    assert {None} == {request.token for request in server.requests if request.large}
    assert {"hf_mine"} == {
        request.token for request in server.requests if request.name in (*SMALL, NAME)
    }


def test_a_dropped_connection_is_resumed(server, place, folder):
    """The rest is asked for by a range, and what is there is not fetched again."""
    told = []
    files = open_repository(place(), progress=lambda *each: told.append(each))
    server.breaks[SHARDS[1]] = [100_000, 0, 50_000]
    server.requests.clear()
    told.clear()
    files.fetch()

    spans = [request.span for request in server.requests if request.name == SHARDS[1]]
    assert contents(files) == contents(LocalFiles(folder))
    assert ["bytes=0-", "bytes=100000-", "bytes=100000-", "bytes=150000-", None] == spans
    total = sum((folder / name).stat().st_size for name in SHARDS)
    assert (NAME, total, total) == told[-1]
    assert sorted(told) == told


def test_a_broken_download_is_resumed_in_the_next_run(server, place, folder):
    """The part is kept in the cache; huggingface_hub itself would begin again."""
    server.breaks[SHARDS[0]] = [100_000] + [0] * transfer.TRIES
    said = refusal(open_repository(place()).fetch)
    assert SHARDS[0] in said and "run again" in said

    server.breaks.clear()
    server.requests.clear()
    files = open_repository(place())
    files.fetch()

    assert "bytes=100000-" in [request.span for request in server.requests]
    assert contents(files) == contents(LocalFiles(folder))
    assert [] == list(place().store.rglob("*.part*"))


def test_a_damaged_part_is_found(server, place, folder):
    """What was there of the file is not what it should be: refused, and fetched anew next time."""
    server.breaks[SHARDS[0]] = [100_000] + [0] * transfer.TRIES
    refusal(open_repository(place()).fetch)
    part = next(place().store.rglob("*.part"))
    part.write_bytes(b"x" + part.read_bytes()[1:])

    assert "damaged on the way" in refusal(open_repository(place()).fetch)
    files = open_repository(place())
    files.fetch()
    assert contents(files) == contents(LocalFiles(folder))


def test_a_part_longer_than_the_file_is_cut(server, place, folder):
    """An unfinished file that is too long would never be finished."""
    server.breaks[SHARDS[0]] = [100_000] + [0] * transfer.TRIES
    refusal(open_repository(place()).fetch)
    part = next(place().store.rglob("*.part"))
    part.write_bytes((folder / SHARDS[0]).read_bytes() + b"more")

    files = open_repository(place())
    assert (folder / SHARDS[0]).read_bytes() == files.path(SHARDS[0]).read_bytes()


def test_the_disk_is_asked_first(server, place, folder, monkeypatch):
    """Too little room: nothing of the weights is downloaded. What is cached does not count."""
    files = open_repository(place())
    files.path(SHARDS[0])
    sizes = [(folder / name).stat().st_size for name in SHARDS]
    server.requests.clear()
    set_free(monkeypatch, sizes[1] + sizes[2] - 1)
    said = refusal(files.fetch)

    assert "free" in said and "HF_HOME" in said and "--frugal" in said
    assert [] == server.fetched()
    set_free(monkeypatch, sizes[1] + sizes[2])
    files.fetch()


def set_free(monkeypatch, size):
    """Let every disk have this much room."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, size))


def test_frugal_has_one_shard_at_a_time(server, place, folder, tmp_path):
    """A shard is fetched when it is asked for and gone when it is dropped, cache and all."""
    scratch = tmp_path / "scratch"
    files = open_repository(place(), scratch=scratch)
    files.fetch()
    identities = [files.identity]
    assert [] == large_files(scratch)
    for name in weight_files(files):
        assert (folder / name).read_bytes() == files.path(name).read_bytes()
        assert [name] == large_files(scratch)
        identities.append(files.identity)
        files.drop(name)
        identities.append(files.identity)

    assert 1 == len(set(identities))
    assert not scratch.exists()
    assert not set(SHARDS) & set(large_files(place().store))
    assert identities[0] == open_repository(place()).identity


def test_frugal_resumes_a_shard(server, place, folder, tmp_path):
    """After a broken run the part is found again, and a dropped shard is left alone."""
    scratch = tmp_path / "scratch"
    files = open_repository(place(), scratch=scratch)
    files.path(SHARDS[0])
    files.drop(SHARDS[0])
    server.breaks[SHARDS[1]] = [100_000] + [0] * transfer.TRIES
    refusal(files.path, SHARDS[1])
    server.breaks.clear()
    server.requests.clear()
    again = open_repository(place(), scratch=scratch)

    assert (folder / SHARDS[1]).read_bytes() == again.path(SHARDS[1]).read_bytes()
    assert [(SHARDS[1], "bytes=100000-")] == [(r.name, r.span) for r in server.requests if r.large]


def test_frugal_needs_room_for_the_largest_shard(server, place, folder, tmp_path, monkeypatch):
    """Which is asked before the work begins, and again for each shard."""
    files = open_repository(place(), scratch=tmp_path / "scratch")
    largest = max((folder / name).stat().st_size for name in SHARDS)
    set_free(monkeypatch, largest - 1)
    assert "one shard" in refusal(files.fetch)

    set_free(monkeypatch, largest)
    files.fetch()
    set_free(monkeypatch, 1000)
    assert "one shard" in refusal(files.path, SHARDS[0])


def test_frugal_uses_what_the_cache_has(server, place, tmp_path):
    """A shard that another program has fetched is read there, and stays."""
    cached = open_repository(place())
    cached.fetch()
    server.requests.clear()
    files = open_repository(place(), scratch=tmp_path / "scratch")
    files.drop(SHARDS[0])

    assert contents(cached) == contents(files)
    assert [] == server.fetched()


def test_a_file_too_large_for_http_is_left_to_the_client(
    server, place, folder, tmp_path, monkeypatch
):
    """Past 50 GB the Hub hands files out by a protocol of its own, which the client speaks.

    The stand-in does not: the client is told to do without. In all other tests it never tries.
    """
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hub_cache, "is_for_the_client", lambda remote: True)
    files = open_repository(place())
    files.fetch()
    frugal = open_repository(
        Place(NAME, cache=tmp_path / "other", endpoint=server.endpoint), scratch=tmp_path / "own"
    )

    assert contents(files) == contents(frugal) == contents(LocalFiles(folder))
    for name in SHARDS:
        frugal.drop(name)
    assert [] == large_files(tmp_path / "own")


def test_a_repository_of_ggufs_says_what_to_do(server, place):
    """The model it was made from, where its card names one, or the file as it is."""
    ggufs = Repository({"README.md": b"", "small-Q4_K_M.gguf": b"GGUF"})
    ggufs.card = {"base_model": ["someone/small-moe"]}
    server.repositories["someone/small-moe-GGUF"] = ggufs
    said = refusal(open_repository, place("someone/small-moe-GGUF"))

    assert "GGUF files only" in said and "made from, someone/small-moe," in said
    assert "gemcut run someone/small-moe-GGUF:small-Q4_K_M.gguf" in said
    assert [] == server.fetched()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "adapter"),
        (["config.json", "original/model.safetensors"], "no weights"),
        ([], "no weights"),
    ],
)
def test_a_repository_without_weights_says_so(server, place, names, said):
    """An adapter is named as such."""
    server.repositories[NAME] = Repository(dict.fromkeys(names, b"{}"))

    assert said in refusal(open_repository, place())


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


def test_an_answer_with_a_path_in_it_is_not_followed(server, place):
    """Names, digests and sizes come off the network and become paths: they are checked."""
    server.repositories[NAME].files |= {"..": b"", "a\\b.jinja": b"", "\0.jinja": b""}
    files = open_repository(place())
    assert not [name for name in files.names() if name not in {*SMALL, *SHARDS, *UNWANTED}]

    server.repositories[NAME].commit = "../../x"
    assert "commit" in refusal(open_repository, place())


def test_a_folder_is_known_by_names_sizes_and_times(folder, tmp_path):
    """What a conversion does not read, its own result for one, does not change the identity."""
    own = tmp_path / "own"
    own.mkdir()
    for path in folder.iterdir():
        os.link(path, own / path.name)
    identity = LocalFiles(own).identity
    (own / "model.gguf").write_bytes(b"result")

    assert identity == LocalFiles(own).identity
    (own / "config.json").unlink()
    (own / "config.json").write_bytes((folder / "config.json").read_bytes())
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


def command(server, tmp_path, *arguments, **environment):
    """Run gemcut with the stand-in for a Hub."""
    settings = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "home")}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-m", "gemcut", *arguments],
        env=kept | settings | environment,
        capture_output=True,
        text=True,
    )


def test_the_command_line_reads_a_repository(server, tmp_path, folder):
    """From HF_ENDPOINT into HF_HOME; frugally; offline; and each as from the folder."""
    runs = [[NAME, "--frugal"], [NAME], [NAME, "--offline"]]
    results = [tmp_path / f"{n}.gguf" for n in range(len(runs))]
    asked = []
    for source, result in zip(runs, results, strict=True):
        done = command(server, tmp_path, "convert", *source, "-o", str(result))
        assert 0 == done.returncode, done.stderr
        asked.append(len(server.requests))

    api.convert_checkpoint(api.open_source(folder), tmp_path / "local.gguf")
    whole = {result.read_bytes() for result in results}
    assert 1 == len(whole)
    data = slice(-2_000_000, None)  # of the tensors: the names in the metadata differ
    assert whole.pop()[data] == (tmp_path / "local.gguf").read_bytes()[data]
    assert asked[0] < asked[1] == asked[2]
    assert not (tmp_path / "0.gguf.weights").exists()


def test_the_command_line_refuses_in_one_line(server, tmp_path):
    """As with every other error."""
    output = str(tmp_path / "x.gguf")
    done = command(server, tmp_path, "convert", "someone/nothing", "-o", output)

    assert 1 == done.returncode
    assert 1 == len(done.stderr.splitlines()) and "no such repository" in done.stderr
    assert "" == done.stdout


def test_a_cache_that_cannot_be_written_is_named(server, place):
    """Where, and what the system says."""
    place().store.write_text("a file")

    said = refusal(open_repository, place())
    assert "cannot be kept in" in said and str(place().store) in said


def test_the_room_for_the_result_comes_first(server, place, tmp_path):
    """A folder that is not there is not found out after hours of downloading."""
    model = open_model(Checkpoint(open_repository(place())))
    server.requests.clear()

    with pytest.raises(OutputError, match="a.gguf: cannot be written: make the folder"):
        api.convert_checkpoint(model, tmp_path / "none" / "a.gguf")
    assert [] == server.fetched()


def test_frugal_leaves_nothing_however_often_it_works(server, place, tmp_path):
    """A model may be written twice; what is fetched again is removed again."""
    scratch = tmp_path / "scratch"
    model = open_model(Checkpoint(open_repository(place(), scratch=scratch)))
    for kind in ("bf16", "f16"):
        api.convert_checkpoint(model, tmp_path / f"{kind}.gguf", kind)
        assert not scratch.exists()
