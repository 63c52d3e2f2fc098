"""Other protein language models, told from ESM-2 by their tensors, settings or name.

Some have ESM-2's tensor names, and would be computed as ESM-2 without a word.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

_ESM1 = "ESM-1b or ESM-1v, which learned a vector for each position"
_MSA = "the MSA Transformer (ESM-MSA-1)"
_ESMFOLD = (
    "ESMFold, whose language model is ESM-2 with 3 billion parameters: use "
    'model="esm2_t36_3B_UR50D" for its representations'
)
_IF1 = "ESM-IF1, which reads structures"

# The first pattern that is found in the name of a tensor decides.
_TENSORS = (
    (r"row_self_attention\.|msa_position_embedding", _MSA),
    (r"(^|\.)(embed_gvp|gvp_encoder)\.", _IF1),
    (r"esm_s_combine|(^|\.)structure_module\.|(^|\.)trunk\.blocks\.", _ESMFOLD),
    (r"(^|\.)(structure_tokens_embed|function_embed|residue_embed)\.", "ESM3"),
    (r"transformer\.blocks\.\d+\.attn\.layernorm_qkv|(^|\.)esmc\.", "ESM C"),
    (r"(^|\.)embed_positions\.|emb_layer_norm_before|embeddings\.layer_norm\.", _ESM1),
    (r"(^|\.)embed_out$|self_attn\.bias_k$", "ESM-1"),
    (r"\.SelfAttention\.q\.", "a T5 (such as ProtT5 or Ankh)"),
    (r"attention\.output\.LayerNorm\.", "a BERT (such as ProtBert)"),
    (r"rel_attn\.|attn\.c_attn\.|albert_layer", "a language model of another family"),
)

_MODEL_TYPES = {
    "bert": "a BERT (such as ProtBert)",
    "t5": "a T5 (such as ProtT5 or Ankh)",
    "esmc": "ESM C",
    "esm3": "ESM3",
    "esmfold": _ESMFOLD,
    "esmfold2": "ESMFold2",
}

_NAMES = (
    (r"esm-?1[bv]|esm_?1[bv]", _ESM1),
    (r"esm_?-?msa|msa_?-?1b?(?![a-z0-9])", _MSA),
    (r"esm_?-?if1?", _IF1),
    (r"esm_?-?fold_?-?2", "ESMFold2"),
    (r"esm_?-?fold", _ESMFOLD),
    (r"esm_?-?c(?![a-z])|esm_?-?plusplus|esm\+\+", "ESM C"),
    (r"esm_?-?3(?![0-9b])", "ESM3"),
    (r"esm1_t", "ESM-1"),
    (r"saprot", "SaProt, which reads structures along with residues"),
    (r"prot_?-?bert", "ProtBert"),
    (r"prot_?-?t5|ankh|prostt5", "a T5"),
    (r"prot_?-?(gpt|xlnet|albert|electra)|progen", "a language model of another family"),
)


def family_of_tensors(names: Collection[str]) -> str | None:
    """Return what the tensors belong to, if that is known and not ESM-2."""
    for pattern, family in _TENSORS:
        search = re.compile(pattern).search
        if any(search(name) for name in names):
            return family
    return None


def family_of_config(config: Mapping[str, Any]) -> str | None:
    """Return what the settings of a Hugging Face folder describe, if that is not ESM-2."""
    if (kind := str(config.get("model_type"))) != "esm":
        return _MODEL_TYPES.get(kind)
    if config.get("is_folding_model"):
        return _ESMFOLD
    if config.get("vocab_size") == 446:
        return "SaProt, which reads structures along with residues"
    return _ESM1 if config.get("position_embedding_type", "absolute") == "absolute" else None


def family_of_name(name: str) -> str | None:
    """Return which family a name stands for, if that is known and not ESM-2."""
    lowered = name.lower()
    if "esm2" in lowered or "esm-2" in lowered:
        return None
    return next((family for pattern, family in _NAMES if re.search(pattern, lowered)), None)


def only_esm2(family: str | None) -> str:
    """Say that this is another family, in a sentence for an error message."""
    known = f"That is {family}. " if family else ""
    return f"{known}Other models of the ESM family compute other numbers and are not supported."
