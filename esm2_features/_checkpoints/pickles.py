"""An unpickler that runs nothing: it builds dictionaries, lists, and descriptions of tensors.

Pickles can call any function. Here, every other class and function is an inert stand-in.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, ClassVar

from esm2_features.exceptions import CheckpointError

LONGEST_PICKLE_BYTES = 100 << 20  # without the numbers of tensors
DEEPEST = 20  # dictionaries, tuples or modules inside each other

_STORAGES = {
    "Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16", "Long": "I64", "Int": "I32",
    "Short": "I16", "Char": "I8", "Byte": "U8", "Bool": "BOOL", "ComplexFloat": "C64",
    "ComplexDouble": "C128", "Untyped": "U8",
}  # fmt: skip

# A file that mentions these was made to do something when it is loaded.
_HOSTILE_MODULES = (
    "code commands ctypes importlib marshal nt os pickle posix pty runpy shutil socket subprocess "
    "sys webbrowser"
)
_HOSTILE_BUILTINS = "__import__ apply breakpoint compile eval exec execfile globals input open vars"


class Inert:
    """Stands for any class, function or object; calling it, or filling it, does nothing more."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def __call__(self, *_args: Any, **_kwargs: Any) -> Inert:
        return Inert()

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                vars(self).update((key, part[key]) for key in part if isinstance(key, str))

    def __setitem__(self, key: Any, value: Any) -> None:
        vars(self).setdefault("_items", {})[key] = value

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass


class _Bounded:
    """A stream from which no more is read at a time than a header may have."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.readline = stream, stream.readline

    def read(self, size: int) -> bytes:
        return self._stream.read(min(size, LONGEST_PICKLE_BYTES))


@dataclass(frozen=True, slots=True)
class Storage:
    key: str
    dtype: str


@dataclass(frozen=True, slots=True)
class StoredTensor:
    storage: Storage
    offset: int  # elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, *_rest: Any
) -> StoredTensor | Inert:
    if not isinstance(storage, Storage):
        return Inert()
    return StoredTensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _typed_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any,
    *_rest: Any,
) -> StoredTensor | Inert:  # fmt: skip
    """Describe a tensor of a type without a storage class of its own, such as float8."""
    if not isinstance(storage, Storage):
        return Inert()
    return _tensor(Storage(storage.key, str(dtype)), offset, shape, strides)


def _quantised(storage: Any, *rest: Any) -> StoredTensor | Inert:
    return _tensor(Storage(getattr(storage, "key", ""), "quantised"), *rest)


def _parameter(data: Any, *_rest: Any) -> Any:
    return data


def _of_type(build: Any, _type: Any, arguments: Any, _state: Any) -> Any:
    known = (_tensor, _typed_tensor, _parameter)
    return build(*arguments) if getattr(build, "func", None) in known else Inert()


_KNOWN: Mapping[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_qtensor": _quantised,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _of_type,
}


def _build_tuple(code: int, unpickler: Any) -> None:
    """Build a tuple; refuse those so deep that hashing them would end the process."""
    pickle._Unpickler.dispatch[code](unpickler)
    built = unpickler.stack[-1]
    inside = [it for it in built if type(it) is tuple]
    depth = max((unpickler.depths.get(id(it), (1, it))[0] for it in inside), default=0)
    if depth >= DEEPEST:
        raise pickle.UnpicklingError("tuples inside of tuples, without an end")
    if depth:
        unpickler.depths[id(built)] = depth + 1, built


class InertUnpickler(pickle._Unpickler):
    """Builds the contents of a pickle of stand-ins.

    The unpickler in Python: the one in C reserves as much memory as a damaged file asks for.
    """

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        super().__init__(_Bounded(stream), encoding="utf-8", errors="replace")
        self._path = path
        self.depths: dict[int, tuple[int, Any]] = {}  # of tuples in tuples, which stay alive here
        self.storages: dict[str, str] = {}

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get(f"{module}.{name}")
        if known is not None:
            # Not the function itself, whose attributes a pickle could set.
            return known if isinstance(known, type) else partial(known)
        outermost = module.partition(".")[0]
        if outermost in _HOSTILE_MODULES.split() or (
            outermost in ("builtins", "__builtin__", "io", "_io")
            and name in _HOSTILE_BUILTINS.split()
        ):
            raise CheckpointError(
                f"{self._path} is refused: beside tensors it holds a call of {module}.{name}, and "
                "loading that could run code. Get the checkpoint from its official source, or as "
                "safetensors.",
                path=str(self._path),
            )
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return Storage("", _STORAGES.get(name.removesuffix("Storage"), name))
        if module == "torch":
            return _TorchName(name)
        return type(name, (Inert,), {"__module__": module})

    dispatch: ClassVar[dict[int, Any]] = pickle._Unpickler.dispatch | {
        code[0]: partial(_build_tuple, code[0])
        for code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)
    }

    def persistent_load(self, pid: Any) -> Any:
        kind, storage, key, *_ = pid
        if kind != "storage" or not isinstance(storage, Storage):
            raise pickle.UnpicklingError("an unknown kind of storage")
        self.storages[str(key)] = storage.dtype
        return Storage(str(key), storage.dtype)


class _TorchName(Inert):
    """A name of the module torch: of a type of numbers, a layout, a class."""

    def __init__(self, name: str = "") -> None:
        self._name = name

    def __str__(self) -> str:
        return self._name
