"""`save_model` and `load_model`: files of fitted pipelines, and of what they were trained with."""

from __future__ import annotations

import copy
import json
import os
import platform
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import InconsistentVersionWarning, NotFittedError
from sklearn.utils.validation import check_is_fitted

from esm2_features._files import atomic_write
from esm2_features._inputs.containers import listed
from esm2_features._inputs.messages import Message
from esm2_features._io.paths import check_output
from esm2_features._sklearn.base import SequenceTransformer
from esm2_features.exceptions import (
    CheckpointError,
    Esm2FeaturesError,
    InputError,
    import_optional,
)
from esm2_features.model_selection.pairs import read_sequences
from esm2_features.model_selection.saved_model import SavedModel

ENDING = "skops"
_MEMBER, _FORMAT = "esm2_features.json", 1
_PACKAGES = ("esm2_features", "scikit-learn", "numpy", "python")
_CHECKED = _PACKAGES[:2]
"""Packages whose other versions may give other predictions; numbers are stored as NumPy's files."""
_TRUSTED = frozenset(
    f"esm2_features.{name}Transformer"
    for name in ("Aligned", "Descriptor", "ESM2Difference", "ESM2Likelihood", "ESM2")
) | {"builtins.frozenset"}
"""Types in files that are loaded besides those of scikit-learn that skops trusts."""


def save_model(
    path: str | os.PathLike[str],
    estimator: Any,
    *,
    target: str | None = None,
    sequences: object = None,
    ids: Sequence[str] | None = None,
    residuals: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    force: bool = False,
) -> None:
    """Save a fitted pipeline in a file that `load_model` can check.

    The file has the format of skops, which, other than a pickle, runs no code when it is loaded. It
    holds no weights of ESM-2, but their digest.

    Parameters
    ----------
    path : path
        Name of the file, which ends in ``.skops``.
    estimator : estimator
        Fitted pipeline whose first step is a transformer of this library, or a union of some. Of a
        search, its best pipeline is saved.
    target : str, optional
        What it predicts, for people.
    sequences : list of str, or one column of an array, Series, frame or table, optional
        Training sequences, from which `predict` finds the nearest. The file then
        discloses them: leave them out if they are secret.
    ids : list of str of length n, optional
        Ids of the training sequences.
    residuals : array-like of shape (n,), optional
        Differences of the targets and the predictions of a regression by cross-validation, for
        intervals; NaN where there are none.
    groups : array-like of shape (n,), optional
        Family of each residual, such as `cluster_sequences` gives.
    force : bool, default=False
        Whether to replace an existing file.

    Raises
    ------
    InputError, TypeError
        If the pipeline is not fitted, has none of our transformers, or holds what skops cannot
        save; if lengths differ; or if the file exists.
    MissingDependencyError
        If skops is not installed.
    CheckpointError
        If the checkpoint of a transformer is not found.

    See Also
    --------
    load_model : Load the file.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from esm2_features import ESM2Transformer
    >>> from esm2_features.model_selection import load_model, save_model
    >>> pipeline = make_pipeline(ESM2Transformer("mini", cache=None), LogisticRegression())
    >>> pipeline = pipeline.fit(["GIGKFLHSAKKFGKAF", "HSQGTFTSDYSKYLDS"], ["toxic", "harmless"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(Path(folder, "model.skops"), pipeline)
    ...     load_model(Path(folder, "model.skops")).predict(["GIGKFLHSAKKFGKAF"])["prediction"]
    array(['toxic'], dtype='<U8')
    """
    skops = _skops()
    output = check_output(path, formats=(ENDING,), force=force)
    try:
        check_is_fitted(estimator)
    except (NotFittedError, TypeError) as error:
        raise InputError(f"The estimator cannot be saved: {error}") from error
    portable = _portable(getattr(estimator, "best_estimator_", estimator))
    transformers = dict(find_transformers(portable))
    if not transformers:
        raise InputError(
            f"Got {type(estimator).__name__}, which has no transformer of sequences. Save the "
            "whole pipeline, such as make_pipeline(ESM2Transformer(), LogisticRegression())."
        )
    train = None
    if sequences is not None:
        train = read_sequences(sequences, owner="save_model", unknown="X", column="sequences")
    facts = SavedModel(
        estimator=None,
        versions=package_versions(),
        checkpoints={name: of for name, t in transformers.items() if (of := t._weights_digest())},
        columns=_columns(transformers.values()),
        target=target,
        sequences=train,
        ids=None if ids is None else [str(one) for one in listed(ids, "ids")],
        residuals=None if residuals is None else np.asarray(residuals, float).ravel().tolist(),
        groups=None if groups is None else np.unique(groups, return_inverse=True)[1].tolist(),
    )
    _check_lengths(facts)
    if facts.residuals is not None:
        known = np.flatnonzero(np.isfinite(facts.residuals)).tolist()
        facts.residuals = [facts.residuals[i] for i in known]
        facts.groups = None if facts.groups is None else [facts.groups[i] for i in known]
    try:
        data = skops.dumps(portable, compression=zipfile.ZIP_DEFLATED)
        skops.loads(data, trusted=skops.get_untrusted_types(data=data))
    except Exception as error:  # of skops, and of what the parameters are
        raise InputError(
            f"The pipeline holds what skops cannot save: {error} Use estimators of scikit-learn "
            "without functions or objects of your own as parameters."
        ) from error
    with atomic_write(output.path) as file:
        file.write(_with_member(data, {"format": _FORMAT, **vars(facts)}))


def load_model(
    path: str | os.PathLike[str],
    *,
    parameters: Mapping[str, Any] | None = None,
    trusted: Sequence[str] = (),
) -> SavedModel:
    """Load a model that `save_model` saved, and check that it is the same as it was.

    Parameters
    ----------
    path : path
        The file.
    parameters : dict, optional
        Parameters of the transformers to change, such as ``{"device": "cuda"}``, or
        ``{"model": "/data/my-checkpoint"}`` where the checkpoint is elsewhere on this machine.
    trusted : list of str, optional
        Types to load besides those of this library and those of scikit-learn that skops knows
        as harmless. The error of a file that needs others names them; load them only if you know
        who wrote the file.

    Returns
    -------
    model : SavedModel
        The pipeline, and what it was trained with.

    Raises
    ------
    InputError
        If the file is damaged, no saved model, or written by a newer version of this library; if
        it needs types that are not trusted; or if the transformers lack one of ``parameters``.
    CheckpointError
        If the checkpoint is another one than that of the training, or not found.
    MissingDependencyError
        If skops is not installed.

    Warns
    -----
    UserWarning
        If the file was written with another version of scikit-learn or of this library.

    See Also
    --------
    save_model : Save a model.

    Examples
    --------
    See `save_model`, which writes such a file; then:

    >>> from esm2_features.exceptions import InputError
    >>> from esm2_features.model_selection import load_model
    >>> try:
    ...     load_model("README.md")
    ... except InputError as error:
    ...     print(error)
    README.md is no saved model. Give a file that save_model or esm2-features evaluate wrote.
    """
    name = os.fspath(path)

    def adjust(transformers: Mapping[str, Any], _: Any) -> None:
        for option, value in (parameters or {}).items():
            having = [t for t in transformers.values() if option in t.get_params(deep=False)]
            if not having:
                raise InputError(
                    f"Got the parameter {option!r}, which no transformer of {name} has. They are "
                    f"{', '.join(str(t) for t in transformers.values())}."
                )
            for transformer in having:
                transformer.set_params(**{option: value})

    return load_adjusted(path, adjust, trusted=trusted)


def load_adjusted(
    path: str | os.PathLike[str],
    adjust: Callable[[Mapping[str, Any], Any], object],
    *,
    trusted: Sequence[str] = (),
) -> SavedModel:
    """Load a model; ``adjust`` gets its transformers and it before any checkpoint is opened."""
    skops = _skops()
    name, data = os.fspath(path), Path(path).read_bytes()
    facts = _read_facts(name, data)
    try:
        unknown = set(skops.get_untrusted_types(data=data)) - _TRUSTED - set(trusted)
        if unknown:
            said = f"{name} holds types that are loaded only if you trust them: "
            said += f"{', '.join(sorted(unknown))}. If you know who wrote the file, pass "
            options = " ".join(f"--trust {one}" for one in sorted(unknown))
            raise InputError(Message(f"{said}trusted={sorted(unknown)}.", f"{said}{options}."))
        with warnings.catch_warnings(action="ignore", category=InconsistentVersionWarning):
            estimator = skops.loads(data, trusted=sorted(_TRUSTED | set(trusted)))
    except Esm2FeaturesError:
        raise
    except Exception as error:  # whatever a damaged file, or another version, leads to
        wrote = ", ".join(f"{package} {number}" for package, number in facts.versions.items())
        raise InputError(
            f"{name} cannot be loaded ({error}). If the file is not damaged, use the versions that "
            f"wrote it: {wrote}."
        ) from error
    _warn_of_versions(name, facts.versions)
    transformers = dict(find_transformers(estimator))
    adjust(transformers, estimator)
    for step, digest in facts.checkpoints.items():
        transformer = transformers[step]
        found = transformer._weights_digest()
        if found != digest:
            said = f"{name} was trained with other weights than {transformer.model!r} has on this "
            said += (
                f"machine ({digest[:19]}..., not {str(found)[:19]}...). Train anew, or give the "
            )
            said += "checkpoint of the training: "
            raise CheckpointError(
                Message(f'{said}parameters={{"model": PATH}}.', f"{said}--model PATH."),
                path=os.fspath(transformer.model),
            )
    facts.estimator = estimator
    return facts


def _skops() -> Any:
    return import_optional("skops.io", extra="evaluate", purpose="Saving and loading models")


def package_versions() -> dict[str, str]:
    """Give the versions that a file names."""
    numbers = [version(package) for package in _PACKAGES[:-1]]
    return dict(zip(_PACKAGES, [*numbers, platform.python_version()], strict=True))


def _warn_of_versions(name: str, wrote: Mapping[str, str]) -> None:
    here = package_versions()
    other = [
        f"{package} {wrote[package]}, and this is {here[package]}"
        for package in _CHECKED
        if _release(wrote[package]) != _release(here[package])
    ]
    if other:
        warnings.warn(
            f"{name} was written with {'; '.join(other)}. Predictions may differ: install the "
            "version that wrote it, or train anew.",
            stacklevel=3,
        )


def _release(number: str) -> list[str]:
    """Give the parts of a version that tell whether numbers may differ."""
    return number.split(".")[:2]


def find_transformers(estimator: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Find our transformers in a pipeline, with the names of their parameters."""
    if isinstance(estimator, SequenceTransformer):
        yield name, estimator
        return
    steps: list[tuple[str, Any]] = []
    # Fitted steps may be others than the parameters.
    for attribute in (
        "steps",
        "transformer_list",
        "transformers_",
        "estimator_",
        "best_estimator_",
    ):
        value = getattr(estimator, attribute, None)
        steps += [step[:2] for step in value] if isinstance(value, list) else [(attribute, value)]
    for step, value in steps:
        if value is not None and hasattr(value, "get_params"):
            yield from find_transformers(value, f"{name}__{step}" if name else step)


def _portable(estimator: Any) -> Any:
    """Copy a pipeline without what belongs to this machine: objects of caches, and tokens."""
    copied = copy.deepcopy(estimator)
    for _, transformer in find_transformers(copied):
        parameters = transformer.get_params(deep=False)
        cache = getattr(parameters.get("cache"), "path", parameters.get("cache"))
        changed = {"cache": cache, "model": parameters.get("model")}
        changed = {
            name: os.fspath(value)
            for name, value in changed.items()
            if isinstance(value, os.PathLike)
        }
        if parameters.get("token") is not None:
            changed["token"] = None
        transformer.set_params(**changed)
    return copied


def _columns(transformers: Iterable[Any]) -> list[str] | None:
    names = next((getattr(t, "feature_names_in_", None) for t in transformers), None)
    return None if names is None else [str(name) for name in names]


def _check_lengths(facts: SavedModel) -> None:
    for names in (("sequences", "ids"), ("residuals", "groups")):
        lengths = [len(getattr(facts, name) or ()) for name in names]
        if None not in (getattr(facts, name) for name in names) and lengths[0] != lengths[1]:
            raise InputError(
                f"Got {lengths[0]} {names[0]} and {lengths[1]} {names[1]}. Pass one of each for "
                "every row."
            )


def _with_member(data: bytes, facts: dict[str, Any]) -> bytes:
    stream = BytesIO(data)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_MEMBER, json.dumps(facts))
    return stream.getvalue()


def _read_facts(name: str, data: bytes) -> SavedModel:
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            if archive.testzip() is not None:
                raise zipfile.BadZipFile("a member is damaged")
            found = json.loads(archive.read(_MEMBER))
        number = int(found.pop("format"))
        if number > _FORMAT:
            wrote = found["versions"]["esm2_features"]
            raise InputError(
                f"{name} was written by a newer version of this library, {wrote}. Update it: "
                "pip install -U esm2-features."
            )
        return SavedModel(**found)
    except InputError:
        raise
    except Exception as error:  # of archives, codecs and JSON
        is_zip = data.startswith(b"PK")
        what = f"is damaged, or no saved model ({error})" if is_zip else "is no saved model"
        raise InputError(
            f"{name} {what}. Give a file that save_model or esm2-features evaluate wrote."
        ) from error
