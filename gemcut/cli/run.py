"""`gemcut run`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemcut.cli.common import FILE, as_json, hub_options, local_gguf, print_json
from gemcut.cli.outline import described, show_placement
from gemcut.cli.placing import Wanted, placement_options
from gemcut.cli.terminal.asked import Asked
from gemcut.cli.terminal.asking import ask, ask_json
from gemcut.cli.terminal.remembering import prompt_cache
from gemcut.cli.terminal.settings import Talk, sampling_options, values
from gemcut.cli.terminal.show import Screen
from gemcut.cli.titled import Titled

if TYPE_CHECKING:  # the library is loaded when the command runs
    from gemcut.runtime.loading.loading import Loaded


@click.command("run", cls=Titled)
@click.argument("model", type=FILE)
@click.option("-p", "--prompt", help="answer this once; what is piped in comes after it")
@click.option("-f", "--file", "files", type=FILE, multiple=True, help="a text for the prompt")
@click.option("-i", "--interactive", is_flag=True, help="chat after the prompt, or with a pipe")
@click.option("--raw", is_flag=True, help="continue the text as it is, without a chat template")
@click.option("-n", "--max-tokens", type=click.IntRange(min=1), help="of one answer")
@click.option("--system", help="the system message")
@click.option("--system-file", type=FILE, help="a file with the system message")
@click.option("--think/--no-think", default=None, help="let the model think first, if it can")
@click.option("--hide-thoughts", is_flag=True, help="do not show what it thinks")
@sampling_options
@click.option("--stop", multiple=True, help="a text that ends the answer; repeat")
@click.option("--json-object", is_flag=True, help="the answer is a JSON object")
@click.option("--json-schema", help="the answer is JSON of this schema: a file, or the schema")
@click.option("--grammar", type=FILE, help="the answer is in this grammar (GBNF)")
@click.option("--context-shift", is_flag=True, help="when full, leave out the oldest exchanges")
@click.option("--prompt-cache", type=FILE, help="keep there what was read, and read it once")
@click.option("--no-history", is_flag=True, help="do not remember what is typed")
@click.option("-q", "--quiet", is_flag=True, help="say nothing but the answer")
@click.option("-v", "--verbose", is_flag=True, help="say how fast every answer was")
@as_json
@click.option("--dry-run", is_flag=True, help="say how it would run, load nothing")
@hub_options
@placement_options
def command(
    model: Path, wanted: Wanted, revision: str | None, offline: bool, **options: Any
) -> None:
    """Chat with a GGUF in the terminal; with -p, -f or a pipe, answer once.

    MODEL is a file, or owner/repo:file on the Hub. Answers go to stdout, all else to stderr.
    Sampling defaults come from the file. /help lists the commands of a chat.
    """
    if options["dry_run"]:
        _plan(local_gguf(model, revision, offline), wanted, options["as_json"])
        return
    asked, screen = Asked.read(options), Screen(options["quiet"])
    path = local_gguf(model, revision, offline)
    with wanted.open(path, screen.loading) as loaded:
        if not options["quiet"]:
            show_placement(loaded.placement)
        talk = asked.talk(loaded.context, loaded.recorder.take)
        with prompt_cache(talk.chat, options["prompt_cache"]):
            _answer(asked, talk, screen, path.name, loaded)


def _plan(path: Path, wanted: Wanted, as_json: bool) -> None:
    """Say how it would run."""
    from gemcut import api

    placement = api.prepare(path, wanted.given, wanted.workload, wanted.profile())
    if as_json:
        print_json(placement.to_dict())
    else:
        click.echo("\n".join(described(placement)))


def _answer(asked: Asked, talk: Talk, screen: Screen, name: str, loaded: "Loaded") -> None:
    if talk.chat.note and not talk.raw:
        screen.note(talk.chat.note)
    if asked.chats:
        _chat(asked, talk, screen, name)
    elif asked.options["as_json"]:
        extra = {"settings": values(talk), "placement": loaded.placement.to_dict()}
        ask_json(talk, asked.question or "", name, extra)
    else:
        ask(talk, asked.question or "", screen)


def _chat(asked: Asked, talk: Talk, screen: Screen, name: str) -> None:
    """Messages and answers until somebody leaves."""
    from gemcut.cli.terminal.session import Session

    remember = not asked.options["no_history"]
    Session(talk, screen, name, remember).run(asked.question)
