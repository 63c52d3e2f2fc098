"""Adapters of PEFT give what its own `merge_and_unload` gives, bit for bit, or are refused."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import assert_computes, transformers_esm2
from safetensors.torch import load_file, save_file

from esm2_features import Engine
from esm2_features._checkpoints import open_checkpoint
from esm2_features.exceptions import CheckpointError

pytestmark = pytest.mark.xdist_group("transformers")  # which takes seconds to import

LORA: dict[str, Any] = {"r": 4, "lora_alpha": 16, "target_modules": ["query", "value"]}


def make(folder: Path, kind: str = "EsmForMaskedLM", **options: Any) -> tuple[Path, Any]:
    """Train an adapter, so to speak, beside its base; return its folder, and what PEFT reads."""
    import peft  # slow, and only here

    base = transformers_esm2(kind)
    base.save_pretrained(folder / "base")
    again = deepcopy(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, of transformers and of what it is asked for here
        network = peft.get_peft_model(base, peft.LoraConfig(**{**LORA, **options}))
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))
    network.peft_config["default"].base_model_name_or_path = "../base"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.save_pretrained(folder / "adapter")
        return folder / "adapter", peft.PeftModel.from_pretrained(again, folder / "adapter")


def merged(network: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that matrices are not tied any more
        return network.merge_and_unload()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("adapter"))[0]


@pytest.fixture
def copy(adapter, tmp_path) -> Path:
    """A copy of an adapter and its base, to be changed."""
    shutil.copytree(adapter.parent, tmp_path / "copy")
    return tmp_path / "copy" / "adapter"


def change(folder: Path, **settings: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"layer.1.attention.self.query": 2},
        "alpha_pattern": {"value": 7, "esm.encoder.layer.0.attention.self.query": 3},
    },
    "all biases": {"bias": "all"},
    "biases of LoRA": {"bias": "lora_only"},
    "bias of B": {"lora_bias": True, "target_modules": ["key", "intermediate.dense"]},
    "all linear": {"target_modules": "all-linear"},
    "expression": {"target_modules": r".*layer\.1\..*(dense|key)"},
    "one layer": {"layers_to_transform": [1], "init_lora_weights": "gaussian"},
    "embedding": {"target_modules": ["word_embeddings", "query"]},
    "fan in": {"fan_in_fan_out": True},
    "saved norms": {"modules_to_save": ["LayerNorm", "emb_layer_norm_after"]},
    "saved contacts": {"modules_to_save": ["contact_head"]},
    "classifier": {"task_type": "SEQ_CLS", "kind": "EsmForSequenceClassification"},
    "trunk": {"kind": "EsmModel", "target_modules": ["query", "output.dense"]},
}


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test__adapter__equals_the_merge_of_peft(options, tmp_path):
    folder, network = make(tmp_path, **options)
    whole = merged(network)
    whole.save_pretrained(tmp_path / "merged")
    ours, theirs = open_checkpoint(folder), open_checkpoint(tmp_path / "merged")
    for name, tensor in theirs.load().items():
        assert torch.equal(ours.load()[name], tensor), name
    for one, other in zip(ours.contact_regression(), theirs.contact_regression(), strict=True):
        assert torch.equal(one, other)
    assert_computes(folder, getattr(whole, "esm", whole), getattr(whole, "lm_head", None))


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["word_embeddings"]},
        {"target_modules": ["query", "decoder"]},
    ],
)
def test__adapter__that_unties_the_output_gives_no_logits(options, tmp_path, caplog):
    folder, network = make(tmp_path, **options)
    with caplog.at_level(logging.INFO, "esm2_features"):
        assert_computes(folder, network.get_base_model().esm)
    assert "embedding and the output matrix apart" in caplog.text
    with pytest.raises(CheckpointError, match="holds no language-model head"):
        Engine(folder, cache=None, device="cpu").logits(["CYIQ"])


def test__adapter__in_half_precision_on_a_half_base_is_merged_in_float32(copy):
    for file in (copy / "adapter_model.safetensors", copy.parent / "base" / "model.safetensors"):
        save_file({name: it.bfloat16() for name, it in load_file(file).items()}, file)
    name = "layers.0.self_attn.q_proj.weight"
    base = open_checkpoint(copy.parent / "base").load()[name].float()
    parts = {
        name.rsplit(".", 2)[1]: tensor.float()
        for name, tensor in load_file(copy / "adapter_model.safetensors").items()
        if "layer.0.attention.self.query" in name
    }
    expected = base + (parts["lora_B"] @ parts["lora_A"]) * 4.0
    assert torch.equal(open_checkpoint(copy).load()[name], expected)


def test__adapter__is_found_by_each_of_its_files_and_as_a_pickle(copy):
    identity = open_checkpoint(copy).identity
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        checkpoint = open_checkpoint(copy / name)
        assert (checkpoint.name, checkpoint.identity) == ("adapter", identity)
    expected = open_checkpoint(copy).load()
    state = load_file(copy / "adapter_model.safetensors")
    (copy / "adapter_model.safetensors").unlink()
    with_names = {
        name.replace(".weight", ".default.weight") if "lora_" in name else name: tensor
        for name, tensor in state.items()
    }
    torch.save(with_names, copy / "adapter_model.bin")
    found = open_checkpoint(copy).load()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


# ------------------------------------------------------------------ base and identity


def test__identity__covers_base_and_adapter(copy):
    identities = {open_checkpoint(copy).identity, open_checkpoint(copy.parent / "base").identity}
    change(copy, lora_alpha=8)
    identities.add(open_checkpoint(copy).identity)
    for file in (copy / "adapter_model.safetensors", copy.parent / "base" / "model.safetensors"):
        save_file({name: it + 1 for name, it in load_file(file).items()}, file)
        identities.add(open_checkpoint(copy).identity)
    assert len(identities) == 5


def test__identity__stays_when_the_base_moves(copy, tmp_path):
    checkpoint = open_checkpoint(copy)
    identity = checkpoint.identity
    (copy.parent / "base").rename(tmp_path / "elsewhere")
    change(copy, base_model_name_or_path=str(tmp_path / "elsewhere"))
    assert open_checkpoint(copy).identity == identity


def test__adapter__that_was_replaced_after_its_identity_was_told_is_refused(copy):
    checkpoint = open_checkpoint(copy)
    fingerprint = checkpoint.fingerprint()
    assert checkpoint.identity
    change(copy, lora_alpha=1)
    assert checkpoint.fingerprint() != fingerprint
    with pytest.raises(CheckpointError, match="is not what it was"):
        checkpoint.load()


def test__base__in_the_working_directory_is_found_as_by_peft(copy, monkeypatch):
    monkeypatch.chdir(copy.parent)
    assert open_checkpoint(change(copy, base_model_name_or_path="base")).architecture.dim == 32


def test__base__by_name_is_the_model_of_that_name(copy):
    for name in ("facebook/esm2_t6_8M_UR50D", "8M"):
        with pytest.raises(CheckpointError, match=r"does not fit its base.*\(320, 320\)"):
            open_checkpoint(change(copy, base_model_name_or_path=name))


@pytest.mark.parametrize(
    "base", ["/home/alice/esm2_t6_8M", "me/net", None, "", 3, "\0", "x" * 5000]
)
def test__base__that_is_not_here_is_asked_for(base, copy):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(change(copy, base_model_name_or_path=base))
    assert 'into "base_model_name_or_path"' in str(caught.value)
    assert str(copy / "adapter_config.json") in str(caught.value)
    if base == "/home/alice/esm2_t6_8M":
        assert "Did you mean" in str(caught.value)


def test__base__that_is_an_adapter_of_this_one_ends_in_an_error(copy):
    shutil.copytree(copy, copy.parent / "other")
    change(copy, base_model_name_or_path="../other")
    change(copy.parent / "other", base_model_name_or_path="../adapter")
    with pytest.raises(CheckpointError, match="adapter"):
        open_checkpoint(copy)


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"use_qalora": True}, "QALoRA"),
        ({"alora_invocation_tokens": [1]}, "activated LoRA"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"a_setting_of_the_future": {"on": True}}, "a_setting_of_the_future"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": "ADALORA"}, "ADALORA"),
        ({"peft_type": None}, "None"),
    ],
)
def test__adapter__that_is_no_plain_lora_is_refused_by_name(settings, named, copy):
    with pytest.raises(CheckpointError, match=named) as caught:
        open_checkpoint(change(copy, **settings))
    assert 'merge_and_unload().save_pretrained("merged")' in str(caught.value)


@pytest.mark.parametrize("kind", ["PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"])
def test__adapter__that_is_no_change_of_weights_is_not_told_to_be_merged(kind, copy):
    with pytest.raises(CheckpointError, match=kind) as caught:
        open_checkpoint(change(copy, peft_type=kind))
    assert "merge" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [{"r": 0}, {"r": "many"}, {"r": None}, {"lora_alpha": 1e999}, {"lora_alpha": [1]}, {"r": 8},
     {"rank_pattern": {"(": 2}}, {"rank_pattern": ["query"]}, {"alpha_pattern": {"query": "x"}}],
)  # fmt: skip
def test__adapter__with_impossible_numbers_is_refused(settings, copy):
    file = copy / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(CheckpointError, match="adapter_config"):
        open_checkpoint(copy)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("encoder.layer.1.", "encoder.layer.7.", "which its base does not have"),
        ("attention.self.query", "crossattention.self.query", "which its base does not have"),
        ("esm.encoder.layer.1.", "other.encoder.layer.1.", "changes several networks"),
        ("lora_A.weight", "lora_magnitude_vector", "not of plain LoRA"),
        ("value.lora_B", "query.lora_A.second", "holds several adapters"),
        ("value.lora_B.weight", "value.lora_B.bias", "does not fit its base"),
    ],
)
def test__tensors__that_do_not_fit_are_refused(old, new, message, copy):
    file = copy / "adapter_model.safetensors"
    save_file({name.replace(old, new): it for name, it in load_file(file).items()}, file)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(copy)


def test__tensors__of_heads_are_named_once_and_never_taken_for_the_trunk(copy, caplog):
    file = copy / "adapter_model.safetensors"
    state = load_file(file)
    expected = open_checkpoint(copy).load()
    head = {"classifier.layers.0.fc1.lora_A.weight": torch.zeros(4, 32),
            "classifier.layers.0.fc1.lora_B.weight": torch.ones(128, 4),
            "classifier.out.weight": torch.ones(2, 32)}  # fmt: skip
    save_file(state | {f"base_model.model.{name}": it for name, it in head.items()}, file)
    with caplog.at_level(logging.INFO, "esm2_features"):
        open_checkpoint(copy)
        found = open_checkpoint(copy).load()
    assert [it.getMessage().count("3 tensors (base_model") for it in caplog.records] == [1]
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test__adapter__without_weights_is_incomplete(copy):
    (copy / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"none of adapter_model\.safetensors"):
        open_checkpoint(copy)


def test__lora__that_is_not_merged_in_a_whole_file_is_refused_with_a_remedy(tmp_path):
    _, network = make(tmp_path)
    torch.save(network.state_dict(), tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match="LoRA weights are not merged"):
        open_checkpoint(tmp_path / "whole.pt")
