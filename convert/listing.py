"""What a repository on the Hub holds, and what its answers mean in words that help.

huggingface_hub resolves names and revisions and finds the token; its errors, many lines long, are
told apart here and become one line with the next step.
"""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemcut import __version__
from gemcut.convert.files import weights_among
from gemcut.convert.transfer import Remote, may_pass, one_line
from gemcut.errors import CheckpointError, GemcutError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_LOG_IN = "set HF_TOKEN to a token that may read it, or log in once with `hf auth login`"


class Unreachable(CheckpointError):
    """The Hub does not answer; what is cached may do."""


@dataclass(frozen=True)
class Place:
    """A repository at a revision, and how to get at it; None leaves it to the Hub's client."""

    repository: str
    revision: str | None = None
    cache: Path | None = None
    token: str | None = None
    endpoint: str | None = None

    @property
    def store(self) -> Path:
        """The cache's folder."""
        from huggingface_hub import constants

        return self.cache or Path(constants.HF_HUB_CACHE)


def listed(place: Place) -> tuple[str, dict[str, Remote]]:
    """The commit that a revision is, and the files at its top level.

    Raises:
        CheckpointError: unknown, not accessible, or there are no weights.
    """
    info, siblings = _asked(place)
    commit = str(info.sha)
    found = {name: _remote(place, commit, s) for name, s in siblings.items() if _at_top(name)}
    if not weights_among(found):
        origin = getattr(info.card_data, "base_model", None)
        raise CheckpointError(_no_weights(place, list(siblings), origin))
    return commit, found


def listed_ggufs(place: Place) -> tuple[str, dict[str, Remote]]:
    """The commit that a revision is, and its GGUF files, those in folders, too.

    Raises:
        CheckpointError: unknown, or not accessible.
    """
    info, siblings = _asked(place)
    commit = str(info.sha)
    ggufs = {
        name: _remote(place, commit, sibling)
        for name, sibling in siblings.items()
        if name.endswith(".gguf") and all(map(_at_top, name.split("/")))
    }
    return commit, ggufs


def _asked(place: Place) -> tuple[Any, dict[str, Any]]:
    """What the Hub says of a revision, and of its files by their names."""
    from huggingface_hub import HfApi, constants

    with explained(place):
        info = HfApi(endpoint=place.endpoint, token=place.token).model_info(
            place.repository,
            revision=place.revision,
            files_metadata=True,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        )
        if not _COMMIT.fullmatch(str(info.sha)):
            raise CheckpointError(f"{place.repository}: the Hub names no commit, but {info.sha!r}")
    return info, {sibling.rfilename: sibling for sibling in info.siblings or []}


@contextmanager
def explained(place: Place) -> Iterator[None]:
    """Turns what the Hub's client raises into a CheckpointError.

    Raises:
        Unreachable: no network, or the Hub is down.
    """
    try:
        yield
    except GemcutError:
        raise
    except Exception as error:  # the client's errors, and its HTTP library's, share no base
        kind = Unreachable if _is_silence(error) else CheckpointError
        raise kind(f"{place.repository}: {_meaning(error, place)}") from error


def _at_top(name: str) -> bool:
    return name not in ("", "..") and Path(name).name == name and not {"\\", "\0"} & set(name)


def _remote(place: Place, commit: str, sibling: Any) -> Remote:
    """A file as the Hub lists it; sizes and digests come off the network."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    name = sibling.rfilename
    digest = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    size = sibling.lfs.size if sibling.lfs else sibling.size
    if not _DIGEST.fullmatch(str(digest)) or not isinstance(size, int) or size < 0:
        raise CheckpointError(f"{place.repository}: {name}: listed with size {size}, {digest!r}")
    url = hf_hub_url(place.repository, name, revision=commit, endpoint=place.endpoint)
    headers = build_hf_headers(
        token=place.token, library_name="gemcut", library_version=__version__
    )
    return Remote(f"{place.repository}: {name}", url, size, digest, headers)


def _no_weights(place: Place, names: Collection[str], origin: object) -> str:
    """Why there is nothing to convert, and where there may be."""
    where = place.repository
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    origins = [origin] if isinstance(origin, str) else origin
    if ggufs:
        of = ", ".join(map(str, origins)) if isinstance(origins, list) else ""
        instead = f"it was made from, {of}," if of else "it was made from"
        return (
            f"{where}: holds GGUF files only, which are converted already: cut the model that "
            f"{instead} or run one as it is: `gemcut run {where}:{ggufs[0]}`"
        )
    if "adapter_config.json" in names:
        return f"{where}: holds an adapter only; merge it into its model and convert the result"
    return f"{where}: has no weights at its top level (model.safetensors, or shards with an index)"


def _is_silence(error: Exception) -> bool:
    """Whether the Hub did not answer, or only that it cannot now."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    return may_pass(error) or isinstance(error, LocalEntryNotFoundError)


def _meaning(error: Exception, place: Place) -> str:
    """What went wrong and the next step."""
    from huggingface_hub import errors

    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if _is_silence(error):
        reason = f"it answers {status}" if status else one_line(error.__cause__ or error)
        return f"the Hub cannot be reached ({reason})"
    if isinstance(error, errors.GatedRepoError):
        return f"gated: accept its licence on the model's page, then {_LOG_IN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no such folder, and no such repository on the Hub unless it is private: {_LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no revision {place.revision!r}; its page lists branches and tags"
    if status == 401:
        return f"the Hub does not accept the token: {_LOG_IN}"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be kept in {error.filename or place.store}: {error.strerror}"
    return f"cannot be fetched from the Hub: {one_line(error)}"
