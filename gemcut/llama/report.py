"""How far llama.cpp has loaded: told to whoever wants to know, who may end it."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread

Progress = Callable[[float], None]


class Report:
    """llama.cpp's progress callback; an exception ends the loading and is raised after it."""

    def __init__(self, on_progress: Progress | None) -> None:
        self._on_progress = on_progress
        self.failure: BaseException | None = None

    def __call__(self, fraction: float, _: object) -> bool:
        try:
            if self._on_progress:
                self._on_progress(fraction)
        except BaseException as error:  # KeyboardInterrupt too: C cannot pass it on
            self.failure = error
        return self.failure is None

    @contextmanager
    def interrupted(self) -> Iterator[None]:
        """Ctrl-C ends the loading as an exception of the callback does: raised amid C, Python would
        print it and go on."""
        before = signal.getsignal(signal.SIGINT)
        if before is not signal.default_int_handler or current_thread() is not main_thread():
            yield
            return
        signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _interrupt(self, number: int, frame: object) -> None:
        self.failure = KeyboardInterrupt()
