"""Faults that are planted into the code for cards, one at a time, must show on the stand-in."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from cards.conftest import DEVICE_MAPS, FIRST
from cards.stand_in import Machine
from cards.test_cards import EXTRACTORS, LONG, TOLERANCE, VIEWS, flat

from esm2_features._model import attention, devices, offload
from esm2_features._model.block import Norm, TransformerBlock
from esm2_features._model.devices import computing
from esm2_features._model.esm2 import ESM2Network
from esm2_features._model.layout import Layout
from esm2_features._model.offload import OffloadedBlocks

WINDOWS = [f"{LONG}~20"]
FAULTS = {
    "memory is reused while a block still runs": (
        OffloadedBlocks._brought, "stream.wait_event(after)", "pass", "streamed", "races"),
    "a block runs before it has come": (
        OffloadedBlocks.upto, "running.wait_stream(stream)", "pass", "streamed", "races"),
    "a block comes on another stream than is waited for": (
        OffloadedBlocks._brought, "torch.cuda.stream(stream)",
        "torch.cuda.stream(torch.cuda.Stream(self._device_map.home))", "streamed", "races"),
    "only the beginning of a block comes": (
        offload._PinnedWeights.on, "start += len(chunk)", "pass", "streamed", "numbers"),
    "a block is copied from memory that is not pinned": (
        offload._PinnedWeights.on, "copy_(chunk,", "copy_(chunk.clone(),", "streamed", "waits"),
    "results are read before they have arrived": (
        devices.fetch, "arrived.synchronize()", "pass", "one", "races"),
    "the arrival of results is recorded on another stream": (
        devices.fetch, "torch.cuda.current_stream(tensor.device)",
        "torch.cuda.Stream(tensor.device)", "one", "races"),
    "the host waits for each result": (
        devices.fetch, "non_blocking=True", "non_blocking=False", "one", "waits"),
    "what is sent is not pinned": (
        devices.send, "tensor.pin_memory()", "tensor", "one", "waits"),
    "turns stay on the other card": (
        ESM2Network._advance, "one.turns.to(device)", "one.turns", "split", "error"),
    "edges of sequences stay on the other card": (
        ESM2Network._advance, " or one.stream.device != device", "", "split", "error"),
    "edges of sequences have the wrong type": (
        attention.choose_attention, "np.int32", "np.int64", "one", "error"),
    "sequences begin one token late": (
        attention.choose_attention, "[0, *lengths]", "[1, *lengths]", "one", "numbers"),
    "sequences are said to be shorter than they are": (
        attention.choose_attention, "max(lengths))", "min(lengths))", "one", "numbers"),
    "queries are not scaled": (
        attention._efficient_attention, "q.shape[-1] ** -0.5", "1.0", "one", "launches"),
    "the kernel looks for sequences of other edges": (
        attention._efficient_attention, "same_edges, longest", "same_edges - 1, longest",
        "one", "launches"),
    "queries and keys are not turned": (
        TransformerBlock._turned, "self._kernels.turn_(qk_TNH, turns_T1P)", "pass",
        "one", "numbers"),
    "rows are turned by the position of others": (
        TransformerBlock._turned, "(qk_TNH, turns_T1P)", "(qk_TNH, turns_T1P.roll(1, 0))",
        "one", "numbers"),
    "attention is added to the stream twice": (
        TransformerBlock.__call__, "y_TD = self._out(a_TD)", "y_TD = self._out(a_TD) * 2",
        "one", "numbers"),
    "a block norms what it has not added to": (
        Norm.fused, "x_TD, y_TD,", "x_TD, None,", "one", "numbers"),
    "the kinds of rows stay on the host": (
        ESM2Network._begin, "x_KD[kind_T]", "x_KD[kind_T.cpu()]", "one", "waits"),
    "a block begins with the rows of the first one": (
        ESM2Network._advance, "[kind_T], None", "[kind_T], one.unique", "one", "numbers"),
    "the host looks at each block": (
        TransformerBlock.project, "return self", "float(x_TD.sum()); return self", "one", "waits"),
    "rows of windows are not brought together": (
        Layout.merge_windows, "np.argsort(self._targets, kind=\"stable\")",
        "np.arange(len(self._targets))", "one", "numbers"),
    "windows do not share what they have in common": (
        Layout.merge_windows, "x_TD.mul_(shares)", "x_TD", "one", "numbers"),
    "rows of windows are added in any order": (
        Layout.merge_windows, 'embedding_bag(order, x_TD.mul_(shares), starts, mode="sum")',
        "x_TD.new_zeros(len(starts), x_TD.shape[1])"
        ".index_add_(0, send(self._targets, x_TD.device), x_TD.mul_(shares))", "one", "races"),
}  # fmt: skip


@contextmanager
def planted(function: Callable, old: str, new: str) -> Iterator[None]:
    """Replace a part of a function's source."""
    function = inspect.unwrap(function)
    source = textwrap.dedent(inspect.getsource(function))
    assert old in source, f"{function.__qualname__} has no {old!r} any more: plant another fault"
    scope: dict[str, object] = {}
    text = "from __future__ import annotations\n" + source.replace(old, new)
    exec(compile(text, function.__code__.co_filename, "exec"), function.__globals__ | {}, scope)
    before, function.__code__ = function.__code__, scope[function.__name__].__code__
    try:
        yield
    finally:
        function.__code__ = before


def symptoms(
    network_on, expected, place: str, views: list[str], precision: str = "float16"
) -> set[str]:
    """Run three passes, and tell what is not as it should be."""
    machine, extractor = Machine(cards=2), EXTRACTORS["all vectors"]
    with machine.switched_on():
        try:
            network = network_on(DEVICE_MAPS[place], precision)
            with computing(FIRST):
                extractor(network, views, 64)()
                machine.reset()
                waiting = [extractor(network, views, 64) for _ in range(2)]
            found = [flat(results()) for results in waiting]
        except RuntimeError:
            return {"error"}
    worst = max(
        float(np.nan_to_num(np.abs(a - b), nan=np.inf).max())
        for results in found
        for a, b in zip(results, expected, strict=True)
    )
    seen = {
        "numbers": worst > TOLERANCE[precision],
        "races": machine.races,
        "waits": machine.waits,
        "launches": machine.launches["aten::scaled_dot_product_attention"],
    }
    return {name for name, there in seen.items() if there}


@pytest.mark.parametrize("fault", FAULTS)
def test__faults__are_seen(network_on, on_cpu, monkeypatch, fault):
    monkeypatch.setattr(offload, "_FEWEST_PINNED", 1 << 10)
    function, old, new, place, symptom = FAULTS[fault]
    views = WINDOWS if "windows" in fault else VIEWS
    expected = flat(on_cpu(EXTRACTORS["all vectors"], views, 64))
    of_float32 = function is attention._efficient_attention
    with planted(function, old, new):
        found = symptoms(network_on, expected, place, views, "float32" if of_float32 else "float16")
    assert symptom in found


@pytest.mark.parametrize("precision", ["float16", "float32"])
@pytest.mark.parametrize("place", DEVICE_MAPS)
@pytest.mark.parametrize("views", [VIEWS, WINDOWS], ids=["whole", "windows"])
def test__no_fault__is_seen_where_there_is_none(
    network_on, on_cpu, monkeypatch, place, views, precision
):
    monkeypatch.setattr(offload, "_FEWEST_PINNED", 1 << 10)
    expected = flat(on_cpu(EXTRACTORS["all vectors"], views, 64))
    assert symptoms(network_on, expected, place, views, precision) == set()
