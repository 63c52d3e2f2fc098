"""Where the blocks of a network rest, and where they run.

    resident    all on one device
    split       the first ones on one card, the next on another: what runs goes from card to card
    streamed    all in the host's memory; each comes to the card when it is its turn, and the next
                one is on its way while it runs

PyTorch's own copies and streams do the moving. A block that comes is made anew of its weights, so
nothing needs to know how it is laid out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from esm2_features._model.block import TransformerBlock, Weights, fuse_projections
from esm2_features._model.devices import DeviceMap, release_memory

_ALIGNMENT = 256
"""Bytes at whose multiples a tensor begins, as if it had been allocated by itself."""

_FEWEST_PINNED = 1 << 20


class OffloadedBlocks:
    """The blocks of a network; `add` takes each out of the weights."""

    def __init__(
        self,
        *,
        count: int,
        heads: int,
        device_map: DeviceMap,
        dtype: torch.dtype,  # of the products
    ) -> None:
        self._device_map, self._heads, self._dtype = device_map, heads, dtype
        self._resident: list[TransformerBlock] = []
        self._resting: list[_PinnedWeights | dict[str, Tensor]] = []
        self.devices = [
            device_map.devices[i * len(device_map.devices) // count] for i in range(count)
        ]  # split evenly, the first one home

    def add(self, tensors: dict[str, Tensor]) -> None:
        """Add the next block, whose weights go out of the dictionary."""
        i = len(self._resting) + len(self._resident)
        fuse_projections(tensors, block_name(i), self._heads)
        if self._device_map.is_streamed:
            self._resting.append(self._rested(tensors, i))
            return
        weights = Weights(tensors, self.devices[i], self._dtype)
        self._resident.append(TransformerBlock(weights, block_name(i), self._heads))
        # The allocator would keep what each layer's copies leave behind: 20 % of the weights.
        release_memory(self.devices[i])

    def __len__(self) -> int:
        return len(self.devices)

    def upto(self, count: int, start: int = 0) -> Iterator[tuple[torch.device, TransformerBlock]]:
        """Yield the first blocks, or some from the middle, each when it is to run."""
        if not self._device_map.is_streamed:
            yield from zip(self.devices[start:count], self._resident[start:count], strict=True)
            return
        home, stream = self._device_map.home, self._stream()
        coming = self._brought(start, stream)
        for i in range(start, count):
            block, ran = coming, None
            if stream is not None:
                running = torch.cuda.current_stream(home)
                running.wait_stream(stream)
                ran = running.record_event()  # all blocks before this one
            yield home, block
            if i + 1 < count:
                # While this one runs. What comes may take the memory of those that have run.
                coming = self._brought(i + 1, stream, after=ran)

    def _brought(
        self, i: int, stream: torch.cuda.Stream | None, after: torch.cuda.Event | None = None
    ) -> TransformerBlock:
        if stream is not None and after is not None:
            stream.wait_event(after)
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            resting, home = self._resting[i], self._device_map.home
            tensors = resting.on(home) if isinstance(resting, _PinnedWeights) else dict(resting)
            weights = Weights(tensors, home, self._dtype)
            return TransformerBlock(weights, block_name(i), self._heads)

    def _rested(self, tensors: dict[str, Tensor], i: int) -> _PinnedWeights | dict[str, Tensor]:
        """Take the weights of a block, ready to be copied."""
        found = {}
        for name in [name for name in tensors if name.startswith(f"{block_name(i)}.")]:
            tensor = tensors.pop(name)
            if tensor.is_floating_point():
                tensor = tensor.to(torch.float32 if "norm" in name else self._dtype)
            found[name] = tensor
        return _PinnedWeights(found) if self._device_map.home.type == "cuda" else found

    def _stream(self) -> torch.cuda.Stream | None:
        home = self._device_map.home
        if home.type != "cuda":
            return None
        return torch.cuda.Stream(home)  # type: ignore[no-untyped-call]


class _PinnedWeights:
    """Tensors in pinned memory of the host, from which a card copies while it computes.

    PyTorch rounds pinned memory up to powers of two, up to twice as much. Here, the bytes of all
    tensors lie in a row, which is cut into powers of two.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._bytes = 0
        self._places: dict[str, tuple[int, int, torch.dtype, torch.Size]] = {}
        for name, tensor in tensors.items():
            self._places[name] = self._bytes, tensor.nbytes, tensor.dtype, tensor.shape
            self._bytes += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        row = torch.empty(self._bytes, dtype=torch.uint8, device="cpu")
        for tensor, (start, size, _, _) in zip(
            tensors.values(), self._places.values(), strict=True
        ):
            row[start : start + size] = tensor.cpu().contiguous().view(-1).view(torch.uint8)
        self._chunks: list[Tensor] = []
        while len(row):
            size = max(_FEWEST_PINNED, 1 << (len(row).bit_length() - 1))
            chunk = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)
            self._chunks.append(chunk[: len(row)].copy_(row[:size]))
            row = row[size:]

    def on(self, device: torch.device) -> dict[str, Tensor]:
        """Begin to copy them to a card."""
        row = torch.empty(self._bytes, dtype=torch.uint8, device=device)
        start = 0
        for chunk in self._chunks:
            row[start : start + len(chunk)].copy_(chunk, non_blocking=True)
            start += len(chunk)
        return {
            name: row[start : start + size].view(dtype).view(shape)
            for name, (start, size, dtype, shape) in self._places.items()
        }


def block_name(i: int) -> str:
    return f"layers.{i}"
