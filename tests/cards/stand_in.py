"""A stand-in for CUDA cards: tensors that say they are on ``cuda:0``, with numbers on the CPU.

`CardTensor` wraps a tensor of the CPU. `Machine` is the driver: it runs what is dispatched, keeps
streams, events and pinned memory, and counts launches and what the host waits for. Each stream has
a vector clock: of every stream, how far it is known to be. With these, a use of memory that nothing
orders is found, whatever the numbers are. Freed memory goes to the next allocation of its stream,
as in PyTorch's allocator.
"""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
import threading
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from cards.kernels import Kernels
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from esm2_features._model import attention, devices, fusion, split_products

_NO_KERNEL = {f"aten::{x}" for x in ("empty", "empty_like", "new_empty", "empty_strided", "detach",
                                     "alias", "lift_fresh")}  # fmt: skip
_WAITING = {f"aten::{x}" for x in ("_local_scalar_dense", "nonzero", "equal", "masked_select")}


def build_guard(folder: Path) -> None:
    """Compile and load the guard; it stays for the life of the process."""
    root, library = Path(torch.__file__).parent, folder / "guard.so"
    if not library.exists():
        command = ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{root}/include"]
        source, own = Path(__file__).with_name("guard.cpp"), folder / f"{id(folder)}.so"
        command += [str(source), "-o", str(own), f"-L{root}/lib", "-lc10"]
        subprocess.run(command, check=True, capture_output=True)
        own.replace(library)
    ctypes.CDLL(str(library))


class CardTensor(Tensor):
    """A tensor on a card."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> CardTensor:
        with torch.inference_mode(False):
            self = Tensor._make_wrapper_subclass(
                cls,
                inner.size(),
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=device,
            )
        self.inner = inner
        Machine.current.hold(self)
        return self

    def __repr__(self, **_: Any) -> str:
        return f"CardTensor({tuple(self.shape)}, {self.dtype}, {self.device})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return Machine.current.run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Sends what makes tensors on a card, or brings them there, to the machine."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        asked = (*args, (kwargs or {}).get("device"))
        if any(isinstance(x, torch.device) and x.type == "cuda" for x in asked):
            return Machine.current.run(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


class Stream:
    """A queue of work, which knows of each stream how much of it is over before its next work."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.clock: defaultdict[str, int] = defaultdict(int)

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())

    def wait_event(self, event: Event) -> None:
        _advance(self.clock, event.clock)

    def record_event(self) -> Event:
        event = Event()
        event.record(self)
        return event


class Event:
    """How far a stream was when the event was recorded."""

    def __init__(self, **_: Any) -> None:
        self.clock: dict[str, int] = {}

    def record(self, stream: Stream) -> None:
        stream.clock[stream.name] += 1
        self.clock = dict(stream.clock)

    def synchronize(self) -> None:
        Machine.current.event_waits += 1
        _advance(Machine.current.host_clock, self.clock)


def _advance(clock: dict[str, int], other: dict[str, int]) -> None:
    for name, time in list(other.items()):
        clock[name] = max(clock.get(name, 0), time)


@dataclass
class _Memory:
    owner: str  # the stream that allocated it
    size: int  # bytes
    holders: int = 0
    written: dict[str, int] = field(default_factory=dict)  # time of the last write on each stream
    used: dict[str, int] = field(default_factory=dict)


class Machine(Kernels):
    """Cards, and their driver."""

    current: Machine

    def __init__(self, cards: int = 1, capability: tuple[int, int] = (9, 0)) -> None:
        self.cards, self.capability = cards, capability
        self.only_shapes = False  # whether tensors made from now on have no numbers
        self.memory, self.in_use = 1 << 40, 0  # bytes
        self.released: list[int] = []  # bytes in use whenever unused blocks are given back
        self._lock = threading.RLock()
        self._local = threading.local()
        self._streams: dict[str, Stream] = {}
        self._memory: dict[int, _Memory] = {}
        self._freed: defaultdict[str, list[_Memory]] = defaultdict(list)
        self._pinned: dict[int, Tensor] = {}  # by address; kept, so that no address occurs twice
        self._arrivals: dict[int, tuple[str, int]] = {}  # of copies to the host, by address
        self.reset()

    def reset(self) -> None:
        """Begin to count."""
        self.launches: Counter[str] = Counter()
        self.moved = 0  # bytes that kernels read and write
        self.waits: Counter[str] = Counter()  # of the host, by reason and line
        self.event_waits = 0
        self.races: list[str] = []
        self.peak = self.in_use

    @property
    def pinned_sizes(self) -> list[int]:
        return [tensor.nbytes for tensor in self._pinned.values()]

    @property
    def host_clock(self) -> dict[str, int]:
        """What this thread of the host knows to be over."""
        if not hasattr(self._local, "clock"):
            self._local.clock = {}
        return self._local.clock

    def stream(self, device: torch.device | None = None) -> Stream:
        chosen = getattr(self._local, "stream", None)
        if chosen is not None:
            return chosen
        name = f"cuda:{(device and device.index) or 0}"
        return self._streams.setdefault(name, Stream(name))

    # Memory

    def hold(self, tensor: CardTensor) -> None:
        """Count the tensors of a piece of memory, which is allocated with the first of them."""
        with self._lock:
            storage = tensor.inner.untyped_storage()
            key = storage._cdata
            if key not in self._memory:
                if self.in_use + storage.nbytes() > self.memory:
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                stream = self.stream(tensor.device)
                self._memory[key] = _Memory(stream.name, storage.nbytes())
                self.in_use += storage.nbytes()
                self.peak = max(self.peak, self.in_use)
                self._reuse(stream)
            self._memory[key].holders += 1
            weakref.finalize(tensor, self._let_go, key, storage)

    def _let_go(self, key: int, storage: object) -> None:
        with self._lock:
            found = self._memory[key]
            found.holders -= 1
            if not found.holders:
                self.in_use -= found.size
                self._freed[found.owner].append(self._memory.pop(key))

    def _reuse(self, stream: Stream) -> None:
        """Give freed memory to a stream, for which all that used it has to be over."""
        _advance(stream.clock, self.host_clock)
        for old in self._freed.pop(stream.name, []):
            for other, time in old.used.items():
                if other != stream.name and stream.clock[other] < time:
                    self.races.append(f"{stream.name} gets memory that {other} may still use")

    def _use(self, tensors: list[Any], stream: Stream, *, write: bool) -> None:
        with self._lock:
            _advance(stream.clock, self.host_clock)  # the host has begun it
            stream.clock[stream.name] += 1
            now = stream.clock[stream.name]
            for tensor in tensors:
                memory = self._memory[tensor.inner.untyped_storage()._cdata]
                for other, time in (memory.used if write else memory.written).items():
                    if other != stream.name and stream.clock[other] < time:
                        self.races.append(f"{stream.name} does not wait for {other}")
                memory.used[stream.name] = now
                if write:
                    memory.written[stream.name] = now

    def _wait(self, why: str) -> None:
        frame = sys._getframe(1)
        while frame is not None and "esm2_features/_" not in frame.f_code.co_filename:
            frame = frame.f_back
        place = "" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        self.waits[f"{why} in {place}"] += 1

    # Operations

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = func._schema.name
        if name == "aten::_to_copy":
            return self._to_copy(func, args, kwargs)
        if name == "aten::copy_" and not (_is_card(args[0]) and _is_card(args[1])):
            return self._copy_between(*args, **kwargs)
        if name == "aten::scaled_dot_product_attention":
            return self._launch(func, args, kwargs)
        if name == "aten::_efficient_attention_forward":
            return self._efficient_attention(*args, **kwargs)
        if str(func) == "aten.mm.dtype":
            return self._multiply(*args)
        if _is_composite(func):
            with _Factories():
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        return self._launch(func, args, kwargs)

    def _launch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name, arguments = func._schema.name, func._schema.arguments
        leaves = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        inputs = [x for x in leaves if _is_card(x)]
        device = self._device_of(name, leaves, kwargs.get("device"))
        inner_args, inner_kwargs = pytree.tree_map_only(CardTensor, _inner, (args, dict(kwargs)))
        if "device" in inner_kwargs:
            inner_kwargs["device"] = torch.device("meta" if self.only_shapes else "cpu")
        if name in _WAITING:
            self._wait(name)
        given = dict(zip((one.name for one in arguments), args, strict=False)) | kwargs
        written = [
            given[one.name] for one in arguments if one.name in given
            and one.alias_info is not None and one.alias_info.is_write
        ]  # fmt: skip
        if (
            name == "aten::index_add_"
            and not self.only_shapes
            and len(given["index"].inner.unique()) < len(given["index"])
        ):
            self.races.append("the order in which index_add_ adds equal targets is not defined")
        before = {x.inner.untyped_storage()._cdata for x in inputs}
        with torch.inference_mode():
            found = func(*inner_args, **inner_kwargs)
        made = [x for x in pytree.tree_leaves(found) if isinstance(x, Tensor)]
        is_view = not written and all(x.untyped_storage()._cdata in before for x in made)
        result = written[0] if written else self._wrap(found, device)
        if made and not is_view and name not in _NO_KERNEL and any(x.numel() for x in made):
            stream = self.stream(device)
            self._use(inputs, stream, write=False)
            self._use([x for x in pytree.tree_leaves(result) if _is_card(x)], stream, write=True)
            self._count(name, inputs, made)
        return result

    def _count(self, name: str, inputs: list[Any], made: list[Tensor]) -> None:
        self.launches[name] += 1
        self.moved += sum(_inner(x).nbytes for x in inputs) + sum(x.nbytes for x in made)

    def _device_of(self, name: str, leaves: list[Tensor], asked: Any) -> torch.device:
        """Give the one card of an operation, as PyTorch does."""
        if asked is not None:
            if (asked.index or 0) >= self.cards:
                raise RuntimeError("CUDA error: invalid device ordinal")
            return torch.device("cuda", asked.index or 0)
        found = {x.device for x in leaves if _is_card(x)}
        on_host = [x for x in leaves if not _is_card(x) and x.dim()]
        if on_host and name.startswith("aten::index"):
            self._wait("index on the host")
        elif on_host or len(found) > 1:
            raise RuntimeError(f"Expected all tensors to be on the same device in {name}")
        return found.pop()

    def _wrap(self, found: Any, device: torch.device) -> Any:
        return pytree.tree_map_only(Tensor, lambda x: CardTensor(x, device), found)

    def _to_copy(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        [x], target = args, kwargs.pop("device", None) or args[0].device
        is_async = kwargs.pop("non_blocking", False)
        if target.type == "cuda":
            target = torch.device("cuda", target.index or 0)
        if _is_card(x) and target == x.device:
            return self._launch(func, args, kwargs)
        if not _is_card(x):
            if not (is_async and self._is_pinned(x)) and x.numel():
                self._wait("copy to the card")
            inner = x.to(kwargs.get("dtype", x.dtype), copy=True)
            found = CardTensor(inner.to("meta") if self.only_shapes else inner, target)
            self._use([found], self.stream(target), write=True)
            return found
        here = self.stream(x.device)
        self._use([x], here, write=False)
        copy = x.inner.to(kwargs.get("dtype", x.dtype), copy=True)
        if target.type == "cpu":
            copy = torch.zeros(copy.shape, dtype=copy.dtype) if self.only_shapes else copy
            self._wait("copy to the host")
            _advance(self.host_clock, here.clock)
            return copy
        there = self.stream(target)  # PyTorch makes the streams of both cards wait
        there.wait_stream(here)
        found = CardTensor(copy, target)
        self._use([found], there, write=True)
        here.wait_stream(there)
        return found

    def _copy_between(self, into: Tensor, x: Tensor, non_blocking: bool = False) -> Tensor:
        card, host = (x, into) if _is_card(x) else (into, x)
        stream = self.stream(card.device)
        self._use([card], stream, write=_is_card(into))
        if self.only_shapes:
            _ = _is_card(into) or into.zero_()
        else:
            _inner(into).copy_(_inner(x))
        if not (non_blocking and self._is_pinned(host)):
            self._wait("copy")
            _advance(self.host_clock, stream.clock)
        elif not _is_card(into):
            address = into.untyped_storage().data_ptr()
            self._arrivals[address] = stream.name, stream.clock[stream.name]
        return into

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pinned

    def _pin(self, tensor: Tensor) -> Tensor:
        self._pinned[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    @contextlib.contextmanager
    def switched_on(self) -> Iterator[Machine]:
        """Put the machine where PyTorch looks for CUDA."""
        Machine.current, names = self, count()
        empty, numpy, run_thread = torch.empty, Tensor.numpy, threading.Thread.run

        def make_empty(*args: Any, pin_memory: bool = False, **options: Any) -> Tensor:
            found = empty(*args, **options)
            return self._pin(found) if pin_memory else found

        def to_numpy(tensor: Tensor, **options: Any) -> Any:
            name, time = self._arrivals.get(tensor.untyped_storage().data_ptr(), ("", 0))
            if self.host_clock.get(name, 0) < time:
                self.races.append("the host does not wait for what it reads")
            return numpy(tensor, **options)

        @contextlib.contextmanager
        def on(stream: Stream) -> Iterator[None]:
            before, self._local.stream = getattr(self._local, "stream", None), stream
            yield
            self._local.stream = before

        def run(thread: threading.Thread) -> None:
            with _Factories():
                run_thread(thread)

        in_cuda: dict[str, Callable[..., Any]] = {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "device_count": lambda: self.cards,
            "get_device_capability": lambda device: self.capability,
            "get_device_name": lambda device: "a stand-in",
            "get_arch_list": lambda: ["sm_90"],
            "mem_get_info": lambda device: (1 << 33, 1 << 33),
            "memory_reserved": lambda device: 0,
            "memory_allocated": lambda device: 0,
            "empty_cache": lambda: self.released.append(self.in_use),
            "current_stream": self.stream,
            "Stream": lambda device: Stream(f"side {next(names)} of {device}"),
            "Event": Event,
            "stream": on,
        }  # fmt: skip
        varlen = SimpleNamespace(varlen_attn=self.packed_attention)
        in_modules = {
            "torch.nn.attention.varlen": varlen,
            "flash_attn": None,
            "esm2_features._model.triton_kernels": SimpleNamespace(
                turn_=self.turn_, add_norm=self.add_norm
            ),
        }
        caches = (
            *(attention._packed_kernel, devices._failure_of),
            *(fusion.find_kernels, split_products.is_usable),
        )
        with contextlib.ExitStack() as stack:
            for name, fake in in_cuda.items():
                stack.enter_context(mock.patch.object(torch.cuda, name, fake))
            stack.enter_context(mock.patch.object(torch, "empty", make_empty))
            stack.enter_context(
                mock.patch.object(Tensor, "pin_memory", lambda x: self._pin(x.clone()))
            )
            stack.enter_context(mock.patch.object(Tensor, "numpy", to_numpy))
            stack.enter_context(mock.patch.object(threading.Thread, "run", run))
            for name, module in in_modules.items():  # patch.dict would forget what is imported
                before = sys.modules.get(name, sys)
                sys.modules[name] = module
                stack.callback(sys.modules.pop, name)
                if before is not sys:
                    stack.callback(sys.modules.__setitem__, name, before)
            for cache in caches:
                cache.cache_clear()
                stack.callback(cache.cache_clear)
            with _Factories():
                yield self


@lru_cache
def _is_composite(func: Any) -> bool:
    key = "CompositeImplicitAutograd"
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)


def _is_card(x: object) -> bool:
    return isinstance(x, CardTensor)


def _inner(x: Tensor) -> Tensor:
    return x.inner if isinstance(x, CardTensor) else x
