"""`ESM2Transformer`: the engine as a scikit-learn transformer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

from esm2_features._cache import Cache
from esm2_features._checkpoints.catalogue import DEFAULT_MODEL
from esm2_features._engine import Engine
from esm2_features._inference.remote.endpoint import Token
from esm2_features._inputs.chains import LINKER_LENGTH, check_join, join_chains
from esm2_features._inputs.containers import Column
from esm2_features._inputs.options import PARTIAL_POOLINGS, SPECIAL_TOKENS
from esm2_features._inputs.policy import TruncationCounter, missing_rows
from esm2_features._inputs.regions import read_region, warn_of_pairs
from esm2_features._inputs.views import Spans
from esm2_features._sklearn.model import EmbeddingTransformer
from esm2_features.exceptions import InputError


class ESM2Transformer(EmbeddingTransformer):
    """Turn protein sequences into ESM-2 embeddings.

    The transformer learns nothing: `fit` checks, `transform` works without it. Weights are
    loaded when a vector is first missing from the cache, once per process, and are never
    part of the estimator or its pickle. With ``endpoint``, a server computes instead.

    Parameters
    ----------
    model : str or path, default="esm2_t33_650M_UR50D"
        Official name (see `available_models`) or its size (``"650M"``), ``"mini"`` (the small
        demonstration model that ships with this library; not for science), the path of a
        checkpoint (a file of fair-esm, torch, Lightning or safetensors, or a folder of
        transformers or peft), or a repository of the Hugging Face hub (``"owner/name"``).
    chains : list of str or int, or None, default=None
        Columns of X that hold sequences, by their names or their numbers from 0; the others are
        left out (but for that of the regions). None takes all columns, and raises an error if one
        of them looks like labels (``"train"``, ``"human"``, chain ids, identifiers): name it here
        if it holds sequences all the same.
    layers : int, list of int or "all", default=-1
        Representations to give. 0 is the embedding, negatives count from the end; only the
        last one has the final norm. Several are concatenated.
    pooling : str, list of str or "all", default="mean"
        How the residues of a sequence become one vector: ``"mean"``, ``"max"`` or ``"std"``
        (of the population) over the residues, without the special tokens; or the
        representation of the special token ``"cls"`` or ``"eos"``. ``"parti"`` is the mean
        weighted by how much attention each residue gets (PageRank over the attention maps);
        it costs the maps of all layers (on a CPU, a tenth more time for peptides, up to a half
        for 300 residues, nearly 3 times for 1000), so ``"all"`` leaves it out. Several are
        concatenated.
    region : (start, stop), str or None, default=None
        Residues to pool over; the network sees the whole sequence all the same. ``(start,
        stop)`` is the part ``sequence[start:stop]`` of every sequence, counted from 0;
        ``"26:33,50:58"`` is several parts. Any other str is the name of a column of X that gives
        each row its own (see Notes). Not for ``"cls"`` and ``"eos"``.
    join : {"concatenate", "linker", "linker-per-chain"}, default="concatenate"
        What the chains of a row become. ``"concatenate"``: each goes through the network by
        itself, and their vectors are concatenated. ``"linker"``: they go through it together,
        as one sequence with linkers of glycine in between, and are pooled into one vector,
        without the linkers. ``"linker-per-chain"``: the same, with one vector for each chain.
        A linker goes with neither ``region`` nor ``"cls"`` and ``"eos"``.
    linker_length : int, default=25
        Number of glycines between two chains that are joined; 0 joins them directly. It means
        nothing, and is refused, for chains that are not joined: a search over both is a list of
        two grids.
    precision : {"float32", "bfloat16", "float16"}, default="float32"
        Arithmetic of the products. Half precision is faster on hardware that has it, which
        is cards, and few CPUs (a warning tells). On a
        trained network of 8M parameters, the error was 2 % of the spread of single mutants of
        one protein in float16 and 15 % in bfloat16: prefer float16.
    device : str or list of str, default="auto"
        ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``. Several
        in a list share the work, with a copy of the network on each; ``"all"`` is every CUDA card.
    batch_tokens : int or "auto", default="auto"
        Tokens (residues + 2 per sequence) computed at a time, which workers on a CPU divide. It
        changes speed and memory, and no result.
    max_residues : int or None, default=1022
        Longest sequence that is allowed. ESM-2 was trained on up to 1022 residues. None
        allows any length; memory for a long one grows faster than its length. With a linker,
        it is the joined sequence that is measured.
    too_long : {"raise", "truncate", "window"}, default="raise"
        What to do with longer ones. ``"truncate"`` keeps the first ``max_residues`` and warns.
        ``"window"`` runs windows of ``max_residues`` that overlap by a quarter or more, and
        averages what a residue is in several of them, with weights that fall off towards the
        edges of a window, before it pools over the whole sequence.
    unknown : {"raise", "X", "mask"}, default="raise"
        What to do with J, an inner ``*`` and ``?``, which stand for residues that ESM-2 does not
        know: refuse them, read them as X, or as ``<mask>``. Other characters are always refused.
    on_missing : {"raise", "nan", "zero"}, default="raise"
        What to do with missing values (None, NaN, words such as ``"NA"`` or ``"missing"``), be
        they sequences or regions: refuse them, or give NaN or 0 in place of their vectors. With a
        linker, a row in which a chain is missing has no vector at all, because the molecule is not
        complete.
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
    endpoint : str or None, default=None
        Address of a server (``esm2-features serve``), such as ``"http://host:8000"``, that computes
        the vectors which are not in the cache, instead of a network in this process: the same
        numbers to float32's rounding, under the same keys. ``model`` is then an official name or
        ``"mini"``, the server chooses the device, and ``batch_tokens`` is what a request holds.
        It must have the same weights and ``precision``, which it states. Other servers of the
        hosted API state neither: their vectors are cached apart, under the server's address.
    token : str or None, default=None
        Token for the server. None is what the environment variable ``ESM2_FEATURES_TOKEN`` holds,
        which is the better place: a token that is given here is hidden in everything that is
        printed, and no pickle takes it along, so other processes (``n_jobs``) do not have it.

    Attributes
    ----------
    n_features_in_ : int
        Number of columns (chains, and that of the regions) seen during `fit`.
    feature_names_in_ : ndarray of shape (n_features_in_,), object
        Their names, if all of them have one.
    peptide_sizes_ : list of frozenset of int
        For each column, the lengths (2, 3) at which words such as ``"NA"`` are peptides in it.

    See Also
    --------
    Engine : The same without scikit-learn.
    ESM2LikelihoodTransformer : How likely a sequence is, instead of what it is like.

    Notes
    -----
    White space around a sequence and one trailing ``*`` are removed, lower case is accepted, and
    so are blocks of ten with spaces between them. Words for a missing value (NA, NaN, NULL, N/A,
    missing, unknown, ``-`` and the like) are missing values. In capitals, NA or NAN is a peptide
    where the column holds others of two or three residues, and so is ``"NA*"`` everywhere; what
    `fit` decides of a column holds in `transform`.

    A frame of several columns is several chains of one molecule; see ``join``.

    A column of regions stands beside one column of sequences. Its cells are

    - an int: one position;
    - a tuple ``(start, stop)``: the residues from ``start`` to before ``stop``;
    - a list or array of int: positions, such as those of all mutations;
    - text: ``"26:33"``, ``"26:33,50:58"`` or ``"7"``.

    Positions count from 0, so residue 1 of a paper is position 0. Polars, Arrow and Parquet
    have no tuples and make lists of them, which are positions: write slices as text there.

    References
    ----------
    Lin et al., "Evolutionary-scale prediction of atomic-level protein structure with a
    language model", Science 379 (2023) 1123-1130: the models, and linkers of 25 glycines.

    ``scripts/extract.py`` of fair-esm: ``pooling="mean"``, and that special tokens are not in it.

    Tartici et al., Bioinformatics 41 (2025) btaf330: ``pooling="parti"``.

    Examples
    --------
    >>> from esm2_features import ESM2Transformer
    >>> embedding = ESM2Transformer("mini", cache=None).fit_transform(["MKTAYIAKQR", "GSHM"])
    >>> embedding.shape, embedding.dtype
    ((2, 192), dtype('float32'))

    The surroundings of each row's own mutation, and two chains that see each other:

    >>> import pandas as pd
    >>> X = pd.DataFrame({"seq": ["MKTAYIAKQR", "MKTAYIGKQR"], "site": ["4:9", "4:9"]})
    >>> ESM2Transformer("mini", cache=None, region="site").fit_transform(X).shape
    (2, 192)
    >>> pair = pd.DataFrame({"heavy": ["MKTAYIAKQR"], "light": ["GSHM"]})
    >>> ESM2Transformer("mini", cache=None, join="linker").fit_transform(pair).shape
    (1, 192)
    """

    __module__ = "esm2_features"

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        *,
        chains: Sequence[str | int] | None = None,
        layers: int | Sequence[int] | Literal["all"] = -1,
        pooling: str | Sequence[str] = "mean",
        region: tuple[int, int] | str | None = None,
        join: Literal["concatenate", "linker", "linker-per-chain"] = "concatenate",
        linker_length: int = LINKER_LENGTH,
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
        self.layers = layers
        self.pooling = pooling
        self.region = region
        self.join = join
        self.linker_length = linker_length
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
        parameters = self._engine_parameters(changed, ("join", "linker_length"))
        if (self.join, self.linker_length) != ("concatenate", LINKER_LENGTH):
            check_join(self.join, self.linker_length, region=self.region, too_long=self.too_long)
        if self.join == "concatenate" and self.region is None:
            return Engine(**parameters)
        if self._region_column is not None:
            parameters["region"] = None  # each row has its own
        if isinstance(parameters["pooling"], str) and parameters["pooling"] == "all":
            parameters["pooling"] = PARTIAL_POOLINGS
        engine = Engine(**parameters)
        special = [word for word in engine.poolings if word in SPECIAL_TOKENS]
        if special:
            option = "region" if self.join == "concatenate" else "join"
            raise InputError(
                f"Got pooling={parameters['pooling']!r} with {option}={getattr(self, option)!r}, "
                f'which pools over residues; the special token "{special[0]}" is none. Leave it '
                "out."
            )
        return engine

    def _views(
        self, engine: Engine, chains: Sequence[Column], truncations: TruncationCounter
    ) -> list[str | None]:
        policy = engine.policy
        if self.join != "concatenate":
            joined, regions = join_chains(
                policy.normalise_chains(chains, self.on_missing, truncations),
                len(chains),
                linker_length=self.linker_length,
                per_chain=self.join == "linker-per-chain",
                longest=engine.max_residues if self.too_long == "raise" else None,
            )
            return policy.views(joined, regions=regions)
        if len(chains) > 1 and self._region_column is not None:
            sequence, region = sorted(chains, key=lambda column: column.name == self.region)
            sequences = policy.normalise_chains([sequence], self.on_missing, truncations)
            return policy.views(sequences, regions=self._regions(sequences, region))
        sequences = policy.normalise_chains(chains, self.on_missing, truncations)
        if len(chains) == 1:
            return policy.views(sequences)
        views: list[str | None] = [None] * len(sequences)
        for i, chain in enumerate(chains):
            of_chain = sequences[i :: len(chains)]
            views[i :: len(chains)] = policy.views(of_chain, column=chain.name)
        return views

    def _regions(self, sequences: list[str | None], column: Column) -> list[Spans | None]:
        """Read each row's region; the sequences of rows without one become None."""
        for row in missing_rows(column, on_missing=self.on_missing, what="region"):
            sequences[row] = None
        warn_of_pairs(column.values, column.name)
        return [
            None
            if sequence is None
            else read_region(value, length=len(sequence), index=row, column=column.name)
            for row, (sequence, value) in enumerate(zip(sequences, column.values, strict=True))
        ]

    def _chains_out(self, chains: list[str]) -> list[str]:
        if self.join == "linker":
            return chains[:1]
        return [chain for chain in chains if chain != self.region]
