"""Download Hugging Face repositories into the hub's own cache."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import SourceError
from edgekit.source.fields import shown
from edgekit.source.weight_files import PICKLE_HINT, PICKLE_REASON, is_pickle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekit.types import Progress

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PATTERNS = ["*.safetensors", "*.json", "tokenizer.model", "*.jinja", "merges.txt"]
# Duplicates of the weights, in subfolders or in the original format.
_IGNORED = ["*/*", "consolidated*.safetensors"]


def fetch_repository(name: str, *, revision: str | None, offline: bool, progress: Progress) -> Path:
    """Return the folder of a repository's snapshot, named by its commit. Only missing files are downloaded.

    Args:
        name: ``org/name``.
        revision: branch, tag or commit; None for the main branch.
        offline: use only the cache.
        progress: called with the files downloaded.

    Raises:
        SourceError: not found, gated, no network, or offline and not cached.
    """
    from huggingface_hub import snapshot_download

    label = f"fetch {name}"
    try:
        with _no_bars():
            folder = snapshot_download(
                name,
                revision=revision,
                allow_patterns=_PATTERNS,
                ignore_patterns=_IGNORED,
                local_files_only=offline,
                tqdm_class=_bar(label, progress),
            )
    except Exception as error:
        # Transport exceptions differ between versions of huggingface_hub (requests, httpx).
        raise _translate(error, name, revision, offline) from error
    snapshot = Path(folder)
    if not offline and not any(snapshot.glob("*.safetensors")) and not (snapshot / "adapter_config.json").exists():
        _refuse_repository(name, snapshot.name)
    return snapshot


def _refuse_repository(name: str, commit: str) -> None:
    """Raise SourceError for a repository without safetensors files, naming what it holds instead."""
    from huggingface_hub import HfApi

    try:
        files = HfApi().list_repo_files(name, revision=commit)
    except Exception:
        return
    if gguf := [file for file in files if file.endswith(".gguf")]:
        raise SourceError(
            f"'{name}' has GGUF files ({shown(gguf[0])}) but no safetensors files",
            f"download one and pass its path: hf download {name} {gguf[0]}",
        )
    if pickles := [file for file in files if is_pickle(file)]:
        raise SourceError(f"'{name}' has {shown(pickles[0])} but no safetensors files; {PICKLE_REASON}", PICKLE_HINT)
    if below := [file for file in files if file.endswith(".safetensors")]:
        raise SourceError(
            f"'{name}' has no safetensors files at its root, only {shown(below[0])}",
            "download that folder and pass its path, or use a repository with model.safetensors at its root",
        )


def fetch_config(name: str, *, revision: str | None, offline: bool) -> Path:
    """Return the folder of a repository's snapshot after downloading only its config.json.

    Raises:
        SourceError: as fetch_repository, or the repository has no config.json.
    """
    from huggingface_hub import errors, hf_hub_download

    try:
        with _no_bars():
            file = hf_hub_download(name, "config.json", revision=revision, local_files_only=offline)
    except Exception as error:
        if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
            raise SourceError(f"'{name}' has no config.json", "use a repository in transformers format") from error
        raise _translate(error, name, revision, offline) from error
    return Path(file).parent


def _translate(error: Exception, name: str, revision: str | None, offline: bool) -> SourceError:
    from huggingface_hub import errors

    at = f"'{name}'" + (f" at revision '{revision}'" if revision else "")
    if isinstance(error, errors.GatedRepoError):
        return SourceError(
            f"{at} is gated: its owners require you to accept their terms",
            f"accept them on the page of {name}, then log in with: hf auth login (or set HF_TOKEN)",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return SourceError(f"{at} does not exist", "check the branch, tag or commit")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403, 404):
        return SourceError(
            f"{at} was not found on the hub, or is private (HTTP {status})",
            "check the spelling; for a private model, log in with: hf auth login (or set HF_TOKEN)",
        )
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        if offline:
            return SourceError(
                f"{at} is not in the hub's cache, and `offline` forbids downloading it",
                "run once without `offline`, or set HF_HOME to a cache that has it",
            )
        status = getattr(getattr(error.__cause__, "response", None), "status_code", None)
        said = f"the hub answered HTTP {status}" if status else "the hub cannot be reached"
        return SourceError(
            f"{at} is not in the hub's cache, and {said}",
            "check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or pass a folder with the files",
        )
    return SourceError(
        f"{at} could not be downloaded: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}",
        "check the network, the disk space and HF_ENDPOINT, then run again to resume the download",
    )


def _bar(label: str, progress: Progress) -> type:
    """A tqdm class that draws nothing and reports files (bytes, where the hub counts them) to ``progress``."""
    from tqdm.auto import tqdm

    class Silent(tqdm):  # type: ignore[misc]
        def __init__(self, *args: object, **kwargs: object) -> None:
            self._bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            done, total = int(self.n), int(self.total or 0)
            if self._bytes:
                progress(label, done, total)
            else:
                progress(f"{label} (files)", done, total, "files")

    return Silent


@contextmanager
def _no_bars() -> Iterator[None]:
    """Disable the progress bars of the hub's client: only the command line prints."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()
