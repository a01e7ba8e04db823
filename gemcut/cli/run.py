"""`gemcut run`."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gemcut.cli.common import CONTEXT, FILE, console, say, threads
from gemcut.errors import GemcutError

if TYPE_CHECKING:
    from gemcut.runtime.chat import Chat
    from gemcut.runtime.pieces import Piece

_HELP = "/reset starts anew, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


@click.command("run")
@click.argument("model", type=FILE)
@click.option("-p", "--prompt", help="answer this once instead of chatting")
@click.option("--raw", is_flag=True, help="continue the text as it is, without a chat template")
@click.option("-c", "--context", type=CONTEXT, help="tokens; default: the model's, at most 8k")
@click.option("-n", "--max-tokens", type=click.IntRange(min=1), help="of one answer")
@click.option("-ngl", "--gpu-layers", type=int, default=-1, help="default: all that a GPU takes")
@click.option("--system", help="the system message")
@click.option("--think", is_flag=True, help="let the model think first, if it can")
@click.option("--temp", type=click.FloatRange(min=0), help="0 is greedy")
@click.option("--top-k", type=click.IntRange(min=0), help="draw from so many tokens; 0: all")
@click.option("--top-p", type=click.FloatRange(0, 1), help="draw from so much probability")
@click.option("--min-p", type=click.FloatRange(0, 1), help="least share of the top's probability")
@click.option("--seed", type=click.IntRange(min=0), help="default: another one each time")
@threads
def command(
    model: Path,
    prompt: str | None,
    raw: bool,
    context: int | None,
    max_tokens: int | None,
    gpu_layers: int,
    system: str | None,
    think: bool,
    temp: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    seed: int | None,
    threads: int | None,
) -> None:
    """Chat with a GGUF in the terminal; with -p, answer once. Answers go to stdout.

    Sampling defaults come from the file.
    """
    from gemcut import api

    given = {"temperature": temp, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    sampling = {name: value for name, value in given.items() if value is not None}
    with api.load(model, context, threads, gpu_layers, sampling, system, think) as chat:
        if chat.note and not raw:
            say(chat.note)
        if prompt is not None:
            pieces = chat.generate(prompt, max_tokens) if raw else chat.send(prompt, max_tokens)
            _show(pieces)
            _timing(chat)
        else:
            _converse(chat, raw, max_tokens)


def _converse(chat: "Chat", raw: bool, max_tokens: int | None) -> None:
    say(_HELP)
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            click.echo(err=True)
            return
        if text in ("/exit", "/quit"):
            return
        if text == "/reset":
            chat.reset()
            say("a new conversation")
        elif text.strip():
            try:
                _show(chat.generate(text, max_tokens) if raw else chat.send(text, max_tokens))
            except GemcutError as error:
                if not sys.stdin.isatty():
                    raise
                say(str(error))  # the conversation may have outgrown the context: /reset helps
            else:
                _timing(chat)


def _show(pieces: Iterable["Piece"]) -> None:
    """Stream an answer: text to stdout, thoughts dimmed to stderr."""
    thoughts = console()
    try:
        for piece in pieces:
            if piece.thought:
                thoughts.print(piece.text, end="", style="dim", soft_wrap=True)
            else:
                click.echo(piece.text, nl=False)
    except KeyboardInterrupt:  # the answer ends here; what was said stays in the conversation
        pass
    click.echo()


def _timing(chat: "Chat") -> None:
    timing = chat.timing
    if timing is not None:
        cut_off = "; cut off by the context or -n" if chat.finish == "length" else ""
        say(
            f"[{timing.prompt_tokens} tokens read at {timing.prefill:.0f}/s, "
            f"{timing.answer_tokens} written at {timing.decode:.1f}/s{cut_off}]"
        )
