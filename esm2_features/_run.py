"""The run: results of subjects, out of the cache or out of the network.

`Run._rows` is the data flow of the whole library on one page.

Never here: which results there are, scikit-learn, pandas, HTTP, file formats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from esm2_features._alphabet import MASK
from esm2_features._cache import Cache
from esm2_features._checkpoint import Checkpoint
from esm2_features._passes import Passes
from esm2_features._plan import dedupe, spread
from esm2_features._registry import get_network
from esm2_features._spec import Spec
from esm2_features._storage import Storage
from esm2_features._subjects import distinct_sequences, parse
from esm2_features.exceptions import CheckpointError, NumericalError

if TYPE_CHECKING:
    from tqdm.std import tqdm

    from esm2_features._model import Network
    from esm2_features._readers import Reader


class Run:
    """One network over many subjects, with a cache or without.

    Parameters
    ----------
    checkpoint : Checkpoint
    precision, device : str
    batch_tokens : int or None
        Tokens per forward pass; None leaves it to the device.
    cache : Cache or None
    verbose : bool
        Show progress on a terminal.

    Attributes
    ----------
    n_computed : int
        Number of sequences that have gone through the network.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        precision: str,
        device: str,
        batch_tokens: int | None,
        cache: Cache | None,
        verbose: bool,
    ) -> None:
        self.checkpoint = checkpoint
        self.precision = precision
        self.device = device
        self.batch_tokens = batch_tokens
        self.cache = cache
        self.verbose = verbose
        self.n_computed = 0
        self._fitting: dict[type, int] = {}

    def _rows(
        self,
        subjects: Sequence[str | None],
        reader: Callable[[], Reader],
        *,
        wanted: Sequence[tuple[int, str]],
        computed: Sequence[tuple[int, str]],
        width: int,
        dtype: str = "float32",
        fill: float = np.nan,
    ) -> NDArray[np.float32]:
        """Give rows of a fixed width, which can be cached.

        Parameters
        ----------
        subjects : sequence of str or None
        reader : callable
            Makes the reader of the columns ``computed``, which needs torch, when something is
            missing.
        wanted, computed : sequence of (int, str)
            Layer and pooling of each column that is asked for, and of each that comes of a pass
            and is kept.
        width : int
            Numbers of one column.
        dtype : str, default="float32"
            What the rows are kept in.
        fill : float, default=nan
            What the rows of None are.

        Returns
        -------
        rows : ndarray of shape (n, wanted, width), float32
            In the order of the subjects.
        """
        present = [subject for subject in subjects if subject is not None]
        first, back = dedupe(present)
        unique = [present[i] for i in first]
        found = np.empty((len(subjects), len(wanted), width), np.float32)
        rows = found[: len(unique)]
        picked = [list(computed).index(column) for column in wanted]
        with Storage(
            self.cache,
            unique,
            wanted=self._specs(wanted, dtype),
            stored=self._specs(computed, dtype),
            rows=rows,
        ) as storage:
            missing = storage.read(range(len(unique)))
            while missing:
                network = self._network_for([unique[i] for i in missing], wanted, dtype)
                for batch, vectors in self._passes(network, unique, missing, reader(), storage):
                    rows[batch] = vectors[:, picked]
                    storage.add(batch, vectors)
                missing = storage.settle()  # what other processes began, and did not end
        if len(unique) < len(subjects):
            is_present = np.array([subject is not None for subject in subjects], np.bool_)
            source = np.full(len(subjects), -1)
            source[is_present] = back
            spread(found, source, fill=fill)
        return found

    def _results(self, subjects: Sequence[str], reader: Reader) -> list[Any]:
        """Give results of any size, which are not cached.

        Parameters
        ----------
        subjects : sequence of str
        reader : Reader

        Returns
        -------
        results : list
            In the order of the subjects; each has memory of its own.
        """
        first, back = dedupe(subjects)
        unique = [subjects[i] for i in first]
        found: list[Any] = [None] * len(unique)
        if unique:
            network = self._network()
            for batch, results in self._passes(network, unique, range(len(unique)), reader):
                for i, result in zip(batch, results, strict=True):
                    found[i] = result
        seen: set[int] = set()
        ordered = []
        for k in back.tolist():
            # Who writes into one result must not find it changed in another.
            ordered.append(_copied(found[k]) if k in seen else found[k])
            seen.add(k)
        return ordered

    def _passes(
        self,
        network: Network,
        subjects: Sequence[str],
        missing: Sequence[int],
        reader: Reader,
        storage: Storage | None = None,
    ) -> Iterator[tuple[list[int], Any]]:
        from esm2_features._devices import default_batch_tokens

        dim = self.checkpoint.architecture.dim
        budget = self.batch_tokens or default_batch_tokens(network.device, dim)
        distinct = distinct_sequences([parse(subjects[i]) for i in missing])
        with self._progress(sum(len(sequence) for sequence, _ in distinct)) as progress:
            passes = Passes(
                subjects,
                forward=lambda some, tokens: self._forward(network, some, reader, tokens),
                bytes_of=reader.bytes,
                take=list if storage is None else storage.take,
                device=network.device,
                budget=min(budget, self._fitting.get(type(reader), budget)),
                progress=progress.update,
            )
            for batch, results in passes.over(missing):
                self.n_computed += len(distinct_sequences([parse(subjects[i]) for i in batch]))
                yield batch, results
                if passes.budget < budget:
                    self._fitting[type(reader)] = passes.budget  # for the next portion, too

    def _forward(
        self, network: Network, subjects: Sequence[str], reader: Reader, budget: int
    ) -> Callable[[], Any]:
        """Begin a forward pass; what is given waits for it, and gives a result for each subject."""
        import torch

        from esm2_features._devices import exact_arithmetic, within_cores

        device = network.device
        with exact_arithmetic(device), within_cores(device), torch.inference_mode():
            found = reader(network, subjects, budget)
        return lambda: self._checked(found(), subjects, reader)

    def _checked(self, results: Any, subjects: Sequence[str], reader: Reader) -> Any:
        """Refuse numbers that are none."""
        if isinstance(results, np.ndarray) and np.isfinite(results).all():
            return results  # the usual case, all at once
        for subject, result in zip(subjects, results, strict=True):
            arrays = result.values() if isinstance(result, dict) else [result]
            if not all(np.isfinite(array).all() for array in arrays):
                raise self._not_finite(parse(subject).sequence, getattr(reader, "dtype", "float32"))
        return results

    def _specs(self, columns: Sequence[tuple[int, str]], dtype: str) -> list[Spec]:
        if self.cache is None:
            return []  # the identity of the weights may cost a reading of their file
        identity, name = self.checkpoint.identity, self.checkpoint.name
        return [
            Spec(identity, layer, pooling, self.precision, dtype, name)
            for layer, pooling in columns
        ]

    def _network_for(
        self, subjects: Sequence[str], wanted: Sequence[tuple[int, str]], dtype: str
    ) -> Network:
        """Get the network; without its weights, say for which sequences it is needed."""
        try:
            return self._network()
        except CheckpointError as error:
            if self.cache is not None:
                columns = ", ".join(f"layer {at} {pooling}" for at, pooling in wanted[:3])
                columns += ", ..." if len(wanted) > 3 else ""
                distinct = distinct_sequences([parse(subject) for subject in subjects])
                first = _shown(next(iter(distinct))[0])
                error.args = (
                    f"{len(distinct)} different sequences (such as {first!r}) lack vectors in the "
                    f"cache {self.cache.path} ({columns}, {self.precision}, kept in {dtype}), and "
                    f"the weights to compute them cannot be had: {error} "
                    "Or compute them on a machine that has them, and take them in with "
                    "`esm2-features cache import`.",
                )
            raise

    def _network(self) -> Network:
        return get_network(self.checkpoint, device=self.device, precision=self.precision)

    def _progress(self, residues: int) -> tqdm[None]:
        if not self.verbose:  # `tqdm.auto` warns in notebooks that have no widgets
            from tqdm.std import tqdm

            return tqdm(disable=True)
        from tqdm.auto import tqdm as shown_tqdm

        # disable=None draws on a terminal only, so log files stay clean.
        return shown_tqdm(
            total=residues,
            desc=self.checkpoint.name,
            unit=" residues",
            unit_scale=True,
            disable=None,
        )

    def _not_finite(self, sequence: str, dtype: str) -> NumericalError:
        kept = f", kept in {dtype}," if dtype != "float32" else ""
        return NumericalError(
            f"{self.checkpoint.name} gave infinities or NaN in {self.precision}{kept} for a "
            f"sequence of {len(sequence)} residues ({_shown(sequence)!r}). Nothing of its batch "
            'was cached. float16 overflows in some models: use precision="float32" or "bfloat16", '
            'and cache_dtype="float32"; in float32, the checkpoint is damaged.'
        )


def _shown(sequence: str) -> str:
    """Shorten a sequence for a message, and write it as people do."""
    short = sequence if len(sequence) <= 40 else f"{sequence[:37]}..."
    return short.replace(MASK, "<mask>")


def _copied(result: Any) -> Any:
    if isinstance(result, dict):
        return {key: array.copy() for key, array in result.items()}
    return result.copy()
