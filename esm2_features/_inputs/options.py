"""The options of a run: their checks, and one table for the command line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeGuard

from esm2_features.exceptions import InputError

POOLINGS = ("mean", "max", "std", "cls", "eos")
"""Those that cost nothing besides the forward pass, and are meant by "all"."""
SPECIAL_TOKENS = ("cls", "eos")
PARTIAL_POOLINGS = tuple(word for word in POOLINGS if word not in SPECIAL_TOKENS)
"""Those that a part of a sequence can have."""
EVERY_POOLING = (*POOLINGS, "parti")
CACHED_POOLINGS = (*EVERY_POOLING, "log_probs")
"""What a cache may hold; "log_probs" are those of single residues."""
POOLING_OF = {"mean": "mean", "bos": "cls"} | {w: w for w in ("eos", "max", "std", "parti")}
"""Poolings by the words of the hosted API and of our server."""
TOO_LONG = ("raise", "truncate", "window")
UNKNOWN = ("raise", "X", "mask")
ON_MISSING = ("raise", "nan", "zero")
PRECISIONS = ("float32", "bfloat16", "float16")
CACHE_DTYPES = ("float32", "float16")
STORES = ("requested", "all")

_LEAST_CACHE_BYTES = 1 << 22

_OTHER_WORDS = {
    **dict.fromkeys(("average", "avg", "ave", "mean-pooling", "meanpool", "global"), "mean"),
    **dict.fromkeys(("maximum", "maxpool", "max-pooling"), "max"),
    **dict.fromkeys(("sd", "stdev", "variance", "var", "dispersion"), "std"),
    **dict.fromkeys(("bos", "first", "start", "<cls>", "class-token", "pooler", "pooled"), "cls"),
    **dict.fromkeys(("last", "end", "<eos>", "sep", "eos-token"), "eos"),
    **dict.fromkeys(("pagerank", "attention", "weighted"), "parti"),
    **dict.fromkeys(("fp16", "half", "f16", "16"), "float16"),
    **dict.fromkeys(("bf16", "bfloat", "amp", "mixed", "auto"), "bfloat16"),
    **dict.fromkeys(("fp32", "single", "full", "f32", "32", "tf32", "float64", "fp64"), "float32"),
    **dict.fromkeys(("error", "fail", "strict", "refuse"), "raise"),
    **dict.fromkeys(("sliding", "chunk", "split", "windowed"), "window"),
    **dict.fromkeys(("cut", "crop", "clip", "truncation", "true"), "truncate"),
    **dict.fromkeys(("masked", "mlm", "masked-marginal"), "masked-marginals mask"),
    **dict.fromkeys(("wt-marginals", "unmasked", "wildtype", "fast"), "wildtype-marginals"),
    **dict.fromkeys(("pppl", "ppl", "pll", "perplexity", "likelihood"), "pseudo-perplexity"),
    **dict.fromkeys(("keep", "ignore", "drop", "skip", "np.nan"), "nan"),
    **dict.fromkeys(("fill", "zeros"), "zero"),
    **dict.fromkeys(("<mask>", "<unk>", "unk"), "mask x"),
    **dict.fromkeys(("concat", "cat", "separate"), "concatenate"),
    **dict.fromkeys(("gpu", "nvidia"), "cuda"),
    **dict.fromkeys(("metal", "apple", "m1"), "mps"),
    "none": "nan concatenate",
    "0": "zero",
    **dict.fromkeys(("every", "everything"), "all"),
}
"""What other programs call the words of our options."""


def absolute_layers(
    layers: object, *, depth: int, model: str, option: str = "layers"
) -> tuple[int, ...]:
    """Turn layers as users write them into numbers from 0 to ``depth``."""
    if isinstance(layers, str) and layers == "all":
        return tuple(range(depth + 1))
    listed: list[Any] = list(layers) if isinstance(layers, Iterable) else [layers]
    if not all(map(is_whole, listed)):
        is_last = isinstance(layers, str) and layers in ("last", "final", "-1")
        meant = " Did you mean -1, the last layer?" if is_last else similar(layers, ("all",))
        raise TypeError(f'Got layers={layers!r}; pass an int, a list of int, or "all".{meant}')
    found = []
    for layer in listed:
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


def pooling_names(pooling: object, *, partial: bool) -> tuple[str, ...]:
    """Check poolings; "all" are those without extra cost, of a part without special tokens."""
    if isinstance(pooling, str) and pooling == "all":
        return PARTIAL_POOLINGS if partial else POOLINGS
    return names("pooling", pooling, EVERY_POOLING)


def column_lists(
    layers: Sequence[int], poolings: Sequence[str], depth: int, store: str
) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """List the columns of a result, and those that are computed; "all" stores what a pass gives."""
    wanted = [(layer, pooling) for layer in layers for pooling in poolings]
    every = [(layer, pooling) for layer in range(depth + 1) for pooling in POOLINGS]
    return wanted, list(dict.fromkeys([*every, *wanted])) if store == "all" else wanted


def one_of(option: str, value: object, allowed: Sequence[str]) -> str:
    """Check an option that is one of a few words."""
    if isinstance(value, str) and value in allowed:
        return str(value)
    choices = ", ".join(f'"{word}"' for word in allowed)
    raise InputError(f"Got {option}={value!r}; expected one of {choices}.{similar(value, allowed)}")


def similar(value: object, allowed: Iterable[str]) -> str:
    """Ask whether another word was meant, at the end of a message; empty if none is like it."""
    if not isinstance(value, str):
        return ""
    known = {word.casefold(): word for word in allowed}
    word = value.strip().casefold().replace("_", "-").removeprefix("torch.")
    meant = [other for other in _OTHER_WORDS.get(word, "").split() if other in known]
    meant = meant or [w for w in known if word and w.startswith(word)]
    meant = meant or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f' Did you mean "{known[meant[0]]}"?' if meant else ""


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number, of Python or NumPy, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def positive(option: str, value: object) -> int:
    """Check an option that is a positive whole number."""
    if not is_whole(value) or value < 1:
        raise InputError(f"Got {option}={value!r}; expected a positive whole number.")
    return int(value)


def is_region_text(value: object) -> bool:
    """Whether a value is a region written as text, such as ``"26:33,50:58"``, and no name."""
    return isinstance(value, str) and ":" in value and not set(value) - set("0123456789:, ")


def fixed_region(value: object) -> tuple[int, int] | str | None:
    """Check the parts of every sequence that are to be pooled."""
    if value is None:
        return None
    if isinstance(value, str) and is_region_text(value):
        parts = [re.fullmatch(r"\s*(\d+)\s*(?::\s*(\d+)\s*)?", part) for part in value.split(",")]
        if all(part and (part[2] is None or int(part[1]) < int(part[2])) for part in parts):
            return value
    if isinstance(value, tuple) and len(value) == 2:
        start, stop = value
        if all(map(is_whole, value)) and 0 <= start < stop:
            return int(start), int(stop)
    numbers = re.findall(r"-?\d+", str(value))
    like_pair = len(numbers) == 2 and isinstance(value, str | list | slice)
    like_pair = like_pair and 0 <= int(numbers[0]) < int(numbers[1])
    meant = f" Did you mean ({numbers[0]}, {numbers[1]})?" if like_pair else ""
    raise InputError(
        f"Got region={value!r}; expected None, or a tuple (start, stop) with 0 <= start < stop, "
        "counted from 0, as in sequence[start:stop], or several parts as text: "
        f'"26:33,50:58".{meant}'
    )


def cache_limit(max_bytes: object) -> None:
    """Check the size that a cache may reach."""
    if max_bytes is not None and not (is_whole(max_bytes) and max_bytes >= _LEAST_CACHE_BYTES):
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
            f"{_similar_device(device)}"
        )
    twice = [name for name in names if names.count(name) > 1 and name != "cpu"]
    if twice:
        raise InputError(
            f"Got device={device!r}, in which {twice[0]!r} stands twice. One worker keeps a card "
            'busy; only "cpu" can be named several times, and its cores are divided then.'
        )
    return names


def _similar_device(device: object) -> str:
    """Ask whether another device was meant."""
    found = re.fullmatch(r"(?:cuda|gpu)[-_: ]?([0-9]+)|([0-9]+)", str(device).strip().lower())
    if found:
        return f' Did you mean "cuda:{found[1] or found[2]}"?'
    return similar(device, ("cpu", "cuda", "mps", "xpu", "all", "auto"))


def _is_device(name: str) -> bool:
    """Whether a word names a device, or several, joined by plus signs, that share one network."""
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


def check_special_tokens(poolings: Iterable[str]) -> None:
    """Raise InputError if a pooling is of a special token, which a part of a sequence lacks."""
    special = [pooling for pooling in poolings if pooling in SPECIAL_TOKENS]
    if special:
        raise InputError(
            f"Got pooling={special[0]!r} with a region: the special tokens belong to the whole "
            'sequence. Pool a region by "mean", "max", "std" or "parti".'
        )


def check_windows(poolings: Iterable[str]) -> None:
    """Raise InputError if a pooling cannot be merged from windows."""
    if "parti" in poolings:
        raise InputError(
            'Got pooling="parti" with too_long="window": importance is read off attention '
            "between all residues of a sequence, and windows attend to their own only. Pass "
            "max_residues=None to run long sequences whole, or another pooling."
        )


def check_cache_options(*, cache: object, cache_dtype: str, store: str) -> None:
    """Raise InputError if it is said how vectors are kept, and there is no cache to keep them."""
    if cache is None and (cache_dtype, store) != ("float32", "requested"):
        raise InputError(
            f"Got cache=None with cache_dtype={cache_dtype!r} and store={store!r}, which say how "
            "vectors are kept. Give them a cache, or leave these two options out."
        )


# ------------------------------------------------------------------ the options of a run


@dataclass(frozen=True, slots=True)
class Option:
    """A parameter of `Engine`, and the option of the command line with the same name."""

    default: object
    help: str
    choices: tuple[str, ...] = ()  # words that it may be; () for anything
    metavar: str | None = None  # how its value is written on the command line


OPTIONS = {
    "model": Option(
        "esm2_t33_650M_UR50D",
        "Official name (see `esm2-features models`) or its size (650M), mini (the demonstration "
        "model that ships with this library), the path of a checkpoint (a file, or a folder of "
        "transformers or peft), or a repository of the Hugging Face hub (owner/name).",
    ),
    "layers": Option(
        -1,
        "Layers whose representations are returned. 0 is the embedding, and negative numbers "
        "count from the end. Several are concatenated.",
        metavar="N[,N...]|all",
    ),
    "pooling": Option(
        "mean",
        f"How the residues become one vector: {', '.join(POOLINGS)} (all of these is all); or "
        "parti, a mean that weights residues by PageRank over the attention maps, which takes "
        "more time and memory. Several are concatenated.",
        metavar="WORD[,WORD...]|all",
    ),
    "region": Option(
        None,
        "Pool over a part of every sequence, or several parts, with the whole sequence as their "
        "context; counted from 0, as in sequence[START:STOP].",
        metavar="START:STOP[,START:STOP...]",
    ),
    "precision": Option(
        "float32",
        "Arithmetic. Half precisions are faster on hardware that supports them. float16 is 8 times "
        "as exact as bfloat16, which is too coarse to compare variants of one protein.",
        choices=PRECISIONS,
    ),
    "device": Option(
        "auto",
        "auto (a GPU if there is one), cpu, cuda, a card such as cuda:1, or mps. Several with "
        "commas between them share the work; all is every CUDA card.",
    ),
    "batch_tokens": Option(
        "auto",
        "Tokens (residues + 2) computed at a time. Changes speed and memory, but no result.",
        metavar="N|auto",
    ),
    "max_residues": Option(
        1022,
        "Longest sequence allowed. ESM-2 was trained on up to 1022 residues.",
        metavar="N|none",
    ),
    "too_long": Option(
        "raise",
        "What to do with longer sequences: raise an error, truncate them to their first "
        "residues, or average over overlapping windows.",
        choices=TOO_LONG,
    ),
    "unknown": Option(
        "raise",
        "What to do with characters that stand for no residue: raise an error, or read them as "
        "X or as a mask.",
        choices=("raise", "X", "mask"),
    ),
    "cache": Option(
        "auto",
        "Where results are kept. auto is the user's cache folder, or $ESM2_FEATURES_CACHE.",
        metavar="FOLDER|auto|none",
    ),
    "cache_dtype": Option(
        "float32",
        "What vectors are kept in. float16 halves the cache and rounds the features.",
        choices=CACHE_DTYPES,
    ),
    "store": Option(
        "requested",
        "What is kept: the layers and poolings that you ask for, or all that the model has.",
        choices=STORES,
    ),
    "endpoint": Option(
        None,
        "Address of a server that computes what is not in the cache, such as "
        "http://host:8000. Its token is read from $ESM2_FEATURES_TOKEN.",
        metavar="URL",
    ),
}
"""All options of a run, in the order of the parameters of `Engine`."""
