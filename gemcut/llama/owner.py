"""What owns a thing of llama.cpp's: freed by `close` or at the end of a `with`, never by chance."""

from collections.abc import Callable

from gemcut.closing import Closing
from gemcut.errors import EngineError


class Owner(Closing):
    """Holds llama.cpp's pointer until it is closed; closing again does nothing."""

    def __init__(self, what: str, handle: int, free: Callable[[int], None]) -> None:
        self._what, self._handle, self._free = what, handle, free

    @property
    def handle(self) -> int:
        """llama.cpp's pointer. Raises EngineError after `close`."""
        if not self._handle:
            raise EngineError(f"the {self._what} is closed")
        return self._handle

    def close(self) -> None:
        """Free it."""
        if self._handle:
            handle, self._handle = self._handle, 0
            self._free(handle)
