"""The options of a run: what each may be, and what is said when it is something else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral

from esm2_features.exceptions import InputError

POOLINGS = ("mean", "max", "std", "cls", "eos")
"""Those that cost nothing besides the forward pass, and are meant by "all"."""
SPECIAL_TOKENS = ("cls", "eos")
PARTIAL_POOLINGS = tuple(word for word in POOLINGS if word not in SPECIAL_TOKENS)
"""Those that a part of a sequence can have."""
EVERY_POOLING = (*POOLINGS, "parti")
POOLING_OF = {
    "mean": "mean",
    "bos": "cls",
    "eos": "eos",
    "max": "max",
    "std": "std",
    "parti": "parti",
}
"""What the hosted service's API calls them; the last four are this library's own."""
TOO_LONG = ("raise", "truncate", "window")
PRECISIONS = ("float32", "bfloat16", "float16")
CACHE_DTYPES = ("float32", "float16")
STORES = ("requested", "all")

_LEAST_CACHE_BYTES = 1 << 22

# What str() makes of missing values; all but the last spell a peptide that nobody meant.
MISSING_WORDS = frozenset({"nan", "None", "NaN", "NaT", "<NA>"})


def absolute_layers(
    layers: object, *, depth: int, model: str, option: str = "layers"
) -> tuple[int, ...]:
    """Turn what was asked for into layer numbers from 0 to ``depth``."""
    if isinstance(layers, str) and layers == "all":
        return tuple(range(depth + 1))
    wanted = [layers] if isinstance(layers, Integral) else layers
    if isinstance(wanted, str) or not isinstance(wanted, Iterable):
        raise TypeError(f'Got layers={layers!r}; pass an int, a list of int, or "all".')
    found = []
    for layer in wanted:
        if isinstance(layer, bool) or not isinstance(layer, Integral):
            raise TypeError(f'Got layers={layers!r}; pass an int, a list of int, or "all".')
        if not -depth - 1 <= int(layer) <= depth:
            raise InputError(
                f"Got {option}={layers!r}, but {model} has the representations 0 (the embedding) "
                f"to {depth}; negative numbers count from the end, down to {-depth - 1}."
            )
        found.append(int(layer) % (depth + 1))
    _check_distinct("layers", layers, found)
    return tuple(found)


def names(option: str, value: object, allowed: Sequence[str]) -> tuple[str, ...]:
    """Check an option that is one word or a list of words."""
    words = list(value) if isinstance(value, (list, tuple)) else [value]
    checked = [one_of(option, word, allowed) for word in words]
    _check_distinct(option, value, checked)
    return tuple(checked)


def one_of(option: str, value: object, allowed: Sequence[str]) -> str:
    """Check an option that is one of a few words."""
    if isinstance(value, str) and value in allowed:
        return str(value)
    choices = ", ".join(f'"{word}"' for word in allowed)
    raise InputError(f"Got {option}={value!r}; expected one of {choices}.")


def positive(option: str, value: object) -> int:
    """Check an option that is a positive whole number."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
        raise InputError(f"Got {option}={value!r}; expected a positive whole number.")
    return int(value)


def fixed_region(value: object) -> tuple[int, int] | None:
    """Check the part of every sequence that is to be pooled."""
    if value is None:
        return None
    if isinstance(value, tuple) and len(value) == 2:
        start, stop = value
        are_whole = all(isinstance(n, Integral) and not isinstance(n, bool) for n in value)
        if are_whole and 0 <= start < stop:
            return int(start), int(stop)
    raise InputError(
        f"Got region={value!r}; expected None, or a tuple (start, stop) with 0 <= start < stop, "
        "counted from 0, as in sequence[start:stop]."
    )


def cache_limit(max_bytes: object) -> None:
    """Check the size that a cache may reach."""
    if max_bytes is not None and (
        not isinstance(max_bytes, Integral) or int(max_bytes) < _LEAST_CACHE_BYTES
    ):
        raise InputError(
            f"Got max_bytes={max_bytes!r}; expected None, or a whole number from "
            f"{_LEAST_CACHE_BYTES}."
        )


def device_names(device: object) -> tuple[str, ...]:
    """Check that devices are named in a way that PyTorch may understand.

    Whether they are there is found out when they are used: a cached result needs no device.
    """
    listed = list(device) if isinstance(device, (list, tuple)) else str(device).split(",")
    names = tuple(name.strip() if isinstance(name, str) else str(name) for name in listed)
    is_known = all(map(_is_device, names)) or names == ("all",)
    if not names or not is_known or (len(names) > 1 and "auto" in names):
        raise InputError(
            f'Got device={device!r}; expected "auto", "cpu", "cuda", a card such as "cuda:1", '
            '"mps", "xpu", a list of such devices, or "all".'
        )
    twice = [name for name in names if names.count(name) > 1 and name != "cpu"]
    if twice:
        raise InputError(
            f"Got device={device!r}, in which {twice[0]!r} stands twice. One worker keeps a card "
            'busy; only "cpu" can be named several times, and its cores are divided then.'
        )
    return names


def _is_device(name: str) -> bool:
    """Tell whether a word names a device, or several with plus signs that share one network."""
    parts = [part.partition(":") for part in name.split("+")]
    return all(
        (kind in ("cpu", "cuda", "mps", "xpu") or (kind == "auto" and len(parts) == 1))
        and (number.isdecimal() or not colon)
        for kind, colon, number in parts
    )


def _check_distinct(option: str, value: object, checked: Sequence[object]) -> None:
    if not checked:
        raise InputError(f"Got {option}={value!r}; expected at least one.")
    if len(set(checked)) < len(checked):
        raise InputError(f"Got {option}={value!r}, in which one occurs twice; name each once.")
