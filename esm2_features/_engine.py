"""`Engine`: everything that ESM-2 says of sequences, as arrays.

What a method gives is read off one forward pass by a reader (`_readers`), over which `Run` goes;
here stands what may be asked for, and what of.

Never here: scikit-learn, pandas, HTTP, file formats.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from esm2_features._alphabet import CANONICAL_TOKENS, MASK, TOKENS
from esm2_features._cache import Cache, open_cache
from esm2_features._catalogue import DEFAULT_MODEL
from esm2_features._checkpoint import open_checkpoint
from esm2_features._intake import Intake
from esm2_features._options import (
    CACHE_DTYPES,
    EVERY_POOLING,
    PARTIAL_POOLINGS,
    POOLINGS,
    PRECISIONS,
    SPECIAL_TOKENS,
    STORES,
    absolute_layers,
    device_name,
    names,
    one_of,
    positive,
)
from esm2_features._products import CACHED, PRODUCTS, MaskedResidues, reader_of, refuse_given
from esm2_features._regions import read_region
from esm2_features._residues import Cuts
from esm2_features._run import Run
from esm2_features._sequences import columns
from esm2_features.exceptions import InputError

if TYPE_CHECKING:
    from esm2_features._readers import Reader

_STREAM_SEQUENCES, _STREAM_BYTES = 4096, 1 << 28
"""Sequences that `Engine.stream` holds at a time, and bytes of their results."""


class Engine(Intake, Run):
    """Compute features of protein sequences with ESM-2.

    It does what `ESM2Transformer` does, without scikit-learn: strings in, an array out.

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
        importance (PageRank over the attention maps, Tartici et al. 2025); the maps cost time
        and memory that grow with the square of the length, so "all" does not mean it.
    region : (int, int), optional
        Pool over the residues from the first to before the second, counted from 0, as
        ``sequence[start:stop]`` does, with the whole sequence as their context. "all" poolings
        are then those that are not of special tokens.
    precision : {"float32", "bfloat16", "float16"}, default="float32"
        Arithmetic of the products. On random weights, the error of bfloat16 is 20 to 34 % of
        the differences between single mutants of one protein; that of float32 is 8e-6.
    device : str, default="auto"
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
    batch_tokens : int or "auto", default="auto"
        Tokens (residues + 2) per forward pass. It changes speed and memory, no number.
    max_residues : int or None, default=1022
        Longest sequence allowed; ESM-2 was trained on up to 1022 residues. None allows any.
    too_long : {"raise", "truncate", "window"}, default="raise"
        What to do with longer ones. ``"truncate"`` keeps the first ``max_residues``;
        ``"window"`` runs windows of ``max_residues`` that overlap by a quarter or more, and
        averages what they say of a residue, with weights that fall off towards their edges.
    unknown : {"raise", "X", "mask"}, default="raise"
        What to do with letters outside the 20 amino acids and X, B, U, Z, O.
    cache : "auto", None, path or Cache, default="auto"
        Where vectors are kept; None keeps none.
    cache_dtype : {"float32", "float16"}, default="float32"
        What they are kept in. ``"float16"`` halves the cache and rounds the features, whether
        they come from the cache or not, to about 3 digits.
    store : {"requested", "all"}, default="requested"
        What is kept of a sequence that is computed: the layers and poolings that were asked for,
        or all that this model has, at once.
    verbose : bool, default=False
        Show progress on a terminal.

    Attributes
    ----------
    n_computed : int
        Number of sequences that have gone through the network: the others were in the cache,
        came from another process, or were given twice.

    Raises
    ------
    InputError, TypeError
        If a parameter has a value that it cannot have.
    CheckpointError
        If ``model`` is not a name that is known, nor a checkpoint.

    Examples
    --------
    >>> from esm2_features import Engine
    >>> Engine("mini", cache=None).embed(["MKTAYIAKQR", "GSHMVLSEGE"]).shape
    (2, 192)
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        *,
        layers: int | Sequence[int] | Literal["all"] = -1,
        pooling: str | Sequence[str] = "mean",
        region: tuple[int, int] | None = None,
        precision: str = "float32",
        device: str = "auto",
        batch_tokens: int | Literal["auto"] = "auto",
        max_residues: int | None = 1022,
        too_long: Literal["raise", "truncate", "window"] = "raise",
        unknown: Literal["raise", "X", "mask"] = "raise",
        cache: str | os.PathLike[str] | Cache | None = "auto",
        cache_dtype: Literal["float32", "float16"] = "float32",
        store: Literal["requested", "all"] = "requested",
        verbose: bool = False,
    ) -> None:
        Intake.__init__(
            self, max_residues=max_residues, too_long=too_long, unknown=unknown, region=region
        )
        Run.__init__(
            self,
            open_checkpoint(model),
            precision=one_of("precision", precision, PRECISIONS),
            device=device_name(device),
            batch_tokens=None if batch_tokens == "auto" else positive("batch_tokens", batch_tokens),
            cache=open_cache(cache),
            verbose=bool(verbose),
        )
        depth = self.checkpoint.architecture.layers
        self.layers = absolute_layers(layers, depth=depth, model=self.checkpoint.name)
        self._one_or_more_layers = layers
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
            _refuse_special_tokens(self.poolings)
        if self.too_long == "window" and "parti" in self.poolings:
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

    # ------------------------------------------------------------------ vectors

    @property
    def feature_names(self) -> list[str]:
        """Name of each column of `embed`: model, layer, pooling and component."""
        return [
            f"{self.checkpoint.name}_L{layer}_{pooling}_{i}"
            for layer, pooling in self._wanted
            for i in range(self.checkpoint.architecture.dim)
        ]

    def embed(
        self, sequences: object, *, regions: Sequence[object] | None = None
    ) -> NDArray[np.float32]:
        """Compute one row of features for each sequence.

        Parameters
        ----------
        sequences : list of str, or one column of an array, Series, frame or table
            Or of objects with a ``.seq``, such as Biopython's records.
        regions : sequence of length n, optional
            Residues of each sequence to pool over, counted from 0, instead of the same region
            for all: a position, a tuple (start, stop), a list of positions, text such as
            ``"26:33,50:58"``, or None for all residues.

        Returns
        -------
        features : ndarray of shape (n, layers x poolings x dim), float32
            In the order of the input.

        Raises
        ------
        InvalidSequenceError, MissingSequenceError, SequenceTooLongError, InvalidRegionError
            With the row, the position and the offending value.
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
        TypeError
            If it is not a container of sequences.
        """
        found = self._read(sequences)
        spans = None
        if regions is not None:
            if len(regions) != len(found):
                raise InputError(
                    f"Got {len(regions)} regions for {len(found)} sequences; pass one for each."
                )
            spans = [
                () if region is None else read_region(region, length=len(sequence), index=row)
                for row, (region, sequence) in enumerate(zip(regions, found, strict=True))
            ]
        return self.embed_normalised(self.subjects(found, regions=spans))

    # ------------------------------------------------------------------ residue by residue

    def residues(
        self, sequences: object, *, layers: int | Sequence[int] | Literal["all"] | None = None
    ) -> list[Any]:
        """Give the representation of every residue.

        Parameters
        ----------
        sequences : as in `embed`
        layers : int, list of int, "all" or None, default=None
            Which representations; by default the engine's own ``layers``, the last one if it was
            told nothing.

        Returns
        -------
        residues : list of ndarray of shape (L, dim), float32
            Without special tokens, in the order of the input. With several layers, a list of
            dicts, from the layer's number to such an array.

        Raises
        ------
        As `embed`.
        """
        return self._products("residues", sequences, layers=layers)

    def logits(self, sequences: object) -> list[NDArray[np.float32]]:
        """Give the raw scores of all tokens at every residue.

        Parameters
        ----------
        sequences : as in `embed`
            ``<mask>`` may stand for a residue.

        Returns
        -------
        logits : list of ndarray of shape (L, 33), float32
            In the order of ESM-2's alphabet: ``<cls> <pad> <eos> <unk>``, the residues
            ``LAGVSERTIDPKQNFYMHWCXBUZO``, ``. - <null_1> <mask>``.

        Raises
        ------
        CheckpointError
            If the checkpoint holds no language-model head.
        Others as `embed`.
        """
        return self._products("logits", sequences)

    def log_probs(
        self, sequences: object, *, over: Literal["residues", "tokens"] = "residues"
    ) -> list[NDArray[np.float32]]:
        """Give natural-log probabilities at every residue, none of which is masked for it.

        Parameters
        ----------
        sequences : as in `embed`
            ``<mask>`` may stand for a residue.
        over : {"residues", "tokens"}, default="residues"
            The 20 canonical residues, whose probabilities then sum to 1; or all 33 tokens.

        Returns
        -------
        log_probs : list of ndarray of shape (L, 20) or (L, 33), float32
            Residues in the order ``ACDEFGHIKLMNPQRSTVWY``; tokens in that of `logits`.

        Raises
        ------
        As `logits`.
        """
        return self._products("log_probs", sequences, over=over)

    def predict_masked(self, sequences: object) -> list[MaskedResidues]:
        """Predict what stands at masked positions.

        Parameters
        ----------
        sequences : as in `embed`
            Each holds ``<mask>`` at least once.

        Returns
        -------
        predictions : list of (positions, probabilities)
            Positions of shape (n_masks,), counted from 0; probabilities of shape (n_masks, 20),
            float32, of the residues ``ACDEFGHIKLMNPQRSTVWY``. They are cached.

        Raises
        ------
        InputError
            If a sequence holds no mask.
        Others as `logits`.
        """
        return self._products("predict_masked", sequences)

    def contacts(self, sequences: object) -> list[NDArray[np.float32]]:
        """Predict which residues are in contact (C-beta atoms within 8 angstroms).

        Parameters
        ----------
        sequences : as in `embed`

        Returns
        -------
        contacts : list of ndarray of shape (L, L), float32
            Probabilities; symmetric up to rounding. As trained, they mean residues that are at
            least 6 apart in the sequence.

        Raises
        ------
        CheckpointError
            If the checkpoint has no contact regression.
        SequenceTooLongError
            If a sequence is longer than ``max_residues``, whatever ``too_long="window"`` says:
            residues of different windows do not attend to each other.
        Others as `embed`.

        References
        ----------
        Rao et al., "Transformer protein language models are unsupervised structure learners",
        ICLR 2021.
        """
        return self._products("contacts", sequences)

    def attentions(
        self, sequences: object, *, layers: int | Sequence[int] | Literal["all"] | None = None
    ) -> list[NDArray[np.float32]]:
        """Give the attention maps.

        Parameters
        ----------
        sequences : as in `embed`
        layers : int, list of int, "all" or None, default=None
            Blocks, from 1: the maps of block k lead to representation k. All by default.

        Returns
        -------
        attentions : list of ndarray of shape (layers, heads, L + 2, L + 2), float32
            With ``<cls>`` first and ``<eos>`` last; rows attend to columns, and sum to 1.

        Raises
        ------
        As `contacts`, which needs nothing of the checkpoint here.
        """
        return self._products("attentions", sequences, layers=layers)

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
        sequences : iterator, or a container as in `embed`
            Read as it is needed, a few thousand sequences ahead at most.
        product : str, default="embedding"
            ``"embedding"`` for the rows of `embed`, or the name of another method:
            ``"residues"``, ``"logits"``, ``"log_probs"``, ``"predict_masked"``, ``"contacts"``,
            ``"attentions"``.
        layers : optional
            As in `residues` and `attentions`, for these two.
        over : optional
            As in `log_probs`, for this one.

        Yields
        ------
        result
            What the method gives for one sequence, in the order of the input; for
            ``"embedding"``, an ndarray of shape (layers x poolings x dim,), float32.

        Raises
        ------
        As the method; what was yielded before remains valid.
        """
        # Not a generator itself, so that what is no container is refused here and now.
        one_of("product", product, PRODUCTS)
        reader = self._reader(product, layers, over)
        remaining = sequences if isinstance(sequences, Iterator) else iter(_only_column(sequences))
        return self._stream(remaining, product, reader)

    def _stream(
        self, remaining: Iterator[object], product: str, reader: Reader | None
    ) -> Iterator[Any]:
        cuts = Cuts()
        at_a_time = self._rows_at_a_time if product == "embedding" else _STREAM_SEQUENCES
        while some := list(islice(remaining, at_a_time)):
            rows = range(cuts.seen, cuts.seen + len(some))
            found = self.normalise(some, rows=rows, cuts=cuts)
            if product == "embedding":
                yield from self.embed_normalised(self.subjects(found, rows=rows))
            elif reader is None:
                yield from self._masked(found, rows)
            else:
                yield from self._in_portions(product, found, rows, reader)
        cuts.say(self.max_residues)

    def _in_portions(
        self, product: str, sequences: Sequence[str], rows: Sequence[int], reader: Reader
    ) -> Iterator[Any]:
        """Give results of as many sequences at a time as memory holds."""
        subjects = self._whole(product, sequences, rows)
        portion: list[str] = []
        size = 0
        for subject, sequence in zip(subjects, sequences, strict=True):
            more = reader.bytes(len(sequence))
            if portion and size + more > _STREAM_BYTES:
                yield from self.results(portion, reader)
                portion, size = [], 0
            portion.append(subject)
            size += more
        yield from self.results(portion, reader)

    def _products(
        self, product: str, sequences: object, *, layers: object = None, over: object = None
    ) -> list[Any]:
        reader = self._reader(product, layers, over)
        found = self._read(sequences)
        if reader is None:
            return self._masked(found, range(len(found)))
        return self.results(self._whole(product, found, range(len(found))), reader)

    def _reader(self, product: str, layers: object, over: object) -> Reader | None:
        """Make the reader of what is not cached."""
        if product != "embedding" and self.region is not None:
            raise InputError(
                f"Got region={self.region!r}, which is for pooling: {product} are of every "
                "residue. Use an engine without a region, and take the part of the result."
            )
        if product in CACHED:
            refuse_given(product, layers=layers, over=over)
            return None
        if product == "residues" and layers is None:
            layers = self._one_or_more_layers
        return reader_of(product, self.checkpoint, layers=layers, over=over)

    def _whole(self, product: str, sequences: Sequence[str], rows: Sequence[int]) -> list[str]:
        """Subjects of whole sequences; in windows only where that has a meaning."""
        if product in ("contacts", "attentions"):
            self.refuse_windows(sequences, rows=rows, product=product)
        return [subject for subject in self.subjects(sequences) if subject is not None]

    def _masked(self, sequences: Sequence[str], rows: Sequence[int]) -> list[MaskedResidues]:
        positions = [
            np.flatnonzero(np.frombuffer(sequence.encode(), np.uint8) == ord(MASK))
            for sequence in sequences
        ]
        for row, at in zip(rows, positions, strict=True):
            if not len(at):
                raise InputError(
                    f"The sequence in row {row} holds no <mask>, so there is nothing to predict. "
                    "Put <mask> in the place of each residue that is asked for."
                )
        counts = [len(at) for at in positions]
        log_probs = self.log_probs_at(
            [sequence for sequence, n in zip(sequences, counts, strict=True) for _ in range(n)],
            np.concatenate(positions).tolist() if positions else [],
            masked=True,
        )[:, CANONICAL_TOKENS]
        probabilities = np.exp(log_probs - log_probs.max(1, keepdims=True))
        probabilities /= probabilities.sum(1, keepdims=True)
        parts = np.split(probabilities, np.cumsum(counts)[:-1]) if positions else []
        return [MaskedResidues(*pair) for pair in zip(positions, parts, strict=True)]

    # ------------------------------------------------------------------ what others build on

    def embed_normalised(
        self, subjects: Sequence[str | None], *, fill: float = np.nan
    ) -> NDArray[np.float32]:
        """Compute features of what `subjects` has given.

        Parameters
        ----------
        subjects : sequence of str or None
        fill : float, default=nan
            What the features of None are.

        Returns
        -------
        features : ndarray of shape (n, layers x poolings x dim), float32

        Raises
        ------
        CheckpointError, OutOfMemoryError, NumericalError, ForkedProcessError, CacheVersionError
            As `embed`.
        """
        computed = self._computed
        if any("@" in subject for subject in subjects if subject is not None):
            _refuse_special_tokens(self.poolings)
            computed = [column for column in computed if column[1] not in SPECIAL_TOKENS]
        dim = self.checkpoint.architecture.dim
        rows = self.rows(
            subjects,
            partial(_vectors, computed, dim, self.cache_dtype),
            wanted=self._wanted,
            computed=computed,
            width=dim,
            dtype=self.cache_dtype,
            fill=fill,
        )
        return rows.reshape(len(subjects), len(self._wanted) * dim)

    def precompute_normalised(self, subjects: Sequence[str]) -> None:
        """Fill the cache with the features of what `subjects` has given.

        Parameters
        ----------
        subjects : sequence of str

        Raises
        ------
        InputError
            If there is no cache.
        CheckpointError, OutOfMemoryError, NumericalError, ForkedProcessError, CacheVersionError
            As `embed`.
        """
        if self.cache is None:
            raise InputError("Got cache=None, so there is nothing to be filled. Choose a cache.")
        for start in range(0, len(subjects), self._rows_at_a_time):
            self.embed_normalised(subjects[start : start + self._rows_at_a_time])

    def log_probs_at(
        self, sequences: Sequence[str], positions: Sequence[int], *, masked: bool
    ) -> NDArray[np.float32]:
        """Give natural-log probabilities at one residue of each sequence, through the cache.

        Parameters
        ----------
        sequences : sequence of str
            As `normalise` gives them. Those of one sequence share a forward pass, unless masked.
        positions : sequence of int
            Counted from 0, one for each sequence.
        masked : bool
            Whether the residue is hidden behind ``<mask>``, so that it is its context that speaks.

        Returns
        -------
        log_probs : ndarray of shape (n, 33), float32
            Over all tokens, in the order of `logits`.

        Raises
        ------
        As `logits`.

        Notes
        -----
        With ``too_long="window"``, a masked residue of a longer sequence is seen in the window of
        ``max_residues`` around it; one that is not masked, in all windows that hold it.
        """
        depth = self.checkpoint.architecture.layers
        site = [(depth, "log_probs")]
        rows = self.rows(
            [
                self.site(sequence, position, masked=masked)
                for sequence, position in zip(sequences, positions, strict=True)
            ],
            _site_log_probs,
            wanted=site,
            computed=site,
            width=len(TOKENS),
        )
        return rows[:, 0]

    def _read(self, sequences: object) -> list[str]:
        if isinstance(sequences, (list, tuple)) and not sequences:
            return []
        return self.normalise(_only_column(sequences))

    @property
    def _rows_at_a_time(self) -> int:
        """Sequences whose features are held in memory at a time."""
        row_bytes = 4 * len(self._wanted) * self.checkpoint.architecture.dim
        return max(1, min(_STREAM_SEQUENCES, _STREAM_BYTES // row_bytes))


def _vectors(columns: Sequence[tuple[int, str]], dim: int, dtype: str) -> Reader:
    from esm2_features._readers import Vectors

    return Vectors(tuple(columns), dim, dtype)


def _site_log_probs() -> Reader:
    from esm2_features._readers import SiteLogProbs

    return SiteLogProbs()


def _refuse_special_tokens(poolings: Sequence[str]) -> None:
    odd = [word for word in poolings if word in SPECIAL_TOKENS]
    if odd:
        raise InputError(
            f"Got pooling={odd[0]!r} with a region: the special tokens belong to the whole "
            'sequence. Pool a region by "mean", "max", "std" or "parti".'
        )


def _only_column(sequences: object) -> list[object]:
    """Read a container that must be a single column: never the names of its columns."""
    found = columns(sequences, owner="Engine")
    if len(found) > 1:
        raise InputError(
            f"Engine takes one column of sequences, but got {len(found)}. Pass one of them, or use "
            "ESM2Transformer, which embeds several chains side by side."
        )
    return found[0].values
