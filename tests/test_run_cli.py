"""`gemcut run` in pipes and scripts: one prompt, one answer, and what may be wrong with them."""

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result

from gemcut.cli.terminal.asking import question
from gemcut.cli.terminal.commands import COMMANDS, command_of, following
from gemcut.cli.terminal.editor import unfinished, unquoted
from gemcut.cli.terminal.settings import SETTINGS, Talk, change, restore, values
from gemcut.cli.terminal.show import Screen, harmless
from gemcut.engine import ContextOptions
from gemcut.errors import EngineError, TextError, UsageError
from gemcut.runtime.chat.transcript import Transcript
from gemcut.runtime.language.pieces import Piece
from tests import shell
from tests.chats import open_chat

ENDLESS = 'root ::= "go " [a-z]{2000}'  # more than any context here has room for
PATIENCE = 90  # seconds, for machines that are busy


@pytest.fixture
def run(q4_k_m):
    """Runs `gemcut run` with little to do."""

    def invoke(*arguments: object, stdin: str | bytes | None = None, model=q4_k_m) -> Result:
        given = ("run", model, "-t", 1, "-c", 512, "--temp", 0)
        return shell.run(*given, *arguments, stdin=stdin)

    return invoke


def started(model: Path, folder: Path) -> subprocess.Popen[bytes]:
    """A run in a process of its own whose answer takes long."""
    (folder / "endless.gbnf").write_text(ENDLESS)
    command = [sys.executable, "-m", "gemcut", "run", model, "-p", "go", "-t", "1", "-c", "512"]
    return subprocess.Popen(
        [*map(str, command), "--grammar", "endless.gbnf"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


# --- what is asked ---


def test_an_answer_is_all_that_stdout_gets(run):
    """The speed, if it is asked for, goes to stderr; -q silences the rest."""
    plain = run("-p", "def add(a, b):", "-n", 8, "-q")
    told = run("-p", "def add(a, b):", "-n", 8, "-v")

    assert plain.exit_code == told.exit_code == 0
    assert plain.stdout == told.stdout
    assert plain.stdout.strip() and plain.stdout.endswith("\n")
    assert "tokens read at" in told.stderr
    assert "tokens read at" not in plain.stderr


def test_a_pipe_is_one_message(run):
    """All of it, however many lines it has; -i takes it line by line, as a chat."""
    document = json.loads(run("--json", "-n", 1, stdin="x = 1\ny = 2\n").stdout)
    lines = b"hello\n/reset\n\xff\n/rest\nagain\n/exit\nnever\n"
    chat = run("-i", "-n", 4, "-v", stdin=lines)

    assert document["usage"]["prompt_tokens"] > 15
    assert chat.stderr.count("tokens read at") == 2
    assert "stdin: byte 0 is no UTF-8" in chat.stderr and "did you mean /reset" in chat.stderr
    assert chat.exit_code == 0


def test_a_prompt_comes_before_files_and_pipe(tmp_path, monkeypatch):
    """With an empty line between; a lone part is taken as it is."""
    file = tmp_path / "f.txt"
    file.write_text("\ufefffile\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"piped\n")))

    assert "sum up\n\nfile\n\npiped" == question("sum up", [file])
    assert "file\n" == question(None, [file], piped=False)


@pytest.mark.parametrize(
    ("options", "stdin", "code", "why"),
    [
        ((), "", 2, "nothing to answer"),
        ((), b"caf\xe9", 1, "stdin: byte 3 is no UTF-8"),
        (("-f", "missing.txt"), None, 1, "missing.txt: cannot be read"),
        (("-p", "x", "--grammar", "bad.gbnf"), None, 2, "grammar"),
        (("-p", "x", "--grammar", "empty.gbnf"), None, 2, "no rule called root"),
        (("-p", "x", "--json-schema", '{"type": 3}'), None, 2, "type is 3, wanted a type"),
        (("-p", "x", "--json-schema", ""), None, 2, "--json-schema is empty"),
        (("-p", "x", "--json-schema", "{"), None, 2, "not JSON"),
        (("-p", "x", "--json-schema", "{}", "--json-object"), None, 2, "exclude each other"),
        (("-p", "x", "--system", "a", "--system-file", "b"), None, 2, "both say"),
        (("-i", "--json"), "x", 2, "--json prints one answer"),
        (("-p", "x", "--top-p", "2"), None, 2, "top-p"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_loaded(
    run, tmp_path, monkeypatch, options, stdin, code, why
):
    """The model is not even there."""
    monkeypatch.chdir(tmp_path)
    Path("bad.gbnf").write_text("root ::= nothing")
    Path("empty.gbnf").touch()
    result = run(*options, stdin=stdin, model="none.gguf")

    assert code == result.exit_code
    assert why in result.stderr.splitlines()[-1]
    assert "" == result.stdout


# --- what is answered ---


def test_json_says_all_there_is_to_know(run):
    """One document: the answer and how it came about."""
    plain = run("-p", "def add(a, b):", "-n", 8, "-q").stdout
    found = json.loads(run("-p", "def add(a, b):", "-n", 8, "--json").stdout)
    usage = found["usage"]

    assert plain.strip() == found["answer"].strip()
    assert found["finish"] in ("stop", "length")
    assert 1 <= usage["completion_tokens"] <= 8
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert found["timings"]["prompt_per_second"] > 0
    assert 512 == found["placement"]["context"]["n_ctx"]
    assert 0 == found["settings"]["temp"]
    assert found["model"].endswith(".gguf")


def test_answers_can_have_a_shape(run, tmp_path):
    """A schema, in place or in a file; a cut-off answer has no shape, and is an error."""
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["yes", "no"]}')
    chosen = run("-p", "is it so?", "--json-schema", schema, "-q")
    wanted = '{"type": "array", "items": {"const": 7}, "minItems": 3, "maxItems": 3}'
    cut = run("-p", "is it so?", "--json-schema", wanted, "-n", 2)

    assert json.loads(chosen.stdout) in ("yes", "no")
    assert 1 == cut.exit_code
    assert "cut off" in cut.stderr


def test_a_stop_ends_the_answer(run):
    """It is not part of it."""
    whole = run("-p", "def add(a, b):", "-n", 8, "-q").stdout.strip()
    stop = whole[len(whole) // 2 :][:3]
    found = json.loads(run("-p", "def add(a, b):", "-n", 8, "--stop", stop, "--json").stdout)

    assert whole.partition(stop)[0] == found["answer"]
    assert "stop" == found["finish"]


def test_what_was_read_is_known_the_next_time(run, tmp_path):
    """The cache saves reading; another file of that name is not overwritten, a bad one replaced."""
    cache, other = tmp_path / "cache", tmp_path / "notes"
    asked = ("-p", "def add(a, b):", "-n", 4, "--json", "--prompt-cache", cache)
    first, second = (run(*asked) for _ in range(2))
    cache.write_bytes(b"x" + cache.read_bytes()[1:])
    third = run(*asked)
    other.write_text("mine")
    refused = run("-p", "x", "--prompt-cache", other)

    answers = [json.loads(each.stdout) for each in (first, second, third)]
    assert 1 == len({found["answer"] for found in answers})
    assert [False, True, False] == [found["usage"]["cached_tokens"] > 5 for found in answers]
    assert "tokens are known" in second.stderr
    assert "it will be replaced" in third.stderr
    assert 1 == refused.exit_code
    assert "mine" == other.read_text()


def test_ctrl_c_ends_it_with_what_was_said(q4_k_m, tmp_path):
    """Exit code 130, the text so far on stdout, and no traceback."""
    with started(q4_k_m, tmp_path) as process:
        assert process.stdout and process.stdout.read(3) == b"go "
        process.send_signal(signal.SIGINT)
        _, talk = process.communicate(timeout=PATIENCE)

    assert 130 == process.returncode
    assert b"Traceback" not in talk


def test_nobody_may_want_the_rest(q4_k_m, tmp_path):
    """`gemcut run ... | head -c 3` ends quietly."""
    with started(q4_k_m, tmp_path) as process:
        assert process.stdout and process.stderr
        process.stdout.read(3)
        process.stdout.close()
        talk = process.stderr.read()
        process.wait(PATIENCE)

    assert b"Traceback" not in talk and b"rror" not in talk


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_closed_streams_are_no_error(q4_k_m, tmp_path, closed):
    """Whoever called us may have closed some."""
    words = f'"$0" -m gemcut run "$1" -t 1 -c 256 -n 1 -p hi {closed}'
    done = subprocess.run(
        ["sh", "-c", words, sys.executable, str(q4_k_m)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=tmp_path,
        timeout=PATIENCE,
    )

    assert 0 == done.returncode, done.stderr
    assert b"Traceback" not in done.stderr


# --- the parts ---


def test_thoughts_are_shown_apart(capsys):
    """On stderr, with an empty line after them, or not at all; stdout has the answer alone."""
    pieces = [Piece("hm", True), Piece("m", True), Piece("yes", False), Piece("!", False)]
    for hide, talk in ((False, "thinking\nhmm\n\n"), (True, "")):
        said = Screen().show(iter(pieces), lambda: None, hide)
        shown = capsys.readouterr()

        assert ("yes!", "yes!\n", talk) == (said, shown.out, shown.err)


def test_a_model_cannot_play_with_the_terminal():
    """Escape sequences lose what makes them work; lines, tabs and joined emoji stay."""
    assert "[2Jhi\n\t\U0001f469\u200d\U0001f4bb" == harmless(
        "\x1b[2Jhi\r\n\t\x07\x9b\U0001f469\u200d\U0001f4bb"
    )


def test_commands_are_told_from_messages():
    """A path is a message, and so is what begins with two slashes."""
    assert ("set", "temp 1") == command_of("/set temp 1")
    assert ("system", "two\nlines") == command_of("/system two\nlines")
    assert command_of("/usr/bin is a folder") is command_of("//help") is command_of("a /b") is None
    assert following("load") is None
    assert ("on", "off") == following("think")
    assert "temp" in (following("set") or ())
    assert all(command.help for command in COMMANDS.values())


def test_three_quotes_hold_lines_together():
    """They go away once they are closed."""
    assert unfinished('"""') and unfinished(' """a\nb') and not unfinished('"""a\nb"""')
    assert "a\nb" == unquoted('"""\na\nb\n"""')
    assert "plain " == unquoted("plain ")
    assert '"""open' == unquoted('"""open')


def test_settings_are_what_was_typed(q4_k_m):
    """By any common name; restored all together or not at all; nothing unknown is taken."""
    with open_chat(q4_k_m, ContextOptions(64)) as chat:
        talk = Talk(chat)
        before = values(talk)
        for name, text in (("temperature", "0.1"), ("top_k", "3"), ("stop", '["a", "b"]')):
            change(talk, name, text)
        changed = values(talk)
        change(talk, "temp", "default")

        assert (0.1, 3, ("a", "b")) == (changed["temp"], changed["top-k"], changed["stop"])
        assert before["temp"] == values(talk)["temp"]
        assert ["mood"] == restore(talk, json.loads(json.dumps(changed)) | {"mood": 1})
        assert changed == values(talk)
        for saved in ({"temp": 0.5, "top-k": -1}, {"temp": 0.5, "hide": 3}, {"temp": float("nan")}):
            with pytest.raises((UsageError, EngineError)):
                restore(talk, saved)
            assert changed == values(talk)
        with pytest.raises(UsageError, match="did you mean top-p"):
            change(talk, "topp", "1")
        assert SETTINGS.keys() == changed.keys()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not a conversation"),
        ("[1]", "message 1 has no role"),
        ('{"messages": 3}', "wanted a list"),
        ('[{"role": "robot", "content": "x"}]', "'robot', wanted system"),
        ('[{"role": "user"}]', "message 1: content is None"),
        ('[{"role": "user", "content": [{"type": "image_url"}]}]', "images and sound"),
        ('[{"role": "user", "content": "\\ud800"}]', "not a conversation"),
        ('{"messages": [], "settings": 3}', "settings"),
        ('{"messages": [], "settings": {"a": "\\ud800"}}', "not a conversation"),
        ("[" * 100_000, "not a conversation"),
    ],
)
def test_a_file_that_is_no_conversation_is_refused(tmp_path, text, why):
    """Whatever is in it, the error says where and why."""
    path = tmp_path / "c.json"
    path.write_text(text)

    with pytest.raises(TextError, match=f"c.json: .*{why}"):
        Transcript.read(path)


def test_conversations_are_what_other_programs_write(tmp_path):
    """OpenAI's messages, in parts or not; what is written is read again."""
    path, again = tmp_path / "c.json", tmp_path / "d.json"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    path.write_text(json.dumps([{"role": "user", "content": parts}]))
    found = Transcript.read(path)
    found.write(again)

    assert ({"role": "user", "content": "ab"},) == found.messages
    assert found == Transcript.read(again)
