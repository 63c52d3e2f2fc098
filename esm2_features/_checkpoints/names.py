"""Names and shapes of the tensors of ESM-2, in fair-esm's and other checkpoints.

*Our* names are those of fair-esm's ``ESM2``. A table ``{theirs: ours}`` translates: ``{i}`` is the
number of a layer, ``*`` means all layers at once, and None is dropped. Wrappers (Lightning, DDP,
PEFT, a user's own module) put a prefix before all of them.
"""

from __future__ import annotations

from collections.abc import Iterable

from esm2_features._checkpoints.catalogue import Architecture

Shape = tuple[int, ...]
Table = dict[str, str | None]

EMBEDDING = "embed_tokens.weight"
TIED = "lm_head.weight"
"""A copy of the embedding, which some checkpoints have for the output."""
CONTACTS = ("contact_head.regression.weight", "contact_head.regression.bias")
ROTARY = "self_attn.rot_emb.inv_freq"
HEAD = "lm_head."

_TOKENS = 33

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

NATIVE: Table = {name: name for name in _OURS if not name.startswith(HEAD) and name not in CONTACTS}

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
}
POSITIONS = "embeddings.position_embeddings.weight"
"""Learned positions: ESM-1's use them, and old files of ESM-2 have them for nothing."""

HUGGING_FACE: Table = {
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
    POSITIONS: None,
    "pooler.dense.weight": None,
    "pooler.dense.bias": None,
}

HEADS: Table = {
    **{name: name for name in _OURS if name.startswith(HEAD)},
    "lm_head.decoder.weight": TIED,
}
"""Of the language model: beside the trunk of a network, or inside of it."""

TRUNKS = (NATIVE, HUGGING_FACE)


def embedding_of(table: Table) -> str:
    """Return the name of the embedding, by which a table is recognised."""
    return next(theirs for theirs, ours in table.items() if ours == EMBEDDING)


def module_names(layers: int) -> dict[str, str]:
    """Return our name of each module that has weights, by any of its names."""
    contacts: Table = {name: name for name in CONTACTS}
    return {
        theirs.rpartition(".")[0]: ours.rpartition(".")[0]
        for table in (*TRUNKS, HEADS, contacts)
        for theirs, ours in expand(table, layers).items()
        if ours is not None and theirs.endswith((".weight", ".bias"))
    }


def expand(table: Table, layers: int) -> Table:
    """Fill in the number of each layer."""
    return {
        theirs: ours if ours is None else ours.replace("{i}", str(i))
        for template, ours in table.items()
        for i, theirs in enumerate(_per_layer(template, layers))
    }


def _per_layer(template: str, layers: int) -> Iterable[str]:
    """Fill in the number of each layer; a template without one is a single name."""
    return dict.fromkeys(template.replace("{i}", str(i)) for i in range(layers))
