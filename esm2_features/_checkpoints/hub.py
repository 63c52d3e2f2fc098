"""Repositories of the Hugging Face hub: from its cache on this machine, or downloaded into it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from esm2_features._checkpoints.download import hugging_face_folder
from esm2_features._checkpoints.folder import ADAPTER_CONFIG, adapter_file, weight_files
from esm2_features._environment import is_offline
from esm2_features._files import tell
from esm2_features.exceptions import CheckpointError, DownloadError

_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w][\w./-]*))?")
_SETTINGS = ("config.json", ADAPTER_CONFIG)
# The first kind that a repository has is downloaded, with the shards that its index names.
_KINDS = (
    ("adapter_model.safetensors",),
    ("adapter_model.bin",),
    ("model.safetensors",),
    ("model.safetensors.index.json", ".safetensors"),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", ".bin"),
)


def as_repository(text: str) -> tuple[str, str] | None:
    """Read ``owner/name`` or ``owner/name@revision``; None if the text is neither."""
    match = _REPOSITORY.fullmatch(text)
    if match is None or ".." in text or text.startswith((".", "-")):
        return None
    return match[1], match[2] or "main"


def find_snapshot(repository: str, revision: str, hint: str = "") -> Path:
    """Return the folder of a repository's files, and download them if they are not here."""
    found = _cached(repository, revision)
    if found is not None and _is_whole(found):
        return found
    place = hugging_face_folder()
    reason = "ESM2_FEATURES_OFFLINE forbids to download it"
    if not is_offline():
        try:
            return _download(repository, revision)
        except ImportError:
            reason = "huggingface_hub, which downloads it, is not installed"
        except Exception as error:  # of many kinds, and different in each of its releases
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reason = f"huggingface_hub could not download it ({lines[0][:200]})"
    state = f"{found} has no whole checkpoint" if found is not None else f"not in {place}"
    of_revision = "" if revision == "main" else f" --revision {revision}"
    raise DownloadError(
        f"There is no file or folder {Path(repository).absolute()}, and the repository "
        f"{repository} ({revision}) of the Hugging Face hub is not here ({state}); {reason}.{hint} "
        "Provide it in one of two ways:\n"
        f"  1. on a machine with internet, run `hf download {repository}{of_revision}`, copy "
        f"{place.name}/{_folder_name(repository)} to {place}, or pass the path of the folder\n"
        '  2. go online after pip install "esm2-features[hub]", and without ESM2_FEATURES_OFFLINE: '
        "it is downloaded then",
        path=repository,
        url=f"https://huggingface.co/{repository}",
    )


def _folder_name(repository: str) -> str:
    return f"models--{repository.replace('/', '--')}"


def _cached(repository: str, revision: str) -> Path | None:
    """Find the snapshot of a revision: a branch or a tag, or the start of a commit's digest."""
    folder = hugging_face_folder() / _folder_name(repository)
    commit = revision
    try:
        commit = (folder / "refs" / revision).read_text().strip()
    except (OSError, ValueError):
        if not re.fullmatch(r"[0-9a-f]{7,40}", revision):
            return None
    snapshots = sorted(folder.glob(f"snapshots/{commit}*")) if commit.isalnum() else []
    return snapshots[0] if len(snapshots) == 1 else None


def _is_whole(snapshot: Path) -> bool:
    try:
        if (snapshot / ADAPTER_CONFIG).is_file():
            adapter_file(snapshot)
        else:
            weight_files(snapshot)
    except (CheckpointError, OSError):
        return False
    return True


def _download(repository: str, revision: str) -> Path:
    """Download settings and weights, and no code, into the hub's cache."""
    from huggingface_hub import HfApi, snapshot_download

    wanted = _wanted(HfApi().list_repo_files(repository, revision=revision))
    tell(f"downloading {repository} ({revision}) from the Hugging Face hub: {', '.join(wanted)}")
    return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))


def _wanted(files: Sequence[str]) -> list[str]:
    """Choose the files of a repository that are read."""
    settings = [name for name in _SETTINGS if name in files]
    for first, *shards in _KINDS:
        if first in files and (first.startswith("adapter") == (ADAPTER_CONFIG in files)):
            stem = first.partition(".")[0]
            parts = [
                name
                for name in files
                for suffix in shards
                if re.fullmatch(rf"{stem}-\d+-of-\d+{re.escape(suffix)}", name)
            ]
            return [*settings, first, *parts]
    return settings
