"""What is said of every residue: representations, likelihoods, contacts, attention.

Nothing here is cached but what is said of single residues (`PerResidue._log_probs_at`), from which
masks are filled and variants are scored: the rest is as long as its sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from esm2_features._inference.products import CACHED, MaskedResidues, check_unused, extractor_of
from esm2_features._inference.runner import Run
from esm2_features._inputs.alphabet import CANONICAL_TOKENS, MASK, TOKENS
from esm2_features._inputs.containers import columns
from esm2_features._inputs.policy import SequencePolicy
from esm2_features.exceptions import InputError, InvalidSequenceError

if TYPE_CHECKING:
    from esm2_features._inference.extractors import Extractor

_PORTION_BYTES = 1 << 28
"""Bytes of results that a stream holds at a time."""


class PerResidue(SequencePolicy, Run):
    """The half of `Engine` that gives something for every residue."""

    _default_layers: object
    """The ``layers`` that the engine was told, as they were given."""

    def residues(
        self, sequences: object, *, layers: int | Sequence[int] | Literal["all"] | None = None
    ) -> list[Any]:
        """Give the representation of every residue.

        Parameters
        ----------
        sequences : list of str, or one column of an array, Series, frame or table
            As in `embed`.
        layers : int, list of int, "all" or None, default=None
            Which representations; by default the engine's own ``layers``, the last one if it was
            told nothing.

        Returns
        -------
        residues : list of ndarray of shape (L, dim), float32
            Without special tokens, in the order of the input; L is the number of residues. With
            several layers, a list of dicts, from the layer's number to such an array.

        Raises
        ------
        InputError
            If a sequence, or ``layers``, is wrong; the message names the row and the remedy.
        TypeError
            If ``sequences`` is not a container of sequences.
        CheckpointError, OutOfMemoryError, NumericalError, ForkedProcessError
            As `embed`.

        References
        ----------
        ``scripts/extract.py`` of fair-esm, with ``--include per_tok``.

        Examples
        --------
        >>> from esm2_features import Engine
        >>> engine = Engine("mini", cache=None)
        >>> [array.shape for array in engine.residues(["MKTAYIAKQR", "GSHM"])]
        [(10, 192), (4, 192)]
        >>> sorted(engine.residues(["GSHM"], layers=[3, -1])[0])
        [3, 6]
        """
        return self._products("residues", sequences, layers=layers)

    def logits(self, sequences: object) -> list[NDArray[np.float32]]:
        """Give the raw scores of all tokens at every residue.

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
        InputError
            If a sequence is wrong; the message names the row and the remedy.
        TypeError
            If ``sequences`` is not a container of sequences.
        CheckpointError
            If the checkpoint holds no language-model head, or as `embed`.
        OutOfMemoryError, NumericalError, ForkedProcessError
            As `embed`.

        Examples
        --------
        >>> from esm2_features import Engine
        >>> [array.shape for array in Engine("mini", cache=None).logits(["MKTAYIAKQR", "GSHM"])]
        [(10, 33), (4, 33)]
        """
        return self._products("logits", sequences)

    def log_probs(
        self, sequences: object, *, over: Literal["residues", "tokens"] = "residues"
    ) -> list[NDArray[np.float32]]:
        """Give natural-log probabilities at every residue, none of which is masked for it.

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
        InputError
            If a sequence, or ``over``, is wrong; the message names the row and the remedy.
        TypeError
            If ``sequences`` is not a container of sequences.
        CheckpointError, OutOfMemoryError, NumericalError, ForkedProcessError
            As `logits`.

        See Also
        --------
        predict_masked : The same at positions that are masked.
        score_variants : Ratios of such probabilities, for mutations.

        Examples
        --------
        >>> import numpy as np
        >>> from esm2_features import Engine
        >>> [found] = Engine("mini", cache=None).log_probs(["MKTAYIAKQR"])
        >>> found.shape
        (10, 20)
        >>> bool(np.allclose(np.exp(found).sum(axis=1), 1, atol=1e-5))
        True
        """
        return self._products("log_probs", sequences, over=over)

    def predict_masked(self, sequences: object) -> list[MaskedResidues]:
        """Predict what stands at masked positions.

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
        InvalidSequenceError
            If a sequence holds no mask.
        InputError
            If a sequence is wrong otherwise; the message names the row and the remedy.
        TypeError
            If ``sequences`` is not a container of sequences.
        CheckpointError, OutOfMemoryError, NumericalError, ForkedProcessError
            As `logits`.
        CacheVersionError
            If the cache belongs to a newer version or to another program.

        Examples
        --------
        >>> from esm2_features import Engine
        >>> [found] = Engine("mini", cache=None).predict_masked(["MKTAYIA<mask>QR"])
        >>> found.positions.tolist(), found.probabilities.shape
        ([7], (1, 20))
        """
        return self._products("predict_masked", sequences)

    def contacts(self, sequences: object) -> list[NDArray[np.float32]]:
        """Predict which residues are in contact (C-beta atoms within 8 angstroms).

        Parameters
        ----------
        sequences : list of str, or one column of an array, Series, frame or table
            As in `embed`.

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
        InputError
            If a sequence is wrong otherwise; the message names the row and the remedy.
        TypeError
            If ``sequences`` is not a container of sequences.
        OutOfMemoryError, NumericalError, ForkedProcessError
            As `embed`.

        Notes
        -----
        The attention maps of all blocks and heads are made symmetric, corrected by their average
        product, and weighted by a logistic regression that comes with each official model, as
        Rao et al. do.

        References
        ----------
        Rao et al., "Transformer protein language models are unsupervised structure learners",
        ICLR 2021.

        Examples
        --------
        The demonstration model has no contact regression, so this needs an official one:

        >>> from esm2_features import Engine
        >>> engine = Engine("esm2_t6_8M_UR50D", cache=None)
        >>> engine.contacts(["MKTAYIAKQR"])[0].shape  # doctest: +SKIP
        (10, 10)
        """
        return self._products("contacts", sequences)

    def attentions(
        self, sequences: object, *, layers: int | Sequence[int] | Literal["all"] | None = None
    ) -> list[NDArray[np.float32]]:
        """Give the attention maps.

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
            As `contacts`.
        InputError
            If a sequence is wrong otherwise, or ``layers`` is; the message names the row and the
            remedy.
        TypeError
            If ``sequences`` is not a container of sequences.
        CheckpointError, OutOfMemoryError, NumericalError, ForkedProcessError
            As `embed`.

        Examples
        --------
        >>> from esm2_features import Engine
        >>> [maps] = Engine("mini", cache=None).attentions(["MKTAYIAKQR"], layers=[5, 6])
        >>> maps.shape  # 2 blocks, 6 heads
        (2, 6, 12, 12)
        """
        return self._products("attentions", sequences, layers=layers)

    def _log_probs_at(
        self, sequences: Sequence[str], positions: Sequence[int], *, masked: bool
    ) -> NDArray[np.float32]:
        """Give natural-log probabilities at one residue of each sequence, through the cache.

        Parameters
        ----------
        sequences : sequence of str
            As `_normalise` gives them. Those of one sequence share a forward pass, unless masked.
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
        CheckpointError, OutOfMemoryError, NumericalError, ForkedProcessError, CacheVersionError
            As `predict_masked`.

        Notes
        -----
        With ``too_long="window"``, a masked residue of a longer sequence is seen in the window of
        ``max_residues`` around it; one that is not masked, in all windows that hold it.
        """
        self._check_endpoint("A likelihood")
        depth = self.checkpoint.architecture.layers
        site = [(depth, "log_probs")]
        rows = self._rows(
            [
                self._site(sequence, position, masked=masked)
                for sequence, position in zip(sequences, positions, strict=True)
            ],
            _site_extractor,
            wanted=site,
            computed=site,
            width=len(TOKENS),
        )
        return rows[:, 0]

    def _in_portions(
        self, product: str, sequences: Sequence[str], rows: Sequence[int], extractor: Extractor
    ) -> Iterator[Any]:
        """Give results of as many sequences at a time as memory holds."""
        views = self._whole(product, sequences, rows)
        portion: list[str] = []
        size = 0
        for view, sequence in zip(views, sequences, strict=True):
            more = extractor.bytes(len(sequence))
            if portion and size + more > _PORTION_BYTES:
                yield from self._results(portion, extractor)
                portion, size = [], 0
            portion.append(view)
            size += more
        yield from self._results(portion, extractor)

    def _products(
        self, product: str, sequences: object, *, layers: object = None, over: object = None
    ) -> list[Any]:
        extractor = self._extractor(product, layers, over)
        found = self._read(sequences)
        if extractor is None:
            return self._masked(found, range(len(found)))
        return self._results(self._whole(product, found, range(len(found))), extractor)

    def _extractor(self, product: str, layers: object, over: object) -> Extractor | None:
        """Make the extractor of what is not cached."""
        if product != "embedding":
            self._check_endpoint(product)
        if product != "embedding" and self.region is not None:
            raise InputError(
                f"Got region={self.region!r}, which is for pooling: {product} are of every "
                "residue. Use an engine without a region, and take the part of the result."
            )
        if product in CACHED:
            check_unused(product, layers=layers, over=over)
            return None
        if product == "residues" and layers is None:
            layers = self._default_layers
        return extractor_of(product, self.checkpoint, layers=layers, over=over)

    def _whole(self, product: str, sequences: Sequence[str], rows: Sequence[int]) -> list[str]:
        """Subjects of whole sequences; in windows only where that has a meaning."""
        if product in ("contacts", "attentions"):
            self._check_windows(sequences, rows=rows, product=product)
        return [view for view in self._views(sequences) if view is not None]

    def _masked(self, sequences: Sequence[str], rows: Sequence[int]) -> list[MaskedResidues]:
        positions = [
            np.flatnonzero(np.frombuffer(sequence.encode(), np.uint8) == ord(MASK))
            for sequence in sequences
        ]
        for row, at in zip(rows, positions, strict=True):
            if not len(at):
                raise InvalidSequenceError(
                    f"The sequence in row {row} holds no <mask>, so there is nothing to predict. "
                    "Put <mask> in the place of each residue that is asked for.",
                    index=row,
                )
        counts = [len(at) for at in positions]
        log_probs = self._log_probs_at(
            [sequence for sequence, n in zip(sequences, counts, strict=True) for _ in range(n)],
            np.concatenate(positions).tolist() if positions else [],
            masked=True,
        )[:, CANONICAL_TOKENS]
        probabilities = np.exp(log_probs - log_probs.max(1, keepdims=True))
        probabilities /= probabilities.sum(1, keepdims=True)
        parts = np.split(probabilities, np.cumsum(counts)[:-1]) if positions else []
        return [MaskedResidues(*pair) for pair in zip(positions, parts, strict=True)]

    def _read(self, sequences: object) -> list[str]:
        return self._normalise(only_column(sequences))


def _site_extractor() -> Extractor:
    from esm2_features._inference.extractors import SiteLogProbs

    return SiteLogProbs()


def only_column(sequences: object) -> list[object]:
    """Read a container that must be a single column: never the names of its columns.

    Parameters
    ----------
    sequences : as in `Engine.embed`

    Returns
    -------
    cells : list of object

    Raises
    ------
    TypeError, InputError
        If it is no container, or has several columns.
    """
    is_column = hasattr(type(sequences), "to_list") and not hasattr(type(sequences), "columns")
    is_array = isinstance(sequences, np.ndarray) and sequences.ndim == 1
    is_list = isinstance(sequences, list | tuple) or is_column or is_array
    if is_list and not len(sequences):  # type: ignore[arg-type]
        return []  # where scikit-learn would have no rows refused
    found = columns(sequences, owner="Engine")
    if len(found) > 1:
        raise InputError(
            f"Engine takes one column of sequences, but got {len(found)}. Pass one of them, or use "
            "ESM2Transformer, which embeds several chains side by side."
        )
    return found[0].values
