"""A GGUF on the Hub in place of a file, from a stand-in for the Hub on the loopback interface."""

import pytest
from huggingface_hub import constants

from gemcut import api
from gemcut.convert import transfer
from gemcut.convert.hub_gguf import fetch_gguf, repository_and_file
from gemcut.convert.listing import Place
from gemcut.errors import CheckpointError
from tests.hub_server import COMMIT, Repository

NAME = "someone/small-GGUF"
ONE, OTHER = "small-Q4_K_M.gguf", "small-IQ4_K_M.gguf"
PARTS = tuple(f"Q8_0/small-Q8_0-0000{n}-of-00002.gguf" for n in (1, 2))
FILES = {
    "README.md": b"A model.",
    "mmproj-F16.gguf": b"GGUF eyes",
    ONE: b"GGUF one" * 20_000,
    OTHER: b"GGUF other",
    PARTS[0]: b"GGUF first",
    PARTS[1]: b"GGUF second",
}


@pytest.fixture
def server(empty_hub):
    """The stand-in with a repository of finished files."""
    empty_hub.repositories[NAME] = Repository(dict(FILES))
    return empty_hub


@pytest.fixture
def place(server, tmp_path):
    return Place(NAME, cache=tmp_path / "cache", endpoint=server.endpoint)


def refusal(*arguments, **options):
    """What fetching raises: one line."""
    with pytest.raises(CheckpointError) as caught:
        fetch_gguf(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("someone/small", ("someone/small", None)),
        ("someone/small:file.gguf", ("someone/small", "file.gguf")),
        ("someone/small:Q8_0/a.gguf", ("someone/small", "Q8_0/a.gguf")),
        ("someone/small.gguf", None),  # a path that is mistyped
        ("tests/nothing", None),  # in a folder that exists
        ("tests/nothing:Q8_0", None),
        ("/a/b.gguf", None),
        ("./a/b", None),
        ("small.gguf", None),
        ("a/b/c:d", None),
    ],
)
def test_what_a_hub_id_is(source, expected):
    """`owner/name`, with a file behind a colon; what may be a path is one."""
    assert expected == repository_and_file(source)


@pytest.mark.parametrize("name", [ONE, "Q4_K_M", "q4_k_m", "small-Q4_K_M"])
def test_a_file_is_fetched(server, place, name):
    """By its name or by what it alone is called; nothing else comes, and not twice."""
    told = []
    path = fetch_gguf(place, name, progress=lambda *each: told.append(each))

    assert FILES[ONE] == path.read_bytes()
    assert (ONE, COMMIT) == (path.name, path.parent.name)
    assert [ONE] == server.fetched()
    assert (ONE, len(FILES[ONE]), len(FILES[ONE])) == told[-1]
    assert path == fetch_gguf(place, name)
    assert [ONE] == server.fetched()


@pytest.mark.parametrize("name", [PARTS[0], PARTS[1], "Q8_0"])
def test_all_parts_come(server, place, name):
    """Of a split file, whichever is named; the path is that of the first, beside the others."""
    path = fetch_gguf(place, name)

    assert sorted(PARTS) == sorted(each.name for each in server.requests if each.large)
    assert PARTS[0].endswith(path.name)
    assert FILES[PARTS[1]] == path.with_name(PARTS[1].split("/")[1]).read_bytes()


def test_a_missing_part_is_named(server, place):
    del server.repositories[NAME].files[PARTS[1]]
    assert f"{PARTS[1]} is missing, a part of {PARTS[0]}" in refusal(place, "Q8_0")


def test_the_only_file_needs_no_name(server, place):
    """Beside what turns images into tokens, which is no model."""
    for name in (OTHER, *PARTS):
        del server.repositories[NAME].files[name]
    assert FILES[ONE] == fetch_gguf(place, None).read_bytes()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (None, f"3 GGUF files: name one of {PARTS[0]}, {OTHER}, {ONE}, as {NAME}:"),
        ("F16", "mmproj"),
        ("small", f"3 GGUF files called small: name one of {PARTS[0]}, {OTHER}, {ONE}"),
        ("Q2_K", f"no GGUF file called Q2_K: name one of {PARTS[0]}"),
        ("../secret.gguf", "no GGUF file called ../secret.gguf"),
    ],
)
def test_others_are_listed(place, name, said):
    """Where the name says too little."""
    if name == "F16":
        assert fetch_gguf(place, name).name.startswith(said)
    else:
        assert said in refusal(place, name)


def test_a_repository_without_files(server, place):
    server.repositories[NAME].files = {"README.md": b""}
    assert "holds no GGUF file" in refusal(place, None)


def test_a_broken_download_is_resumed(server, place):
    """In the next run, from where it broke."""
    server.breaks[ONE] = [100_000] + [0] * transfer.TRIES
    assert "run again" in refusal(place, ONE)
    server.breaks.clear()
    server.requests.clear()

    assert FILES[ONE] == fetch_gguf(place, ONE).read_bytes()
    assert "bytes=100000-" in [request.span for request in server.requests]


def test_offline_the_cache_does(server, place, monkeypatch):
    """And asks nothing; what is not there is named, with the next step."""
    assert f"{NAME}:Q8_0: not in the cache, and this is offline" in refusal(place, "Q8_0", True)
    fetched = fetch_gguf(place, "Q8_0")
    server.requests.clear()

    assert fetched == fetch_gguf(place, "Q8_0", offline=True)
    assert f"{NAME}:{ONE}: not in the cache" in refusal(place, ONE, offline=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetched == fetch_gguf(place, PARTS[0])
    assert [] == server.requests


def test_without_a_network_the_cache_does(server, place):
    fetched = fetch_gguf(place, ONE)
    server.status = 503

    assert fetched == fetch_gguf(place, ONE)
    said = refusal(place, OTHER)
    assert "not in the cache" in said and "check the network" in said


def test_an_unknown_repository_and_revision(server, place):
    nowhere = Place("someone/nothing", cache=place.cache, endpoint=server.endpoint)
    assert "no such repository" in refusal(nowhere, None)
    other = Place(NAME, "v9", cache=place.cache, endpoint=server.endpoint)
    assert "'v9'" in refusal(other, ONE)


def test_a_path_stays_a_path(tmp_path):
    """Whether or not there is something: whoever opens it says so."""
    assert tmp_path / "model.gguf" == api.local_gguf(tmp_path / "model.gguf")
