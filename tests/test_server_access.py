"""Who may ask a server: keys, sites, this machine and others."""

import openai
import pytest

from gemcut.cli.serve import keys_of
from gemcut.errors import UsageError
from gemcut.runtime.server.app import Access
from gemcut.runtime.server.security import is_loopback
from gemcut.runtime.server.serving import bind
from tests.serving import ASKED, CHAT, parroting, post


@pytest.fixture(scope="module")
def server(model):
    with parroting(model, "fine") as server:
        yield server


def test_a_key_is_wanted_where_there_is_one(model):
    """In either header; the page and the health are open, nothing else."""
    with parroting(model, "x", access=Access(keys=("first", "second"))) as server:
        get = {"Authorization": "Bearer second"}, {"x-api-key": "first"}, {}, {"x-api-key": "fir"}
        answered = [server.web.get("/v1/models", headers=each) for each in get]
        assert [200, 200, 401, 401] == [each.status_code for each in answered]
        assert "invalid_api_key" == answered[3].json()["error"]["code"]
        assert [200, 200] == [server.web.get(p).status_code for p in ("/", "/health")]
        for path in ("/metrics", "/tokenize", "/nowhere"):
            assert 401 == server.web.get(path).status_code
        with server.client(api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_keys_come_from_the_command_and_a_file(tmp_path):
    """One a line; what no header could carry is refused instead of locking everybody out."""
    file = tmp_path / "keys"
    file.write_text("second\n\n third \n")
    assert ["first", "second", "third"] == list(keys_of("first", file))
    assert [] == list(keys_of(None, None))
    for wrong in ("", " ", "k\u00e9y", "a\nb"):
        with pytest.raises(UsageError, match="API key"):
            list(keys_of(wrong, None))
    file.write_bytes(b"\n")
    with pytest.raises(UsageError, match="no key in it"):
        list(keys_of(None, file))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="API key"):
        list(keys_of(None, file))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Host": "127.9.9.9"}, 200),
        ({"Host": "rebound.example"}, 403),
        ({"Host": "127.0.0.1.rebound.example"}, 403),
        ({"Host": "localhost", "Origin": "http://localhost"}, 200),
        ({"Host": "localhost", "Origin": "http://localhost:3000"}, 403),
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
    ],
)
def test_without_a_key_only_this_machine_may_ask(server, headers, status):
    """Not a page whose name points here, and not one of another site."""
    assert status == post(server, {"messages": ASKED}, **headers).status_code


def test_a_site_may_be_let_in(model):
    """--cors: then its pages may ask, and browsers are told so; others are still refused."""
    access = Access(origins=("https://friend.example",))
    with parroting(model, "x", access=access) as server:
        friend, other = ({"Origin": f"https://{n}.example"} for n in ("friend", "other"))
        answered = post(server, {"messages": ASKED}, **friend)
        assert "https://friend.example" == answered.headers["access-control-allow-origin"]
        assert 403 == post(server, {"messages": ASKED}, **other).status_code
        asking = {"Access-Control-Request-Method": "POST"}
        preflights = [server.web.options(CHAT, headers=o | asking) for o in (friend, other)]
        assert [200, 400] == [each.status_code for each in preflights]


def test_names_of_this_machine():
    """What counts as loopback."""
    assert all(map(is_loopback, ("localhost", "LOCALHOST", "127.0.0.1", "127.1.2.3", "::1")))
    assert not any(map(is_loopback, ("", "0.0.0.0", "::", "10.0.0.1", "localhost.example")))


def test_other_machines_need_a_key(tmp_path):
    """Binding elsewhere is refused without one; a port in use is said."""
    for host in ("0.0.0.0", "::"):
        with pytest.raises(UsageError, match="without a key"):
            bind(host, 0, False)
    bind("0.0.0.0", 0, True).close()
    with bind("127.0.0.1", 0, False) as taken:
        taken.listen()
        with pytest.raises(UsageError, match="choose another --port"):
            bind("127.0.0.1", taken.getsockname()[1], False)
    with pytest.raises(UsageError, match="--host"):
        bind("no such host", 0, False)
