"""Watching a computation: a function of ours is shown every result, and may end it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gemcut.errors import EngineError
from gemcut.llama.tensor import Tensor

OnTensor = Callable[[str, Tensor], bool | None]  # False: what follows need not be computed
Wants = Callable[[str, Tensor], bool]


class Watch:
    """The evaluation callback: asked "do you want it?" before, then shown the result."""

    def __init__(self, on_tensor: OnTensor, wants: Wants | None) -> None:
        self._on_tensor, self._wants = on_tensor, wants
        self.failure: BaseException | None = None

    def __call__(self, address: int, ask: bool, _: object) -> bool:
        if self.failure:
            return False
        try:
            tensor = Tensor(address)
            if ask:
                return self._wants is None or bool(self._wants(tensor.name, tensor))
            return self._on_tensor(tensor.name, tensor) is not False
        except BaseException as error:  # KeyboardInterrupt too: C cannot pass it on
            self.failure = error
        return False

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """While C computes, also take what a signal raises where `__call__` cannot catch it.

        Python handles signals when a function is entered, before its first line; ctypes hands that
        exception to `sys.unraisablehook` and lets C go on, as if nobody had pressed Ctrl-C.
        """
        usual = sys.unraisablehook

        def take(raised: "sys.UnraisableHookArgs") -> None:
            if raised.exc_value is None or isinstance(raised.exc_value, Exception):
                usual(raised)
            else:
                self.failure = raised.exc_value

        try:
            sys.unraisablehook = take
            yield
        finally:
            sys.unraisablehook = usual

    def take_failure(self) -> BaseException:
        """The exception that ended the decode, forgotten here."""
        failure, self.failure = self.failure, None
        return failure or EngineError("the evaluation callback did not fail")
