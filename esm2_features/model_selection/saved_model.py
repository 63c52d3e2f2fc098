"""`SavedModel`: a fitted pipeline with what it was trained with."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm2_features._inputs.cells import is_missing
from esm2_features._inputs.containers import single_column
from esm2_features.model_selection.intervals import greatest_coverage, half_width
from esm2_features.model_selection.pairs import fraction
from esm2_features.model_selection.splits import train_test_identity


@dataclass
class SavedModel:
    """A fitted pipeline that `load_model` loaded, with what it was trained with.

    Attributes
    ----------
    estimator : estimator
        The fitted pipeline.
    versions : dict of str to str
        Versions of ``"esm2_features"``, ``"scikit-learn"``, ``"numpy"`` and ``"python"`` that
        saved it.
    checkpoints : dict of str to str
        Digests of the weights that its transformers used, by the names of their steps.
    columns : list of str or None
        Names of the columns of sequences that it was trained with, if they had some.
    target : str or None
        What it predicts, as `save_model` was told.
    sequences : list of str or None
        Training sequences.
    ids : list of str or None
        Their ids.
    residuals : list of float or None
        Residuals of cross-validation, of a regression.
    groups : list of int or None
        Families of the residuals.
    """

    estimator: Any
    versions: dict[str, str]
    checkpoints: dict[str, str]
    columns: list[str] | None
    target: str | None
    sequences: list[str] | None
    ids: list[str] | None
    residuals: list[float] | None
    groups: list[int] | None

    @property
    def classes(self) -> NDArray[Any] | None:
        """Classes, ndarray of shape (n_classes,); None for regression."""
        return getattr(self.estimator, "classes_", None)

    def predict(
        self, X: object, *, coverage: float = 0.9, neighbours: bool = True
    ) -> dict[str, NDArray[Any]]:
        """Predict, and say how sure and how far from the training data that is.

        Parameters
        ----------
        X : sequences of length n, or frame of shape (n, n_chains)
            As in `transform` of `ESM2Transformer`.
        coverage : float, default=0.9
            Fraction of new families that intervals should hold, for regression.
        neighbours : bool, default=True
            Whether to find the nearest training sequences, if the file has them.

        Returns
        -------
        predictions : dict of str to ndarray of shape (n,)
            ``"prediction"``, of the dtype of the targets; then, as float32 or float64,
            ``"probability_"`` and the class for each class, or ``"low"`` and ``"high"``, the ends
            of an interval; then ``"identity"`` and ``"nearest"``, the identity to the nearest
            training sequence as `train_test_identity` defines it, and its id (its row, without
            ids; empty, or -1, if none is related). What the model cannot give is left out.
            ``pandas.DataFrame(predictions)`` makes a frame.

        Raises
        ------
        InputError, ValueError, TypeError
            If X is wrong, as in `transform`, or ``coverage`` is.
        MissingDependencyError
            If ``neighbours`` are wanted, and the aligners of the extra ``families`` are missing.
        CheckpointError, OutOfMemoryError, NumericalError, ForkedProcessError
            If features are missing and cannot be computed.
        CacheVersionError, EndpointError
            As in `transform`.

        Warns
        -----
        UserWarning
            If the model has seen too few families for intervals of this ``coverage``, which are
            then infinite.

        Notes
        -----
        An interval is the prediction plus and minus a quantile of the residuals of
        cross-validation, in which each family counts as much as any other. It is made for
        sequences of families that the model has not seen; for relatives of training sequences it
        is usually too wide.

        Examples
        --------
        >>> import tempfile
        >>> from pathlib import Path
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.pipeline import make_pipeline
        >>> from esm2_features import DescriptorTransformer
        >>> from esm2_features.model_selection import load_model, save_model
        >>> X, y = ["GIGKFLHSAKKFGKAFVGEIMNS", "HSQGTFTSDYSKYLDSRRAQDFVQWLMNT"], ["toxic", "not"]
        >>> pipeline = make_pipeline(DescriptorTransformer(), LogisticRegression()).fit(X, y)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(Path(folder, "model.skops"), pipeline, sequences=X)
        ...     model = load_model(Path(folder, "model.skops"))
        >>> predictions = model.predict(["GIGKFLHSAGKFGKAFVGEIMKS"])
        >>> predictions["prediction"], predictions["identity"].round(2), predictions["nearest"]
        (array(['toxic'], dtype='<U5'), array([0.91]), array([0]))
        """
        coverage = fraction("coverage", coverage)
        predicted = np.asarray(self.estimator.predict(X))
        found = {"prediction": predicted}
        if self.classes is not None and hasattr(self.estimator, "predict_proba"):
            shares = self.estimator.predict_proba(X)
            for label, share in zip(self.classes, shares.T, strict=True):
                found[f"probability_{label}"] = share
        if self.residuals is not None:
            width = half_width(self.residuals, self.groups, coverage)
            if not np.isfinite(width):
                most = greatest_coverage(self.residuals, self.groups)
                warnings.warn(
                    f"Intervals that hold {coverage:.0%} are infinite, because cross-validation "
                    f"saw too few families. Pass coverage={int(100 * most) / 100:g} or less.",
                    stacklevel=2,
                )
            found |= {"low": predicted - width, "high": predicted + width}
        if neighbours and self.sequences is not None:
            found |= self._nearest(X, self.sequences)
        return found

    def _nearest(self, X: object, train: list[str]) -> dict[str, NDArray[Any]]:
        cells = single_column(X, owner="predict").values
        known = [i for i, cell in enumerate(cells) if not is_missing(cell)]
        identity, nearest = np.full(len(cells), np.nan), np.full(len(cells), -1, np.intp)
        test = [cells[i] for i in known]
        identity[known], nearest[known] = train_test_identity(train, test, unknown="X")
        if self.ids is None:
            return {"identity": identity, "nearest": nearest}
        return {"identity": identity, "nearest": np.array([*self.ids, ""], object)[nearest]}
