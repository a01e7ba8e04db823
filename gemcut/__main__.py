"""The command `gemcut`, and `python -m gemcut`: Ctrl-C ends it without a word, however early."""

import os
import signal

INTERRUPTED = 130  # as shells say of a program that Ctrl-C ended


def main() -> None:
    """Run the command line.

    What it imports takes longer than some people wait, and not every library passes a
    KeyboardInterrupt on while it is imported. So until a command is at work, and when it is done,
    Ctrl-C ends the process at once.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not so under nohup
        signal.signal(signal.SIGINT, _leave)
    from gemcut import last_words
    from gemcut.cli import main as command

    last_words.install()
    command()


def _leave(number: int, frame: object) -> None:
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
