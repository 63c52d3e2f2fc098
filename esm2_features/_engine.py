"""`Engine`: everything that ESM-2 says of sequences, as arrays.

Here stand the options, vectors and streams; what there is of every residue is in `_per_residue`.
What a method gives is read off one forward pass by an extractor (`_inference.extractors`).

Methods that begin with an underscore are for the rest of the package as well: they take what was
checked before (`Engine._normalise`) and what was said of it (`Engine._views`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import islice
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from esm2_features._cache import Cache, open_cache
from esm2_features._checkpoints import open_checkpoint
from esm2_features._checkpoints.catalogue import DEFAULT_MODEL
from esm2_features._inference.products import PRODUCTS
from esm2_features._inference.remote.embeddings import check_model
from esm2_features._inference.remote.endpoint import Token, read_endpoint
from esm2_features._inference.runner import Run
from esm2_features._inputs.lengths import TruncationCounter
from esm2_features._inputs.options import (
    CACHE_DTYPES,
    EVERY_POOLING,
    PARTIAL_POOLINGS,
    POOLINGS,
    PRECISIONS,
    SPECIAL_TOKENS,
    STORES,
    absolute_layers,
    device_names,
    names,
    one_of,
    positive,
)
from esm2_features._inputs.policy import SequencePolicy
from esm2_features._inputs.regions import read_region, region_cells, warn_of_pairs
from esm2_features._inputs.residues import is_missing
from esm2_features._per_residue import PerResidue, only_column
from esm2_features.exceptions import InputError

if TYPE_CHECKING:
    from esm2_features._inference.extractors import Extractor

_STREAM_SEQUENCES, _STREAM_BYTES = 4096, 1 << 28
"""Sequences that `Engine.stream` holds at a time, and bytes of their results."""
_STREAM_MASKED = 64


class Engine(PerResidue):
    """Compute features of protein sequences with ESM-2.

    It does what `ESM2Transformer` does, without scikit-learn: strings in, an array out. Besides
    vectors, it gives what the network says of every residue.

    Parameters
    ----------
    model : str or path, default="esm2_t33_650M_UR50D"
        Official name, ``"mini"`` (the small demonstration model that ships with this
        library), or a path: fair-esm's ``.pt``, ``.safetensors``, or a Hugging Face folder.
    layers : int, list of int or "all", default=-1
        Representations to give; 0 is the embedding, negatives count from the end.
    pooling : str, list of str or "all", default="mean"
        ``"mean"``, ``"max"`` and ``"std"`` (population) over the residues; ``"cls"``,
        ``"eos"``. A list concatenates. ``"parti"`` is a mean that weights residues by their
        importance (PageRank over the attention maps, Tartici et al. 2025). The maps cost time
        that grows with the square of the length (on a CPU, a tenth more for peptides, up to a
        half for 300 residues, nearly 3 times for 1000), so "all" does not mean it.
    region : (int, int), optional
        Pool over the residues from the first to before the second, counted from 0, as
        ``sequence[start:stop]`` does, with the whole sequence as their context. "all" poolings
        are then those that are not of special tokens.
    precision : {"float32", "bfloat16", "float16"}, default="float32"
        Arithmetic of the products. On random weights, the error of bfloat16 is 20 to 34 % of
        the differences between single mutants of one protein; that of float32 is 8e-6.
    device : str or list of str, default="auto"
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``. Several in a list share the
        work, with a copy of the network on each; ``"all"`` is every CUDA card.
    batch_tokens : int or "auto", default="auto"
        Tokens (residues + 2) per forward pass. It changes speed and memory, no number.
    max_residues : int or None, default=1022
        Longest sequence allowed; ESM-2 was trained on up to 1022 residues. None allows any.
    too_long : {"raise", "truncate", "window"}, default="raise"
        What to do with longer ones. ``"truncate"`` keeps the first ``max_residues``;
        ``"window"`` runs windows of ``max_residues`` that overlap by a quarter or more, and
        averages what they say of a residue, with weights that fall off towards their edges.
        Nothing is too long for ``max_residues=None``.
    unknown : {"raise", "X", "mask"}, default="raise"
        What to do with letters outside the 20 amino acids and X, B, U, Z, O.
    cache : "auto", None, path or Cache, default="auto"
        Where vectors are kept; None keeps none.
    cache_dtype : {"float32", "float16"}, default="float32"
        What they are kept in. ``"float16"`` halves the cache and rounds the features, whether
        they come from the cache or not, to about 3 digits. Likelihoods are kept in float32.
    store : {"requested", "all"}, default="requested"
        What is kept of a sequence that is computed: the layers and poolings that were asked for,
        or all that this model has, at once.
    verbose : bool, default=False
        Show progress on a terminal.
    endpoint : str or None, default=None
        Address of a server, such as ``"http://host:8000"``, that computes the vectors which are
        not in the cache, instead of a network in this process. They have the same numbers, to
        float32's rounding, and the same keys. For models by name, and `embed` alone. The server
        chooses the device; ``batch_tokens`` is what a request holds.
    token : str or None, default=None
        Token for the server. None is what the environment variable ``ESM2_FEATURES_TOKEN`` holds,
        which is the better place. It is shown nowhere, and no pickle takes it along.

    Attributes
    ----------
    n_computed : int
        Number of sequences that have gone through the network: the others were in the cache,
        came from another process, or were given twice in one call.
    checkpoint : Checkpoint
        The model: its ``name``, and its ``architecture`` with ``layers``, ``dim`` and ``heads``.
    layers : tuple of int
        The representations that `embed` gives, all counted from 0.
    poolings : tuple of str
        Of each of them, the poolings that it gives.

    Raises
    ------
    InputError, TypeError
        If a parameter has a value that it cannot have.
    CheckpointError
        If ``model`` is not a name that is known, nor a checkpoint.

    See Also
    --------
    ESM2Transformer : The same as a step of a scikit-learn pipeline.

    Notes
    -----
    With an ``endpoint``, a server of this library (``esm2-features serve``) must have the same
    weights and compute in ``precision``; it says so itself, and anything else is refused. Other
    servers of the hosted service's API, version 3, say nothing of the kind. Their vectors are kept
    in the cache under the server's address and never mixed with others; ``"mean"``, ``"cls"``,
    ``"max"``, ``"std"`` and regions can be had from them.

    References
    ----------
    Lin et al., "Evolutionary-scale prediction of atomic-level protein structure with a
    language model", Science 379 (2023) 1123-1130: the models.

    ``scripts/extract.py`` of fair-esm: ``pooling="mean"``, and that special tokens are not in it.

    Tartici et al., Bioinformatics 41 (2025) btaf330: ``pooling="parti"``.

    Examples
    --------
    >>> from esm2_features import Engine
    >>> engine = Engine("mini", layers=[3, 6], pooling=["mean", "max"], cache=None)
    >>> engine.embed(["MKTAYIAKQR", "GSHMVLSEGE"]).shape  # 2 layers x 2 poolings x 192
    (2, 768)
    >>> engine.n_computed
    2
    """

    __module__ = "esm2_features"

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        *,
        layers: int | Sequence[int] | Literal["all"] = -1,
        pooling: str | Sequence[str] = "mean",
        region: tuple[int, int] | None = None,
        precision: str = "float32",
        device: str | Sequence[str] = "auto",
        batch_tokens: int | Literal["auto"] = "auto",
        max_residues: int | None = 1022,
        too_long: Literal["raise", "truncate", "window"] = "raise",
        unknown: Literal["raise", "X", "mask"] = "raise",
        cache: str | os.PathLike[str] | Cache | None = "auto",
        cache_dtype: Literal["float32", "float16"] = "float32",
        store: Literal["requested", "all"] = "requested",
        verbose: bool = False,
        endpoint: str | None = None,
        token: str | Token | None = None,
    ) -> None:
        server = read_endpoint(endpoint, token)
        if server is not None:
            check_model(model)
            if device != "auto":
                raise InputError(
                    f"Got device={device!r} with an endpoint, which chooses its device itself. "
                    "Leave one of them out."
                )
        SequencePolicy.__init__(
            self, max_residues=max_residues, too_long=too_long, unknown=unknown, region=region
        )
        Run.__init__(
            self,
            open_checkpoint(model),
            precision=one_of("precision", precision, PRECISIONS),
            devices=device_names(device),
            batch_tokens=None if batch_tokens == "auto" else positive("batch_tokens", batch_tokens),
            cache=open_cache(cache),
            verbose=bool(verbose),
            endpoint=server,
        )
        depth = self.checkpoint.architecture.layers
        self.layers = absolute_layers(layers, depth=depth, model=self.checkpoint.name)
        self._default_layers = layers if isinstance(layers, Integral) else self.layers
        wants_all = isinstance(pooling, str) and pooling == "all"
        possible = POOLINGS if self.region is None else PARTIAL_POOLINGS
        self.poolings = possible if wants_all else names("pooling", pooling, EVERY_POOLING)
        self.cache_dtype = one_of("cache_dtype", cache_dtype, CACHE_DTYPES)
        self.store = one_of("store", store, STORES)
        if self.cache is None and (self.cache_dtype, self.store) != ("float32", "requested"):
            raise InputError(
                f"Got cache=None with cache_dtype={cache_dtype!r} and store={store!r}, which say "
                "how vectors are kept. Give them a cache, or leave these two options out."
            )
        if self.region is not None:
            _check_special_tokens(self.poolings)
        windows = self.too_long == "window" and self.max_residues is not None
        if windows and "parti" in self.poolings:
            raise InputError(
                'Got pooling="parti" with too_long="window": importance is read off attention '
                "between all residues of a sequence, and windows attend to their own only. Pass "
                "max_residues=None to run long sequences whole, or another pooling."
            )
        self._wanted = [(layer, pooling) for layer in self.layers for pooling in self.poolings]
        self._computed = list(self._wanted)
        if self.store == "all":
            everything = [(layer, word) for layer in range(depth + 1) for word in POOLINGS]
            self._computed = list(dict.fromkeys([*everything, *self._wanted]))

    # Written in `_per_residue`, and of `Engine` to whoever calls them.
    residues = PerResidue.residues
    logits = PerResidue.logits
    log_probs = PerResidue.log_probs
    predict_masked = PerResidue.predict_masked
    contacts = PerResidue.contacts
    attentions = PerResidue.attentions

    @property
    def feature_names(self) -> list[str]:
        """Names of the columns of `embed`, list of str: model, layer, pooling and component."""
        return [
            f"{self.checkpoint.name}_L{layer}_{pooling}_{i}"
            for layer, pooling in self._wanted
            for i in range(self.checkpoint.architecture.dim)
        ]

    def embed(
        self, sequences: object, *, regions: Collection[object] | None = None
    ) -> NDArray[np.float32]:
        """Compute one row of features for each sequence.

        Parameters
        ----------
        sequences : list of str, or one column of an array, Series, frame or table
            Or of objects with a ``.seq``, such as Biopython's records.
        regions : list, array or Series of length n, optional
            Residues of each sequence to pool over, counted from 0, instead of the same region
            for all: a position, a tuple (start, stop), a list of positions, text such as
            ``"26:33,50:58"``, or None (or NaN) for all residues.

        Returns
        -------
        features : ndarray of shape (n, layers x poolings x dim), float32
            In the order of the input.

        Raises
        ------
        InvalidSequenceError, MissingSequenceError, SequenceTooLongError, InvalidRegionError
            If a sequence or a region is wrong, with the row, the position and the offending value.
        InputError
            If there are several columns, or not as many regions as sequences.
        CheckpointError
            If the weights are needed and cannot be loaded.
        OutOfMemoryError
            If one sequence alone does not fit into memory.
        NumericalError
            If the network gives infinities or NaN.
        ForkedProcessError
            If this process was forked from one that has run a network.
        CacheVersionError
            If the cache belongs to a newer version or to another program.
        EndpointError
            If the ``endpoint`` cannot be reached, refuses, or has other weights. What has come by
            then is in the cache.
        TypeError
            If it is not a container of sequences.

        Examples
        --------
        >>> from esm2_features import Engine
        >>> engine = Engine("mini", cache=None)
        >>> engine.embed(["MKTAYIAKQR", "GSHMVLSEGE"]).shape
        (2, 192)
        >>> engine.embed(["MKTAYIAKQR", "GSHMVLSEGE"], regions=["2:6", None]).shape
        (2, 192)
        """
        found = self._read(sequences)
        spans = None
        if regions is not None:
            cells = region_cells(regions)
            if len(cells) != len(found):
                raise InputError(
                    f"Got {len(cells)} regions for {len(found)} sequences; pass one for each."
                )
            warn_of_pairs(cells)
            spans = [
                () if is_missing(cell) else read_region(cell, length=len(sequence), index=row)
                for row, (cell, sequence) in enumerate(zip(cells, found, strict=True))
            ]
        return self._embed_normalised(self._views(found, regions=spans))

    def stream(
        self,
        sequences: object,
        product: str = "embedding",
        *,
        layers: int | Sequence[int] | Literal["all"] | None = None,
        over: Literal["residues", "tokens"] | None = None,
    ) -> Iterator[Any]:
        """Compute what does not fit into memory as a whole.

        Parameters
        ----------
        sequences : iterator of str, or a container as in `embed`
            Read as it is needed, a few thousand sequences ahead at most.
        product : str, default="embedding"
            ``"embedding"`` for the rows of `embed`, or the name of another method:
            ``"residues"``, ``"logits"``, ``"log_probs"``, ``"predict_masked"``, ``"contacts"``,
            ``"attentions"``.
        layers : int, list of int, "all" or None, default=None
            As in `residues` and `attentions`, for these two.
        over : {"residues", "tokens"} or None, default=None
            As in `log_probs`, for this one.

        Returns
        -------
        results : iterator of ndarray of shape (layers x poolings x dim,), float32
            A row of `embed` for each sequence, in the order of the input; of another ``product``,
            what the method of this name gives for it.

        Raises
        ------
        InputError
            If ``product`` is none, or ``layers`` or ``over`` means nothing for it, at once; if a
            sequence is wrong, when its turn comes: what was yielded before remains valid.
        TypeError
            If ``sequences`` is neither an iterator nor a container of sequences.
        CheckpointError, OutOfMemoryError, NumericalError, ForkedProcessError, CacheVersionError
            As the method.
        EndpointError
            As `embed`.

        Examples
        --------
        >>> from esm2_features import Engine
        >>> engine = Engine("mini", cache=None)
        >>> fragments = ("MKTAYIAKQR"[:n] for n in (4, 7, 10))
        >>> [array.shape for array in engine.stream(fragments, "residues")]
        [(4, 192), (7, 192), (10, 192)]
        """
        # Not a generator itself, so that what is no container is refused here and now.
        one_of("product", product, PRODUCTS)
        extractor = self._extractor(product, layers, over)
        remaining = sequences if isinstance(sequences, Iterator) else iter(only_column(sequences))
        return self._stream(remaining, product, extractor)

    def _stream(
        self, remaining: Iterator[object], product: str, extractor: Extractor | None
    ) -> Iterator[Any]:
        cuts = TruncationCounter()
        at_a_time = {
            "embedding": self._rows_at_a_time,
            "predict_masked": _STREAM_MASKED,  # each mask is a row of its own
        }.get(product, _STREAM_SEQUENCES)
        while some := list(islice(remaining, at_a_time)):
            rows = range(cuts.seen, cuts.seen + len(some))
            found = self._normalise(some, rows=rows, cuts=cuts)
            if product == "embedding":
                yield from self._embed_normalised(self._views(found, rows=rows), rows=rows)
            elif extractor is None:
                yield from self._masked(found, rows)
            else:
                yield from self._in_portions(product, found, rows, extractor)
        cuts.say(self.max_residues)

    def _embed_normalised(
        self,
        views: Sequence[str | None],
        *,
        fill: float = np.nan,
        rows: Sequence[int] | None = None,
    ) -> NDArray[np.float32]:
        """Compute features of what `_views` has given."""
        is_part = np.array(["@" in view for view in views if view is not None], bool)
        if not is_part.any():
            return self._vectors(views, self._computed, fill, rows)
        _check_special_tokens(self.poolings)
        of_parts = [column for column in self._computed if column[1] not in SPECIAL_TOKENS]
        if is_part.all() or of_parts == self._computed:
            return self._vectors(views, of_parts, fill, rows)
        # More is kept of whole sequences than of parts: whole ones first, and then all.
        whole = [None if view and "@" in view else view for view in views]
        self._vectors(whole, self._computed, fill, rows)
        return self._vectors(views, of_parts, fill, rows)

    def _precompute_normalised(
        self, views: Sequence[str], *, rows: Sequence[int] | None = None
    ) -> None:
        """Fill the cache with the features of what `_views` has given."""
        if self.cache is None:
            raise InputError("Got cache=None, so there is nothing to be filled. Choose a cache.")
        for start in range(0, len(views), self._rows_at_a_time):
            some = slice(start, start + self._rows_at_a_time)
            self._embed_normalised(views[some], rows=None if rows is None else rows[some])

    def _vectors(
        self,
        views: Sequence[str | None],
        computed: list[tuple[int, str]],
        fill: float,
        rows: Sequence[int] | None,
    ) -> NDArray[np.float32]:
        dim = self.checkpoint.architecture.dim
        found = self._rows(
            views,
            partial(_vectors_extractor, computed, dim, self.cache_dtype),
            wanted=self._wanted,
            computed=computed,
            width=dim,
            dtype=self.cache_dtype,
            fill=fill,
            numbers=rows,
        )
        return found.reshape(len(views), len(self._wanted) * dim)

    @property
    def _rows_at_a_time(self) -> int:
        """Sequences whose features are held in memory at a time."""
        row_bytes = 4 * len(self._wanted) * self.checkpoint.architecture.dim
        return max(1, min(_STREAM_SEQUENCES, _STREAM_BYTES // row_bytes))


for _method in (
    Engine.residues,
    Engine.logits,
    Engine.log_probs,
    Engine.predict_masked,
    Engine.contacts,
    Engine.attentions,
):
    # Errors of Python, pickles and tools for documentation name a method by these two.
    _method.__module__, _method.__qualname__ = __name__, f"Engine.{_method.__name__}"


def _vectors_extractor(columns: Sequence[tuple[int, str]], dim: int, dtype: str) -> Extractor:
    from esm2_features._inference.extractors import PooledVectors

    return PooledVectors(tuple(columns), dim, dtype)


def _check_special_tokens(poolings: Sequence[str]) -> None:
    odd = [word for word in poolings if word in SPECIAL_TOKENS]
    if odd:
        raise InputError(
            f"Got pooling={odd[0]!r} with a region: the special tokens belong to the whole "
            'sequence. Pool a region by "mean", "max", "std" or "parti".'
        )
