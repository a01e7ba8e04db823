"""What is around the answers: bad requests, limits, and how a server ends."""

import json
import re
import signal
import socket
import subprocess
import sys

import httpx
import openai
import pytest

from gemcut.engine import ContextOptions
from gemcut.llama import Context
from gemcut.runtime.server import answers
from gemcut.runtime.server.answers import Choice
from gemcut.runtime.server.app import Access
from gemcut.runtime.server.asking import Asked
from gemcut.runtime.server.service import conversation_limit
from gemcut.runtime.server.serving import bind
from tests.child import child_environment
from tests.serving import ASKED, CHAT, Parrot, Working, connected, parroting, post, wait
from tests.shell import run


@pytest.fixture(scope="module")
def server(model):
    with parroting(model, "fine") as server:
        yield server


# --- bad requests ---


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the body: Invalid JSON"),
        (b"{", "Invalid JSON"),
        (b'{"messages": "\xff"}', "Invalid JSON"),
        (b"[]", "the body"),
        (b"[" * 100_000, "Invalid JSON"),
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "type 'image_url': the model is given text alone",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "of type 'text'"),
        ({"messages": [{"role": "user", "content": [5]}]}, "messages.0.content.0: "),
        ({"messages": ASKED, "temperature": "hot"}, "temperature"),
        ({"messages": ASKED, "temperature": -1}, "temperature"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "temperature"),
        ({"messages": ASKED, "top_p": 1.5}, "top_p"),
        ({"messages": ASKED, "max_tokens": 0}, "max_tokens"),
        ({"messages": ASKED, "max_tokens": 2.5}, "max_tokens"),
        ({"messages": ASKED, "max_tokens": True}, "max_tokens"),
        ({"messages": ASKED, "n": 0}, "n: "),
        ({"messages": ASKED, "n": 1000}, "n: "),
        ({"messages": ASKED, "stop": [""]}, "stop"),
        ({"messages": ASKED, "stop": ["x"] * 100}, "stop"),
        ({"messages": ASKED, "logit_bias": {"a": 1}}, "logit_bias: "),
        ({"messages": ASKED, "logit_bias": {"999999": 1}}, "not in the vocabulary"),
        ({"messages": ASKED, "top_logprobs": 21}, "top_logprobs"),
        ({"messages": ASKED, "tools": [{"function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"messages": ASKED, "tool_choice": "required"}, "there are no tools"),
        ({"messages": ASKED, "tool_choice": {"function": {"name": "f"}}}, "no tool 'f'"),
        ({"messages": ASKED, "response_format": {"type": "xml"}}, "response_format.type"),
        ({"messages": ASKED, "response_format": {"type": "json_schema"}}, "json_schema: missing"),
        ({"messages": ASKED, "grammar": "root ::= ("}, "grammar"),
        ({"messages": ASKED, "grammar": "root ::= nothing"}, "nothing"),
        (
            {
                "messages": ASKED,
                "response_format": {"type": "json_object"},
                "grammar": "root ::= 1",
            },
            "only one of",
        ),
        ({"messages": [{"role": "user", "content": "x " * 600}]}, "the context 512"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(server, body, words):
    """400 in OpenAI's shape, with the field; the server answers the next one."""
    answered = post(server, body)
    error = answered.json()["error"]

    assert (400, "invalid_request_error") == (answered.status_code, error["type"])
    assert words in error["message"], error["message"]
    assert "fine" == post(server, {"messages": ASKED}).json()["choices"][0]["message"]["content"]


def test_a_prompt_that_is_too_long_is_told_in_numbers(server):
    """For programs that want to shorten it."""
    error = post(server, {"messages": [{"role": "user", "content": "x " * 600}]}).json()["error"]

    assert ("context_length_exceeded", 512) == (error["code"], error["n_ctx"])
    assert error["n_prompt_tokens"] > 600


def test_what_is_not_there_is_said_in_the_same_shape(server):
    """404 and 405, and no page about the API that would load scripts."""
    for method, path, status in (
        ("GET", "/v2", 404),
        ("GET", CHAT, 405),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("POST", "/health", 405),
    ):
        answered = server.web.request(method, path)
        assert status == answered.status_code
        assert path in answered.json()["error"]["message"]
        assert (status == 405) == ("Allow" in answered.headers)


def test_unknown_fields_and_nulls_are_ignored(server):
    """OpenAI's clients send many."""
    body = {"messages": ASKED, "user": "u", "store": False, "metadata": {}, "temperature": None}
    assert 200 == post(server, body | {"stop": None, "tools": None}).status_code


def test_a_text_in_parts_is_one_text(server):
    """As OpenAI's newer clients send it; the developer speaks as the system."""
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    post(server, {"messages": [{"role": "user", "content": parts}]})
    post(server, {"messages": ASKED})
    one, other = server.service._scheduler.jobs[-2:]

    assert one.tokens == other.tokens
    post(server, {"messages": [{"role": "developer", "content": "brief"}, *ASKED]})
    post(server, {"messages": [{"role": "system", "content": "brief"}, *ASKED]})
    one, other = server.service._scheduler.jobs[-2:]
    assert one.tokens == other.tokens


# --- thoughts and calls ---


def test_thoughts_and_calls_are_told_apart(model):
    """Gemma's channel becomes reasoning_content, its calls tool_calls; streamed and whole."""
    text = (
        '<|channel>thought\nwell<channel|>so<|tool_call>call:add{a:1,b:<|"|>two<|"|>}<tool_call|>'
    )
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    with parroting(model, text) as server, server.client() as client:
        options = {"model": "any", "messages": ASKED, "tools": tools}
        whole = client.chat.completions.create(**options).choices[0]
        chunks = list(client.chat.completions.create(**options, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    call = whole.message.tool_calls[0]

    assert ("tool_calls", "so") == (whole.finish_reason, whole.message.content)
    assert "well" == whole.message.model_extra["reasoning_content"].strip()
    assert ("add", {"a": 1, "b": "two"}) == (
        call.function.name,
        json.loads(call.function.arguments),
    )
    thoughts = "".join((delta.model_extra or {}).get("reasoning_content", "") for delta in deltas)
    assert "well" == thoughts.strip()
    assert "so" == "".join(delta.content or "" for delta in deltas)
    assert ["add"] == [c.function.name for d in deltas for c in d.tool_calls or []]
    assert "tool_calls" == chunks[-1].choices[0].finish_reason


def test_probabilities_of_thoughts_are_not_the_answers(model):
    """What is told belongs to the text that is shown."""
    asked = Asked((1,), None, None, logprobs=1)
    parrot, choice = (
        Parrot(model, "<|channel>thought\nwell<channel|>so it is"),
        Choice(model, asked),
    )
    events = []
    parrot.submit(type("Job", (), {}), events.append)
    parts = [part for event in events[:-1] for part in choice.take(event)]
    parts += choice.end(events[-1])
    shown = [model.piece(one.token) for part in parts for one in part.drawn]

    assert "so it is" == "".join(part.text for part in parts if not part.thought)
    assert b"so it is" == b"".join(shown)


# --- limits ---


def test_large_and_slow_bodies_are_refused(model):
    """By what they announce, by what comes, and by how long it takes."""
    access = Access(body_bytes=1000, body_seconds=0.2)
    with parroting(model, "x", access=access) as server:
        assert 413 == post(server, b" " * 1001).status_code
        parts = (b" " * 300 for _ in range(4))
        assert 413 == server.web.post(CHAT, content=parts).status_code
        with socket.create_connection(server.address, timeout=60) as slow:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{{"
            slow.sendall(head.encode())
            assert b"408" in slow.recv(100)
        assert 200 == post(server, {"messages": ASKED}).status_code


def test_a_full_queue_says_when_to_come_again(model):
    """503 with Retry-After for the one too many; the others are answered."""
    with Working(model, n_seq=1, queue=1) as server:
        body = {"messages": ASKED, "grammar": "root ::= [a-z]{300}"}
        with connected(server, CHAT, body), connected(server, CHAT, body):
            wait(lambda: sum(counts(server)) == 2)
            answered = post(server, body)
            assert (503, "queue_full") == (answered.status_code, answered.json()["error"]["code"])
            assert int(answered.headers["Retry-After"]) > 0
        wait(lambda: sum(counts(server)) == 0)
        assert 200 == post(server, {"messages": ASKED, "max_tokens": 2}).status_code


def counts(server):
    stats = server.scheduler.stats()
    return stats.active, stats.waiting


def test_an_answer_may_take_so_long(model):
    """504 when it is whole, an error at the end when it is streamed; nothing goes on behind it."""
    with parroting(model, "begun", finish=None, timeout=0.2) as server:
        answered = post(server, {"messages": ASKED})
        assert (504, "timeout") == (answered.status_code, answered.json()["error"]["code"])
        with server.client() as client, pytest.raises(openai.APIError, match="longer than 0.2 s"):
            list(client.chat.completions.create(model="any", messages=ASKED, stream=True))
        assert 2 == server.service._scheduler.cancelled


def test_a_conversation_is_no_longer_than_the_model_can_read(model):
    """One may take the whole context of several, but no more than the model was made for."""
    sizes = {(512, 1): 512, (1024, 4): 1024, (4096, 2): 2048, (4096, 1): 4096, (6144, 2): 3072}
    for (n_ctx, n_seq), expected in sizes.items():
        shape = ContextOptions(n_ctx, 64, 64, n_seq, 1, n_outputs=n_seq, kv_unified=n_seq > 1)
        with Context(model, shape) as context:
            assert expected == conversation_limit(context)


def test_a_long_silence_is_no_death(model, monkeypatch):
    """A stream shows that it lives while nothing is to be told; clients skip that."""
    monkeypatch.setattr(answers, "_WAKE", 0.01)
    with parroting(model, finish=None, timeout=0.5) as server:
        assert ": still here" in post(server, {"messages": ASKED, "stream": True}).text


def test_an_answer_that_fails_is_an_error(model):
    """500 with what went wrong; the next one is answered."""
    with parroting(model, "x", "error", "the model's logits are not numbers") as server:
        answered = post(server, {"messages": ASKED})
        assert (500, "server_error") == (
            answered.status_code,
            answered.json()["error"]["type"],
        )
        events = post(server, {"messages": ASKED, "stream": True}).text
        assert "not numbers" in events and "[DONE]" not in events
        assert 200 == server.web.get("/health").status_code


def test_metrics_are_prometheus(server):
    """Every line is a sample of a family that was described; no path of a client's invention."""
    server.web.get("/invented")
    text = server.web.get("/metrics").text
    families = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    sample = re.compile(r'(\w+?)(?:_bucket|_sum|_count)?(\{(\w+="[^"]*",?)+\})? [-+\d.einfIa]+')

    for line in text.splitlines():
        if not line.startswith("#"):
            found = sample.fullmatch(line)
            assert found and found[1] in families, line
    assert 'path="other",status="404"' in text and "invented" not in text
    assert "gemcut_first_token_seconds_count" in text


# --- the end ---


def test_an_end_lets_answers_finish(model):
    """Those on their way are finished, new ones find nobody."""
    with Working(model, n_seq=1) as server, server.client() as client:
        options = {"model": "any", "messages": ASKED, "stream": True, "max_tokens": 60}
        grammar = {"grammar": "root ::= [a-z]{1000}"}
        stream = iter(client.chat.completions.create(**options, extra_body=grammar))
        next(stream)
        server.end()
        wait(lambda: server.service.draining)
        with pytest.raises(httpx.ConnectError):
            post(server, {"messages": ASKED})
        assert "length" == list(stream)[-1].choices[0].finish_reason


def test_after_the_grace_answers_are_given_up(model):
    """With an error that says why, not with a connection that breaks."""
    with parroting(model, "begun", finish=None, grace=0.1) as server, server.client() as client:
        stream = iter(client.chat.completions.create(model="any", messages=ASKED, stream=True))
        next(stream)
        server.end()
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        assert 1 == server.service._scheduler.cancelled


def gemcut(*arguments, **options):
    """A process of the command line."""
    command = [sys.executable, "-m", "gemcut", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=child_environment(), **pipes | options)


def test_the_command_serves_until_a_signal(q4_k_m):
    """It says where, answers, and ends well on SIGTERM."""
    words = ("-c", 512, "-t", 1, "--port", 0, "--alias", "tiny", "--api-key", "open")
    with gemcut("serve", q4_k_m, *words) as process:
        try:
            said = []
            while not (found := re.search(r"http://\S+:\d+", said[-1] if said else "")):
                said.append(process.stderr.readline())
                assert said[-1], "".join(said)
            with openai.OpenAI(base_url=f"{found[0]}/v1", api_key="open") as client:
                assert ["tiny"] == [each.id for each in client.models.list()]
                done = client.completions.create(model="tiny", prompt="def f(", max_tokens=3)
                assert done.usage and done.usage.completion_tokens <= 3
            process.send_signal(signal.SIGTERM)
            assert (0, "") == (process.wait(60), process.stdout.read())
        finally:
            process.kill()


def test_a_taken_port_is_said_before_anything_is_loaded():
    """There is no such model, and nobody looked for it."""
    with bind("127.0.0.1", 0, False) as taken:
        taken.listen()
        done = run("serve", "nothing.gguf", "--port", taken.getsockname()[1])

    assert 2 == done.exit_code
    assert "choose another --port" in done.output
