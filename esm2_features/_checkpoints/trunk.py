"""The network among the tensors of a checkpoint: its prefix, its shape, and what lies beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from esm2_features._checkpoints.catalogue import OFFICIAL, Architecture
from esm2_features._checkpoints.contents import whole
from esm2_features._checkpoints.families import family_of_tensors, only_esm2
from esm2_features._checkpoints.names import (
    CONTACTS,
    HEAD,
    HEADS,
    HUGGING_FACE,
    POSITIONS,
    ROTARY,
    TIED,
    TRUNKS,
    Shape,
    Table,
    embedding_of,
    expand,
    tensor_shapes,
)
from esm2_features._checkpoints.pt_file import CONVERT
from esm2_features.exceptions import CheckpointError

_DEEPEST = 1000  # layers; more than that is a damaged or a hostile file
_MOST_CANDIDATES = 20
_NAMES_SHOWN = 5

# Modules that torch puts around others anywhere in a network, without a change to the numbers.
_WRAPPERS = frozenset(("_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"))
# What a trunk's own tensors begin with: whatever else begins so makes another network of it.
_OF_NATIVE = re.compile(
    r"(layers|embed_(tokens|positions|out)|emb_layer_norm_\w+|msa_position_embedding)\b"
)
_OF_HUGGING_FACE = re.compile(r"(encoder|embeddings|rotary_embeddings)\b")
_LAYER = re.compile(r"(?:encoder\.layer|layers)\.(\d{1,6})\.")

_SAVE_ONE = (
    "Save the one that you want by itself, in the program that has them: "
    'torch.save(student.state_dict(), "student.pt").'
)


@dataclass(frozen=True, slots=True)
class Network:
    """A whole ESM-2 network in a checkpoint."""

    architecture: Architecture
    names: dict[str, str]  # our name of each of their tensors; ``*`` in ours stands for every layer
    extras: tuple[str, ...]  # tensors that it does not use, such as a classifier's
    heads_inside: bool  # the tensors tell the number of heads
    positions_unclear: bool  # learned positions, which ESM-1 uses, and no sign of ESM-2's


@dataclass(slots=True)
class _Candidate:
    """A place where there may be a network: everything with one prefix."""

    table: Table
    prefix: str
    layers: int
    dim: int
    heads: int | None = None
    heads_inside: bool = True
    found: dict[str, str] = field(default_factory=dict)  # their name of each of our tensors
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshaped: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[tuple[str, list[str]]]:
        kinds = ("missing", "unexpected", "misshaped")
        return [(kind, getattr(self, kind)) for kind in kinds if getattr(self, kind)]


def find_network(
    shapes: Mapping[str, Shape],
    declared: Architecture | None,
    *,
    path: str,
    same: Callable[[str, str], bool] = lambda _one, _other: False,
) -> Network:
    """Find the one whole network among tensors, or raise CheckpointError.

    ``declared`` is what a file says besides its tensors, and ``same`` tells whether two names are
    of the same tensor. Language-model head, contact regression and rotary frequencies may be
    absent.
    """
    clean = _without_wrappers(shapes)
    view = {name: shapes[theirs] for name, theirs in clean.items()}
    places = list(_places(view))
    if not places:
        raise _no_network(shapes, path)
    candidates, errors = [], []
    for place in places:
        try:
            candidates.append(_examine(view, declared, *place, path=path))
        except CheckpointError as error:  # of another network beside it, perhaps
            errors.append(error)
    if not candidates:
        raise errors[0]
    whole_ones = [it for it in candidates if not it.faults]
    chosen = whole_ones[0] if whole_ones else min(candidates, key=_badness)
    for other in whole_ones[1:]:
        if any(not same(clean[chosen.found[it]], clean[other.found[it]]) for it in chosen.found
               if it in other.found):  # fmt: skip
            raise CheckpointError(
                f"{path} holds {len(whole_ones)} whole ESM-2 networks, at "
                f"{' and '.join(repr(it.prefix) for it in whole_ones)} (a teacher and a student, "
                f"or averaged weights, say). {_SAVE_ONE}",
                path=path,
            )
    if chosen.faults:
        raise _not_whole(chosen, view, path)
    if chosen.heads is None:
        raise CheckpointError(
            f"Nothing tells how many attention heads {path} has. Put its config.json beside it, "
            'or store the metadata "layers", "dim" and "heads" in it.',
            path=path,
        )
    _add_heads(chosen, view, path)
    if any(name.endswith("esm_s_combine") for name in view):
        raise CheckpointError(
            f"{path} is not an ESM-2 model. {only_esm2(family_of_tensors(['esm_s_combine']))}",
            path=path,
        )
    used = {*chosen.found.values()}
    dropped = {f"{chosen.prefix}{it}" for it, ours in chosen.table.items() if ours is None}
    return Network(
        architecture_of(path, [chosen.layers, chosen.dim, chosen.heads]),
        {clean[theirs]: ours for ours, theirs in chosen.found.items()},
        tuple(theirs for name, theirs in clean.items() if name not in used | dropped),
        chosen.heads_inside,
        chosen.table is HUGGING_FACE
        and f"{chosen.prefix}{POSITIONS}" in view
        and not any(ours.endswith(ROTARY) for ours in chosen.found),
    )


def architecture_of(path: str, numbers: Sequence[Any]) -> Architecture:
    """Make an architecture of layers, width and heads, if they are one at all."""
    try:
        layers, dim, heads = map(whole, numbers)
        possible = 0 < layers <= _DEEPEST and heads > 0 and dim > 0 and dim % (2 * heads) == 0
    except ValueError:
        possible = False
    if not possible:
        raise CheckpointError(
            f"{path} does not describe an ESM-2 network: layers, width and heads are "
            f"{list(numbers)}, and the width must be a multiple of twice the heads.",
            path=path,
        )
    return Architecture(layers, dim, heads)


def listed(kind: str, names: Sequence[str]) -> str:
    """Count names, and show the first of them."""
    more = ", ..." if len(names) > _NAMES_SHOWN else ""
    return f"{len(names)} {kind} ({', '.join(names[:_NAMES_SHOWN])}{more})"


# ------------------------------------------------------------------ candidates


def _without_wrappers(shapes: Mapping[str, Shape]) -> dict[str, str]:
    """Return the original of each name without the wrappers in it."""
    clean = {
        ".".join(word for word in name.split(".") if word not in _WRAPPERS): name for name in shapes
    }
    return clean if len(clean) == len(shapes) else {name: name for name in shapes}


def _places(shapes: Mapping[str, Shape]) -> Iterator[tuple[Table, str]]:
    """Yield table and prefix of whatever may be the embedding of a network."""
    embeddings = [(table, embedding_of(table)) for table in TRUNKS]
    found = 0
    for name, shape in shapes.items():
        for table, embedding in embeddings:
            prefix = name.removesuffix(embedding)
            is_one = name.endswith(embedding) and (not prefix or prefix.endswith("."))
            if is_one and len(shape) == 2 and found < _MOST_CANDIDATES:
                found += 1
                yield table, prefix


def _examine(
    shapes: Mapping[str, Shape], declared: Architecture | None, table: Table, prefix: str, *,
    path: str,
) -> _Candidate:  # fmt: skip
    """Compare the tensors with one prefix with those of a network."""
    inside = {
        name.removeprefix(prefix): it for name, it in shapes.items() if name.startswith(prefix)
    }
    numbers = {int(match[1]) for name in inside if (match := _LAYER.match(name))}
    layers = next(i for i in range(len(numbers) + 1) if i not in numbers)
    dim = inside[embedding_of(table)][-1]
    one = _Candidate(table, prefix, layers, dim)
    of_first = expand(table, 1).items()
    rotary = next((inside[it] for it, ours in of_first if _is_rotary(ours) and it in inside), ())
    contacts = next((shapes[it] for it in _beside(prefix, CONTACTS[0]) if it in shapes), ())
    if declared is not None:
        one.layers, one.dim, one.heads = declared.layers, declared.dim, declared.heads
        one.heads_inside = bool(rotary or contacts)
    elif rotary and rotary[0]:
        one.heads = dim // (2 * rotary[0])
    elif contacts and layers:
        one.heads = contacts[-1] // layers
    else:
        official = (card.architecture for card in OFFICIAL.values())
        one.heads = next(
            (it.heads for it in official if (it.layers, it.dim) == (layers, dim)), None
        )
    # Without heads, no tensor's shape depends on them.
    shape = architecture_of(path, [one.layers or 1, one.dim, 1 if one.heads is None else one.heads])
    one.layers = shape.layers
    wanted = tensor_shapes(shape)
    names = expand(table, shape.layers)
    of_trunk = _OF_HUGGING_FACE if table is HUGGING_FACE else _OF_NATIVE
    for theirs, found in inside.items():
        ours = names.get(theirs, "")
        if ours == "":
            if of_trunk.match(theirs) and theirs != "embed_positions.weight":
                one.unexpected.append(prefix + theirs)
        elif ours is not None and ours in one.found:
            one.unexpected.append(prefix + theirs)
        elif ours is not None:
            one.found[ours] = prefix + theirs
            if found != (expected := wanted[ours.replace("*", "0")]):
                one.misshaped.append(f"{prefix}{theirs} is {found}, not {expected}")
    # Learned positions beside the trunk, and not only inside of it.
    one.unexpected += [it for it in _beside(prefix, "embed_positions.weight") if it in shapes]
    spelled = {ours: theirs for theirs, ours in reversed(names.items())}  # the usual one wins
    one.missing += [
        prefix + spelled[ours]
        for ours in wanted
        if ours in spelled and ours not in one.found and not ours.endswith(ROTARY)
    ]
    return one


def _is_rotary(ours: str | None) -> bool:
    return ours is not None and ours.endswith(ROTARY)


def _beside(prefix: str, name: str) -> Iterator[str]:
    """Yield a name inside of the trunk, and then beside each of the modules that it is in."""
    words = prefix.split(".")[:-1]
    for depth in range(len(words), -1, -1):
        yield ".".join([*words[:depth], name])


def _add_heads(one: _Candidate, shapes: Mapping[str, Shape], path: str) -> None:
    """Find the language-model head and the contact regression; a part of a head is none."""
    assert one.heads is not None
    wanted = tensor_shapes(Architecture(one.layers, one.dim, one.heads))
    for contact in CONTACTS:
        place = next((it for it in _beside(one.prefix, contact) if it in shapes), None)
        if place is not None:
            one.found[contact] = place
            if shapes[place] != wanted[contact]:
                one.misshaped.append(f"{place} is {shapes[place]}, not {wanted[contact]}")
    if one.misshaped:
        raise _not_whole(one, shapes, path)
    needed = {ours for ours in HEADS.values() if ours != TIED}
    for start in _beside(one.prefix, HEAD):
        head = {
            ours: start.removesuffix(HEAD) + theirs
            for theirs, ours in HEADS.items()
            if ours is not None and shapes.get(start.removesuffix(HEAD) + theirs) == wanted[ours]
        }
        if needed <= head.keys():
            one.found |= head
            return


# ------------------------------------------------------------------ errors


def _badness(one: _Candidate) -> int:
    return sum(len(names) for _, names in one.faults)


def _not_whole(one: _Candidate, shapes: Mapping[str, Shape], path: str) -> CheckpointError:
    heads = "" if one.heads is None else f", with {one.heads} heads"
    return CheckpointError(
        f"{path} does not hold an ESM-2 network of {one.layers} layers, {one.dim} wide{heads}: "
        f"{'; '.join(listed(*fault) for fault in one.faults)}. "
        f"{_remedy([it for it in shapes if it.startswith(one.prefix)])}",
        path=path,
    )


def _no_network(shapes: Mapping[str, Shape], path: str) -> CheckpointError:
    held = listed("tensors", list(shapes)) if shapes else "no tensors at all"
    expected = ", ".join(embedding_of(table) for table in TRUNKS)
    return CheckpointError(
        f"{path} is not an ESM-2 checkpoint: none of {expected} is in it, but {held}. "
        f"{_remedy(list(shapes))}",
        path=path,
    )


def _remedy(names: Sequence[str]) -> str:
    if any(re.search(r"(^|\.)lora_(embedding_)?[AB](\.|$)", name) for name in names):
        return (
            "Its LoRA weights are not merged: pass the folder of the adapter, which has "
            "adapter_config.json, or save the merged network into a new folder: "
            'model.merge_and_unload().save_pretrained("merged").'
        )
    if not names:
        return CONVERT
    if any(re.search(r"_packed_params|quant_state|\.SCB$|\.qweight$", name) for name in names):
        return "Its weights are quantised: use those that they were made from."
    family = family_of_tensors(names)
    return only_esm2(family) if family else "Use a checkpoint of ESM-2 itself, saved whole."
