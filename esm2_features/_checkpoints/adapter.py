"""LoRA adapters as PEFT saves them, merged onto the weights of their base.

The arithmetic is that of PEFT's ``merge_and_unload``, in float32. What it does not cover exactly is
refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esm2_features._checkpoints.catalogue import Architecture
from esm2_features._checkpoints.contents import read_contents, read_json, whole
from esm2_features._checkpoints.folder import ADAPTER_CONFIG, adapter_file
from esm2_features._checkpoints.headers import tell_once
from esm2_features._checkpoints.names import (
    EMBEDDING,
    HEAD,
    HEADS,
    TIED,
    module_names,
    tensor_shapes,
)
from esm2_features._checkpoints.slots import Slot
from esm2_features._checkpoints.tensors import read_slot
from esm2_features._checkpoints.trunk import listed
from esm2_features.exceptions import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_ROOT = "base_model.model."
_EMBEDDING_MODULE = EMBEDDING.rpartition(".")[0]
_LORA = re.compile(r"(.+)\.(lora_(?:embedding_)?[AB])(?:\.(.+))?")
_COPIES = re.compile(r"\.(?:base_layer|modules_to_save(?:\.default)?)(?=\.)")
_TRUNK_MODULE = re.compile(r"(?:.*\.)?(?:encoder\.layer|layers|embeddings)\.")

# Tokens in front of each sequence, or activations: no weights of a network do the same.
_NOT_WEIGHTS = "PREFIX_TUNING PROMPT_TUNING P_TUNING MULTITASK_PROMPT_TUNING ADAPTION_PROMPT CPT"
# Settings that change nothing once an adapter is trained, or that its tensors tell.
_SETTLED = re.compile(
    "peft_type|auto_mapping|peft_version|base_model_name_or_path|revision|task_type|inference_mode"
    "|r|lora_alpha|lora_dropout|target_modules|exclude_modules|rank_pattern|alpha_pattern|bias"
    "|use_rslora|fan_in_fan_out|modules_to_save|init_lora_weights|layers_to_transform"
    "|layers_pattern|lora_bias|eva_config|corda_config|loftq_config|lora_ga_config|megatron_core"
    "|qalora_group_size|runtime_config|ensure_weight_tying"
)
_OF_NUMBERS = (
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "modules_to_save",
)  # fmt: skip
_WORDS = {"use_dora": "DoRA", "use_qalora": "QALoRA", "alora_invocation_tokens": "activated LoRA"}
# Others change the weights of the base when an adapter is made.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_BAD_NUMBERS = (ArithmeticError, AttributeError, KeyError, TypeError, ValueError, re.error)


@dataclass(slots=True)
class _Change:
    """What is added to one weight: scale * B @ A, and to a bias: scale * bias."""

    rank: int
    scale: float
    parts: dict[str, Slot] = field(default_factory=dict)  # ``A``, ``B`` and perhaps ``bias``


@dataclass(frozen=True, slots=True)
class Adapter:
    """Changes to the weights of a network, by our names."""

    folder: Path
    file: Path  # of the tensors
    scaling: str  # the settings on which the numbers depend
    changes: dict[str, _Change]  # by module
    replaced: dict[str, Slot]  # by tensor
    unties: bool  # it has an embedding of its own for the input

    def merge(self, weights: dict[str, Tensor]) -> None:
        """Change weights in place; names that are not among them are passed over."""
        for name, slot in self.replaced.items():
            if name in weights or (name.startswith(HEAD) and EMBEDDING in weights):
                weights[name] = read_slot(name, slot)
        for module, change in self.changes.items():
            if f"{module}.weight" not in weights:
                continue
            parts = {part: read_slot(module, slot).float() for part, slot in change.parts.items()}
            delta = parts["B"] @ parts["A"]
            if module == _EMBEDDING_MODULE:
                delta = delta.T
            added = {"weight": delta, **({"bias": parts["bias"]} if "bias" in parts else {})}
            for leaf, tensor in added.items():
                name = f"{module}.{leaf}"
                weights[name] = weights[name] + (tensor * change.scale)  # float32, if it was half
        self._check_head(weights)

    def _check_head(self, weights: dict[str, Tensor]) -> None:
        """Leave the language-model head out where it is not whole, or not tied any more."""
        tied = weights.pop(TIED, None)
        head = [name for name in weights if name.startswith(HEAD)]
        untied = self.unties if tied is None else not tied.equal(weights[EMBEDDING])
        whole_head = len(head) == len(set(HEADS.values()) - {TIED})
        if untied or not whole_head:
            for name in head:
                del weights[name]
        if untied and whole_head:
            tell_once(
                f"{self.folder} trained the embedding and the output matrix apart, where ESM-2 "
                "has one matrix for both: it gives representations, but no logits."
            )


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the settings of an adapter; raise CheckpointError if it cannot be merged exactly."""
    settings = read_json(folder / ADAPTER_CONFIG)
    kind = str(settings.get("peft_type"))
    if kind.upper() in _NOT_WEIGHTS.split():
        raise CheckpointError(
            f"{folder} is an adapter of the type {kind}, which adds to what the network reads or "
            "computes, not to its weights: ESM-2 with other weights cannot do the same. Train a "
            "LoRA adapter instead, or compute with peft.",
            path=str(folder),
        )
    if kind != "LORA":
        raise _cannot_merge(folder, f"is an adapter of the type {kind}")
    for key, value in settings.items():
        if not _SETTLED.fullmatch(key) and value not in (None, False, [], {}, "", 0):
            raise _cannot_merge(folder, f"uses {_WORDS.get(key, key)} ({key} is {value!r:.80})")
    start = settings.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise _cannot_merge(
            folder, f"changed its base when it was made (init_lora_weights is {start!r:.80})"
        )
    return settings


def read_adapter(folder: Path, settings: Mapping[str, Any], of: Architecture) -> Adapter:
    """Read which weights of a base an adapter changes, without the numbers."""
    file = adapter_file(folder)
    slots = read_contents((file,)).slots
    reader = _Reader(folder, settings, of)
    trunks, extras = reader.trunks(slots), []
    changes: dict[str, _Change] = {}
    replaced: dict[str, Slot] = {}
    for name, slot in slots.items():
        if ".original_module." in name:
            continue
        match = _LORA.fullmatch(name)
        if match is None and "lora_" in name:
            raise _cannot_merge(folder, f"holds {name}, which is not of plain LoRA")
        theirs, _, leaf = (match[1], "", "") if match else _COPIES.sub("", name).rpartition(".")
        module = reader.module(theirs, trunks)
        if module is None:
            extras.append(name)
        elif match is None:
            reader.replace(replaced, theirs, module, leaf, slot)
        else:
            change = changes.setdefault(module, _Change(*reader.scale(theirs)))
            part = "bias" if name.endswith(".bias") else match[2][-1]
            if part in change.parts:
                raise CheckpointError(
                    f"{file} holds several adapters for {theirs}. Save one of them alone: "
                    'model.save_pretrained(folder, selected_adapters=["NAME"]).',
                    path=str(folder),
                )
            change.parts[part] = slot
    reader.check(changes, replaced)
    if extras:
        tell_once(
            f"{folder} also holds {listed('tensors', extras)}; ESM-2 has none of them, and they "
            "are not used."
        )
    scaling = json.dumps([settings.get(key) for key in _OF_NUMBERS], sort_keys=True)
    # Merged by peft, a change of the output matrix would become one of the embedding as well.
    unties = changes.pop("lm_head", None) is not None
    unties |= EMBEDDING in replaced and "embed" in str(settings.get("modules_to_save"))
    return Adapter(folder, file, scaling, changes, replaced, unties)


class _Reader:
    """Names, shapes and scales of an adapter's tensors."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], of: Architecture) -> None:
        self._folder, self._settings = folder, settings
        self._modules = module_names(of.layers)
        self._shapes = tensor_shapes(of)

    def trunks(self, slots: Mapping[str, Slot]) -> set[str]:
        """Return what stands before the names of the trunk; raise CheckpointError on several."""
        found: dict[bool, set[str]] = {True: set(), False: set()}
        for name in slots:
            match = _LORA.fullmatch(name)
            theirs = match[1] if match else _COPIES.sub("", name).rpartition(".")[0]
            for prefix, rest in _suffixes(theirs):
                if rest in self._modules and not rest.startswith((HEAD[:-1], "contact_head")):
                    is_native = rest == self._modules[rest]
                    if not is_native or prefix in ("", _ROOT):
                        found[is_native].add(prefix)
                    break
        prefixes = found[False] or found[True]
        if len(prefixes) > 1:
            raise CheckpointError(
                f"{self._folder} changes several networks, at "
                f"{' and '.join(map(repr, sorted(prefixes)))}. Merge it, and save the one that "
                "you want: model.merge_and_unload().NAME.save_pretrained(NEW_FOLDER).",
                path=str(self._folder),
            )
        return prefixes

    def module(self, theirs: str, trunks: set[str]) -> str | None:
        """Return our name of a module, or None for one that is not of ESM-2."""
        trunk = next(iter(trunks), _ROOT)
        for prefix, rest in _suffixes(theirs):
            if rest in self._modules:
                of_head = rest.startswith((HEAD[:-1], "contact_head"))
                if trunk.startswith(prefix) if of_head else prefix == trunk:
                    return self._modules[rest]
        if theirs.startswith(trunk) and _TRUNK_MODULE.match(theirs.removeprefix(trunk)):
            raise CheckpointError(
                f"{self._folder} changes {theirs}, which its base does not have "
                f"({len({it for it in self._shapes if it.endswith('fc1.weight')})} layers). Was it "
                f"trained on another base? See base_model_name_or_path in {ADAPTER_CONFIG}.",
                path=str(self._folder),
            )
        return None

    def scale(self, theirs: str) -> tuple[int, float]:
        """Return r, and alpha / r or alpha / sqrt(r), of a module."""
        module = theirs.removeprefix(_ROOT)
        try:
            rank = whole(self._of_pattern("rank_pattern", module, self._settings["r"]))
            alpha = self._of_pattern("alpha_pattern", module, self._settings["lora_alpha"])
            scale = alpha / (math.sqrt(rank) if self._settings.get("use_rslora") else rank)
            if not math.isfinite(scale):
                raise ValueError(f"a scale of {scale}")
        except _BAD_NUMBERS as error:
            raise CheckpointError(
                f"{self._folder / ADAPTER_CONFIG} does not tell how LoRA of {theirs} is scaled "
                f"({error!r}): r and lora_alpha must be numbers. Copy or download it again.",
                path=str(self._folder),
            ) from error
        return rank, scale

    def _of_pattern(self, key: str, module: str, default: Any) -> Any:
        patterns = self._settings.get(key) or {}
        for pattern, value in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return default

    def replace(
        self, replaced: dict[str, Slot], theirs: str, module: str, leaf: str, slot: Slot
    ) -> None:
        """Note a tensor that takes the place of the base's."""
        leaf = {"gamma": "weight", "beta": "bias"}.get(leaf, leaf)
        ours = TIED if (module, leaf) == ("lm_head", "weight") else f"{module}.{leaf}"
        if self._shapes.get(ours) != slot.shape:
            raise self._misfit(f"{theirs}.{leaf} is {slot.shape}, not {self._shapes.get(ours)}")
        replaced[ours] = slot

    def check(self, changes: Mapping[str, _Change], replaced: Mapping[str, Slot]) -> None:
        for module, change in changes.items():
            a, b = (change.parts[part].shape if part in change.parts else () for part in "AB")
            weight = self._shapes.get(f"{module}.weight", ())
            both = (*b[:1], *a[1:])
            if (
                len(a) != 2 or len(b) != 2 or not a[0] == b[1] == change.rank
                or both != (weight[::-1] if module == _EMBEDDING_MODULE else weight)
            ):  # fmt: skip
                raise self._misfit(
                    f"LoRA of {module} is {b} by {a} with r={change.rank}, and its weight {weight}"
                )
        if not changes and not replaced:
            raise CheckpointError(
                f"{self._folder} changes no weight of ESM-2. Was it trained on another network?",
                path=str(self._folder),
            )

    def _misfit(self, detail: str) -> CheckpointError:
        return CheckpointError(
            f"{self._folder} does not fit its base: {detail}. Was it trained on another one? See "
            f"base_model_name_or_path in {ADAPTER_CONFIG}.",
            path=str(self._folder),
        )


def _suffixes(name: str) -> Iterator[tuple[str, str]]:
    """Divide a name before each of its words."""
    words = name.split(".")
    for i in range(len(words)):
        prefix = "".join(f"{word}." for word in words[:i])
        yield prefix, name[len(prefix) :]


def _cannot_merge(folder: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} {why}, and only plain LoRA is merged here. Merge it with peft, into a new "
        "folder, and pass that: "
        'PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained("merged").',
        path=str(folder),
    )
