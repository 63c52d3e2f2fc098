"""`SequenceTransformer`: what scikit-learn asks of a transformer of protein sequences."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from esm2_features._inputs.containers import Column, check_sequences, columns
from esm2_features._inputs.options import is_region_text
from esm2_features._inputs.policy import SequencePolicy, TruncationCounter
from esm2_features._inputs.rows import labelled
from esm2_features._inputs.words import peptide_sizes
from esm2_features.exceptions import CheckpointError

_FILL = {"raise": np.nan, "nan": np.nan, "zero": 0.0}
"""What the features of a missing sequence are."""


class _Engine(Protocol):
    """Checked parameters, with the policy that reads sequences; `Engine` is one of them."""

    @property
    def policy(self) -> SequencePolicy: ...


_E = TypeVar("_E", bound=_Engine)


class SequenceTransformer(TransformerMixin, BaseEstimator, ABC, Generic[_E]):  # type: ignore[misc]
    """Base of the transformers that turn protein sequences into features."""

    on_missing: str
    chains: Sequence[str | int] | None

    def fit(self, X: object, y: object = None) -> Self:  # noqa: ARG002
        """Check the parameters and the sequences. Nothing is loaded or computed.

        Parameters
        ----------
        X : sequences of length n, or frame of shape (n, n_chains)
            Strings in a list, tuple, NumPy array, pandas or polars Series or frame, Arrow array or
            table; or a list of Biopython records.
        y : ignored
            Present because scikit-learn passes it.

        Returns
        -------
        self : object
            This transformer.

        Raises
        ------
        InputError
            If a parameter or a sequence is wrong; the message names the row and the remedy.
        TypeError
            If X is not a container of sequences.
        CheckpointError
            If there is a ``model``, and it is not a name that is known, nor a checkpoint.

        Examples
        --------
        >>> from esm2_features import ESM2Transformer
        >>> ESM2Transformer("mini").fit(["MKTAYIAKQR", "GSHM"]).n_features_in_
        1
        """
        engine = self._engine()
        chains = self._columns(X)
        self._check_sequences(chains, X)
        with _naming_rows(chains[0]):
            views = self._views(engine, chains, TruncationCounter())  # `transform` warns
            self._learn(views, chains)
        self.n_features_in_ = len(chains)
        # What is decided of many rows holds for the few that `transform` may see.
        self.peptide_sizes_ = [peptide_sizes(chain.values) for chain in chains]
        names = [chain.name for chain in chains]
        if all(name is not None for name in names):
            self.feature_names_in_ = np.array(names, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        return self

    def transform(self, X: object) -> NDArray[np.float32]:
        """Compute the features of sequences.

        Parameters
        ----------
        X : sequences of length n, or frame of shape (n, n_chains)
            As in `fit`.

        Returns
        -------
        features : ndarray of shape (n, n_features_out), float32
            Rows in the order of X, columns as `get_feature_names_out` names them; a frame if
            `set_output` says so, and a SciPy matrix in CSR format with ``sparse_output=True``.

        Raises
        ------
        InputError
            If a sequence is wrong; the message names the row, the position and the remedy.
        TypeError
            If X is not a container of sequences.
        CheckpointError, OutOfMemoryError, NumericalError, ForkedProcessError
            If features are missing and cannot be computed.
        CacheVersionError, EndpointError
            If the cache belongs to another version or program, or the server has other weights.

        Examples
        --------
        >>> from esm2_features import ESM2Transformer
        >>> features = ESM2Transformer("mini", cache=None).transform(["MKTAYIAKQR", "GSHM"])
        >>> features.shape, features.dtype
        ((2, 192), dtype('float32'))
        """
        check_is_fitted(self)
        engine = self._engine()
        chains = self._columns(X)
        self._check_same_chains(chains)
        truncations = TruncationCounter()
        n_rows = len(chains[0].values)
        try:
            with _naming_rows(chains[0]):
                views = self._views(engine, self._as_fitted(chains, X), truncations)
                features = self._features(
                    engine, views, len(views) // n_rows, _FILL[self.on_missing]
                )
        except CheckpointError as error:
            # scikit-learn prints the traceback of each fit that fails in a search.
            raise error.with_traceback(None) from None
        truncations.warn(engine.policy.max_residues)
        rows: NDArray[np.float32] = features.reshape(n_rows, -1)  # from (rows x chains, d)
        return rows

    def get_feature_names_out(self, input_features: object = None) -> NDArray[np.object_]:
        """Name the columns that `transform` gives.

        Parameters
        ----------
        input_features : array-like of str, optional
            Names of the columns of X, if it has several and had no names.

        Returns
        -------
        names : ndarray of shape (n_features_out,), object
            Strings such as ``esm2_t33_650M_UR50D_L33_mean_0``; with several chains, preceded by the
            name of the chain: ``heavy__esm2_t33_650M_UR50D_L33_mean_0``. Before `fit`, which
            says how many chains there are, those of one chain.

        Raises
        ------
        ValueError
            If ``input_features`` does not fit what was seen during `fit`.
        InputError, CheckpointError, TypeError
            If a parameter is wrong, as in `fit`.

        Examples
        --------
        >>> from esm2_features import ESM2Transformer
        >>> ESM2Transformer("mini").get_feature_names_out()[:2].tolist()
        ['mini_L6_mean_0', 'mini_L6_mean_1']
        """
        check_is_fitted(self)
        engine = self._engine()
        chains = self._chains_out(self._chain_names(input_features))
        names = [np.array(self._names(engine, i), dtype=object) for i in range(len(chains))]
        if len(chains) == 1:
            return names[0]
        return np.concatenate(
            [f"{chain}__" + of_one for chain, of_one in zip(chains, names, strict=True)]
        )

    def __sklearn_is_fitted__(self) -> bool:
        """There is nothing to learn, so it is always ready."""
        return True

    def __sklearn_tags__(self) -> Any:
        """Declare that X holds one-dimensional strings, and that `fit` is not required."""
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.input_tags.allow_nan = self.on_missing != "raise"
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _sk_visual_block_(self) -> Any:
        """Make the box of scikit-learn's diagrams, with the model as its caption.

        The class of such boxes is private, and has moved before. Where it cannot be imported,
        scikit-learn draws the box that it draws of any estimator.
        """
        from sklearn.utils._repr_html.estimator import _VisualBlock

        return _VisualBlock(
            "single",
            self,
            names=type(self).__name__,
            name_details=str(self),
            name_caption=self._caption(),
        )

    def _caption(self) -> str | None:
        """Say in a few words what is computed; None for nothing."""
        return None

    def _weights_digest(self) -> str | None:
        """Give the digest of the weights; None without weights on this machine."""
        return None

    @abstractmethod
    def _engine(self, **changed: object) -> _E:
        """Make the engine of the parameters, some of them changed, and so check them."""

    @abstractmethod
    def _views(
        self, engine: _E, chains: Sequence[Column], truncations: TruncationCounter
    ) -> list[str | None]:
        """Give what has features, by row, and in a row by chain; None where it is missing."""

    @abstractmethod
    def _features(self, engine: _E, views: list[str | None], n_chains: int, fill: float) -> Any:
        """Compute the features of views, (views, d) or (rows, d); those of None are ``fill``."""

    @abstractmethod
    def _names(self, engine: _E, chain: int) -> list[str]:
        """Name the features of one chain, by its number among those that have features."""

    def _learn(self, views: list[str | None], chains: Sequence[Column]) -> None:
        """Keep what `transform` has to know of the sequences of `fit`; most need nothing."""

    def _chains_out(self, chains: list[str]) -> list[str]:
        """Of the columns of X, those that have features of their own."""
        return chains

    def _columns(self, X: object) -> list[Column]:
        """Read the columns of X; the one place that a test replaces to feed other input."""
        return columns(X, owner=type(self).__name__, region=self._region_column, chains=self.chains)

    @property
    def _region_column(self) -> str | None:
        """Name of the column of regions, if there is one."""
        region = getattr(self, "region", None)
        return region if isinstance(region, str) and not is_region_text(region) else None

    def _check_sequences(self, chains: Sequence[Column], X: object) -> None:
        """Raise InputError for columns of labels, unless ``chains`` names the columns."""
        if self.chains is None:
            check_sequences(
                chains,
                X,
                region=self._region_column,
                insist=f"To embed them all the same, name them: {type(self).__name__}"
                "(chains={names!r}).",
            )

    def _as_fitted(self, chains: Sequence[Column], X: object) -> list[Column]:
        """Take over what `fit` decided of the same columns, and decide of others."""
        sizes = getattr(self, "peptide_sizes_", [])
        fitted = list(getattr(self, "feature_names_in_", [None] * len(sizes)))
        if [chain.name for chain in chains] != fitted:
            self._check_sequences(chains, X)
        if len(sizes) != len(chains):
            return list(chains)
        return [
            chain._replace(peptide_sizes=of_one)
            for chain, of_one in zip(chains, sizes, strict=True)
        ]

    def _check_same_chains(self, chains: Sequence[Column]) -> None:
        """Raise ValueError for other columns than those seen in `fit`."""
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


def _naming_rows(column: Column) -> AbstractContextManager[None]:
    """Let messages name rows by the labels that they have in X, if they have some."""
    return nullcontext() if column.labels is None else labelled(column.labels)


def _other_names(fitted: Sequence[str], names: Sequence[str | None]) -> str:
    """Describe in scikit-learn's words how the names differ from those seen in `fit`."""
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
