"""`Engine`: everything that ESM-2 computes for sequences, as arrays."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from numbers import Integral
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from esm2_features._cache import Cache, open_cache
from esm2_features._checkpoints import Checkpoint, open_checkpoint
from esm2_features._checkpoints.catalogue import DEFAULT_MODEL
from esm2_features._inference.cache_session import Columns
from esm2_features._inference.local import LocalBackend
from esm2_features._inference.products import MaskedResidues, Products
from esm2_features._inference.remote.backend import RemoteBackend, check_remote
from esm2_features._inference.remote.endpoint import Token, read_endpoint
from esm2_features._inference.runner import Backend, Runner
from esm2_features._inputs import options
from esm2_features._inputs.policy import SequencePolicy


class Engine:
    """Compute features of protein sequences with ESM-2, without scikit-learn.

    Besides the vectors of `ESM2Transformer`, it computes what there is of every residue.

    Parameters
    ----------
    model : str or path, default="esm2_t33_650M_UR50D"
        As in `ESM2Transformer`.
    layers : int, list of int or "all", default=-1
        Representations to compute; 0 is the embedding, negatives count from the end.
    pooling : str, list of str or "all", default="mean"
        As in `ESM2Transformer`: ``"mean"``, ``"max"``, ``"std"``, ``"cls"``, ``"eos"``,
        ``"parti"``. Several are concatenated; "all" leaves out ``"parti"``, which costs time.
    region : (int, int) or str, optional
        Pool over ``sequence[start:stop]``, or over several parts (``"26:33,50:58"``), with the
        whole sequence as context. "all" poolings are then those that are not of special tokens.
    precision, device, batch_tokens, max_residues, too_long, unknown : optional
        As in `ESM2Transformer`.
    cache, cache_dtype, store, verbose : optional
        As in `ESM2Transformer`.
    endpoint, token : str or None, default=None
        As in `ESM2Transformer`. A server computes vectors only, for `embed` and `stream`.

    Attributes
    ----------
    checkpoint : Checkpoint
        The model: its ``name``, and its ``architecture`` with ``layers``, ``dim`` and ``heads``.
    layers, poolings : tuple of int, tuple of str
        What `embed` computes: representations, counted from 0, and the poolings of each.
    policy, runner, columns : SequencePolicy, Runner, Columns
        What the engine is made of: how sequences are checked, how features are computed, and
        which. Other parts of this library use them; they may change between versions.

    Raises
    ------
    InputError, TypeError
        If a parameter has a value that it cannot have.
    CheckpointError
        If ``model`` is neither a known name nor a checkpoint.

    See Also
    --------
    ESM2Transformer : The same as a step of a scikit-learn pipeline.

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
        region: tuple[int, int] | str | None = None,
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
        server = None
        if endpoint is not None or token is not None:
            server = read_endpoint(endpoint, token)
            model = check_remote(model, device)
        self.checkpoint: Checkpoint = open_checkpoint(model)
        self.cache = open_cache(cache)
        self.max_residues = (
            None if max_residues is None else options.positive("max_residues", max_residues)
        )
        self.too_long = options.one_of("too_long", too_long, options.TOO_LONG)
        self.unknown = options.one_of("unknown", unknown, options.UNKNOWN)
        self.region = options.fixed_region(region)
        self.precision = options.one_of("precision", precision, options.PRECISIONS)
        devices = options.device_names(device)
        self.device = devices[0] if len(devices) == 1 else list(devices)
        self.batch_tokens = (
            None if batch_tokens == "auto" else options.positive("batch_tokens", batch_tokens)
        )
        shape = self.checkpoint.architecture
        self.layers = options.absolute_layers(
            layers, depth=shape.layers, model=self.checkpoint.name
        )
        self.poolings = options.pooling_names(pooling, partial=self.region is not None)
        self.cache_dtype = options.one_of("cache_dtype", cache_dtype, options.CACHE_DTYPES)
        self.store = options.one_of("store", store, options.STORES)
        self.verbose = bool(verbose)
        options.check_cache_options(
            cache=self.cache, cache_dtype=self.cache_dtype, store=self.store
        )
        if self.region is not None:
            options.check_special_tokens(self.poolings)
        if self.too_long == "window" and self.max_residues is not None:
            options.check_windows(self.poolings)
        self.policy = SequencePolicy(self.max_residues, self.too_long, self.unknown, self.region)
        columns = options.column_lists(self.layers, self.poolings, shape.layers, self.store)
        self.columns = Columns(*columns, shape.dim, self.cache_dtype)
        arithmetic = self.precision, self.batch_tokens
        backend: Backend = LocalBackend(self.checkpoint, devices, *arithmetic)
        if server is not None:
            backend = RemoteBackend(server, self.checkpoint, *arithmetic)
        self.runner = Runner(self.checkpoint, backend, self.precision, self.cache, self.verbose)
        of_residues = layers if isinstance(layers, Integral) else self.layers
        self._products = Products(
            self.checkpoint, self.policy, self.runner, self.columns, of_residues
        )

    @property
    def n_computed(self) -> int:
        """Number of sequences that went through the network, int.

        The others were in the cache, came from another process, or were repeated in one call.
        """
        return self.runner.n_computed

    @property
    def feature_names(self) -> list[str]:
        """Names of the columns of `embed`, list of str: model, layer, pooling and component."""
        return [
            f"{self.checkpoint.name}_L{layer}_{pooling}_{i}"
            for layer, pooling in self.columns.wanted
            for i in range(self.columns.width)
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
            Residues of each sequence to pool over, counted from 0, instead of one region for all:
            a position, a tuple (start, stop), a list of positions, text such as ``"26:33,50:58"``,
            or None (or NaN) for all residues.

        Returns
        -------
        features : ndarray of shape (n, layers x poolings x dim), float32
            In the order of the input.

        Raises
        ------
        InputError, TypeError
            If a sequence or a region is wrong; the message names the row, the position, the
            offending value and the remedy. Also if there are several columns, or not as many
            regions as sequences.
        CheckpointError, OutOfMemoryError, NumericalError, ForkedProcessError
            If something is missing and cannot be computed; see ``esm2_features.exceptions``.
        CacheVersionError, EndpointError
            If the cache, or the server at ``endpoint``, is of another kind, or not to be had.

        Examples
        --------
        >>> from esm2_features import Engine
        >>> engine = Engine("mini", cache=None)
        >>> engine.embed(["MKTAYIAKQR", "GSHMVLSEGE"], regions=["2:6", None]).shape
        (2, 192)
        """
        views = self.policy.column_views(sequences, owner="Engine", regions=regions)
        return self.runner.embed(views, self.columns)

    def stream(
        self,
        sequences: object,
        product: str = "embedding",
        *,
        layers: int | Sequence[int] | Literal["all"] | None = None,
        over: Literal["residues", "tokens"] | None = None,
    ) -> Iterator[Any]:
        """Compute results one by one, for inputs or outputs that are larger than memory.

        Parameters
        ----------
        sequences : iterator of str, or a container as in `embed`
            Read as needed, at most a few thousand sequences ahead.
        product : str, default="embedding"
            ``"embedding"`` for the rows of `embed`, or the name of another method:
            ``"residues"``, ``"logits"``, ``"log_probs"``, ``"predict_masked"``, ``"contacts"``,
            ``"attentions"``.
        layers, over : optional
            As in `residues`, `attentions` and `log_probs`, for these products.

        Returns
        -------
        results : iterator of ndarray of shape (layers x poolings x dim,), float32
            A row of `embed` for each sequence, in the order of the input; of another ``product``,
            one result of its method.

        Raises
        ------
        InputError
            At once if ``product``, ``layers`` or ``over`` is wrong; for a wrong sequence, when its
            turn comes. Results that were yielded before stay valid.
        TypeError
            If ``sequences`` is neither an iterator nor a container of sequences.
        CheckpointError, OutOfMemoryError, NumericalError, ForkedProcessError
            As in `embed`; so are CacheVersionError and EndpointError.

        Examples
        --------
        >>> from esm2_features import Engine
        >>> engine = Engine("mini", cache=None)
        >>> fragments = ("MKTAYIAKQR"[:n] for n in (4, 7, 10))
        >>> [array.shape for array in engine.stream(fragments, "residues")]
        [(4, 192), (7, 192), (10, 192)]
        """
        return self._products.stream(product, sequences, layers=layers, over=over)

    def residues(
        self, sequences: object, *, layers: int | Sequence[int] | Literal["all"] | None = None
    ) -> list[Any]:
        """Compute the representation of every residue.

        Parameters
        ----------
        sequences : list of str, or one column of an array, Series, frame or table
            As in `embed`.
        layers : int, list of int, "all" or None, default=None
            Which representations; by default the engine's own ``layers``.

        Returns
        -------
        residues : list of ndarray of shape (L, dim), float32
            As fair-esm's ``extract.py --include per_tok``, without special tokens, for L residues.
            With several layers, a list of dicts from the layer's number to such an array.

        Raises
        ------
        InputError, TypeError, CheckpointError, OutOfMemoryError, NumericalError
            As in `embed`; also an InputError if ``layers`` is wrong.

        Examples
        --------
        >>> from esm2_features import Engine
        >>> engine = Engine("mini", cache=None)
        >>> [array.shape for array in engine.residues(["MKTAYIAKQR", "GSHM"])]
        [(10, 192), (4, 192)]
        >>> sorted(engine.residues(["GSHM"], layers=[3, -1])[0])
        [3, 6]
        """
        return self._products.compute("residues", sequences, layers=layers)

    def logits(self, sequences: object) -> list[NDArray[np.float32]]:
        """Compute the raw scores of all tokens at every residue.

        Parameters
        ----------
        sequences : list of str, or one column of an array, Series, frame or table
            As in `embed`; ``<mask>`` may stand for a residue.

        Returns
        -------
        logits : list of ndarray of shape (L, 33), float32
            In the order of ESM-2's alphabet: ``<cls> <pad> <eos> <unk>``, the residues
            ``LAGVSERTIDPKQNFYMHWCXBUZO``, ``. - <null_1> <mask>``.

        Raises
        ------
        CheckpointError
            If the checkpoint holds no language-model head.
        InputError, TypeError, OutOfMemoryError, NumericalError
            As in `embed`.

        Examples
        --------
        >>> from esm2_features import Engine
        >>> [array.shape for array in Engine("mini", cache=None).logits(["MKTAYIAKQR", "GSHM"])]
        [(10, 33), (4, 33)]
        """
        return self._products.compute("logits", sequences)

    def log_probs(
        self, sequences: object, *, over: Literal["residues", "tokens"] = "residues"
    ) -> list[NDArray[np.float32]]:
        """Compute natural-log probabilities at every residue, with nothing masked.

        Parameters
        ----------
        sequences : list of str, or one column of an array, Series, frame or table
            As in `embed`; ``<mask>`` may stand for a residue.
        over : {"residues", "tokens"}, default="residues"
            The 20 canonical residues, whose probabilities then sum to 1; or all 33 tokens.

        Returns
        -------
        log_probs : list of ndarray of shape (L, 20) or (L, 33), float32
            Residues in the order ``ACDEFGHIKLMNPQRSTVWY``; tokens in that of `logits`.

        Raises
        ------
        InputError, TypeError, CheckpointError, OutOfMemoryError, NumericalError
            As in `logits`; also an InputError if ``over`` is wrong.

        Examples
        --------
        >>> from esm2_features import Engine
        >>> [log_probs] = Engine("mini", cache=None).log_probs(["MKTAYIAKQR"])
        >>> log_probs.shape
        (10, 20)
        """
        return self._products.compute("log_probs", sequences, over=over)

    def predict_masked(self, sequences: object) -> list[MaskedResidues]:
        """Predict the residues at masked positions.

        Parameters
        ----------
        sequences : list of str, or one column of an array, Series, frame or table
            As in `embed`; each holds ``<mask>`` at least once.

        Returns
        -------
        predictions : list of MaskedResidues
            For each sequence, a named tuple of ``positions``, an ndarray of shape (n_masks,),
            intp, counted from 0, and ``probabilities``, an ndarray of shape (n_masks, 20),
            float32, of the residues ``ACDEFGHIKLMNPQRSTVWY``. They are cached.

        Raises
        ------
        InputError
            If a sequence holds no mask, or as in `embed`.
        TypeError, CheckpointError, OutOfMemoryError, NumericalError, CacheVersionError
            As in `logits` and `embed`.

        Examples
        --------
        >>> from esm2_features import Engine
        >>> [prediction] = Engine("mini", cache=None).predict_masked(["MKTAYIA<mask>QR"])
        >>> prediction.positions.tolist(), prediction.probabilities.shape
        ([7], (1, 20))
        """
        return self._products.compute("predict_masked", sequences)

    def contacts(self, sequences: object) -> list[NDArray[np.float32]]:
        """Predict which residues are in contact (C-beta atoms within 8 angstroms).

        Parameters
        ----------
        sequences : list of str, or one column of an array, Series, frame or table
            As in `embed`.

        Returns
        -------
        contacts : list of ndarray of shape (L, L), float32
            Probabilities; symmetric up to rounding. The regression was trained on residues that
            are at least 6 apart in the sequence.

        Raises
        ------
        CheckpointError
            If the checkpoint has no contact regression.
        SequenceTooLongError
            If a sequence is longer than ``max_residues``, also with ``too_long="window"``:
            residues of different windows do not attend to each other.
        InputError, TypeError, OutOfMemoryError, NumericalError
            As in `embed`.

        References
        ----------
        Rao et al., "Transformer protein language models are unsupervised structure learners",
        ICLR 2021: a logistic regression on the symmetrised, corrected attention maps.

        Examples
        --------
        >>> from esm2_features import Engine
        >>> engine = Engine("esm2_t6_8M_UR50D", cache=None)  # "mini" has no contact regression
        >>> engine.contacts(["MKTAYIAKQR"])[0].shape  # doctest: +SKIP
        (10, 10)
        """
        return self._products.compute("contacts", sequences)

    def attentions(
        self, sequences: object, *, layers: int | Sequence[int] | Literal["all"] | None = None
    ) -> list[NDArray[np.float32]]:
        """Compute the attention maps.

        Parameters
        ----------
        sequences : list of str, or one column of an array, Series, frame or table
            As in `embed`.
        layers : int, list of int, "all" or None, default=None
            Blocks, from 1: the maps of block k lead to representation k. All by default.

        Returns
        -------
        attentions : list of ndarray of shape (layers, heads, L + 2, L + 2), float32
            With ``<cls>`` first and ``<eos>`` last; rows attend to columns, and sum to 1.

        Raises
        ------
        SequenceTooLongError
            As in `contacts`.
        InputError, TypeError, CheckpointError, OutOfMemoryError, NumericalError
            As in `embed`; also an InputError if ``layers`` is wrong.

        Examples
        --------
        >>> from esm2_features import Engine
        >>> [maps] = Engine("mini", cache=None).attentions(["MKTAYIAKQR"], layers=[5, 6])
        >>> maps.shape  # 2 blocks, 6 heads
        (2, 6, 12, 12)
        """
        return self._products.compute("attentions", sequences, layers=layers)
