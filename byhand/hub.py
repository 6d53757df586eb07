"""The hub: fetch a model's files once, keep them in the shared cache, and say in one sentence why it did not work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from byhand.errors import HubError
from byhand.lookalikes import ADAPTER

DESCRIPTION = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
# By name, for many repositories hold the same weights again in other arrangements, here or in folders.
SAFETENSORS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")

# The http library under huggingface_hub has changed twice; the root of its errors is a base of this one.
FAILURES = cast(tuple[type[Exception], ...], (*HfHubHTTPError.__bases__, OSError, HFValidationError))


def _unreachable(repo_id: str, missing: str, cause: BaseException | None) -> HubError:
    if constants.HF_HUB_OFFLINE:
        return HubError(f"{missing}, and HF_HUB_OFFLINE is set", hint=f"unset it once, to fetch {repo_id}")
    if isinstance(cause, HfHubHTTPError):
        return HubError(f"{missing}, and {constants.ENDPOINT} answers with status {cause.response.status_code}")
    return HubError(f"{missing}, and {constants.ENDPOINT} cannot be reached", hint="check the network and try again")


def _explain(repo_id: str, revision: str | None, error: Exception) -> HubError:
    """The one sentence for what went wrong; the order is from the special to the general."""
    match error:
        case GatedRepoError():
            return HubError(
                f"{repo_id} is gated: its owner lets in only those who have accepted its terms",
                hint=f"accept them at {constants.ENDPOINT}/{repo_id}, then set HF_TOKEN",
            )
        case RevisionNotFoundError():
            return HubError(f"{repo_id} has no revision {revision!r}")
        case RepositoryNotFoundError():
            return HubError(
                f"{repo_id} is neither a folder or file here nor a model on {constants.ENDPOINT}",
                hint="a private model needs HF_TOKEN",
            )
        case HFValidationError():
            return HubError(f"{repo_id!r} is not the id of a model: {str(error).splitlines()[0]}")
        case IncompleteSnapshotError():
            return _unreachable(repo_id, f"the cached copy of {repo_id} is incomplete", error.__cause__)
        case LocalEntryNotFoundError() | OfflineModeIsEnabled():
            at = f" at revision {revision}" if revision else ""
            return _unreachable(repo_id, f"{repo_id}{at} is no folder here and not in the cache", error.__cause__)
        case HfHubHTTPError():
            return HubError(f"{constants.ENDPOINT} refuses {repo_id} with status {error.response.status_code}")
        case _:
            return HubError(f"{repo_id} could not be fetched: {str(error).splitlines()[0] or type(error).__name__}")


def _snapshot(repo_id: str, revision: str | None, names: Sequence[str]) -> Path:
    try:
        folder = snapshot_download(repo_id, revision=revision, allow_patterns=list(names))
    except FAILURES as error:
        raise _explain(repo_id, revision, error) from error
    return Path(folder)


def list_names(repo_id: str, revision: str | None) -> list[str]:
    """The names of a repository's files; none where the hub does not say."""
    try:
        return HfApi().list_repo_files(repo_id, revision=revision)
    except FAILURES:
        return []


def fetch(repo_id: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """Fetch a model's files and give their folder; what is in the cache already is not fetched again.

    HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean elsewhere. Pickled weights are fetched only
    where there are no safetensors; without `weights`, only what describes the model.
    """
    if not weights:
        return _snapshot(repo_id, revision, (*DESCRIPTION, ADAPTER))
    folder = _snapshot(repo_id, revision, (*DESCRIPTION, *SAFETENSORS))
    if any(folder.glob("*.safetensors")):
        return folder
    return _snapshot(repo_id, revision, PICKLES)
