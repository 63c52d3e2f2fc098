"""The run: from sequences to vectors, through the cache or the network.

`Engine.embed_normalised` is the data flow of the whole library on one page.

Never here: scikit-learn, pandas, HTTP, file formats.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from esm2_features._cache import Cache, open_cache
from esm2_features._catalogue import DEFAULT_MODEL
from esm2_features._checkpoint import Checkpoint, open_checkpoint
from esm2_features._options import (
    CACHE_DTYPES,
    POOLINGS,
    PRECISIONS,
    STORES,
    absolute_layers,
    device_name,
    names,
    one_of,
    positive,
)
from esm2_features._plan import batches, dedupe, pack, spread
from esm2_features._registry import get_network
from esm2_features._residues import Cuts, are_normal, fit_length, normalise, warn_of_nucleotides
from esm2_features._sequences import columns
from esm2_features._spec import Spec
from esm2_features._storage import Storage
from esm2_features.exceptions import (
    CheckpointError,
    InputError,
    NumericalError,
    OutOfMemoryError,
)

if TYPE_CHECKING:
    from tqdm.std import tqdm

    from esm2_features._model import Network

_STREAM_SEQUENCES, _STREAM_BYTES = 4096, 1 << 28
"""Sequences that `Engine.stream` holds at a time, and bytes of their features."""

_BATCH_BYTES = 1 << 28
"""Bytes of vectors that come from one forward pass."""


class Engine:
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
        ``"eos"``. A list concatenates.
    precision : {"float32", "bfloat16", "float16"}, default="float32"
        Arithmetic of the products. On random weights, the error of bfloat16 is 20 to 34 % of
        the differences between single mutants of one protein; that of float32 is 8e-6.
    device : str, default="auto"
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
    batch_tokens : int or "auto", default="auto"
        Tokens (residues + 2) per forward pass. It changes speed and memory, no number.
    max_residues : int or None, default=1022
        Longest sequence allowed; ESM-2 was trained on up to 1022 residues. None allows any.
    too_long : {"raise", "truncate"}, default="raise"
        What to do with longer ones; ``"truncate"`` keeps the first ``max_residues``.
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
        Number of sequences that this engine has computed: the others were in the cache, came from
        another process, or were given twice.

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
        precision: str = "float32",
        device: str = "auto",
        batch_tokens: int | Literal["auto"] = "auto",
        max_residues: int | None = 1022,
        too_long: Literal["raise", "truncate"] = "raise",
        unknown: Literal["raise", "X", "mask"] = "raise",
        cache: str | os.PathLike[str] | Cache | None = "auto",
        cache_dtype: Literal["float32", "float16"] = "float32",
        store: Literal["requested", "all"] = "requested",
        verbose: bool = False,
    ) -> None:
        self.checkpoint: Checkpoint = open_checkpoint(model)
        depth = self.checkpoint.architecture.layers
        self.layers = absolute_layers(layers, depth=depth, model=self.checkpoint.name)
        wants_all = isinstance(pooling, str) and pooling == "all"
        self.poolings = POOLINGS if wants_all else names("pooling", pooling, POOLINGS)
        self.precision = one_of("precision", precision, PRECISIONS)
        self.device = device_name(device)
        self.batch_tokens = (
            None if batch_tokens == "auto" else positive("batch_tokens", batch_tokens)
        )
        self.max_residues = None if max_residues is None else positive("max_residues", max_residues)
        self.too_long = one_of("too_long", too_long, ("raise", "truncate"))
        self.unknown = one_of("unknown", unknown, ("raise", "X", "mask"))
        self.cache = open_cache(cache)
        self.cache_dtype = one_of("cache_dtype", cache_dtype, CACHE_DTYPES)
        self.store = one_of("store", store, STORES)
        if self.cache is None and (self.cache_dtype, self.store) != ("float32", "requested"):
            raise InputError(
                f"Got cache=None with cache_dtype={cache_dtype!r} and store={store!r}, which say "
                "how vectors are kept. Give them a cache, or leave these two options out."
            )
        self.verbose = bool(verbose)
        self.n_computed = 0
        self._wanted = [(layer, pooling) for layer in self.layers for pooling in self.poolings]
        self._computed = self._wanted
        if self.store == "all":
            self._computed = [(layer, word) for layer in range(depth + 1) for word in POOLINGS]
        self._picked = [self._computed.index(column) for column in self._wanted]

    @property
    def feature_names(self) -> list[str]:
        """Name of each column: model, layer, pooling and component."""
        return [
            f"{self.checkpoint.name}_L{layer}_{pooling}_{i}"
            for layer, pooling in self._wanted
            for i in range(self.checkpoint.architecture.dim)
        ]

    def embed(self, sequences: object) -> NDArray[np.float32]:
        """Compute one row of features for each sequence.

        Parameters
        ----------
        sequences : list of str, or one column of an array, Series, frame or table
            Or of objects with a ``.seq``, such as Biopython's records.

        Returns
        -------
        features : ndarray of shape (n, layers x poolings x dim), float32
            In the order of the input.

        Raises
        ------
        InvalidSequenceError, MissingSequenceError, SequenceTooLongError
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
        if isinstance(sequences, (list, tuple)) and not sequences:
            return self.embed_normalised([])
        return self.embed_normalised(self.normalise(_only_column(sequences)))

    def stream(self, sequences: object) -> Iterator[NDArray[np.float32]]:
        """Compute features of more sequences than fit into memory.

        Parameters
        ----------
        sequences : iterator, or a container as in `embed`
            Read as it is needed, a few thousand sequences ahead at most.

        Yields
        ------
        features : ndarray of shape (layers x poolings x dim,), float32
            One for each sequence, in the order of the input.

        Raises
        ------
        As `embed`; what was yielded before remains valid.
        """
        # Not a generator itself, so that what is no container is refused here and now.
        remaining = sequences if isinstance(sequences, Iterator) else iter(_only_column(sequences))
        return self._stream(remaining)

    def _stream(self, remaining: Iterator[object]) -> Iterator[NDArray[np.float32]]:
        cuts = Cuts()
        while window := list(islice(remaining, self._window_size)):
            rows = range(cuts.seen, cuts.seen + len(window))
            yield from self.embed_normalised(self.normalise(window, rows=rows, cuts=cuts))
        cuts.say(self.max_residues)

    def normalise(
        self,
        sequences: Iterable[object],
        *,
        rows: Iterable[int] | None = None,
        column: str | None = None,
        cuts: Cuts | None = None,
    ) -> list[str]:
        """Check sequences and bring them into the one form that is encoded and cached.

        Parameters
        ----------
        sequences : iterable of str
        rows : iterable of int, optional
            Row numbers for error messages, if they are not 0, 1, 2, ...
        column : str, optional
            Name of the column for error messages.
        cuts : Cuts, optional
            Counts the sequences that are cut, for a caller that has more of them and says so
            itself at the end.

        Returns
        -------
        sequences : list of str
            Upper case, one character per residue.

        Raises
        ------
        InvalidSequenceError, MissingSequenceError, SequenceTooLongError
        """
        values = list(sequences)
        numbers = list(range(len(values)) if rows is None else rows)
        if are_normal(values):
            residues = values
        else:
            residues = [
                normalise(value, index=row, unknown=self.unknown, column=column)
                for row, value in zip(numbers, values, strict=True)
            ]
        warn_of_nucleotides(residues, rows=numbers, column=column)
        counted = Cuts() if cuts is None else cuts
        fitting = fit_length(
            residues,
            max_residues=self.max_residues,
            too_long=self.too_long,
            cuts=counted,
            rows=numbers,
            column=column,
        )
        if cuts is None:
            counted.say(self.max_residues)
        return fitting

    def embed_normalised(
        self, sequences: Sequence[str | None], *, fill: float = np.nan
    ) -> NDArray[np.float32]:
        """Compute features of sequences that `normalise` has given.

        Parameters
        ----------
        sequences : sequence of str or None
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
        present = [sequence for sequence in sequences if sequence is not None]
        first, back = dedupe(present)
        unique = [present[i] for i in first]
        shape = (len(sequences), len(self._wanted), self.checkpoint.architecture.dim)
        features = np.empty(shape, np.float32)
        rows = features[: len(unique)]
        with self._storage(unique, rows) as storage:
            missing = storage.read(range(len(unique)))
            while missing:
                for batch, vectors in self._compute(unique, missing, storage):
                    rows[batch] = vectors[:, self._picked]
                    self.n_computed += len(batch)
                    storage.add(batch, vectors)
                missing = storage.settle()  # what other processes began, and did not end
        if len(unique) < len(sequences):
            is_present = np.array([sequence is not None for sequence in sequences], np.bool_)
            source = np.full(len(sequences), -1)
            source[is_present] = back
            spread(features, source, fill=fill)
        return features.reshape(len(sequences), shape[1] * shape[2])

    def precompute_normalised(self, sequences: Sequence[str]) -> None:
        """Fill the cache with the features of sequences that `normalise` has given.

        Parameters
        ----------
        sequences : sequence of str

        Raises
        ------
        InputError
            If there is no cache.
        CheckpointError, OutOfMemoryError, NumericalError, ForkedProcessError, CacheVersionError
            As `embed`.
        """
        if self.cache is None:
            raise InputError("Got cache=None, so there is nothing to be filled. Choose a cache.")
        for start in range(0, len(sequences), self._window_size):
            self.embed_normalised(sequences[start : start + self._window_size])

    @property
    def _window_size(self) -> int:
        """Sequences whose features are held in memory at a time."""
        row_bytes = 4 * len(self._wanted) * self.checkpoint.architecture.dim
        return max(1, min(_STREAM_SEQUENCES, _STREAM_BYTES // row_bytes))

    def _storage(self, sequences: Sequence[str], rows: NDArray[np.float32]) -> Storage:
        def specs(columns: Sequence[tuple[int, str]]) -> list[Spec]:
            if self.cache is None:
                return []  # the identity of the weights may cost a reading of their file
            identity, name = self.checkpoint.identity, self.checkpoint.name
            return [
                Spec(identity, layer, pooling, self.precision, self.cache_dtype, name)
                for layer, pooling in columns
            ]

        return Storage(
            self.cache,
            sequences,
            wanted=specs(self._wanted),
            stored=specs(self._computed),
            rows=rows,
        )

    def _compute(
        self, sequences: Sequence[str], missing: Sequence[int], storage: Storage
    ) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """Run the network over what is missing: a batch, and its (B, columns, dim) vectors.

        What other processes turn out to compute, or to have computed, is left out.
        """
        from esm2_features._devices import default_batch_tokens, is_out_of_memory, release_memory

        network = self._network_for([sequences[i] for i in missing])
        budget = self.batch_tokens or default_batch_tokens(network.device)
        row_bytes = 4 * len(self._computed) * self.checkpoint.architecture.dim
        most = max(1, _BATCH_BYTES // row_bytes)

        def planned(some: Sequence[int]) -> deque[list[int]]:
            plan = batches([len(sequences[i]) for i in some], budget)
            return deque(
                [some[k] for k in batch[start : start + most]]
                for batch in plan
                for start in range(0, len(batch), most)
            )

        def residues(some: Sequence[int]) -> int:
            return sum(len(sequences[i]) for i in some)

        pending = planned(missing)
        with self._progress(residues(missing)) as progress:
            while pending:
                offered = pending.popleft()
                batch = storage.take(offered)
                progress.update(residues(offered) - residues(batch))
                if not batch:
                    continue
                try:
                    vectors = self._forward(network, [sequences[i] for i in batch])
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    if len(batch) == 1:
                        raise _out_of_memory(residues(batch), str(network.device)) from error
                    vectors = None
                if vectors is None:
                    # Only here, after the error and its frames are gone, can memory be freed.
                    release_memory(network.device)
                    budget = (residues(batch) + 2 * len(batch)) // 2
                    pending = planned([*batch, *chain.from_iterable(pending)])
                    continue
                yield batch, vectors
                progress.update(residues(batch))

    def _forward(self, network: Network, sequences: Sequence[str]) -> NDArray[np.float32]:
        """One forward pass: (B, columns that are computed, dim), in the order of the sequences."""
        import torch

        from esm2_features._devices import exact_arithmetic
        from esm2_features._pool import pool_columns

        batch = pack(sequences)
        layers = sorted({layer for layer, _ in self._computed})
        with exact_arithmetic(network.device), torch.inference_mode():
            representations = network.representations(batch, layers)
            vectors = pool_columns(representations, batch.groups, self._computed)
        found: NDArray[np.float32] = vectors.cpu().numpy()
        if self.cache_dtype == "float16":
            with np.errstate(over="ignore"):  # infinities are reported below
                found = found.astype(np.float16).astype(np.float32)
        if not np.isfinite(found).all():
            raise _not_finite(sequences[int(np.argmin(np.isfinite(found).all((1, 2))))], self)
        return found

    def _network_for(self, sequences: Sequence[str]) -> Network:
        """Get the network; without its weights, say for which sequences it is needed."""
        try:
            return self._network()
        except CheckpointError as error:
            if self.cache is not None:
                columns = ", ".join(f"layer {at} {pooling}" for at, pooling in self._wanted[:3])
                columns += ", ..." if len(self._wanted) > 3 else ""
                first = sequences[0] if len(sequences[0]) <= 40 else f"{sequences[0][:37]}..."
                error.args = (
                    f"{len(sequences)} different sequences (such as {first!r}) lack vectors in the "
                    f"cache {self.cache.path} ({columns}, {self.precision}, kept in "
                    f"{self.cache_dtype}), and the weights to compute them cannot be had: {error} "
                    "Or compute them on a machine that has them, and take them in with "
                    "`esm2-features cache import`.",
                )
            raise

    def _network(self) -> Network:
        return get_network(self.checkpoint, device=self.device, precision=self.precision)

    def _progress(self, residues: int) -> tqdm[None]:
        from tqdm.auto import tqdm

        # disable=None draws on a terminal only, so log files stay clean.
        return tqdm(
            total=residues,
            desc=self.checkpoint.name,
            unit=" residues",
            unit_scale=True,
            disable=None if self.verbose else True,
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


def _not_finite(sequence: str, engine: Engine) -> NumericalError:
    kept = f", kept in {engine.cache_dtype}," if engine.cache_dtype != "float32" else ""
    return NumericalError(
        f"{engine.checkpoint.name} gave infinities or NaN in {engine.precision}{kept} for a "
        f"sequence of {len(sequence)} residues ({sequence[:40]!r}...). Nothing of its batch was "
        'cached. float16 overflows in some models: use precision="float32" or "bfloat16", and '
        'cache_dtype="float32"; in float32, the checkpoint is damaged.'
    )


def _out_of_memory(length: int, device: str) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"One sequence of {length} residues does not fit into the memory of {device}, alone in "
        "its batch. Everything computed before it is in the cache. Use a device with more memory "
        '(device="cpu", say), a smaller model, or a lower max_residues with too_long="truncate".',
        length=length,
        device=device,
    )
