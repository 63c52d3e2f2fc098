"""Names and shapes of the tensors of ESM-2, in fair-esm's and other checkpoints.

*Our* names are those of fair-esm's ``ESM2``. A table ``{theirs: ours}`` translates: ``{i}`` is the
number of a layer, ``*`` means all layers at once, and None is dropped. The name of the embedding
tells which table to use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import count

from esm2_features._checkpoints.catalogue import OFFICIAL, Architecture
from esm2_features.exceptions import CheckpointError

Shape = tuple[int, ...]
Table = dict[str, str | None]

EMBEDDING = "embed_tokens.weight"
TIED = "lm_head.weight"
"""A copy of the embedding, which some checkpoints have for the output."""
CONTACTS = ("contact_head.regression.weight", "contact_head.regression.bias")
ROTARY = "self_attn.rot_emb.inv_freq"
HEAD = "lm_head."

_TOKENS = 33
_NAMES_SHOWN = 5

# ------------------------------------------------------------------ ours


def _our_shapes(of: Architecture) -> dict[str, Shape]:
    """Shape of every tensor that a network may have; ``{i}`` is the number of a layer."""
    d = of.dim
    linears = {
        "layers.{i}.self_attn.q_proj": (d, d),
        "layers.{i}.self_attn.k_proj": (d, d),
        "layers.{i}.self_attn.v_proj": (d, d),
        "layers.{i}.self_attn.out_proj": (d, d),
        "layers.{i}.fc1": (4 * d, d),
        "layers.{i}.fc2": (d, 4 * d),
        "lm_head.dense": (d, d),
        "contact_head.regression": (1, of.layers * of.heads),
    }
    norms = (
        "layers.{i}.self_attn_layer_norm",
        "layers.{i}.final_layer_norm",
        "emb_layer_norm_after",
        "lm_head.layer_norm",
    )
    return {
        EMBEDDING: (_TOKENS, d),
        **{f"{name}.weight": shape for name, shape in linears.items()},
        **{f"{name}.bias": shape[:1] for name, shape in linears.items()},
        **{f"{name}.{part}": (d,) for name in norms for part in ("weight", "bias")},
        f"layers.{{i}}.{ROTARY}": (of.head_dim // 2,),
        "lm_head.bias": (_TOKENS,),
        TIED: (_TOKENS, d),
    }


def tensor_shapes(of: Architecture) -> dict[str, Shape]:
    """Shape of every tensor that a network may have, layer by layer."""
    return {
        name: shape
        for template, shape in _our_shapes(of).items()
        for name in _per_layer(template, of.layers)
    }


_OURS = tuple(_our_shapes(Architecture(layers=1, dim=2, heads=1)))

# ------------------------------------------------------------------ theirs

_NATIVE: Table = {name: name for name in _OURS}

_FAIR_ESM: Table = {
    **{f"encoder.sentence_encoder.{name}": name for name in _OURS if not name.startswith(HEAD)},
    **{f"encoder.{name}": name for name in _OURS if name.startswith(HEAD)},
    **{name: name for name in CONTACTS},
}

_HF_MODULES = {
    "encoder.layer.{i}.attention.self.query": "layers.{i}.self_attn.q_proj",
    "encoder.layer.{i}.attention.self.key": "layers.{i}.self_attn.k_proj",
    "encoder.layer.{i}.attention.self.value": "layers.{i}.self_attn.v_proj",
    "encoder.layer.{i}.attention.output.dense": "layers.{i}.self_attn.out_proj",
    "encoder.layer.{i}.attention.LayerNorm": "layers.{i}.self_attn_layer_norm",
    "encoder.layer.{i}.intermediate.dense": "layers.{i}.fc1",
    "encoder.layer.{i}.output.dense": "layers.{i}.fc2",
    "encoder.layer.{i}.LayerNorm": "layers.{i}.final_layer_norm",
    "encoder.emb_layer_norm_after": "emb_layer_norm_after",
    "contact_head.regression": "contact_head.regression",
}

# An `EsmModel` that was saved on its own.
_HF_TRUNK: Table = {
    "embeddings.word_embeddings.weight": EMBEDDING,
    **{
        f"{theirs}.{part}": f"{ours}.{part}"
        for theirs, ours in _HF_MODULES.items()
        for part in ("weight", "bias")
    },
    # Release 5 of transformers writes these older words for the norms.
    **{
        f"{theirs}.{word}": f"{ours}.{part}"
        for theirs, ours in _HF_MODULES.items()
        if theirs.endswith("LayerNorm")
        for word, part in (("gamma", "weight"), ("beta", "bias"))
    },
    # One per layer, one for all layers, and one for all under a name with a star in it: the
    # habits of three releases.
    "encoder.layer.{i}.attention.self.rotary_embeddings.inv_freq": f"layers.{{i}}.{ROTARY}",
    "rotary_embeddings.inv_freq": f"layers.*.{ROTARY}",
    "encoder.layer.*.attention.self.rotary_embeddings.inv_freq": f"layers.*.{ROTARY}",
    # Saved by older releases, and used by no rotary model.
    "embeddings.position_ids": None,
    "embeddings.position_embeddings.weight": None,
    "pooler.dense.weight": None,
    "pooler.dense.bias": None,
}

_HF_HEADS: Table = {
    **{name: name for name in _OURS if name.startswith(HEAD) and name != TIED},
    "lm_head.decoder.weight": TIED,
    # What classifiers put on top of a fine-tuned trunk.
    "classifier.weight": None,
    "classifier.bias": None,
    "classifier.dense.weight": None,
    "classifier.dense.bias": None,
    "classifier.out_proj.weight": None,
    "classifier.out_proj.bias": None,
}

_HUGGING_FACE: Table = {
    **{f"esm.{theirs}": ours for theirs, ours in _HF_TRUNK.items()},
    **_HF_HEADS,
}

_SCHEMES: dict[str, Table] = {
    EMBEDDING: _NATIVE,
    f"encoder.sentence_encoder.{EMBEDDING}": _FAIR_ESM,
    "esm.embeddings.word_embeddings.weight": _HUGGING_FACE,
    "embeddings.word_embeddings.weight": _HF_TRUNK,
}

# ------------------------------------------------------------------ from theirs to ours


def translate(shapes: Mapping[str, Shape], of: Architecture, *, path: str) -> dict[str, str]:
    """Translate names, and raise CheckpointError unless the tensors make a whole network.

    Only Hugging Face's checkpoints may lack the language-model head; contact regression and
    rotary frequencies may be absent from any.
    """
    scheme = _scheme(shapes, path)
    table = _expand(scheme, of.layers)
    wanted = tensor_shapes(of)
    theirs_of: dict[str, str] = {}
    unexpected, misshaped = [], []
    for theirs, shape in shapes.items():
        ours = table.get(theirs, "")
        if ours == "" or ours in theirs_of:
            unexpected.append(theirs)
        elif ours is not None:
            theirs_of[ours] = theirs
            expected = wanted[ours.replace("*", "0")]
            if shape != expected:
                misshaped.append(f"{theirs} is {shape}, not {expected}")
    optional = {name for name in wanted if name.endswith(ROTARY)} | {TIED, *CONTACTS}
    if scheme in (_HUGGING_FACE, _HF_TRUNK) and not any(o.startswith(HEAD) for o in theirs_of):
        optional |= {name for name in wanted if name.startswith(HEAD)}
    spelled = {ours: theirs for theirs, ours in reversed(table.items())}  # the usual one wins
    missing = [spelled[name] for name in wanted if name not in theirs_of and name not in optional]
    if missing or unexpected or misshaped:
        complaints = (("missing", missing), ("unexpected", unexpected), ("misshaped", misshaped))
        raise CheckpointError(
            f"{path} does not hold an ESM-2 network of {of.layers} layers, {of.dim} wide, with "
            f"{of.heads} heads: {'; '.join(_listed(*it) for it in complaints if it[1])}. "
            "Use a checkpoint of ESM-2 itself, saved whole.",
            path=path,
        )
    return {theirs: ours for ours, theirs in theirs_of.items()}


def read_architecture(shapes: Mapping[str, Shape], *, path: str) -> Architecture | None:
    """Read the architecture off names and shapes, as far as possible.

    The number of heads follows from the rotary frequencies; failing those, from the official
    model of the same depth and width.
    """
    scheme = _scheme(shapes, path)
    embedding = next(theirs for theirs, ours in scheme.items() if ours == EMBEDDING)
    dim = shapes[embedding][-1]
    layered = [theirs for theirs in scheme if "{i}" in theirs]
    layers = next(
        i for i in count() if not any(theirs.replace("{i}", str(i)) in shapes for theirs in layered)
    )
    for theirs, ours in _expand(scheme, 1).items():
        if ours is not None and ours.endswith(ROTARY) and shapes.get(theirs, (0,)) != (0,):
            return Architecture(layers, dim, heads=dim // (2 * shapes[theirs][0]))
    for card in OFFICIAL.values():
        if (card.architecture.layers, card.architecture.dim) == (layers, dim):
            return card.architecture
    return None


def _scheme(shapes: Mapping[str, Shape], path: str) -> Table:
    for embedding, scheme in _SCHEMES.items():
        if len(shapes.get(embedding, ())) == 2:
            return scheme
    held = _listed("tensors", list(shapes)) if shapes else "no tensors at all"
    raise CheckpointError(
        f"{path} is not an ESM-2 checkpoint: none of {', '.join(_SCHEMES)} is in it, "
        f"but {held}. Use a checkpoint of ESM-2 itself, saved whole.",
        path=path,
    )


def _expand(table: Table, layers: int) -> Table:
    return {
        theirs: ours if ours is None else ours.replace("{i}", str(i))
        for template, ours in table.items()
        for i, theirs in enumerate(_per_layer(template, layers))
    }


def _per_layer(template: str, layers: int) -> Iterable[str]:
    """Fill in the number of each layer; a template without one is a single name."""
    return dict.fromkeys(template.replace("{i}", str(i)) for i in range(layers))


def _listed(kind: str, names: list[str]) -> str:
    more = ", ..." if len(names) > _NAMES_SHOWN else ""
    return f"{len(names)} {kind} ({', '.join(names[:_NAMES_SHOWN])}{more})"
