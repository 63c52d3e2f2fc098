"""Settings of a network beside its tensors: Hugging Face's ``config.json``, and fair-esm's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from esm2_features._checkpoints.catalogue import Architecture
from esm2_features._checkpoints.contents import Contents, read_json
from esm2_features._checkpoints.families import family_of_config, only_esm2
from esm2_features._checkpoints.pickles import DEEPEST
from esm2_features._checkpoints.pt_file import settings_of
from esm2_features._checkpoints.trunk import architecture_of
from esm2_features.exceptions import CheckpointError

# Values that ESM-2 has, and what transformers takes where the key is absent.
_ESM2: dict[str, tuple[tuple[object, ...], object]] = {
    "model_type": (("esm",), "esm"),
    "is_folding_model": ((False, None), False),
    "vocab_size": ((33,), None),
    "position_embedding_type": (("rotary",), "absolute"),
    "emb_layer_norm_before": ((False, None), None),
    "token_dropout": ((True,), False),
    "layer_norm_eps": ((1e-5,), 1e-12),
    "rope_theta": ((1e4,), 1e4),
    "rope_scaling": ((None,), None),
    "hidden_act": (("gelu", None), "gelu"),
    "is_decoder": ((False, None), False),
    "add_cross_attention": ((False, None), False),
    "pad_token_id": ((1, None), None),
    "mask_token_id": ((32, None), None),
    "quantization_config": ((None,), None),
}
_SHAPE = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12}


def declared_inside(path: Path, contents: Contents) -> Architecture | None:
    """Return what a file says of itself: the metadata of safetensors, or objects in a pickle."""
    metadata = contents.metadata
    if "layers" in metadata:
        if metadata.get("architecture", "esm2") != "esm2":
            raise _not_esm2(path, "architecture", metadata["architecture"], "esm2")
        return architecture_of(str(path), [metadata.get(it) for it in ("layers", "dim", "heads")])
    top = settings_of(contents.settings)
    settings = settings_of(settings_of(top.get("cfg")).get("model"))
    if "encoder_layers" in settings:
        keys = ("encoder_layers", "encoder_embed_dim", "encoder_attention_heads")
        if settings.get("token_dropout") is not True:
            raise _not_esm2(path, "token_dropout", settings.get("token_dropout"))
        return architecture_of(str(path), [settings.get(key) for key in keys])
    # Networks and settings that were pickled as a whole, wherever they are.
    found = set()
    for nested in _settings_in(contents.settings, DEEPEST, set()):
        if "token_dropout" in nested and _describes_network(nested):
            found.add(check_config(path, nested))
        dropout = nested.get("token_dropout", True)
        if "embed_tokens" in settings_of(nested.get("_modules")) and dropout is not True:
            raise _not_esm2(path, "token_dropout", dropout)
    return found.pop() if len(found) == 1 else None


def declared_beside(path: Path, *, of_folder: bool) -> Architecture | None:
    """Return what the ``config.json`` of a folder, or beside a file, says of an ESM-2 network.

    None where there is none, or where it is about something else: a user's own module, or
    another file beside this one.
    """
    file = path / "config.json" if of_folder else path.with_name("config.json")
    if not file.is_file():
        return None
    config = read_json(file)
    kind = config.get("model_type", "esm" if "token_dropout" in config else None)
    if kind == "esm" or (of_folder and (family_of_config(config) or _describes_network(config))):
        return check_config(file, config)
    return None


def check_config(file: Path, config: Mapping[str, Any]) -> Architecture:
    """Read the shape of a network off its settings; raise CheckpointError if it is no ESM-2."""
    for key, (allowed, default) in _ESM2.items():
        if (found := config.get(key, default)) not in allowed:
            absent = key not in config
            raise _not_esm2(file, key, found, allowed[0], family_of_config(config), absent=absent)
    rope = config.get("rope_parameters")  # of later releases of transformers
    if isinstance(rope, dict):
        for key, expected in (("rope_theta", 1e4), ("rope_type", "default")):
            if rope.get(key, expected) != expected:
                raise _not_esm2(file, key, rope[key], expected)
    if config.get("pruned_heads"):
        raise _not_esm2(file, "pruned_heads", config["pruned_heads"], {})
    return architecture_of(str(file), [config.get(key, it) for key, it in _SHAPE.items()])


def _settings_in(found: Any, depth: int, seen: set[int]) -> Iterator[dict[str, Any]]:
    """Yield the attributes of objects and the entries of dictionaries, the outer ones first."""
    settings = settings_of(found)
    held = found if isinstance(found, list | tuple) else list(settings.values())
    if not depth or id(found) in seen or not held:
        return
    seen.add(id(found))
    if settings:
        yield settings
    for value in held:
        yield from _settings_in(value, depth - 1, seen)


def _describes_network(config: Mapping[str, Any]) -> bool:
    return all(key in config for key in _SHAPE)


def _not_esm2(
    path: Path,
    key: str,
    found: object,
    expected: object = True,
    family: str | None = None,
    *,
    absent: bool = False,
) -> CheckpointError:
    by_default = " (transformers' default, since it is absent)" if absent else ""
    shown = repr(found) if len(repr(found)) < 80 else f"{repr(found)[:77]}..."
    return CheckpointError(
        f"{path} is not an ESM-2 model: its {key} is {shown}{by_default}, and ESM-2's is "
        f"{expected!r}. {only_esm2(family)}",
        path=str(path),
    )
