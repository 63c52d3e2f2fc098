"""A network that is split or streamed gives the numbers of one that lies on one device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import bare_state, random_esm2

from esm2_features import Engine
from esm2_features._checkpoints.catalogue import Architecture
from esm2_features._model.devices import DeviceMap, resolve_device_map
from esm2_features._model.esm2 import ESM2Network
from esm2_features._model.offload import OffloadedBlocks
from esm2_features._model.packing import pack
from esm2_features.exceptions import InputError

CPU = torch.device("cpu")
SEQUENCES = ["MKTAYIAKQR", "GSHMVLSEGEWQLVLHVWAK", "MKT", "W"]


def blocks(device_map: DeviceMap, count: int = 5) -> OffloadedBlocks:
    tensors = bare_state(random_esm2(count, 32, 2, seed=9))
    found = OffloadedBlocks(count=count, heads=2, device_map=device_map, dtype=torch.float32)
    for _ in range(count):
        found.add(tensors)
    return found


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test__streamed__gives_the_same_bytes(tiny_checkpoint, precision):
    options = {"cache": None, "layers": "all", "pooling": "all", "precision": precision}
    resident = Engine(tiny_checkpoint, device="cpu", **options)
    streamed = Engine(tiny_checkpoint, device="cpu+cpu", **options)
    np.testing.assert_array_equal(streamed.embed(SEQUENCES), resident.embed(SEQUENCES))
    for product in (Engine.log_probs, Engine.contacts, Engine.attentions):
        for ours, theirs in zip(
            product(streamed, SEQUENCES), product(resident, SEQUENCES), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def test__streamed__is_a_network_of_its_own_and_can_be_shared(tiny_checkpoint):
    alone = Engine(tiny_checkpoint, device="cpu", cache=None).embed(SEQUENCES)
    both = Engine(tiny_checkpoint, device=["cpu+cpu", "cpu"], cache=None, batch_tokens=8)
    np.testing.assert_array_equal(both.embed(SEQUENCES), alone)


def test__streamed__leaves_no_block_on_the_device():
    found = blocks(DeviceMap((CPU,), is_streamed=True))
    assert len(found) == 5
    first = [block for _, block in found.upto(2)]
    assert len(first) == 2
    assert not {id(block) for block in first} & {id(block) for _, block in found.upto(2)}
    assert found._resident == []


def test__split__the_first_blocks_are_at_home_and_no_device_is_left_out(monkeypatch):
    monkeypatch.setattr("esm2_features._model.offload.TransformerBlock", lambda *_: None)
    meta = torch.device("meta")
    found = blocks(DeviceMap((CPU, meta)))
    assert found.devices == [CPU, CPU, CPU, meta, meta]


def test__split__what_runs_goes_from_device_to_device(monkeypatch):
    """Where there is one device, the way between two can still be followed."""
    reference = random_esm2(4, 32, 2, seed=9)
    shape = Architecture(4, 32, 2)
    plain = ESM2Network("plain", shape, bare_state(reference), CPU, "float32")
    split = ESM2Network("split", shape, bare_state(reference), DeviceMap((CPU,)), "float32")
    away = _Elsewhere()
    split._blocks.devices = [CPU, CPU, away, away]
    sent = []
    to = torch.Tensor.to

    def attention_hook(self, target, *rest, **options):
        if target is away:
            sent.append(tuple(self.shape))
            return to(self, CPU)
        return to(self, target, *rest, **options)

    monkeypatch.setattr(torch.Tensor, "to", attention_hook)
    batch = pack(SEQUENCES)
    expected = dict(plain.representations(batch, [2, 4]))
    found = dict(split.representations(batch, [2, 4]))
    for layer, x_TD in expected.items():
        assert torch.equal(found[layer], x_TD)
    assert sent, "nothing was sent"


class _Elsewhere:
    """A device that is none, so that tensors are never there yet."""

    type = "cpu"


@pytest.mark.parametrize("name", ["cpu+cuda:0+cpu", "cuda+cuda", "cpu+mps+mps"])
def test__resolve_device_map__refuses_what_is_not_there_or_is_twice(name):
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("there are such devices here")
    with pytest.raises(InputError, match=r"cannot use|stands twice"):
        resolve_device_map(name)


def test__place__is_written_as_it_is_asked_for():
    assert str(resolve_device_map("cpu+cpu")) == "cpu+cpu"
    assert str(resolve_device_map("cpu")) == "cpu"
    assert str(DeviceMap((torch.device("cuda", 0), torch.device("cuda", 1)))) == "cuda:0+cuda:1"
    assert str(DeviceMap((torch.device("cuda", 0),), is_streamed=True)) == "cuda:0+cpu"
