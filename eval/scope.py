"""What a comparison covers, and how it is done."""

from collections.abc import Callable
from dataclasses import dataclass

from gemcut.errors import UsageError
from gemcut.eval.scoring.cache import Cache
from gemcut.eval.texts.framing import RAW
from gemcut.kv_cache import CACHE_TYPES

# (what, done, in all), called after every chunk of every column.
Progress = Callable[[str, int, int], None]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Scope:
    """What is compared, beyond the files as they are on the text as it is.

    framing: raw, bos, chat or own; see `texts.framing`.
    caches: further types of keys and values that every file is scored with.
    floor: chunks that the reference is scored on once more in another way; 0: none.
    routed: chunks that routing is compared on; 0: none.
    parse_special: read "<bos>" and the like in the texts as tokens.
    """

    framing: str = RAW
    caches: tuple[tuple[str, str], ...] = ()
    floor: int = 0
    routed: int = 0
    parse_special: bool = False

    def __post_init__(self) -> None:
        """Refuse cache types that llama.cpp does not write. Raises UsageError."""
        for kind in {kind for cache in self.caches for kind in cache} - {*CACHE_TYPES}:
            raise UsageError(f"cache type {kind!r:.40}, wanted {', '.join(CACHE_TYPES)}")


@dataclass(frozen=True)
class Means:
    """How it is done, which changes no number.

    cache: where scores are kept, so that nothing is scored twice; None: nowhere.
    isolated: score in a process of its own, so that a crash costs one file.
    """

    threads: int | None = None
    cache: Cache | None = None
    isolated: bool = False
    progress: Progress = lambda what, done, total: None
    tell: Tell = lambda text: None
