"""A network, and the same one on the stand-in's cards."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cards.stand_in import Machine, build_guard
from checkpoints import bare_state, random_esm2

from esm2_features._checkpoints.catalogue import Architecture
from esm2_features._inference import networks
from esm2_features._model.devices import DeviceMap, computing
from esm2_features._model.esm2 import ESM2Network

CPU = torch.device("cpu")
FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)
DEVICE_MAPS = {
    "one": DeviceMap((FIRST,)),
    "split": DeviceMap((FIRST, SECOND)),
    "streamed": DeviceMap((FIRST,), is_streamed=True),
}
LAYERS, DIM, HEADS = 3, 64, 2


@pytest.fixture(scope="session", autouse=True)
def _guard(tmp_path_factory: pytest.TempPathFactory) -> None:
    if torch.version.cuda or torch.version.hip:
        pytest.skip("the stand-in needs a PyTorch for CPUs")
    if shutil.which("g++") is None:
        pytest.skip("the stand-in needs g++")
    build_guard(tmp_path_factory.mktemp("guard"))


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    before = set(networks._networks)
    yield
    for key in set(networks._networks) - before:
        del networks._networks[key]


@pytest.fixture(scope="session")
def network_on() -> Callable[[DeviceMap | torch.device, str], ESM2Network]:
    """Make the network anew, on these devices, in this precision."""
    reference = random_esm2(LAYERS, DIM, HEADS, seed=3)

    def make(place: DeviceMap | torch.device, precision: str) -> ESM2Network:
        shape = Architecture(LAYERS, DIM, HEADS)
        home = place.home if isinstance(place, DeviceMap) else place
        with computing(home):
            return ESM2Network("random", shape, bare_state(reference), place, precision)

    return make


@pytest.fixture(scope="session")
def on_cpu(network_on: Callable[..., ESM2Network]) -> Callable[..., Any]:
    """Compute in float32 on the CPU what is to be expected of cards."""
    network = network_on(CPU, "float32")

    def compute(extractor: Any, views: list[str], budget: int | None = None) -> Any:
        with computing(CPU):
            return extractor(network, views, budget)()

    return compute


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine(cards=2).switched_on() as found:
        yield found
