"""Finished files from the Hub."""

from collections.abc import Callable
from pathlib import Path

from gemcut.api.words import Where


def local_gguf(
    source: Where,
    revision: str | None = None,
    offline: bool = False,
    fetched: Callable[[str, int, int], None] | None = None,
) -> Path:
    """The path of a finished GGUF to be run: a path as it is, or a Hub id, which is fetched.

    A Hub id is `owner/name:FILE`, or `owner/name` where there is one GGUF; FILE may be a part of
    the name that only one has, as "Q4_K_M". Of a split file all parts are fetched, and the path is
    that of the first. This is the only way from a finished file to the network.

    Args:
        fetched: told what is fetched, and bytes done and in all.

    Raises:
        CheckpointError: no such file, or several; not accessible; or not in the cache while this
            is offline.
    """
    if Path(source).exists():  # it does not wait for the imports that fetching needs
        return Path(source)
    from gemcut.convert import hub_gguf
    from gemcut.convert.listing import Place

    named = hub_gguf.repository_and_file(str(source))
    if named is None:
        return Path(source)
    repository, file = named
    return hub_gguf.fetch_gguf(Place(repository, revision), file, offline, fetched)
