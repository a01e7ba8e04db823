"""A finished GGUF on the Hub in place of a file: `owner/name:FILE`, or `owner/name` alone.

What it names is fetched into the cache that other programs share, all parts of a split file, and
found there when there is no network.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath

from gemcut.convert import hub_cache
from gemcut.convert.hub_cache import Progress
from gemcut.convert.listing import Place, Unreachable, explained, listed_ggufs
from gemcut.convert.transfer import Remote
from gemcut.errors import CheckpointError
from gemcut.gguf_parts import part_paths

_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::([^:]+))?")
_SHOWN = 8  # files of a repository that are listed
_NONE = "/"  # a pattern of no file: where the folder is is asked, not that all of it is there
_ADVICE = "free some, or set HF_HOME to a folder on a larger disk"


def repository_and_file(source: str) -> tuple[str, str | None] | None:
    """The repository of a Hub id and the file it names; None: the source is a path.

    What exists is a path, and so is a name in a folder that exists or one that ends like a GGUF's
    without a colon: it is mistyped, and nobody asked for the network.
    """
    match = _NAME.fullmatch(source)
    if match is None or Path(source).exists() or Path(match[1]).parent.exists():
        return None
    if match[2] is None and source.endswith(".gguf"):
        return None
    return match[1], match[2]


def fetch_gguf(
    place: Place, file: str | None, offline: bool = False, progress: Progress | None = None
) -> Path:
    """A repository's GGUF on this machine, fetched if it is not at hand; of a split one all parts.

    Args:
        file: its name, or what only its name contains, as "Q4_K_M"; None: the only one there is.

    Returns:
        The path of the file or of its first part.

    Raises:
        CheckpointError: no such file, or several; not accessible; or not cached while there is no
            network.
    """
    from huggingface_hub import constants

    if offline or constants.HF_HUB_OFFLINE:
        return _cached(place, file, "this is offline: fetch it once without")
    try:
        commit, remotes = listed_ggufs(place)
    except Unreachable as error:
        return _cached(place, file, f"{error}: check the network")
    names = _chosen(place.repository, remotes, file)
    _fetch(place, commit, {name: remotes[name] for name in names}, progress)
    # By the revision's name, so that the cache knows it when there is no network.
    with explained(place):
        folder = hub_cache.link(place, names, place.revision)
    if folder.name != commit:
        raise CheckpointError(f"{place.repository}: changed while it was read; run again")
    return folder / names[0]


def _fetch(
    place: Place, commit: str, remotes: Mapping[str, Remote], progress: Progress | None
) -> None:
    missing = [
        remote for name, remote in remotes.items() if not hub_cache.at_hand(place, name, commit)
    ]
    told = progress or (lambda what, done, total: None)
    with explained(place):
        hub_cache.fetch(place, missing, next(iter(remotes)), told, _ADVICE)


def _cached(place: Place, file: str | None, why: str) -> Path:
    """The file in the cache, without the network. Raises CheckpointError: it is not, and why."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = hub_cache.snapshot(place, _NONE)
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")}
        return folder / _chosen(place.repository, there, file)[0]
    except (LocalEntryNotFoundError, CheckpointError) as error:
        said = f" ({error})" if isinstance(error, CheckpointError) else ""
        wanted = f"{place.repository}:{file}" if file else place.repository
        raise CheckpointError(f"{wanted}: not in the cache, and {why}{said}") from error


def _chosen(where: str, names: Collection[str], wanted: str | None) -> list[str]:
    """The files that are meant: one, or all parts of one.

    Raises:
        CheckpointError: none, several, or a part is missing.
    """
    if wanted in names:
        parts = _parts(str(wanted))
    else:
        found = sorted({tuple(_parts(name)) for name in names if _is_meant(name, wanted)})
        if len(found) != 1:
            raise CheckpointError(f"{where}: {_ambiguous(where, found, names, wanted)}")
        parts = list(found[0])
    if absent := [part for part in parts if part not in names]:
        raise CheckpointError(f"{where}: {absent[0]} is missing, a part of {parts[0]}")
    return parts


def _is_meant(name: str, wanted: str | None) -> bool:
    """Whether a file may be what a word means: not the projector of images, unless it says so."""
    stem = name.lower().removesuffix(".gguf")
    if wanted is None:
        return not PurePosixPath(stem).name.startswith("mmproj")
    word = re.escape(wanted.lower().removesuffix(".gguf"))
    return re.search(rf"(?<![a-z0-9]){word}(?![a-z0-9])", stem) is not None


def _parts(name: str) -> list[str]:
    return [path.as_posix() for path in part_paths(Path(name))]


def _ambiguous(
    where: str, found: Iterable[tuple[str, ...]], names: Iterable[str], wanted: str | None
) -> str:
    firsts = [parts[0] for parts in found]
    listed = firsts or sorted({_parts(name)[0] for name in names})
    if not listed:
        return "holds no GGUF file: `gemcut quantize` makes one of a checkpoint"
    kind = f"{len(firsts)} GGUF files" if firsts else "no GGUF file"
    meant = f" called {wanted}" if wanted else ""
    shown = ", ".join(listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")
    return f"{kind}{meant}: name one of {shown}, as {where}:{listed[0]}"
