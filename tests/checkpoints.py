"""Small random ESM-2 networks, made by fair-esm, and written in each format."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from esm.model.esm2 import ESM2
from safetensors.torch import save_file

from esm2_features import Engine
from esm2_features._inputs.alphabet import encode


def random_esm2(layers: int = 2, dim: int = 32, heads: int = 4, seed: int = 0) -> ESM2:
    """A network in which every parameter matters: no bias is 0 and no norm is 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ESM2(layers, dim, heads, alphabet="ESM-1b", token_dropout=True).eval()
    noise = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                value = torch.randn(parameter.shape, generator=noise)
                is_scale = "norm" in name and name.endswith("weight")
                parameter.copy_(1 + 0.2 * value if is_scale else 0.1 * value)
    return model


def bare_state(model: ESM2) -> dict[str, torch.Tensor]:
    """Its tensors under the bare names of fair-esm, without the tied matrix and contacts."""
    return {
        name: tensor.detach().clone()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight" and not name.startswith("contact_head.")
    }


def contact_state(model: ESM2) -> dict[str, torch.Tensor]:
    """Its contact regression under fair-esm's names."""
    return {
        name: tensor.detach().clone()
        for name, tensor in model.state_dict().items()
        if name.startswith("contact_head.")
    }


def fair_esm_contents(model: ESM2) -> dict[str, object]:
    """What an official ``.pt`` file holds."""
    state = {
        ("encoder." if name.startswith("lm_head.") else "encoder.sentence_encoder.") + name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("contact_head.")
    }
    settings = argparse.Namespace(
        encoder_layers=model.num_layers,
        encoder_embed_dim=model.embed_dim,
        encoder_attention_heads=model.attention_heads,
        token_dropout=True,
    )
    return {"cfg": {"model": settings}, "model": state}


def write_fair_esm(model: ESM2, path: Path) -> Path:
    """Write the two files of the official release; ``path`` is that of the weights."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(fair_esm_contents(model), path)
    torch.save(
        {"model": contact_state(model)}, path.with_name(f"{path.stem}-contact-regression.pt")
    )
    return path


def write_safetensors(model: ESM2, path: Path, *, metadata: bool = True) -> Path:
    """Write one file with fair-esm's bare names, contact regression included."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    described = {
        "format": "pt",
        "architecture": "esm2",
        "layers": str(model.num_layers),
        "dim": str(model.embed_dim),
        "heads": str(model.attention_heads),
        "name": path.stem,
    }
    tensors = {**bare_state(model), **contact_state(model)}
    save_file(tensors, path, metadata=described if metadata else None)
    return path


_TO_HUGGING_FACE = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn.rot_emb": "attention.self.rotary_embeddings",
    "self_attn_layer_norm": "attention.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "LayerNorm",
}


def hugging_face_state(model: ESM2) -> dict[str, torch.Tensor]:
    """Its tensors as the official Hugging Face repositories name them (transformers 4)."""
    state = {}
    for name, tensor in {**bare_state(model), **contact_state(model)}.items():
        if name.startswith("layers."):
            _, layer, rest = name.split(".", 2)
            module, leaf = rest.rsplit(".", 1)
            name = f"esm.encoder.layer.{layer}.{_TO_HUGGING_FACE[module]}.{leaf}"
        elif name.startswith("embed_tokens."):
            name = "esm.embeddings.word_embeddings.weight"
        elif name.startswith("emb_layer_norm_after."):
            name = f"esm.encoder.{name}"
        elif name.startswith("contact_head."):
            name = f"esm.{name}"
        state[name] = tensor
    state["esm.embeddings.position_ids"] = torch.arange(1026)[None]
    return state


def hugging_face_config(model: ESM2) -> dict[str, object]:
    """The part of a Hugging Face ``config.json`` that describes the network."""
    return {
        "architectures": ["EsmForMaskedLM"],
        "model_type": "esm",
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.embed_dim,
        "intermediate_size": 4 * model.embed_dim,
        "num_attention_heads": model.attention_heads,
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "token_dropout": True,
        "layer_norm_eps": 1e-5,
        "vocab_size": 33,
        "pad_token_id": 1,
        "mask_token_id": 32,
        "max_position_embeddings": 1026,
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
    }


def write_hugging_face(model: ESM2, folder: Path) -> Path:
    """Write a folder as ``EsmForMaskedLM.save_pretrained`` does."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hugging_face_config(model), indent=2))
    state = hugging_face_state(model)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def transformers_esm2(kind: str = "EsmForMaskedLM", seed: int = 0, **changes: object) -> Any:
    """A small random network of transformers, in which every parameter matters."""
    import transformers  # slow, and only for some tests

    settings = {**hugging_face_config(random_esm2()), "num_labels": 3, **changes}
    model = getattr(transformers, kind)(transformers.EsmConfig(**settings)).eval()
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = torch.randn(parameter.shape, generator=noise)
            is_scale = "norm" in name.lower() and name.endswith("weight")
            spread = 0.1 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
            parameter.copy_(1 + 0.2 * value if is_scale else spread * value)
    return model


def write_bin(model: Any, folder: Path, shards: int = 1) -> Path:
    """Write a folder as transformers did before safetensors: ``pytorch_model.bin``."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    state = model.state_dict()
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    where = {
        name: f"pytorch_model-{i % shards + 1:05}-of-{shards:05}.bin"
        for i, name in enumerate(state)
    }
    for file in set(where.values()):
        torch.save({name: state[name] for name in where if where[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def assert_computes(path: Path, trunk: Any, head: Any = None) -> None:
    """Compare all representations, and logits, with a network of transformers."""
    engine = Engine(path, cache=None, device="cpu", layers="all")
    for sequence in ("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ", "CYIQNCPLG"):
        tokens = torch.from_numpy(encode(sequence)).long()[None]
        with torch.no_grad():
            theirs = trunk.float()(
                tokens, attention_mask=torch.ones_like(tokens), output_hidden_states=True
            )
            logits = None if head is None else head.float()(theirs.last_hidden_state)[0, 1:-1]
        [ours] = engine.residues([sequence])
        for layer, expected in enumerate(theirs.hidden_states):
            np.testing.assert_allclose(ours[layer], expected[0, 1:-1], rtol=1e-4, atol=2e-5)
        if logits is not None:
            np.testing.assert_allclose(engine.logits([sequence])[0], logits, rtol=1e-4, atol=2e-5)
