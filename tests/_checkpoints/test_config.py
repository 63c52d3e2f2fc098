"""Settings that tell ESM-2 from networks that compute other numbers, wherever they are."""

from __future__ import annotations

import json

import pytest
import torch
from checkpoints import random_esm2

from esm2_features._checkpoints import open_checkpoint
from esm2_features.exceptions import CheckpointError

transformers = pytest.importorskip("transformers")


class Wrapper(torch.nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone


def network(*, token_dropout: bool):
    config = transformers.EsmConfig(
        vocab_size=33, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=128, position_embedding_type="rotary", layer_norm_eps=1e-5,
        emb_layer_norm_before=False, token_dropout=token_dropout, pad_token_id=1, mask_token_id=32,
    )  # fmt: skip
    return transformers.EsmModel(config, add_pooling_layer=False)


WAYS = {
    "whole": lambda esm: esm,
    "in a dictionary": lambda esm: {"epoch": 3, "model": esm},
    "in a module": Wrapper,
    "hyper-parameters": lambda esm: {
        "state_dict": esm.state_dict(),
        "hyper_parameters": {"config": esm.config, "rate": 1e-4},
    },
}


@pytest.mark.parametrize("way", WAYS)
def test__settings_in_a_pickle__are_found_at_any_depth(way, tmp_path):
    for token_dropout in (True, False):
        torch.save(WAYS[way](network(token_dropout=token_dropout)), tmp_path / "x.pt")
        if token_dropout:
            assert open_checkpoint(tmp_path / "x.pt").architecture.layers == 2
            continue
        with pytest.raises(CheckpointError, match="its token_dropout is False"):
            open_checkpoint(tmp_path / "x.pt")


def test__network_of_fair_esm__without_token_dropout_is_refused(tmp_path):
    esm = random_esm2(2, 32, 2, seed=7)
    esm.token_dropout = False
    torch.save(esm, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="its token_dropout is False"):
        open_checkpoint(tmp_path / "x.pt")


def test__config_beside_a_file__counts_without_a_model_type(tmp_path):
    network(token_dropout=False).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    del config["model_type"]
    file.write_text(json.dumps(config))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(CheckpointError, match="its token_dropout is False"):
            open_checkpoint(path)
