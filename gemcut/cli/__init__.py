"""The command line: parses, calls one function of the library, prints. Nothing else prints."""

import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Timer, main_thread

import click

from gemcut import __version__
from gemcut.__main__ import INTERRUPTED
from gemcut.errors import GemcutError, UsageError

# Each command is a module here, imported when it is asked for: `gemcut --help` loads no library.
COMMANDS = {
    "demo": "the whole way on an embedded model, in about a minute",
    "inspect": "what is in a checkpoint or GGUF: roles, types, sizes",
    "convert": "write a checkpoint as a GGUF in BF16, F16 or F32",
    "imatrix": "collect how much each input matters, by running text through a GGUF",
    "measure": "what every tensor loses in every type, measured once for any size",
    "plan": "choose types and places: the best file for your VRAM, RAM and context",
    "quantize": "cut a checkpoint for a machine, to a size, a type or by a plan",
    "run": "chat with a GGUF in the terminal, or answer one prompt",
    "serve": "answer over HTTP as OpenAI's API does, with a page to chat on",
    "rpc-server": "lend this machine's devices to gemcut or llama.cpp on another one",
    "bench": "how fast a GGUF runs here, beside what was predicted; other placements in turn",
    "eval": "compare GGUF files: perplexity, KL divergence, top-1 agreement",
    "build-experts": "compile what runs files with types per expert, once",
    "doctor": "this machine, its devices and builds, and what is missing",
}


_MOMENT = 0.01  # seconds


class _WrongUsage(click.ClickException):
    exit_code = 2


def _open_streams() -> None:
    """Give the streams that whoever called us has closed somewhere to go."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))


def _end(number: int, _: object) -> None:
    """Leave as after an error, so that half-written files are recorded or removed."""
    raise SystemExit(128 + number)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C, which ended the process at once until now, is an error as well."""
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):  # ignored, or not Python's
        yield
        return
    usual = sys.unraisablehook
    try:
        sys.unraisablehook = partial(_press_again, usual)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = usual


def _press_again(
    otherwise: Callable[["sys.UnraisableHookArgs"], object], raised: "sys.UnraisableHookArgs"
) -> None:
    """Send a signal again, a moment later, whose error came where Python drops it: in a callback of
    C's, or among its own imports."""
    number = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}.get(raised.exc_type)
    if number is None:
        otherwise(raised)
    else:
        Timer(_MOMENT, _send, (number,)).start()


def _send(number: signal.Signals) -> None:
    """To the main thread, so that it wakes up; on Windows, where a signal has no thread, to all."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main_thread().ident or 0, number)
    else:
        signal.raise_signal(number)


class Group(click.Group):
    """Loads commands late, and shows the library's errors as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of a name."""
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"gemcut.cli.{name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        """Run; a library's error becomes one line on stderr, and exit code 1 (2: wrong usage)."""
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", None)):
            if number and signal.getsignal(number) == signal.SIG_DFL:  # not so under nohup
                signal.signal(number, _end)
        _open_streams()
        try:
            with _interruptible():
                return super().invoke(ctx)
        except GemcutError as error:
            kind = _WrongUsage if isinstance(error, UsageError) else click.ClickException
            raise kind(str(error)) from error
        except BrokenPipeError:  # click knows how to end then
            raise
        except MemoryError as error:
            raise click.ClickException("out of memory: end other programs, or ask less") from error
        except OSError as error:  # such as a folder that may not be looked into
            raise click.ClickException(str(error)) from error


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gemcut")
def main() -> None:
    """Cut a Mixture-of-Experts model to fit one machine, run it offline, prove what the cut cost.

    \b
    gemcut demo                                     see the whole way first
    gemcut quantize CHECKPOINT -o small.gguf --size 14G
    gemcut run small.gguf
    gemcut eval small.gguf --reference big.gguf --text text.txt
    """
