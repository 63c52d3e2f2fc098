"""transformers' network with fair-esm's weights: as it is, and as a graph that others run.

ONNX Runtime and OpenVINO run what PyTorch exports of it. Where there is a choice, it is made in
their favour: the frequencies of rotary embeddings stay in float32.

Never here: batches, time.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._contenders import Contender, Job
from benchmarks._padding import PAD, Embed, embed_padded, padded


def open_transformers(contender: Contender, job: Job) -> Embed:
    """Run the network as it is."""
    model = hugging_face_model(job)
    frequencies = model.rotary_embeddings.inv_freq
    model.to(job.device, getattr(torch, contender.precision))
    model.rotary_embeddings.inv_freq = frequencies.to(job.device)

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens.to(job.device)
        return model(input_ids=tokens, attention_mask=(tokens != PAD).long()).last_hidden_state

    return partial(embed_padded, forward, job.shape[1])


def open_onnxruntime(_: Contender, job: Job) -> Embed:
    """Run the graph by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    session = onnxruntime.InferenceSession(job.graph, options, providers=["CPUExecutionProvider"])

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, _graph_inputs(tokens))[0])

    return partial(embed_padded, forward, job.shape[1])


def open_openvino(contender: Contender, job: Job) -> Embed:
    """Run the graph by OpenVINO."""
    import openvino

    # Without a hint, OpenVINO takes bfloat16 wherever the processor has it.
    hint = {"float32": "f32", "bfloat16": "bf16"}[contender.precision]
    options = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": str(job.threads),
        "PERFORMANCE_HINT": "LATENCY",  # all threads work on one batch, as everywhere here
    }
    compiled = openvino.Core().compile_model(str(job.graph), "CPU", options)
    request = compiled.create_infer_request()

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        request.infer(_graph_inputs(tokens), share_inputs=True)
        return torch.from_numpy(request.get_output_tensor(0).data)

    return partial(embed_padded, forward, job.shape[1])


# ----------------------------------------------- weights under foreign names

_HUGGING_FACE = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "LayerNorm",
}


def hugging_face_model(job: Job) -> Any:
    """Build transformers' network with the weights of fair-esm's file."""
    import transformers

    transformers.logging.set_verbosity_error()
    layers, dim, heads = job.shape
    config = transformers.EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=PAD,
        hidden_size=dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * dim,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=1026,
        layer_norm_eps=1e-5,
        position_embedding_type="rotary",
        emb_layer_norm_before=False,
        token_dropout=True,
        attn_implementation="sdpa",
    )
    model = transformers.EsmModel(config, add_pooling_layer=False).eval()
    found = model.load_state_dict(_hugging_face_state(job.checkpoint), strict=False)
    missing = [name for name in found.missing_keys if not name.startswith("contact_head.")]
    if missing or found.unexpected_keys:
        raise RuntimeError(f"missing {missing}, unexpected {found.unexpected_keys}")
    return model


def _hugging_face_state(checkpoint: Path) -> dict[str, torch.Tensor]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        contents = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    state = {}
    for full_name, tensor in contents["model"].items():
        name = full_name.removeprefix("encoder.").removeprefix("sentence_encoder.")
        if name == "embed_tokens.weight":
            state["embeddings.word_embeddings.weight"] = tensor
        elif name == "layers.0.self_attn.rot_emb.inv_freq":  # the same in all layers
            state["rotary_embeddings.inv_freq"] = tensor
        elif name.startswith("emb_layer_norm_after."):
            state[f"encoder.{name}"] = tensor
        elif name.startswith("layers.") and "rot_emb" not in name:
            _, layer, rest = name.split(".", 2)
            module, leaf = rest.rsplit(".", 1)
            state[f"encoder.layer.{layer}.{_HUGGING_FACE[module]}.{leaf}"] = tensor
    return state


def export_graph(job: Job) -> None:
    """Write transformers' network as ONNX, for any number of sequences of any length.

    Parameters
    ----------
    job : Job
        A graph that is there already is used again.
    """
    if job.graph.exists():
        return
    network = _LastRepresentation(hugging_face_model(job)).eval()
    tokens = torch.from_numpy(padded(["MKTAYIAKQR", "GSHMVL"]))
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    unfinished = job.graph.parent.with_suffix(".tmp")
    unfinished.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        network,
        (tokens, (tokens != PAD).long()),
        unfinished / job.graph.name,
        input_names=["input_ids", "attention_mask"],
        output_names=["last_hidden_state"],
        dynamic_shapes={"input_ids": dynamic, "attention_mask": dynamic},
        dynamo=True,
        verbose=False,
    )
    unfinished.rename(job.graph.parent)


class _LastRepresentation(torch.nn.Module):
    """Make of a network with many outputs one that has one."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def _graph_inputs(tokens: torch.Tensor) -> dict[str, NDArray[np.int64]]:
    return {
        "input_ids": tokens.numpy(),
        "attention_mask": (tokens != PAD).numpy().astype(np.int64),
    }
