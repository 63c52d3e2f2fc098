"""`residue_table`: one row for each residue, for tasks whose labels are of residues."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from numbers import Number
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esm2_features._checkpoints.catalogue import DEFAULT_MODEL
from esm2_features._engine import Engine
from esm2_features._inference.cache_session import Columns
from esm2_features._inputs.cells import is_missing
from esm2_features._inputs.containers import cells_of, labels_of, listed
from esm2_features._inputs.groups import group_cells
from esm2_features._inputs.policy import TruncationCounter
from esm2_features._inputs.rows import labelled, place_of
from esm2_features.exceptions import InputError, shorten

_SITES_AT_A_TIME, _BYTES_AT_A_TIME = 8192, 1 << 28
_SHOWN = 40


class ResidueTable(NamedTuple):
    """Features, labels and groups of residues, one row each, sequence after sequence.

    Attributes
    ----------
    X : ndarray of shape (n_residues, layers x dim), float32
        Representations of the residues.
    y : ndarray of shape (n_residues,) or None
        Their labels, text or numbers.
    groups : ndarray of shape (n_residues,)
        Groups of their sequences.
    sequence : ndarray of shape (n_residues,), intp
        Rows of their sequences in the input.
    position : ndarray of shape (n_residues,), intp
        Their positions in the sequences, counted from 0.
    lengths : ndarray of shape (n_sequences,), intp
        Number of residues of each sequence, also of those without a row in the table.
    """

    X: NDArray[np.float32]
    y: NDArray[Any] | None
    groups: NDArray[Any]
    sequence: NDArray[np.intp]
    position: NDArray[np.intp]
    lengths: NDArray[np.intp]

    def by_sequence(self, values: ArrayLike, fill: object = None) -> list[NDArray[Any]]:
        """Divide values of the residues, such as predictions, among their sequences.

        Parameters
        ----------
        values : array-like of shape (n_residues,) or (n_residues, k)
            One value, or k values, for each row of the table.
        fill : object, optional
            Value of residues that have no row in the table.

        Returns
        -------
        values : list of ndarray of shape (L,) or (L, k)
            For each sequence, the values of its L residues, of a dtype that holds ``values`` and
            ``fill``: object for text and numbers.

        Raises
        ------
        InputError
            If there are not as many values as rows, or a value is needed in place of residues that
            were left out.

        Examples
        --------
        >>> from esm2_features import Engine, residue_table
        >>> engine = Engine("mini", cache=None)
        >>> table = residue_table(["MKTAY", "GSH"], ["HHH-E", "EEE"], model=engine, ignore="-")
        >>> table.by_sequence(table.y, fill="-")[0].tolist()
        ['H', 'H', 'H', '-', 'E']
        """
        given, n = np.asarray(values), len(self.sequence)
        if not given.ndim or len(given) != n:
            raise InputError(
                f"Got values of shape {given.shape}, but the table has {n} rows. Pass one value "
                "for each row, such as model.predict(table.X)."
            )
        dtype, is_complete = given.dtype, n == self.lengths.sum()
        if not is_complete:
            if fill is None:
                raise InputError(
                    f"The table has rows of {n} residues of {self.lengths.sum()}. Pass the value "
                    'that the others get, such as fill="-" or fill=np.nan.'
                )
            of_fill = np.asarray(fill).dtype
            is_alike = (dtype.kind == "U") == (of_fill.kind == "U") and dtype.kind != "O"
            dtype = np.result_type(dtype, of_fill) if is_alike else np.dtype(object)
        starts = np.cumsum([0, *self.lengths])
        everything = np.empty((starts[-1], *given.shape[1:]), dtype)
        if not is_complete:
            everything[...] = fill
        everything[starts[self.sequence] + self.position] = given
        return np.split(everything, starts[1:-1]) if len(self.lengths) else []


ResidueTable.__module__ = "esm2_features"  # by which it is pickled


def residue_table(
    sequences: object,
    labels: Any = None,
    *,
    model: Engine | str | os.PathLike[str] = DEFAULT_MODEL,
    groups: Any = None,
    ignore: Any = None,
    cache: bool = False,
) -> ResidueTable:
    """Make a table with one row for each residue, for any learner of scikit-learn.

    Parameters
    ----------
    sequences : list of str, or one column of an array, Series, frame or table
        As in `Engine.embed`.
    labels : list, array or Series of length n, optional
        Labels of each sequence: text with a letter for each residue, such as ``"HHHEEC"``, or a
        list or array with a label for each. Residues whose label is None or NaN are left out. By
        default, the table has all residues, and no labels.
    model : Engine, str or path, default="esm2_t33_650M_UR50D"
        An `Engine`, whose ``layers`` and other options are used, or what ``Engine(model)`` takes.
    groups : list, array or Series of length n, optional
        Group of each sequence, such as those of `cluster_sequences`. By default, each sequence is a
        group, of which repeated sequences share one.
    ignore : str, or list of labels, optional
        Labels that mean "no label", whose residues are left out: text names a label, or several
        letters (``"-X"``); a list holds any values (``[-1]``).
    cache : bool, default=False
        Keep the row of each residue in the engine's cache, and read it from there. A residue takes
        as much room in the cache as a sequence.

    Returns
    -------
    table : ResidueTable
        The fields ``X``, ``y`` and ``groups`` for scikit-learn, ``sequence`` and ``position`` of
        each row; ``by_sequence`` divides predictions among the sequences.

    Raises
    ------
    InputError
        If a sequence is wrong, as in `Engine.embed`; if its labels are not as many as its residues,
        or are missing; or if all labels are ignored. The message names the row.
    TypeError
        If an argument is no container of sequences or of labels, or labels are neither text nor
        numbers.
    CheckpointError, OutOfMemoryError, NumericalError
        As in `Engine.embed`.

    See Also
    --------
    Engine.residues : The same numbers, one array for each sequence.

    Notes
    -----
    The table takes 4 bytes for each residue and component: for 1000 proteins of 300 residues,
    1.5 GB with ``esm2_t33_650M_UR50D``, and 0.4 GB with ``esm2_t6_8M_UR50D``. Sequences go through
    the network some at a time. For more residues than fit into memory, make a table of some
    sequences at a time, and pass each to ``partial_fit``.

    Of sequences that ``too_long="truncate"`` cuts, residues that are cut off have no row.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from esm2_features import Engine, residue_table
    >>> engine = Engine("mini", cache=None)
    >>> states = ["CHHHHHHHCC", "CCEE-"]
    >>> table = residue_table(["MKTAYIAKQR", "GSHMV"], states, model=engine, ignore="-")
    >>> table.X.shape, table.y.shape, table.groups[-5:]
    ((14, 192), (14,), array([0, 1, 1, 1, 1]))
    >>> learner = LogisticRegression(max_iter=1000).fit(table.X, table.y)
    >>> new = residue_table(["GSHMVLSEGE"], model=engine)
    >>> [predicted] = new.by_sequence(learner.predict(new.X))
    >>> predicted.shape
    (10,)
    """
    engine = model if isinstance(model, Engine) else Engine(model)
    policy, limit = engine.policy, engine.policy.max_residues
    if policy.region is not None:
        raise InputError(
            f"Got an engine with region={policy.region!r}. A table is of single residues: use an "
            "engine without a region, and select rows by their position."
        )
    if policy.too_long == "truncate":  # the labels are those of whole sequences
        policy = replace(policy, max_residues=None)
    whole = policy.normalise_column(sequences, owner="residue_table")
    lengths = np.array([len(sequence) for sequence in whole], np.intp)
    index = labels_of(sequences)
    with labelled(labels_of(labels) if index is None else index):
        kept, values = _read_labels(labels, lengths, ignore)
        of_sequences = _read_groups(groups, whole)
    residues = whole
    if engine.policy.too_long == "truncate" and limit is not None:
        is_cut = lengths > limit
        counter = TruncationCounter(int(is_cut.sum()), len(whole), int(lengths.max(initial=0)))
        counter.warn(limit)
        residues = [sequence[:limit] for sequence in whole]
        fitting = [positions < limit for positions in kept]
        values = None if values is None else values[np.concatenate([np.empty(0, bool), *fitting])]
        kept = [positions[fits] for positions, fits in zip(kept, fitting, strict=True)]
    counts = [len(positions) for positions in kept]
    width = engine.columns.width * len(engine.layers)
    X = np.empty((sum(counts), width), np.float32)
    done = 0
    for rows in (_cached if cache else _computed)(engine, residues, kept):
        X[done : done + len(rows)] = rows
        done += len(rows)
    sequence = np.repeat(np.arange(len(whole)), counts)
    position = np.concatenate([np.empty(0, np.intp), *kept])
    return ResidueTable(X, values, of_sequences[sequence], sequence, position, lengths)


def _computed(
    engine: Engine, residues: Sequence[str], kept: Sequence[NDArray[np.intp]]
) -> Iterator[NDArray[np.float32]]:
    """Compute the rows of some residues of each sequence."""
    from esm2_features._inference.extractors import Residues  # which imports torch

    engine.runner.backend.check_product("residues")
    extractor = Residues(engine.layers, engine.columns.width, by_layer=True)
    sizes = [extractor.bytes(len(s)) * bool(len(k)) for s, k in zip(residues, kept, strict=True)]
    for rows in _portions(sizes, _BYTES_AT_A_TIME):
        wanted = [i for i in rows if len(kept[i])]
        views = [view for view in engine.policy.views([residues[i] for i in wanted]) if view]
        for i, by_layer in zip(wanted, engine.runner.results(views, extractor), strict=True):
            yield np.hstack([by_layer[layer][kept[i]] for layer in engine.layers])


def _cached(
    engine: Engine, residues: Sequence[str], kept: Sequence[NDArray[np.intp]]
) -> Iterator[NDArray[np.float32]]:
    """Give the same rows through the cache, as regions of one residue."""
    if engine.cache is None:
        raise InputError("Got cache=True, but the engine has no cache. Use Engine(..., cache=...).")
    pooled = [(layer, "mean") for layer in engine.layers]
    columns = Columns(pooled, pooled, engine.columns.width, engine.cache_dtype)
    for rows in _portions([len(positions) for positions in kept], _SITES_AT_A_TIME):
        sites = [
            engine.policy.site(residues[i], position, masked=False)
            for i in rows
            for position in kept[i].tolist()
        ]
        yield engine.runner.embed(sites, columns)


def _portions(sizes: Sequence[int], most: int) -> Iterator[range]:
    """Divide rows into portions of at most some size, or one row."""
    start = total = 0
    for row, size in enumerate(sizes):
        if row > start and total + size > most:
            yield range(start, row)
            start, total = row, 0
        total += size
    if total:
        yield range(start, len(sizes))


def _read_labels(
    labels: Any, lengths: NDArray[np.intp], ignore: Any
) -> tuple[list[NDArray[np.intp]], NDArray[Any] | None]:
    """Read the positions of each sequence that have labels, and the labels."""
    if labels is None:
        if ignore is not None:
            raise InputError(f"Got ignore={ignore!r}, but no labels. Pass labels, or leave it out.")
        return [np.arange(length) for length in lengths], None
    cells = listed(labels, "labels")
    if len(cells) != len(lengths):
        raise InputError(
            f"Got labels of {len(cells)} sequences, but {len(lengths)} sequences. Pass labels for "
            "each sequence."
        )
    left_out = {ignore} if ignore is None or isinstance(ignore, str | Number) else set(ignore)
    if isinstance(ignore, str):
        left_out.update(ignore)
    kept, values = [], []
    kind = None
    for row, (cell, length) in enumerate(zip(cells, lengths.tolist(), strict=True)):
        of_residues = _labels_in(cell, row, length)
        positions = [i for i, label in enumerate(of_residues) if not is_missing(label)]
        for position in positions:
            kind = _kind_of(of_residues[position], kind, row, position)
        positions = [i for i in positions if of_residues[i] not in left_out]
        kept.append(np.array(positions, np.intp))
        values += [of_residues[i] for i in positions]
    if len(cells) and not values:
        raise InputError("No residue has a label. Pass labels, or fewer values to ignore.")
    return kept, np.array(values)


def _labels_in(cell: Any, row: int, length: int) -> list[Any]:
    """List the labels of one sequence."""
    shown = shorten(repr(cell), _SHOWN)
    if is_missing(cell):
        raise InputError(
            f"The labels in {place_of(row)} are missing. Leave the row out, or pass a list of None."
        )
    if not (isinstance(cell, str | list | tuple) or hasattr(type(cell), "__array__")):
        raise TypeError(
            f"The labels in {place_of(row)} are {shown}. Pass text, a list or an array with a "
            "label for each residue."
        )
    of_residues = list(cell) if isinstance(cell, str) else cells_of(cell)
    if len(of_residues) != length:
        raise InputError(
            f"The sequence in {place_of(row)} has a length of {length} residues, but the labels "
            f"have a length of {len(of_residues)}: {shown}. Give one label for each residue, and "
            "None, or a letter that ignore names, to residues without one."
        )
    return of_residues


def _kind_of(label: object, kind: str | None, row: int, position: int) -> str:
    """Tell text from numbers; ``kind`` is that of the labels before."""
    found = "text" if isinstance(label, str) else "numbers"
    if found != (kind or found) or not isinstance(label, str | Number | np.bool_):
        raise TypeError(
            f"The label in {place_of(row)}, position {position}, is "
            f"{shorten(repr(label), _SHOWN)}. Pass text in all labels, or numbers in all."
        )
    return found


def _read_groups(groups: Any, sequences: Sequence[str]) -> NDArray[Any]:
    """Read the group of each sequence; the same sequences are a group by default."""
    if groups is None:
        first: dict[str, int] = {}
        rows = [first.setdefault(sequence, row) for row, sequence in enumerate(sequences)]
        return np.array(rows, np.intp)
    cells = group_cells(groups, len(sequences), of="sequences")
    return np.array(cells, None if len(set(map(type, cells))) <= 1 else object)
