"""The chat as a person has it: keys are typed in a terminal, and the screen is read."""

import json
import signal
import stat

import pytest

from tests.terminals import Terminal

# More than a context has room for, and than a terminal takes before somebody reads it: 4 KiB.
ENDLESS = 'root ::= "go " many{15}\nmany ::= [a-z]{2000}'


@pytest.fixture
def chat(q4_k_m, tmp_path):
    """Starts a chat; its history is the test's own."""

    def start(*options: object, size: tuple[int, int] = (40, 100)) -> Terminal:
        arguments = ("run", q4_k_m, "-t", 1, "-c", 512, "--temp", 0, "-n", 8, *options)
        environment = {"XDG_STATE_HOME": str(tmp_path / "state")}
        return Terminal(*arguments, folder=tmp_path, environment=environment, size=size)

    return start


def saved(path) -> list[str]:
    """What the user said in a conversation that was kept."""
    messages = json.loads(path.read_text())["messages"]
    return [message["content"] for message in messages if message["role"] == "user"]


def test_messages_of_several_lines(chat, tmp_path):
    """A backslash, Alt-Enter, three quotes and pasting all keep lines together.

    So does a window that becomes narrower than the line.
    """
    with chat() as terminal:
        terminal.ready()
        for keys, shown in (
            ("one\\\rtwo", "one\n. two"),
            ("three\x1b\rfour", "three\n. four"),
            ('"""\rfive\rsix"""', '"""\n. five\n. six"""'),
        ):
            terminal.type(keys)
            terminal.wait(typed=shown)
            terminal.type("\r")
            terminal.ready()
        terminal.type("\x1b[200~seven\neight\x1b[201~")
        terminal.wait(typed="seven\n. eight")
        terminal.resize(30, 30)
        terminal.type(" nine and many more words\r")
        terminal.ready()
        terminal.say("/save kept.json")
        terminal.type("\x04")

        assert 0 == terminal.exit_code()
    sent = ["one\ntwo", "three\nfour", "five\nsix", "seven\neight nine and many more words"]
    assert sent == saved(tmp_path / "kept.json")


def test_what_was_typed_is_there_the_next_time(chat, tmp_path):
    """The history outlives the session, and belongs to the user alone."""
    with chat() as terminal:
        terminal.ready()
        terminal.say("an unusual message")
    assert 0o600 == stat.S_IMODE((tmp_path / "state" / "gemcut" / "history").stat().st_mode)

    with chat() as terminal:
        terminal.ready()
        terminal.type("\x1b[A")
        terminal.wait(typed="an unusual message")
        terminal.type("\x1b[D?")  # left, and it can be edited
        terminal.wait(typed="an unusual messag?e")


def test_ctrl_c_stops_an_answer_and_nothing_else(chat, tmp_path):
    """What was said stays, the session goes on; at the prompt it clears the line, then explains."""
    grammar, kept = tmp_path / "endless.gbnf", tmp_path / "kept.json"
    grammar.write_text(ENDLESS)
    with chat("--grammar", grammar, "-n", 20000, "-c", 8192, size=(200, 100)) as terminal:
        terminal.ready()
        terminal.type("go\r")
        terminal.wait("\ngo ")
        terminal.type("\x03")
        terminal.wait("[stopped]")
        terminal.ready()
        terminal.type("half a line")
        terminal.wait(typed="half a line")
        terminal.type("\x03")
        terminal.ready()
        terminal.type("\x03")
        terminal.wait("leaves\n>\nCtrl-D or /exit leaves", typed="say something, or /help")
        terminal.say("/save kept.json")
        terminal.type("\x04")

        assert 0 == terminal.exit_code()
    messages = json.loads(kept.read_text())["messages"]
    assert ["user", "assistant"] == [message["role"] for message in messages]
    assert messages[1]["content"].startswith("go ")


def test_commands(chat, tmp_path):
    """They are completed, a wrong one is guessed, and none loses the conversation."""
    kept, bad = tmp_path / "kept.json", tmp_path / "bad.json"
    bad.write_text('{"messages": [{"role": "user", "content": 3}]}')
    with chat() as terminal:
        terminal.ready()
        terminal.type("/he")
        terminal.wait("/help", "this")
        terminal.type("\t")
        terminal.wait(typed="/help")
        terminal.type("\r")
        terminal.wait("Ctrl-X Ctrl-E")
        terminal.ready()
        terminal.type("\x0c")  # clears the screen
        assert "did you mean /retry?" in terminal.say("/rerty")
        assert "temp is 0.5" in terminal.say("/set temp 0.5")
        assert "temp cannot be 'hot'" in terminal.say("/set temp hot")
        terminal.say("def add(a, b):")
        assert "1 exchange, " in terminal.say("/context")
        terminal.say("/retry")
        assert "tokens read at" in terminal.say("/stats")
        assert "1 exchange" in terminal.say("/save kept.json")
        assert "bad.json: not a conversation" in terminal.say("/load bad.json")
        assert "dropped: def add" in terminal.say("/undo")
        assert "there is no exchange" in terminal.say("/retry")
        terminal.type("\x0c")
        terminal.say("/load kept.json")
        terminal.type("/edit\r")
        terminal.wait(typed="def add(a, b):")
        terminal.type(" pass\r")
        terminal.wait("\n> def add(a, b): pass")
        terminal.ready()
        terminal.type("/exit\r")

        assert 0 == terminal.exit_code()
    assert ["def add(a, b):"] == saved(kept)


def test_a_full_context_is_said(chat, tmp_path):
    """It ends with a way out, and the way out works; SIGTERM ends it all, and leaves no history."""
    with chat("-c", 256, "--no-history") as terminal:
        terminal.ready()
        for _ in range(12):
            if "the context 256" in terminal.say("x = 1; " * 8):
                break
            terminal.type("\x0c")
        terminal.wait("/set context-shift on")
        terminal.say("/set context-shift on")
        terminal.type("\x0cy = 2\r")
        terminal.wait("the model no longer reads the oldest")
        terminal.ready()
        terminal.process.send_signal(signal.SIGTERM)

        assert terminal.exit_code() == 128 + signal.SIGTERM
    assert not (tmp_path / "state").exists()
