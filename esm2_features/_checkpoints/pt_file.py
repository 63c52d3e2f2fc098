"""PyTorch's files: names, shapes and places of their tensors, read without running code in them.

They are pickles, which can call any function. Here, every class and function of a pickle is an
inert stand-in, except for dictionaries and tensors, of which only the description is kept.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any, BinaryIO, ClassVar

from esm2_features._checkpoints.slots import DTYPE_BYTES, Slot
from esm2_features.exceptions import CheckpointError

_LONGEST_HEADER_BYTES = 100 << 20
_DEEPEST = 20  # dictionaries, tuples or modules inside each other
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# Entries of training loops that hold tensors beside the weights.
_OF_TRAINING = ("optimizer", "lr_scheduler", "scheduler", "grad_scaler", "scaler")

_STORAGES = {
    "Double": "F64",
    "Float": "F32",
    "Half": "F16",
    "BFloat16": "BF16",
    "Long": "I64",
    "Int": "I32",
    "Short": "I16",
    "Char": "I8",
    "Byte": "U8",
    "Bool": "BOOL",
    "ComplexFloat": "C64",
    "ComplexDouble": "C128",
    "Untyped": "U8",
}

# A file that mentions these was made to do something when it is loaded.
_HOSTILE_MODULES = frozenset(
    (
        "code",
        "commands",
        "ctypes",
        "importlib",
        "marshal",
        "nt",
        "os",
        "pickle",
        "posix",
        "pty",
        "runpy",
        "shutil",
        "socket",
        "subprocess",
        "sys",
        "webbrowser",
    )
)
_HOSTILE_BUILTINS = frozenset(
    (
        "__import__",
        "apply",
        "breakpoint",
        "compile",
        "eval",
        "exec",
        "execfile",
        "globals",
        "input",
        "open",
        "vars",
    )
)

CONVERT = (
    "If it is your own, save its weights alone, in the program that made it: "
    'torch.save(model.state_dict(), "weights.pt"), or '
    'safetensors.torch.save_model(model, "weights.safetensors").'
)


@dataclass(frozen=True, slots=True)
class PtFile:
    """What a PyTorch file holds: settings as plain data, and the places of all tensors."""

    contents: Any
    slots: dict[str, Slot]  # by the path to them, such as ``state_dict.esm.encoder...``


def read_pt(path: Path) -> PtFile:
    """Read everything but the numbers of a PyTorch file."""
    try:
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                contents, storages = _read_zip(path, file)
            else:
                file.seek(0)
                contents, storages = _read_legacy(path, file)
        slots = dict(_slots(path, contents, storages))
    except CheckpointError:
        raise
    except OSError:
        raise
    except Exception as error:  # damaged files raise whatever the bytes lead to
        raise CheckpointError(
            f"{path} cannot be read as a PyTorch checkpoint ({_shortened(error)}): it was cut "
            f"short, or torch.save did not write it. Copy or download it again. {CONVERT}",
            path=str(path),
        ) from error
    return PtFile(contents, slots)


# ------------------------------------------------------------------ the two layouts

Storages = dict[str, tuple[int, int]]
"""First byte, and number of bytes, of each storage."""


def _read_zip(path: Path, file: BinaryIO) -> tuple[Any, Storages]:
    """Read the archive that torch writes since release 1.6; its entries are not compressed."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        if "data.pkl" not in entries:
            raise CheckpointError(
                f"{path} is a zip archive, but not of torch.save: unpack it, and pass the folder "
                "or the file with the weights.",
                path=str(path),
            )
        if "constants.pkl" in entries:
            raise CheckpointError(
                f"{path} is a compiled program (TorchScript). Save its weights alone: "
                'torch.save(torch.jit.load(file).state_dict(), "weights.pt").',
                path=str(path),
            )
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise CheckpointError(
                f"{path} was written on a machine of another byte order. Save it as safetensors "
                "there, which are the same everywhere.",
                path=str(path),
            )
        if any(entry.compress_type for entry in entries.values()):
            raise CheckpointError(
                f"{path} was compressed after torch.save wrote it. Unpack it, and pack it again "
                "without compression (zip -0), or use the original file.",
                path=str(path),
            )
        if entries["data.pkl"].file_size > _LONGEST_HEADER_BYTES:
            raise pickle.UnpicklingError("too long for names and shapes")
        with archive.open(entries["data.pkl"]) as stream:
            contents = _InertUnpickler(path, stream).load()
    storages = {}
    for name, entry in entries.items():
        if name.startswith("data/"):
            file.seek(entry.header_offset + 26)
            lengths = file.read(4)  # of the name and of padding, which differ from the directory's
            start = entry.header_offset + 30
            start += int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
            storages[name.removeprefix("data/")] = (start, entry.file_size)
    return contents, storages


def _read_legacy(path: Path, file: BinaryIO) -> tuple[Any, Storages]:
    """Read what torch wrote before: five pickles, and then the storages, each with its length."""
    if file.read(2)[:1] != b"\x80":
        raise pickle.UnpicklingError("it does not begin as a pickle")
    file.seek(0)
    if _InertUnpickler(path, file).load() != _LEGACY_MAGIC:
        raise pickle.UnpicklingError("a pickle, but not of torch.save")
    for _ in range(2):  # the version, and facts about the machine
        _InertUnpickler(path, file).load()
    unpickler = _InertUnpickler(path, file)
    contents = unpickler.load()
    storages = {}
    for key in _InertUnpickler(path, file).load():
        count = int.from_bytes(file.read(8), "little")
        size = count * DTYPE_BYTES.get(unpickler.storages[str(key)], 1)
        storages[str(key)] = (file.tell(), size)
        file.seek(size, 1)
    return contents, storages


# ------------------------------------------------------------------ pickles


class _Inert:
    """Stands for any class, function or object; calling it, or filling it, does nothing more."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def __call__(self, *_args: Any, **_kwargs: Any) -> _Inert:
        return _Inert()

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
        return self._stream.read(min(size, _LONGEST_HEADER_BYTES))


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: str


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    offset: int  # elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_rest: Any) -> _Tensor | _Inert:
    if not isinstance(storage, _Storage):
        return _Inert()
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _typed_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any,
    *_rest: Any,
) -> _Tensor | _Inert:  # fmt: skip
    """Describe a tensor of a type without a storage class of its own, such as float8."""
    if not isinstance(storage, _Storage):
        return _Inert()
    return _tensor(_Storage(storage.key, str(dtype)), offset, shape, strides)


def _quantised(storage: Any, *rest: Any) -> _Tensor | _Inert:
    return _tensor(_Storage(getattr(storage, "key", ""), "quantised"), *rest)


def _parameter(data: Any, *_rest: Any) -> Any:
    return data


def _of_type(build: Any, _type: Any, arguments: Any, _state: Any) -> Any:
    known = (_tensor, _typed_tensor, _parameter)
    return build(*arguments) if getattr(build, "func", None) in known else _Inert()


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
    if depth >= _DEEPEST:
        raise pickle.UnpicklingError("tuples inside of tuples, without an end")
    if depth:
        unpickler.depths[id(built)] = depth + 1, built


class _InertUnpickler(pickle._Unpickler):
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
        if outermost in _HOSTILE_MODULES or (
            outermost in ("builtins", "__builtin__", "io", "_io") and name in _HOSTILE_BUILTINS
        ):
            raise CheckpointError(
                f"{self._path} is refused: beside tensors it holds a call of {module}.{name}, and "
                "loading that could run code. Get the checkpoint from its official source, or as "
                "safetensors.",
                path=str(self._path),
            )
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return _Storage("", _STORAGES.get(name.removesuffix("Storage"), name))
        if module == "torch":
            return _TorchName(name)
        return type(name, (_Inert,), {"__module__": module})

    dispatch: ClassVar[dict[int, Any]] = pickle._Unpickler.dispatch | {
        pickle.TUPLE[0]: partial(_build_tuple, pickle.TUPLE[0]),
        pickle.TUPLE1[0]: partial(_build_tuple, pickle.TUPLE1[0]),
        pickle.TUPLE2[0]: partial(_build_tuple, pickle.TUPLE2[0]),
        pickle.TUPLE3[0]: partial(_build_tuple, pickle.TUPLE3[0]),
    }

    def persistent_load(self, pid: Any) -> Any:
        kind, storage, key, *_ = pid
        if kind != "storage" or not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("an unknown kind of storage")
        self.storages[str(key)] = storage.dtype
        return _Storage(str(key), storage.dtype)


class _TorchName(_Inert):
    """A name of the module torch: of a type of numbers, a layout, a class."""

    def __init__(self, name: str = "") -> None:
        self._name = name

    def __str__(self) -> str:
        return self._name


# ------------------------------------------------------------------ tensors in the contents


def _slots(path: Path, contents: Any, storages: Storages) -> Iterator[tuple[str, Slot]]:
    for name, tensor in _tensors(contents, "", _DEEPEST, set()):
        itemsize = DTYPE_BYTES.get(tensor.storage.dtype, 1)
        start, size = storages[tensor.storage.key]
        first = tensor.offset * itemsize
        last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
        stop = first + (last + 1) * itemsize if prod(tensor.shape) else first
        # A tensor may look at less than its storage, but not at more, nor at one number often.
        if min(tensor.strides, default=0) < 0 or not 0 <= first <= stop <= size:
            raise ValueError(f"{name} lies outside of its storage")
        yield (
            name,
            Slot(path, tensor.storage.dtype, tensor.shape, start + first, start + stop,
                 tensor.strides),
        )  # fmt: skip


def _tensors(found: Any, name: str, depth: int, seen: set[int]) -> Iterator[tuple[str, _Tensor]]:
    """Yield the tensors in dictionaries, lists and modules, by the path to them."""
    if isinstance(found, _Tensor):
        yield name, found
        return
    modules = [vars(found).get(part) for part in _PARTS] if isinstance(found, _Inert) else []
    for holder in [found, *modules]:
        if isinstance(holder, list | tuple):
            items: Any = enumerate(holder)
        else:
            items = holder.items() if isinstance(holder, dict) else ()
        if not depth or id(holder) in seen:
            continue
        seen.add(id(holder))
        for key, value in items:
            word = str(key) if isinstance(key, str | int) else "?"
            if not name and word.lower().startswith(_OF_TRAINING) and not hasattr(value, "shape"):
                continue
            yield from _tensors(value, f"{name}.{word}" if name else word, depth - 1, seen)


_PARTS = ("_parameters", "_buffers", "_modules", "_items")
"""What a stand-in has of a pickled module, and of a dictionary of another kind."""


def settings_of(found: Any) -> dict[str, Any]:
    """Return the attributes of an object in a pickle, or the entries of a dictionary."""
    if isinstance(found, dict):
        return found
    return dict(vars(found)) if isinstance(found, _Inert) else {}


def _shortened(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    return text if len(text) < 120 else f"{text[:117]}..."
