"""`ESM2Transformer`: the engine as a scikit-learn transformer.

Never here: torch, files, batching, a reduction that nobody asked for.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin

from esm2_features._cache import Cache
from esm2_features._catalogue import DEFAULT_MODEL
from esm2_features._engine import Engine
from esm2_features._options import one_of
from esm2_features._residues import Cuts, is_missing
from esm2_features._sequences import Column, columns
from esm2_features.exceptions import MissingSequenceError

_FILL = {"nan": np.nan, "zero": 0.0}


class ESM2Transformer(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Turn protein sequences into ESM-2 embeddings.

    The transformer learns nothing: `fit` checks, `transform` works without it. Weights are
    loaded when a vector is first missing from the cache, once per process, and are never
    part of the estimator or its pickle.

    Parameters
    ----------
    model : str or path, default="esm2_t33_650M_UR50D"
        Official name (see `available_models`), ``"mini"`` (the small demonstration model
        that ships with this library; not for science), or a path: fair-esm's ``.pt``, a
        ``.safetensors`` file, or a Hugging Face folder.
    layers : int, list of int or "all", default=-1
        Representations to give. 0 is the embedding, negatives count from the end; only the
        last one has the final norm. Several are concatenated.
    pooling : str, list of str or "all", default="mean"
        How the residues of a sequence become one vector: ``"mean"``, ``"max"`` or ``"std"``
        (of the population) over the residues, without the special tokens; or the
        representation of the special token ``"cls"`` or ``"eos"``. Several are concatenated.
    precision : {"float32", "bfloat16", "float16"}, default="float32"
        Arithmetic of the products. Half precision is faster on hardware that has it, and too
        coarse to compare variants of one protein: on random weights, the error of bfloat16
        was 20 to 34 % of the differences between single mutants, that of float32 8e-6.
    device : str, default="auto"
        ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
    batch_tokens : int or "auto", default="auto"
        Tokens (residues + 2 per sequence) in one forward pass. It changes speed and memory,
        and no result.
    max_residues : int or None, default=1022
        Longest sequence that is allowed. ESM-2 was trained on up to 1022 residues. None
        allows any length; memory for a long one grows faster than its length.
    too_long : {"raise", "truncate"}, default="raise"
        What to do with longer ones. ``"truncate"`` keeps the first ``max_residues`` and warns.
    unknown : {"raise", "X", "mask"}, default="raise"
        What to do with characters that are neither one of the 20 amino acids nor X, B, U, Z,
        O: refuse them, read them as X, or as ``<mask>``.
    on_missing : {"raise", "nan", "zero"}, default="raise"
        What to do with missing values (None, NaN, NA): refuse them, or give rows of NaN or 0.
    cache : "auto", None, path or Cache, default="auto"
        Where vectors are kept. ``"auto"`` is the user's cache folder, or the folder that the
        environment variable ``ESM2_FEATURES_CACHE`` names; None keeps none.
    cache_dtype : {"float32", "float16"}, default="float32"
        What vectors are kept in. ``"float16"`` halves the cache, and rounds the features to
        about 3 digits, whether they come from the cache or not.
    store : {"requested", "all"}, default="requested"
        What is kept of a sequence when it is computed: the layers and poolings that were asked
        for, or all that the model has, from the same forward pass, so that a grid search over
        ``layers`` and ``pooling`` computes each sequence once. See `precompute`.
    verbose : bool, default=False
        Show progress on a terminal.

    Attributes
    ----------
    n_features_in_ : int
        Number of columns (chains) seen during `fit`.
    feature_names_in_ : ndarray of shape (n_features_in_,), object
        Their names, if all of them have one.

    See Also
    --------
    Engine : The same without scikit-learn.

    Notes
    -----
    White space around a sequence and one trailing ``*`` are removed, lower case is accepted.
    A frame of several columns is several chains of one molecule: each is embedded by itself,
    and their vectors are concatenated.

    References
    ----------
    Lin et al., "Evolutionary-scale prediction of atomic-level protein structure with a
    language model", Science 379 (2023) 1123-1130.

    Examples
    --------
    >>> from esm2_features import ESM2Transformer
    >>> embedding = ESM2Transformer("mini", cache=None).fit_transform(["MKTAYIAKQR", "GSHM"])
    >>> embedding.shape, embedding.dtype
    ((2, 192), dtype('float32'))
    """

    _doc_link_module = "esm2_features"
    _doc_link_template = "https://esm2-features.readthedocs.io/en/stable/{estimator_name}.html"

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        *,
        layers: int | Sequence[int] | Literal["all"] = -1,
        pooling: str | Sequence[str] = "mean",
        precision: str = "float32",
        device: str = "auto",
        batch_tokens: int | Literal["auto"] = "auto",
        max_residues: int | None = 1022,
        too_long: Literal["raise", "truncate"] = "raise",
        unknown: Literal["raise", "X", "mask"] = "raise",
        on_missing: Literal["raise", "nan", "zero"] = "raise",
        cache: str | os.PathLike[str] | Cache | None = "auto",
        cache_dtype: Literal["float32", "float16"] = "float32",
        store: Literal["requested", "all"] = "requested",
        verbose: bool = False,
    ) -> None:
        self.model = model
        self.layers = layers
        self.pooling = pooling
        self.precision = precision
        self.device = device
        self.batch_tokens = batch_tokens
        self.max_residues = max_residues
        self.too_long = too_long
        self.unknown = unknown
        self.on_missing = on_missing
        self.cache = cache
        self.cache_dtype = cache_dtype
        self.store = store
        self.verbose = verbose

    def fit(self, X: object, y: object = None) -> Self:  # noqa: ARG002
        """Check the parameters and the sequences. Nothing is loaded or computed.

        Parameters
        ----------
        X : sequences of length n, or frame of shape (n, n_chains)
            List, tuple, NumPy array, pandas or polars Series or frame, Arrow array or table,
            or list of Biopython records.
        y : ignored
            Present because scikit-learn passes it.

        Returns
        -------
        self : ESM2Transformer

        Raises
        ------
        InputError
            If a parameter or a sequence is wrong; the message names the row and the remedy.
        TypeError
            If X is not a container of sequences.
        CheckpointError
            If ``model`` is not a name that is known, nor a checkpoint.
        """
        engine = self._engine()
        chains = self._chains(X)
        self._normalised(engine, chains, Cuts())  # of cuts, `transform` speaks
        self.n_features_in_ = len(chains)
        names = [chain.name for chain in chains]
        if all(name is not None for name in names):
            self.feature_names_in_ = np.array(names, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        return self

    def transform(self, X: object) -> NDArray[np.float32]:
        """Embed sequences.

        Parameters
        ----------
        X : sequences of length n, or frame of shape (n, n_chains)
            As in `fit`.

        Returns
        -------
        embedding : ndarray of shape (n, n_chains x layers x poolings x dim), float32
            Rows in the order of X; a frame if `set_output` says so.

        Raises
        ------
        InputError
            If a sequence is wrong; the message names the row, the position and the remedy.
        TypeError
            If X is not a container of sequences.
        CheckpointError
            If weights are needed and cannot be loaded.
        OutOfMemoryError
            If one sequence alone does not fit into memory.
        """
        engine = self._engine()
        chains = self._chains(X)
        self._check_same_chains(chains)
        cuts = Cuts()
        sequences = self._normalised(engine, chains, cuts)
        cuts.say(engine.max_residues)
        vectors = engine.embed_normalised(sequences, fill=_FILL.get(self.on_missing, np.nan))
        # (rows x chains, d) -> (rows, chains x d)
        return vectors.reshape(len(chains[0].values), len(chains) * vectors.shape[1])

    def precompute(
        self,
        X: object,
        *,
        layers: int | Sequence[int] | Literal["all"] = "all",
        pooling: str | Sequence[str] = "all",
    ) -> Self:
        """Fill the cache with several layers and poolings, one forward pass per sequence.

        After it, a search over these layers and poolings only reads. The parameters of the
        transformer stay as they are, and nothing is held in memory.

        Parameters
        ----------
        X : sequences of length n, or frame of shape (n, n_chains)
            As in `fit`.
        layers : int, list of int or "all", default="all"
            Representations to compute.
        pooling : str, list of str or "all", default="all"
            Poolings to compute.

        Returns
        -------
        self : ESM2Transformer

        Raises
        ------
        InputError
            If there is no cache, or a parameter or a sequence is wrong.
        TypeError
            If X is not a container of sequences.
        CheckpointError
            If weights are needed and cannot be loaded.
        OutOfMemoryError
            If one sequence alone does not fit into memory.

        Notes
        -----
        A vector takes 4 bytes per component (2 in float16), so all of a model's take
        20 x dim x (layers + 1) bytes per sequence: 45 kB for ``esm2_t6_8M_UR50D``, 870 kB for
        ``esm2_t33_650M_UR50D``. Name the layers that you will ask for, if that is too much.
        """
        engine = self._engine(layers=layers, pooling=pooling)
        cuts = Cuts()
        sequences = self._normalised(engine, self._chains(X), cuts)
        cuts.say(engine.max_residues)
        engine.precompute_normalised([s for s in sequences if s is not None])
        return self

    def get_feature_names_out(self, input_features: object = None) -> NDArray[np.object_]:
        """Names of the columns that `transform` gives.

        Parameters
        ----------
        input_features : array-like of str, optional
            Names of the chains, if X has several and had no names.

        Returns
        -------
        names : ndarray of str objects
            Such as ``esm2_t33_650M_UR50D_L33_mean_0``; with several chains, preceded by the
            name of the chain: ``heavy__esm2_t33_650M_UR50D_L33_mean_0``. Before `fit`, which
            says how many chains there are, those of one chain.

        Raises
        ------
        ValueError
            If ``input_features`` does not fit what was seen during `fit`.
        """
        names = np.array(self._engine().feature_names, dtype=object)
        chains = self._chain_names(input_features)
        if len(chains) == 1:
            return names
        return np.concatenate([f"{chain}__" + names for chain in chains])

    def __sklearn_is_fitted__(self) -> bool:
        """There is nothing to learn, so it is always ready."""
        return True

    def __sklearn_tags__(self) -> Any:
        """Say that one-dimensional strings go in, and that `fit` is not required."""
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.input_tags.allow_nan = self.on_missing != "raise"
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _engine(self, **changed: object) -> Engine:
        parameters = {**self.get_params(deep=False), **changed}
        one_of("on_missing", parameters.pop("on_missing"), ("raise", *_FILL))
        return Engine(**parameters)

    def _chains(self, X: object) -> list[Column]:
        """Read the columns of X; the one place that a test replaces to feed other input."""
        return columns(X, owner=type(self).__name__)

    def _normalised(self, engine: Engine, chains: Sequence[Column], cuts: Cuts) -> list[str | None]:
        """Sequences by row, and in a row by chain; None where one is missing."""
        sequences: list[str | None] = [None] * (len(chains) * len(chains[0].values))
        for i, chain in enumerate(chains):
            missing = {
                row
                for row, value in enumerate(chain.values)
                if not isinstance(value, str) and is_missing(value)
            }
            if missing and self.on_missing == "raise":
                raise _missing_sequence(sorted(missing), chain.name)
            rows = [row for row in range(len(chain.values)) if row not in missing]
            column = chain.name if len(chains) > 1 else None
            values = [chain.values[row] for row in rows] if missing else chain.values
            found = iter(engine.normalise(values, rows=rows, column=column, cuts=cuts))
            sequences[i :: len(chains)] = (
                [None if row in missing else next(found) for row in range(len(chain.values))]
                if missing
                else found
            )
        return sequences

    def _check_same_chains(self, chains: Sequence[Column]) -> None:
        """Refuse other columns than those seen in `fit`, if there was one."""
        names = [chain.name for chain in chains]
        fitted = list(getattr(self, "feature_names_in_", []))
        # One column is unambiguous, whatever it is called; of several, two could be swapped.
        order_matters = len(fitted) > 1
        if order_matters and None not in names and names != fitted:
            raise ValueError(_other_names(fitted, names))
        expected = getattr(self, "n_features_in_", len(chains))
        if len(chains) != expected:
            raise ValueError(
                f"X has {len(chains)} features, but {type(self).__name__} is expecting {expected} "
                "features as input"
            )
        if order_matters and None in names:
            warnings.warn(
                f"X does not have valid feature names, but {type(self).__name__} was fitted with "
                f"feature names: its columns are taken to be {fitted}, in this order.",
                UserWarning,
                stacklevel=4,  # scikit-learn wraps `transform`
            )

    def _chain_names(self, input_features: object) -> list[str]:
        fitted = getattr(self, "feature_names_in_", None)
        n = getattr(self, "n_features_in_", 1)
        if input_features is None:
            return list(fitted) if fitted is not None else [f"x{i}" for i in range(n)]
        names = [str(name) for name in np.asarray(input_features, dtype=object)]
        if fitted is not None and n > 1 and names != list(fitted):
            raise ValueError("input_features is not equal to feature_names_in_")
        if len(names) != n:
            raise ValueError(
                "input_features should have length equal to number of features "
                f"({n}), got {len(names)}"
            )
        return names


def _other_names(fitted: Sequence[str], names: Sequence[str | None]) -> str:
    """Say in the words of scikit-learn how the names differ from those seen in `fit`."""
    message = "The feature names should match those that were passed during fit.\n"
    if set(names) == set(fitted):
        return f"{message}Feature names must be in the same order as they were in fit.\n"
    for what, differing in (
        ("unseen at fit time", {str(name) for name in names} - set(fitted)),
        ("seen at fit time, yet now missing", set(fitted) - set(names)),
    ):
        if differing:
            message += f"Feature names {what}:\n"
            message += "".join(f"- {name}\n" for name in sorted(differing))
    return message


def _missing_sequence(rows: Sequence[int], column: str | None) -> MissingSequenceError:
    place = f"row {rows[0]}" + (f" of column {column!r}" if column else "")
    others = f" (the first of {len(rows)})" if len(rows) > 1 else ""
    return MissingSequenceError(
        f"Missing value in {place}{others}, where a protein sequence is expected. Drop such rows, "
        'or pass on_missing="nan" or on_missing="zero" to get rows of NaN or 0 for them.',
        index=rows[0],
    )
