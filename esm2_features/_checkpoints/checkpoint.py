"""`open_checkpoint`: from the name of a model or a path to its architecture, identity and tensors.

Opening is cheap: an official name touches no file, and of a path only the header is read.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import warnings
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from esm2_features._checkpoints.adapter import Adapter, read_adapter, read_settings
from esm2_features._checkpoints.catalogue import (
    EMBEDDED,
    EMBEDDED_MODEL,
    OFFICIAL,
    Architecture,
    ModelCard,
    full_name,
    known_names,
)
from esm2_features._checkpoints.download import locate, obtain
from esm2_features._checkpoints.families import family_of_name, only_esm2
from esm2_features._checkpoints.folder import ADAPTER_CONFIG, as_folder, name_of
from esm2_features._checkpoints.headers import Header, contents_of, read_header
from esm2_features._checkpoints.hub import as_repository, find_snapshot
from esm2_features._checkpoints.names import CONTACTS, EMBEDDING, TIED
from esm2_features._checkpoints.tensors import read_slot
from esm2_features._files import expanded, sha256_of
from esm2_features.exceptions import CheckpointError, shorten

if TYPE_CHECKING:
    from torch import Tensor

_EMBEDDED_FILE = Path(__file__).parents[1] / "data" / f"{EMBEDDED_MODEL}.safetensors"
_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".json")
_REGRESSION = "-contact-regression.pt"


@dataclass(frozen=True)
class Checkpoint:
    """Weights to load; made by `open_checkpoint`."""

    name: str  # of the model, or the stem of the file or folder; for feature names
    architecture: Architecture  # the shape of the network; known without torch
    source: Path | ModelCard  # a local file or folder, or an official model
    base: Checkpoint | None = None  # what the adapter in ``source`` changes

    @cached_property
    def identity(self) -> str:
        """Digest of the weights, ``"sha256:<hex>"``.

        Local files that hold the weights of an official model, in either format, share that
        model's identity. An adapter's covers its base.
        """
        if isinstance(self.source, ModelCard):
            return self.source.identity
        if self.base is not None:
            return self._identity_with(self.base)
        return _identity_of(_header(self.source))

    def fingerprint(self) -> Hashable:
        """Something that changes with the files of the checkpoint; no file is read."""
        if isinstance(self.source, ModelCard):
            return self.source
        of_base = () if self.base is None else (self.base.fingerprint(),)
        return *_fingerprint(self.source), *of_base

    @property
    def to_fetch(self) -> int | None:
        """Bytes to download before weights can be loaded (int); None if they are here.

        If the size of the file is unknown, the size of the weights in memory.
        """
        if self.base is not None:
            return self.base.to_fetch
        if isinstance(self.source, Path) or (weights := self.source.weights) is None:
            return None
        if locate(self.source, weights) is not None:
            return None
        return weights.bytes or 4 * self.architecture.parameters

    def load(self) -> dict[str, Tensor]:
        """Load the weights onto the CPU, in the stored dtype, under fair-esm's names.

        Each tensor owns its memory, so that a network that empties the dictionary while it re-packs
        the weights never holds two copies.
        """
        if self.base is not None:
            if vars(self).get("identity") not in (None, self._identity_with(self.base)):
                raise CheckpointError(
                    f"{self.source} is not what it was: its files were replaced. If that was on "
                    "purpose, open it anew.",
                    path=str(self.source),
                )
            weights = self.base.load()
            self._adapter().merge(weights)
            return weights
        path = self._locate("weights")
        header = _header(path)
        weights = _read(header, contacts=False)
        if header.architecture != self.architecture or (
            "identity" in vars(self)  # promised to the cache before now
            and path == self.source
            and _identity_of(header) != self.identity
        ):
            raise CheckpointError(
                f"{path} is not what it was, or should be: it holds {header.architecture}, and "
                f"{self.architecture} with the digest {self.identity} was expected. If the file "
                "was replaced on purpose, open it anew.",
                path=str(path),
            )
        tied = weights.pop(TIED, None)
        if tied is not None and not _are_equal(tied, weights[EMBEDDING]):
            raise CheckpointError(
                f"{path} has an output matrix of its own, where ESM-2 uses its embedding again, so "
                "its logits would be wrong. For embeddings, save its trunk alone, into a new "
                'folder: model.esm.save_pretrained("trunk").',
                path=str(path),
            )
        return weights

    def contact_regression(self) -> tuple[Tensor, Tensor]:
        """Load weight (1, layers * heads) and bias (1,) of the contact regression."""
        if self.base is not None:
            found = dict(zip(CONTACTS, self.base.contact_regression(), strict=True))
            self._adapter().merge(found)
            return found[CONTACTS[0]], found[CONTACTS[1]]
        path = self._locate("regression")
        beside = path.with_name(path.stem + _REGRESSION)
        if path.is_file() and beside.is_file():
            path = beside
        if path.name.endswith(_REGRESSION):
            slots = contents_of(path).slots
            places = {name: it for it in slots for name in CONTACTS if it.endswith(name)}
            found = {name: read_slot(it, slots[it]) for name, it in places.items()}
        else:
            found = _read(_header(path), contacts=True)
        shapes = [tuple(found[name].shape) for name in CONTACTS if name in found]
        wanted = [(1, self.architecture.layers * self.architecture.heads), (1,)]
        if shapes != wanted:
            state = f"one of shapes {shapes}, not {wanted}" if shapes else "none"
            remedy = f"put fair-esm's {beside.name} beside the weights, or save a Hugging Face "
            remedy += "folder with its contact head"
            if self.source == _EMBEDDED_FILE:
                remedy = "the demonstration model ships without"
            error = CheckpointError if shapes else NoContactRegressionError
            raise error(
                f"Predicting contacts needs a contact regression, and {path} has {state}: "
                f"{remedy}. All official models, used by name, have one.",
                path=str(path),
            )
        return found[CONTACTS[0]], found[CONTACTS[1]]

    def _identity_with(self, base: Checkpoint) -> str:
        adapter = self._adapter()
        return _combined(base.identity, _digest_of(adapter.file), adapter.scaling)

    def _adapter(self) -> Adapter:
        assert isinstance(self.source, Path)
        return read_adapter(self.source, read_settings(self.source), self.architecture)

    def _locate(self, which: Literal["weights", "regression"]) -> Path:
        if isinstance(self.source, Path):
            return self.source
        file = self.source.weights if which == "weights" else self.source.regression
        if file is None:
            raise CheckpointError(f"{self.name} has no official {which}.", path=self.name)
        path = obtain(self.source, file)
        if file.sha256 is None:
            warnings.warn(
                f"No public source states the digest of the {which} of {self.name}: {path} is "
                "used as it is, and its name stands for it in the cache.",
                UserWarning,
                stacklevel=3,
            )
        return path


def open_checkpoint(model: str | os.PathLike[str] | Checkpoint) -> Checkpoint:
    """Open a model by its name or by a path, or take one that is open; loads no weights.

    In this order: full official names, paths that exist, short names, repositories of the hub.
    """
    if isinstance(model, Checkpoint):
        return model
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(f"Got model={model!r}; pass the name of a model or a path.")
    text = os.fspath(model)
    if isinstance(model, str) and text in (EMBEDDED_MODEL, *OFFICIAL):
        return _open_name(text)
    path = _absolute(text)
    if text and path.exists():
        return _open_path(path)
    if isinstance(model, str):
        if (name := full_name(text)) is not None:
            return _open_name(name)
        repository = None if text.endswith(_SUFFIXES) else as_repository(text)
        if repository is not None and family_of_name(text) is None:
            if repository[1] == "main" and (name := full_name(repository[0])) is not None:
                return _open_name(name)
            hint = _suggestion(text) if text.lower().startswith("facebook/") else ""
            return _open_path(find_snapshot(*repository, hint))
    raise _unknown(text, path)


def _absolute(text: str) -> Path:
    """Make a path that stays right when the working directory changes before weights load."""
    try:
        path = Path(os.path.abspath(expanded(text)))  # noqa: PTH100 - without ".."
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"There is no model {shorten(text)!r}, and no such path: {error}. See `esm2-features "
            "models` for the names of models.",
            path=shorten(text),
        ) from error
    return path


def _open_name(name: str) -> Checkpoint:
    if name == EMBEDDED_MODEL:
        return Checkpoint(name, EMBEDDED.architecture, _EMBEDDED_FILE)
    return Checkpoint(name, OFFICIAL[name].architecture, OFFICIAL[name])


def _open_path(path: Path, *, as_adapter: bool = True) -> Checkpoint:
    path = as_folder(path)
    if as_adapter and (path / ADAPTER_CONFIG).is_file():
        settings = read_settings(path)
        base = _open_base(path, settings)
        read_adapter(path, settings, base.architecture)
        return Checkpoint(name_of(path), base.architecture, path, base)
    return Checkpoint(name_of(path), _header(path).architecture, path)


def _open_base(folder: Path, settings: Mapping[str, Any]) -> Checkpoint:
    """Open the weights that an adapter changes."""
    named, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    remedy = (
        f'Write the name or the path of its base into "base_model_name_or_path" of '
        f"{folder / ADAPTER_CONFIG}; a relative path counts from that folder."
    )
    if not isinstance(named, str) or not named:
        raise CheckpointError(
            f"{folder} does not say which weights it changes. {remedy}", path=str(folder)
        )
    if revision in (None, "", "main") and (name := full_name(named)) is not None:
        return _open_name(name)
    places = [folder / named, Path(named).expanduser()]
    try:
        for place in places:
            if place.exists():
                base = Path(os.path.abspath(place))  # noqa: PTH100 - without ".."
                return _open_path(base, as_adapter=not base.samefile(folder))
        if (family := family_of_name(named)) is not None:
            raise ValueError(f"it is not ESM-2. {only_esm2(family)}")
        if (repository := as_repository(named)) is not None:
            of_revision = revision if isinstance(revision, str) and revision else repository[1]
            return _open_path(find_snapshot(repository[0], of_revision))
    except RecursionError as error:
        raise CheckpointError(
            f"{folder} and its base are adapters of each other. {remedy}", path=str(folder)
        ) from error
    except (CheckpointError, OSError, ValueError) as error:
        raise CheckpointError(
            f"The base of the adapter {folder}, {shorten(named, 80)!r}, cannot be used: {error}\n"
            f"{remedy}",
            path=str(folder),
        ) from error
    tried = " and ".join(dict.fromkeys(str(place.absolute()) for place in places))
    raise CheckpointError(
        f"The base of the adapter {folder}, {shorten(named, 80)!r}, is not here: there is no "
        f"{tried}.{_suggestion(named)} {remedy}",
        path=str(folder),
    )


def _suggestion(text: str) -> str:
    asked = Path(text).name
    for suffix in _SUFFIXES:
        asked = asked.removesuffix(suffix)
    close = difflib.get_close_matches(asked.lower()[:80], known_names(), n=1)
    return f' Did you mean model="{full_name(close[0])}"?' if close else ""


def _unknown(text: str, path: Path) -> CheckpointError:
    family = family_of_name(Path(text).name)
    hint = f" {only_esm2(family)}" if family else _suggestion(text)
    if text.endswith(_SUFFIXES) or os.sep in text or "/" in text:
        return CheckpointError(f"There is no file or folder {path}.{hint}", path=str(path))
    return CheckpointError(
        f"There is no model {text!r}.{hint} Known names: {', '.join([*OFFICIAL, EMBEDDED_MODEL])}. "
        "Or pass the path of a checkpoint (a file, or a folder of transformers or peft), or a "
        "repository of the Hugging Face hub (owner/name).",
        path=text,
    )


# ------------------------------------------------------------------ identity


def _stat_of(file: Path) -> tuple[str, int, int, int, int]:
    stat = file.stat()
    times = stat.st_mtime_ns, stat.st_ctime_ns
    return os.path.realpath(file), stat.st_size, *times, stat.st_ino


def _fingerprint(source: Path) -> tuple[Hashable, ...]:
    # A file's config.json, if it has one, says how many heads the network has.
    files = [source, source.parent / "config.json"]
    if source.is_dir() or source.suffix == ".json":
        files = sorted((source if source.is_dir() else source.parent).iterdir())
    return source, *(_stat_of(file) for file in files if file.is_file())


def _header(source: Path) -> Header:
    """Read the header of a checkpoint, unless its files look untouched since the last time."""
    try:
        return _read_header(source, _fingerprint(source))
    except OSError as error:
        raise CheckpointError(
            f"{source} cannot be read: {error}. Make it readable, or copy it anew.",
            path=str(source),
        ) from error


@lru_cache(maxsize=16)
def _read_header(source: Path, _fingerprint: Hashable) -> Header:
    return read_header(source)


@cache
def _digest(path: str, *_stat: int) -> str:
    """Digest of a file, for as long as it looks untouched."""
    return sha256_of(Path(path))


def _digest_of(file: Path) -> str:
    return _digest(*_stat_of(file))


def _combined(*digests: str) -> str:
    return f"sha256:{hashlib.sha256(' '.join(digests).encode()).hexdigest()}"


def _identity_of(header: Header) -> str:
    digests = [_digest_of(file) for file in header.files]
    for card in OFFICIAL.values():
        pins = [card.weights and card.weights.sha256], [card.safetensors_sha256]
        if digests in pins and header.architecture == card.architecture:
            return card.identity
    if not header.heads_inside:
        # Another config.json beside the same file would make another network of it.
        digests.append(f"heads:{header.architecture.heads}")
    return f"sha256:{digests[0]}" if len(digests) == 1 else _combined(*digests)


# ------------------------------------------------------------------ tensors


class NoContactRegressionError(CheckpointError):
    """A checkpoint has no contact regression."""


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """Compare tensors in the coarser of their precisions."""
    coarse = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return one.to(coarse).equal(other.to(coarse))


def _read(header: Header, *, contacts: bool) -> dict[str, Tensor]:
    """Read the contact regression of a checkpoint, or everything else in it."""
    weights: dict[str, Tensor] = {}
    for theirs, ours in header.names.items():
        if (ours in CONTACTS) != contacts:
            continue
        tensor = read_slot(theirs, header.slots[theirs])
        if "*" in ours:
            for i in range(header.architecture.layers):
                weights[ours.replace("*", str(i))] = tensor.clone()
        else:
            weights[ours] = tensor
    return weights
