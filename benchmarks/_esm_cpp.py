"""esm.cpp with fair-esm's weights, in float32 and with products of 8-bit integers.

Its packed batches give logits only, so that vectors come from one sequence at a time. It asks for
numpy below 2, and runs with later ones: ``pip install --no-deps esm-cpp==0.2.1``.

Never here: batches, time.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._contenders import Contender, Job
from benchmarks._hugging_face import hugging_face_model
from benchmarks._padding import Embed, Vectors

_CALIBRATING = 16
"""Sequences of the job by whose activations SmoothQuant scales the weights."""


def open_esm_cpp(contender: Contender, job: Job) -> Embed:
    """Load the weights; quantise them if it is asked to."""
    os.environ["ESM_NUM_THREADS"] = str(job.threads)
    import esm_cpp
    from esm_cpp.quantize import calibrate

    with tempfile.TemporaryDirectory() as folder:
        model = esm_cpp.Model.load_from_safetensors(str(_write(job, Path(folder))))
    tokenizer = esm_cpp.Tokenizer()
    if contender.setting == "int8":
        model.apply_smoothquant(
            calibrate(model, tokenizer, list(job.sequences[:_CALIBRATING])), 0.5
        )
        model.quantize_weights()

    def embed(sequences: list[str], _: int | None) -> Vectors:
        return np.stack([_mean(model, tokenizer, sequence) for sequence in sequences])

    return embed


def _mean(model: Any, tokenizer: Any, sequence: str) -> Vectors:
    _, layers = model.forward_with_hidden_states(np.array(tokenizer.encode(sequence), np.int32))
    return layers[-1][1:-1].mean(0)


def _write(job: Job, folder: Path) -> Path:
    """Write the weights, with a configuration, under the names of older transformers."""
    from safetensors.torch import save_file
    from transformers import EsmForMaskedLM

    inner = hugging_face_model(job)
    outer = EsmForMaskedLM(inner.config)  # its head is random, and of no use here
    outer.esm.load_state_dict(inner.state_dict(), strict=False)
    inner.config.save_pretrained(folder)
    state = {name: tensor.clone() for name, tensor in outer.state_dict().items()}
    for layer in range(job.shape[0]):
        name = f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"
        state[name] = torch.clone(inner.rotary_embeddings.inv_freq)
    save_file(state, folder / "model.safetensors")
    return folder / "model.safetensors"
