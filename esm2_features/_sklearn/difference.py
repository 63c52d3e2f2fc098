"""`ESM2DifferenceTransformer`: what a mutation changes, as features for scikit-learn."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from esm2_features._cache import Cache
from esm2_features._checkpoints.catalogue import DEFAULT_MODEL
from esm2_features._engine import Engine
from esm2_features._inference.remote.endpoint import Token
from esm2_features._inputs.cells import text_of
from esm2_features._inputs.containers import Column
from esm2_features._inputs.mutations import check_length, mutations_between
from esm2_features._inputs.options import PARTIAL_POOLINGS, check_special_tokens, is_whole, one_of
from esm2_features._inputs.policy import TruncationCounter
from esm2_features._inputs.views import Spans, spans_of
from esm2_features._inputs.words import is_wild_type
from esm2_features._sklearn.model import EmbeddingTransformer
from esm2_features.exceptions import InputError

_PARTS = ("whole", "site")


class ESM2DifferenceTransformer(EmbeddingTransformer):
    """Turn pairs of wild type and mutant into the difference of their embeddings.

    X has two columns, the wild types first: of a mutant's embedding, that of its wild type is
    subtracted; ``"WT"`` and the like among the mutants stand for it. Each distinct sequence is
    computed once, so a wild type that many rows share costs one forward pass. The transformer
    learns nothing, and can be pickled with the pipeline that it is in.

    Parameters
    ----------
    model : str or path, default="esm2_t33_650M_UR50D"
        As in `ESM2Transformer`.
    chains : list of str or int, or None, default=None
        The two columns of X, by their names or their numbers from 0; None if X has no others.
    region : {"whole", "site"}, default="whole"
        Residues to pool over: the whole sequence; or the mutated positions, with ``window``
        residues on either side of each. Both sequences of a row then have the same length.
    window : int, default=0
        Residues on either side of a mutated position, with ``region="site"``.
    layers, pooling : optional
        As in `ESM2Transformer`; with ``region="site"``, without ``"cls"`` and ``"eos"``.
    precision, device, batch_tokens, max_residues, too_long, unknown : optional
        As in `ESM2Transformer`. Half precision is too coarse to compare variants.
    on_missing : {"raise", "nan", "zero"}, default="raise"
        What to do with rows in which the wild type or the mutant is missing: refuse them, or give
        NaN or 0 in place of their features.
    cache, cache_dtype, store, verbose : optional
        As in `ESM2Transformer`.
    endpoint, token : optional
        As in `ESM2Transformer`.

    Attributes
    ----------
    n_features_in_ : int
        Number of columns seen during `fit`, 2.
    feature_names_in_ : ndarray of shape (2,), object
        Their names, if both have one.

    See Also
    --------
    build_mutants : Makes both columns from wild types and mutations.
    ESM2LikelihoodTransformer : How likely the model finds a mutant.

    Notes
    -----
    A mutation changes the mean over a whole protein little, and the representation of its own
    position much: try both. A row whose mutant is its wild type has a difference of 0.

    Examples
    --------
    >>> import pandas as pd
    >>> from esm2_features import ESM2DifferenceTransformer
    >>> X = pd.DataFrame({"wildtype": ["MKTAYIAKQR"] * 2, "mutant": ["MRTAYIAKQR", "MKTAYIAKQR"]})
    >>> esm = ESM2DifferenceTransformer("mini", region="site", window=2, cache=None)
    >>> difference = esm.fit_transform(X)
    >>> difference.shape, float(abs(difference[1]).max())
    ((2, 192), 0.0)
    """

    __module__ = "esm2_features"

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        *,
        chains: Sequence[str | int] | None = None,
        region: Literal["whole", "site"] = "whole",
        window: int = 0,
        layers: int | Sequence[int] | Literal["all"] = -1,
        pooling: str | Sequence[str] = "mean",
        precision: str = "float32",
        device: str | list[str] = "auto",
        batch_tokens: int | Literal["auto"] = "auto",
        max_residues: int | None = 1022,
        too_long: Literal["raise", "truncate", "window"] = "raise",
        unknown: Literal["raise", "X", "mask"] = "raise",
        on_missing: Literal["raise", "nan", "zero"] = "raise",
        cache: str | os.PathLike[str] | Cache | None = "auto",
        cache_dtype: Literal["float32", "float16"] = "float32",
        store: Literal["requested", "all"] = "requested",
        verbose: bool = False,
        endpoint: str | None = None,
        token: str | Token | None = None,
    ) -> None:
        self.model = model
        self.chains = chains
        self.region = region
        self.window = window
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
        self.endpoint = endpoint
        self.token = token

    def _engine(self, **changed: object) -> Engine:
        parameters = self._engine_parameters(changed, ("region", "window"))
        is_site, window = one_of("region", self.region, _PARTS) == "site", self.window
        if not is_whole(window) or window < 0:
            raise InputError(f"Got window={window!r}; expected a whole number from 0.")
        if window and not is_site:
            raise InputError(
                f'Got window={window!r} with region="whole", which has no window. Pass '
                'region="site", or leave it out.'
            )
        if is_site and parameters["too_long"] == "truncate":
            raise InputError(
                'Got too_long="truncate" with region="site": mutations could be cut off. Pass '
                'too_long="window", or too_long="raise".'
            )
        if is_site and parameters["pooling"] == "all":
            parameters["pooling"] = PARTIAL_POOLINGS
        engine = Engine(**parameters)
        if is_site:
            check_special_tokens(engine.poolings)
        return engine

    @property
    def _region_column(self) -> None:
        """There is no column of regions."""

    def _names(self, engine: Engine, chain: int) -> list[str]:  # noqa: ARG002
        return [f"{name}_difference" for name in engine.feature_names]

    def _chains_out(self, chains: list[str]) -> list[str]:
        return chains[:1]

    def _views(
        self, engine: Engine, chains: Sequence[Column], truncations: TruncationCounter
    ) -> list[str | None]:
        if len(chains) != 2:
            raise InputError(
                f"{type(self).__name__} takes two columns, wild types and mutants, in this order, "
                f"but got {len(chains)}. Pass such as X[['wildtype', 'mutant']], or name them: "
                "chains=['wildtype', 'mutant']."
            )
        _check_order([chain.name for chain in chains])
        pairs = zip(*(chain.values for chain in chains), strict=True)
        mutants = [before if is_wild_type(text_of(after)) else after for before, after in pairs]
        chains = [chains[0], chains[1]._replace(values=mutants)]
        sequences = engine.policy.normalise_chains(chains, self.on_missing, truncations)
        for row in range(0, len(sequences), 2):
            if None in sequences[row : row + 2]:
                sequences[row : row + 2] = [None, None]
        if self.region == "whole":
            return engine.policy.views(sequences)
        regions: list[Spans | None] = []
        for row, (wildtype, mutant) in enumerate(zip(sequences[::2], sequences[1::2], strict=True)):
            sites = self._sites(wildtype, mutant, row) if wildtype and mutant else None
            regions += [sites, sites]
        return engine.policy.views(sequences, regions=regions)

    def _sites(self, wildtype: str, mutant: str, row: int) -> Spans:
        """Give the residues around the mutated positions; all of them if there is no mutation."""
        remedy = 'region="site" is of substitutions: for insertions and deletions, pass '
        remedy += 'region="whole".'
        check_length(wildtype, mutant, index=row, given=mutant, called="mutant", remedy=remedy)
        last = len(wildtype)
        spans = spans_of(
            position
            for _, site, _ in mutations_between(wildtype, mutant)
            for position in range(max(0, site - self.window), min(last, site + self.window + 1))
        )
        return () if spans == ((0, last),) else spans

    def _features(
        self, engine: Engine, views: list[str | None], n_chains: int, fill: float
    ) -> NDArray[np.float32]:
        pairs = super()._features(engine, views, n_chains, fill).reshape(len(views) // 2, 2, -1)
        return np.subtract(pairs[:, 1], pairs[:, 0])


def _check_order(names: Sequence[str | None]) -> None:
    """Raise InputError if the names say that the mutants come first."""
    first, second = (str(name).lower() for name in names)
    if re.search("mut|variant", first) and re.search("wt|wild|parent|native|reference", second):
        raise InputError(
            f"The columns are {list(names)}, and wild types come first: pass "
            f"X[{list(names)[::-1]!r}], or chains={list(names)[::-1]!r}."
        )
