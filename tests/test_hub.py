"""Checkpoints from the Hub, from a stand-in for it on the loopback interface."""

import os
import subprocess
import sys

import pytest

from gemcut import api
from gemcut.convert import transfer
from gemcut.convert.files import LocalFiles
from gemcut.convert.hub import open_repository
from gemcut.convert.listing import Place
from tests.hub import (
    NAME,
    SHARDS,
    SMALL,
    UNWANTED,
    contents,
    refusal,
)
from tests.hub_server import COMMIT, Repository


def test_only_what_a_conversion_needs_is_downloaded(hub, hub_place, hub_folder):
    """Small files on opening, weights on fetching; not their duplicates in other formats."""
    files = open_repository(hub_place())
    opened = set(hub.fetched())
    files.fetch()

    assert SMALL == opened
    assert SMALL | set(SHARDS) == set(hub.fetched())
    assert len(hub.fetched()) == len(SMALL) + len(SHARDS)
    assert contents(files) == contents(LocalFiles(hub_folder))


def test_the_second_run_downloads_nothing(hub, hub_place):
    """All is in the shared cache, under the names that huggingface_hub gives it."""
    first = open_repository(hub_place())
    first.fetch()
    hub.requests.clear()
    second = open_repository(hub_place())
    second.fetch()

    assert contents(first) == contents(second)
    assert first.identity == second.identity
    assert [] == hub.fetched()
    assert f"snapshots/{COMMIT}" in second.path("config.json").as_posix()


def test_headers_come_by_ranges(hub, hub_place, hub_folder):
    """Reading the head of a shard fetches a part of it, any part, and once."""
    files = open_repository(hub_place())
    data = (hub_folder / SHARDS[0]).read_bytes()
    hub.requests.clear()

    assert data[:8] == files.head(SHARDS[0], 8)
    assert data[8:5000] == files.head(SHARDS[0], 4992, 8)
    assert data[300_000:300_010] == files.head(SHARDS[0], 10, 300_000)
    assert data[-5:] == files.head(SHARDS[0], 100, len(data) - 5)
    assert b"" == files.head(SHARDS[0], 10, 10_000_000)
    spans = [request.span for request in hub.requests]
    assert ["bytes=0-262143", "bytes=300000-300009", f"bytes={len(data) - 5}-{len(data) - 1}"] == (
        spans
    )


def test_a_server_without_ranges_does(hub, hub_place, hub_folder):
    """Headers are read from the beginning of the answer, and a broken file starts anew."""
    hub.ranges = False
    files = open_repository(hub_place())
    data = (hub_folder / SHARDS[0]).read_bytes()
    hub.breaks[SHARDS[0]] = [200_000]

    assert data[300_000:300_010] == files.head(SHARDS[0], 10, 300_000)
    assert data == files.path(SHARDS[0]).read_bytes()


def test_a_revision_is_asked_for(hub, hub_place):
    """A branch, a tag or a commit; another one is refused with its name."""
    hub.repositories[NAME].revisions = ("main", "v2", "refs/pr/1")

    assert (
        open_repository(hub_place(revision="v2")).identity == open_repository(hub_place()).identity
    )
    assert open_repository(hub_place(revision=COMMIT)).names() >= SMALL
    assert "'v9'" in refusal(open_repository, hub_place(revision="v9"))


def test_offline_asks_nothing(hub, hub_place):
    """Of what is in the cache; what is not there is named, with the next step."""
    assert "--offline" in refusal(open_repository, hub_place(), offline=True)
    online = open_repository(hub_place())
    assert SHARDS[0] in refusal(open_repository, hub_place(), offline=True)
    online.fetch()
    hub.requests.clear()
    files = open_repository(hub_place(), offline=True)

    assert contents(online) == contents(files)
    assert (online.where, online.identity) == (files.where, files.identity)
    assert [] == hub.requests


def test_without_a_network_the_cache_does(hub, hub_place, monkeypatch):
    """The Hub is down or out of reach: what is whole in the cache is used, else both are said."""
    whole = open_repository(hub_place())
    whole.fetch()
    hub.status = 503
    assert contents(whole) == contents(open_repository(hub_place()))

    elsewhere = Place(NAME, cache=hub_place().store / "other", endpoint="http://127.0.0.1:9")
    said = refusal(open_repository, elsewhere)
    assert "cannot be reached" in said and "cache" in said and "check the network" in said


@pytest.mark.parametrize("token", [None, "hf_other"])
def test_a_gated_repository_names_the_licence(hub, hub_place, token):
    """Whether there is no token or one of somebody who has not accepted it."""
    hub.repositories[NAME].gated, hub.repositories[NAME].token = True, "hf_mine"
    said = refusal(open_repository, hub_place(token=token))

    assert "accept its licence" in said and "HF_TOKEN" in said
    assert open_repository(hub_place(token="hf_mine")).names() >= SMALL


def test_a_missing_or_private_repository_is_refused(hub, hub_place):
    """The Hub does not tell them apart for a stranger, so both are said."""
    hub.repositories[NAME].token = "hf_mine"

    for wanted in (
        hub_place(),
        hub_place("someone/nothing"),
        hub_place("someone/nothing", token="hf_mine"),
    ):
        said = refusal(open_repository, wanted)
        assert said.startswith(wanted.repository) and "no such repository" in said
    open_repository(hub_place(token="hf_mine")).fetch()


def test_the_token_stays_with_the_hub(hub, hub_place):
    """The server of large files, another host, is not shown it."""
    hub.repositories[NAME].token = "hf_mine"
    open_repository(hub_place(token="hf_mine")).fetch()

    assert {None} == {request.token for request in hub.requests if request.large}
    assert {"hf_mine"} == {
        request.token for request in hub.requests if request.name in (*SMALL, NAME)
    }


def test_a_dropped_connection_is_resumed(hub, hub_place, hub_folder):
    """The rest is asked for by a range, and what is there is not fetched again."""
    told = []
    files = open_repository(hub_place(), progress=lambda *each: told.append(each))
    hub.breaks[SHARDS[1]] = [100_000, 0, 50_000]
    hub.requests.clear()
    told.clear()
    files.fetch()

    spans = [request.span for request in hub.requests if request.name == SHARDS[1]]
    assert contents(files) == contents(LocalFiles(hub_folder))
    assert ["bytes=0-", "bytes=100000-", "bytes=100000-", "bytes=150000-", None] == spans
    total = sum((hub_folder / name).stat().st_size for name in SHARDS)
    assert (NAME, total, total) == told[-1]
    assert sorted(told) == told


def test_a_broken_download_is_resumed_in_the_next_run(hub, hub_place, hub_folder):
    """The part is kept in the cache; huggingface_hub itself would begin again."""
    hub.breaks[SHARDS[0]] = [100_000] + [0] * transfer.TRIES
    said = refusal(open_repository(hub_place()).fetch)
    assert SHARDS[0] in said and "run again" in said

    hub.breaks.clear()
    hub.requests.clear()
    files = open_repository(hub_place())
    files.fetch()

    assert "bytes=100000-" in [request.span for request in hub.requests]
    assert contents(files) == contents(LocalFiles(hub_folder))
    assert [] == list(hub_place().store.rglob("*.part*"))


def test_a_damaged_part_is_found(hub, hub_place, hub_folder):
    """What was there of the file is not what it should be: refused, and fetched anew next time."""
    hub.breaks[SHARDS[0]] = [100_000] + [0] * transfer.TRIES
    refusal(open_repository(hub_place()).fetch)
    part = next(hub_place().store.rglob("*.part"))
    part.write_bytes(b"x" + part.read_bytes()[1:])

    assert "damaged on the way" in refusal(open_repository(hub_place()).fetch)
    files = open_repository(hub_place())
    files.fetch()
    assert contents(files) == contents(LocalFiles(hub_folder))


def test_a_part_longer_than_the_file_is_cut(hub, hub_place, hub_folder):
    """An unfinished file that is too long would never be finished."""
    hub.breaks[SHARDS[0]] = [100_000] + [0] * transfer.TRIES
    refusal(open_repository(hub_place()).fetch)
    part = next(hub_place().store.rglob("*.part"))
    part.write_bytes((hub_folder / SHARDS[0]).read_bytes() + b"more")

    files = open_repository(hub_place())
    assert (hub_folder / SHARDS[0]).read_bytes() == files.path(SHARDS[0]).read_bytes()


def test_a_repository_of_ggufs_says_what_to_do(hub, hub_place):
    """The model it was made from, where its card names one, or the file as it is."""
    ggufs = Repository({"README.md": b"", "small-Q4_K_M.gguf": b"GGUF"})
    ggufs.card = {"base_model": ["someone/small-moe"]}
    hub.repositories["someone/small-moe-GGUF"] = ggufs
    said = refusal(open_repository, hub_place("someone/small-moe-GGUF"))

    assert "GGUF files only" in said and "made from, someone/small-moe," in said
    assert "gemcut run someone/small-moe-GGUF:small-Q4_K_M.gguf" in said
    assert [] == hub.fetched()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "adapter"),
        (["config.json", "original/model.safetensors"], "no weights"),
        ([], "no weights"),
    ],
)
def test_a_repository_without_weights_says_so(hub, hub_place, names, said):
    """An adapter is named as such."""
    hub.repositories[NAME] = Repository(dict.fromkeys(names, b"{}"))

    assert said in refusal(open_repository, hub_place())


def test_an_answer_with_a_path_in_it_is_not_followed(hub, hub_place):
    """Names, digests and sizes come off the network and become paths: they are checked."""
    hub.repositories[NAME].files |= {"..": b"", "a\\b.jinja": b"", "\0.jinja": b""}
    files = open_repository(hub_place())
    assert not [name for name in files.names() if name not in {*SMALL, *SHARDS, *UNWANTED}]

    hub.repositories[NAME].commit = "../../x"
    assert "commit" in refusal(open_repository, hub_place())


def command(hub, tmp_path, *arguments, **environment):
    """Run gemcut with the stand-in for a Hub."""
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-m", "gemcut", *arguments],
        env=kept | settings | environment,
        capture_output=True,
        text=True,
    )


def test_the_command_line_reads_a_repository(hub, tmp_path, hub_folder):
    """From HF_ENDPOINT into HF_HOME; frugally; offline; and each as from the folder."""
    runs = [[NAME, "--frugal"], [NAME], [NAME, "--offline"]]
    results = [tmp_path / f"{n}.gguf" for n in range(len(runs))]
    asked = []
    for source, result in zip(runs, results, strict=True):
        done = command(hub, tmp_path, "convert", *source, "-o", str(result))
        assert 0 == done.returncode, done.stderr
        asked.append(len(hub.requests))

    api.convert_checkpoint(api.open_source(hub_folder), tmp_path / "local.gguf")
    whole = {result.read_bytes() for result in results}
    assert 1 == len(whole)
    data = slice(-2_000_000, None)  # of the tensors: the names in the metadata differ
    assert whole.pop()[data] == (tmp_path / "local.gguf").read_bytes()[data]
    assert asked[0] < asked[1] == asked[2]
    assert not (tmp_path / "0.gguf.weights").exists()


def test_the_command_line_refuses_in_one_line(hub, tmp_path):
    """As with every other error."""
    output = str(tmp_path / "x.gguf")
    done = command(hub, tmp_path, "convert", "someone/nothing", "-o", output)

    assert 1 == done.returncode
    assert 1 == len(done.stderr.splitlines()) and "no such repository" in done.stderr
    assert "" == done.stdout


def test_a_cache_that_cannot_be_written_is_named(hub, hub_place):
    """Where, and what the system says."""
    hub_place().store.write_text("a file")

    said = refusal(open_repository, hub_place())
    assert "cannot be kept in" in said and str(hub_place().store) in said
