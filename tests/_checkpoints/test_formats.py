"""Checkpoints as their users make them compute what their own library computes, or are refused."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import logging
import pathlib
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import (
    assert_computes,
    bare_state,
    fair_esm_contents,
    hugging_face_config,
    hugging_face_state,
    random_esm2,
    transformers_esm2,
    write_bin,
    write_fair_esm,
    write_hugging_face,
)
from safetensors.torch import load_file, save_file

from esm2_features import Engine
from esm2_features._checkpoints import open_checkpoint
from esm2_features.exceptions import CheckpointError

with_transformers = pytest.mark.xdist_group("transformers")  # which takes seconds to import


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return hugging_face_state(random_esm2())


def assert_bare(path: Path, *, head: bool = True) -> None:
    """The network of `state`, with or without its language-model head."""
    expected = bare_state(random_esm2())
    found = open_checkpoint(path).load()
    assert found.keys() == {it for it in expected if head or not it.startswith("lm_head.")}
    assert all(torch.equal(found[name], expected[name]) for name in found)


# ------------------------------------------------------------------ folders of transformers


@with_transformers
@pytest.mark.parametrize("shards", [0, 1, 3])
@pytest.mark.parametrize(
    "kind",
    ["EsmModel", "EsmForMaskedLM", "EsmForSequenceClassification", "EsmForTokenClassification"],
)
def test__folder__computes_what_transformers_computes(kind, shards, tmp_path):
    model = transformers_esm2(kind)
    if shards:
        write_bin(model, tmp_path / "net", shards)
    else:
        model.save_pretrained(tmp_path / "net")
    assert_computes(tmp_path / "net", getattr(model, "esm", model), getattr(model, "lm_head", None))


@with_transformers
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test__half_precision__is_kept_as_it_is_stored(dtype, tmp_path):
    model = transformers_esm2().to(dtype)
    write_bin(model, tmp_path / "bin")
    model.save_pretrained(tmp_path / "safe")
    for folder in (tmp_path / "bin", tmp_path / "safe"):
        kept = {
            it.dtype for name, it in open_checkpoint(folder).load().items() if "inv" not in name
        }
        assert kept == {dtype}
        assert_computes(folder, copy.deepcopy(model).esm, copy.deepcopy(model).lm_head)


@with_transformers
def test__trained_classifier__of_a_published_tool_is_read_as_it_is(shared_data):
    import transformers

    folder = shared_data / "real_finetuned_esm2_t6_8M"
    model = transformers.EsmForSequenceClassification.from_pretrained(folder)
    engine = Engine(folder, cache=None, device="cpu")
    assert engine.feature_names[0] == "real_finetuned_esm2_t6_8M_L6_mean_0"
    tokens = torch.tensor([[0, *range(4, 24), 2]])
    with torch.no_grad():
        theirs = model.esm(tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
    [ours] = engine.residues(["LAGVSERTIDPKQNFYMHWC"], layers=-1)
    np.testing.assert_allclose(ours, theirs[0, 1:-1], atol=1e-4)
    with pytest.raises(CheckpointError, match="holds no language-model head"):
        engine.logits(["MKT"])


def test__extra_tensors__are_named_once_at_info_level(state, tmp_path, caplog):
    folder = write_hugging_face(random_esm2(), tmp_path / "net")
    heads = {"classifier.weight": torch.ones(2, 32), "site_head.0.bias": torch.ones(7)}
    save_file(state | heads, folder / "model.safetensors")
    with caplog.at_level(logging.INFO, "esm2_features"):
        for _ in range(2):
            assert_bare(folder)
    [record] = [it for it in caplog.records if str(folder) in it.getMessage()]
    assert record.levelno == logging.INFO
    assert "2 tensors (classifier.weight, site_head.0.bias)" in record.getMessage()


@pytest.mark.parametrize("lost", ["encoder.layer.1.output.dense.bias", "emb_layer_norm_after.bias"])
def test__incomplete_trunk__is_refused_whatever_lies_beside_it(lost, state, tmp_path):
    folder = write_hugging_face(random_esm2(), tmp_path / "net")
    broken = {name: it for name, it in state.items() if not name.endswith(lost)}
    # A head of the same name and shape is no part of the trunk.
    broken[f"head.{lost}"] = torch.ones(32)
    save_file(broken, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="1 missing") as caught:
        open_checkpoint(folder)
    assert lost in str(caught.value)


def test__part_of_a_language_model_head__is_none(state, tmp_path):
    folder = write_hugging_face(random_esm2(), tmp_path / "net")
    mine = {name: it for name, it in state.items() if not name.startswith("lm_head.")}
    mine |= {"lm_head.weight": torch.ones(33, 32), "lm_head.bias": torch.ones(33)}
    save_file(mine, folder / "model.safetensors")
    assert_bare(folder, head=False)


@pytest.mark.parametrize("config", [{"num_labels": 2}, {"model_type": "my_site_finder"}, None])
def test__folder_of_a_users_own_module__needs_no_settings_of_transformers(config, state, tmp_path):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    mine = {f"encoder.{name}": it for name, it in state.items()} | {
        "head.weight": torch.ones(1, 32)
    }
    save_file(mine, tmp_path / "model.safetensors")
    assert_bare(tmp_path)


# ------------------------------------------------------------------ torch files, and prefixes


PREFIXES = [
    "module.",
    "_orig_mod.",
    "_orig_mod.module.",
    "model.",
    "backbone.",
    "net.encoder.",
    "base_model.",
    "anything.at.all.0.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("naming", ["transformers", "fair-esm"])
def test__prefix__before_a_whole_trunk_is_taken_off(prefix, naming, state, tmp_path):
    names = state if naming == "transformers" else bare_state(random_esm2())
    wrapped = {f"{prefix}{name}": tensor for name, tensor in names.items()}
    torch.save(wrapped | {"head.layers.0.weight": torch.ones(3)}, tmp_path / "net.pt")
    save_file(wrapped, tmp_path / "net.safetensors")
    assert_bare(tmp_path / "net.pt")
    assert_bare(tmp_path / "net.safetensors")


def test__wrappers_inside_of_names__are_taken_out(state, tmp_path):
    fsdp = {
        "_fsdp_wrapped_module." + name.replace(".layer.", ".layer._checkpoint_wrapped_module.")
        .replace("attention.self", "_fsdp_wrapped_module.attention._orig_mod.self"): tensor
        for name, tensor in state.items()
    }  # fmt: skip
    torch.save(fsdp, tmp_path / "fsdp.pt")
    assert_bare(tmp_path / "fsdp.pt")


@dataclasses.dataclass
class Settings:
    rate: Any
    where: pathlib.Path


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module", "net", "ema"])
def test__training_checkpoint__is_read_with_all_that_lies_beside(key, state, tmp_path):
    weights = {
        f"model.{name}": it.clone().requires_grad_(it.is_floating_point())
        for name, it in state.items()
    }
    optimizer = torch.optim.AdamW([it for it in weights.values() if it.is_floating_point()])
    sum((it**2).sum() for it in weights.values() if it.is_floating_point()).backward()
    expected = {name: it.detach().clone() for name, it in weights.items()}
    contents = {
        "epoch": 3,
        key: expected,
        "optimizer_states": [optimizer.state_dict()],
        "loss": np.float64(0.5),
        "metrics": {"auc": np.array([0.5, 0.7]), "at": np.datetime64("2024-01-01")},
        "hyper_parameters": argparse.Namespace(settings=Settings(np.float32(1e-3), Path("/a/b"))),
        "random": np.random.default_rng(0).bit_generator.state,
    }
    optimizer.step()
    torch.save(contents, tmp_path / "last.ckpt")
    torch.save(contents, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert_bare(tmp_path / "last.ckpt")
    assert_bare(tmp_path / "old.ckpt")


def test__other_tensors__of_any_type_do_not_matter(state, tmp_path):
    others = {
        f"other.{name}": torch.ones(5).to(getattr(torch, name))
        for name in ("bool", "uint8", "int16", "complex64", "float64", "float8_e4m3fn")
    }
    torch.save(others | {"sparse": torch.eye(3).to_sparse()} | state, tmp_path / "net.pt")
    del others["other.float8_e4m3fn"]
    torch.save(others | state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_bare(tmp_path / "net.pt")
    assert_bare(tmp_path / "old.pt")


@with_transformers
def test__whole_module__that_was_pickled_is_read_without_its_classes(tmp_path, monkeypatch):
    model = transformers_esm2()
    torch.save(model, tmp_path / "whole.pt")
    torch.save(random_esm2(), tmp_path / "fair.pt")
    shape = open_checkpoint(tmp_path / "whole.pt")
    assert_bare(tmp_path / "fair.pt")
    assert_computes(tmp_path / "whole.pt", model.esm, model.lm_head)
    assert shape.architecture == open_checkpoint(tmp_path / "fair.pt").architecture


def test__two_networks__are_refused_with_both_of_their_places(state, tmp_path):
    teacher = {f"teacher.{name}": it for name, it in state.items()}
    student = {f"student.{name}": it + 1 for name, it in state.items()}
    torch.save({"state_dict": teacher | student}, tmp_path / "distilled.ckpt")
    torch.save({"model": state, "ema": dict(student)}, tmp_path / "averaged.pt")
    for file, places in (
        ("distilled.ckpt", ("state_dict.teacher.esm.", "state_dict.student.esm.")),
        ("averaged.pt", ("model.esm.", "ema.student.esm.")),
    ):
        with pytest.raises(CheckpointError, match="2 whole ESM-2 networks") as caught:
            open_checkpoint(tmp_path / file)
        assert all(repr(place) in str(caught.value) for place in places)


def test__one_network_under_two_names__is_one(state, tmp_path):
    shared = {f"encoder.{name}": it for name, it in state.items()}
    torch.save({f"model.{name}": it for name, it in state.items()} | shared, tmp_path / "net.pt")
    assert_bare(tmp_path / "net.pt")


def test__another_network_beside_it__does_not_matter(state, tmp_path):
    bert = {
        f"text.{name.replace('esm.', '')}": it
        for name, it in state.items()
        if "layer.1" not in name
    }
    llama = {
        "text.model.embed_tokens.weight": torch.ones(50, 30),
        "text.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(64),
        "rotary_emb.inv_freq": torch.ones(99),
    }
    for other in (bert, llama):
        torch.save(state | other, tmp_path / "net.pt")
        assert_bare(tmp_path / "net.pt")


def test__fair_esm__without_a_language_model_head_gives_embeddings(tmp_path):
    contents = fair_esm_contents(random_esm2())
    contents["model"] = {k: v for k, v in contents["model"].items() if "lm_head" not in k}
    torch.save(contents, tmp_path / "trunk.pt")
    assert_bare(tmp_path / "trunk.pt", head=False)


def test__transposed_tensors__are_read_by_their_strides(state, tmp_path):
    turned = {name: it.t().contiguous().t() if it.dim() == 2 else it for name, it in state.items()}
    torch.save(turned, tmp_path / "net.pt")
    torch.save(turned, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_bare(tmp_path / "net.pt")
    assert_bare(tmp_path / "old.pt")


# ------------------------------------------------------------------ other architectures


@with_transformers
@pytest.mark.parametrize("before", [False, True])
def test__esm1__with_learned_positions_is_never_computed_as_esm2(before, tmp_path):
    model = transformers_esm2(position_embedding_type="absolute", emb_layer_norm_before=before)
    folder = write_bin(model, tmp_path / "bin")
    model.save_pretrained(tmp_path / "safe")
    lone = tmp_path / "lone"
    lone.mkdir()
    shutil.copy(folder / "pytorch_model.bin", lone)
    shutil.copy(tmp_path / "safe" / "model.safetensors", lone)
    for path in (folder, folder / "pytorch_model.bin", tmp_path / "safe",
                 tmp_path / "safe" / "model.safetensors"):  # fmt: skip
        with pytest.raises(CheckpointError, match="That is ESM-1b or ESM-1v"):
            open_checkpoint(path)
    for name in ("pytorch_model.bin", "model.safetensors"):
        with pytest.raises(CheckpointError, match="ESM-1b or ESM-1v"):
            open_checkpoint(lone / name)
    torch.save(model, tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match="ESM-1b or ESM-1v"):
        open_checkpoint(tmp_path / "whole.pt")


def test__learned_positions__of_an_old_file_of_esm2_need_rotary_frequencies_or_settings(
    state, tmp_path
):
    old = state | {"esm.embeddings.position_embeddings.weight": torch.ones(1026, 32)}
    save_file(old, tmp_path / "old.safetensors")
    assert_bare(tmp_path / "old.safetensors")
    bare = {name: it for name, it in old.items() if not name.endswith("inv_freq")}
    torch.save(bare, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=r"may be ESM-1b or ESM-1v .*config\.json beside it"):
        open_checkpoint(tmp_path / "net.pt")
    (tmp_path / "config.json").write_text(json.dumps(hugging_face_config(random_esm2())))
    assert open_checkpoint(tmp_path / "net.pt").architecture.heads == 4


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("token_dropout", False),
        ("layer_norm_eps", 1e-12),
        ("emb_layer_norm_before", True),
        ("position_embedding_type", "relative_key"),
        ("hidden_act", "relu"),
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("vocab_size", 64),
        ("mask_token_id", 5),
        ("rope_theta", 1e6),
        ("rope_parameters", {"rope_theta": 5e5, "rope_type": "default"}),
        ("quantization_config", {"bits": 8}),
        ("is_folding_model", True),
    ],
)
def test__file__is_read_with_the_settings_beside_it(suffix, key, value, state, tmp_path):
    path = tmp_path / f"net{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    config = hugging_face_config(random_esm2())
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_bare(path)
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(CheckpointError, match="is not an ESM-2 model: its "):
        open_checkpoint(path)


@pytest.mark.parametrize("key", ["position_embedding_type", "token_dropout", "layer_norm_eps"])
def test__settings__that_are_absent_are_what_transformers_takes(key, tmp_path):
    folder = write_hugging_face(random_esm2(), tmp_path / "net")
    config = hugging_face_config(random_esm2())
    del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"its {key} is .* since it is absent"):
        open_checkpoint(folder)


FAMILIES = {
    "ESM-1b": ["embed_tokens.weight", "embed_positions.weight", "layers.0.fc1.weight"],
    "MSA Transformer": ["embed_tokens.weight", "layers.0.row_self_attention.layer.q_proj.weight"],
    "ESM C": ["embed.weight", "transformer.blocks.0.attn.layernorm_qkv.1.weight"],
    "ESM3": ["encoder.sequence_embed.weight", "encoder.structure_tokens_embed.weight"],
    "ESMFold": ["esm_s_combine", "trunk.blocks.0.seq_attention.proj.weight"],
    "ESM-IF1": ["encoder.embed_tokens.weight", "encoder.gvp_encoder.embed_graph.weight"],
    "BERT": ["bert.embeddings.word_embeddings.weight",
             "bert.encoder.layer.0.attention.output.LayerNorm.weight"],
    "T5": ["shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"],
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test__other_families__are_refused_by_name(family, tmp_path):
    tensors = {name: torch.ones(34, 32) for name in FAMILIES[family]}
    torch.save({"model": tensors}, tmp_path / "net.pt")
    save_file(tensors, tmp_path / "net.safetensors")
    for name in ("net.pt", "net.safetensors"):
        with pytest.raises(CheckpointError, match=f"That is .*{family}"):
            open_checkpoint(tmp_path / name)


def test__saprot_and_other_model_types__are_refused_by_name(tmp_path):
    folder = write_hugging_face(random_esm2(), tmp_path / "net")
    for change, family in (
        ({"vocab_size": 446}, "SaProt"),
        ({"model_type": "bert"}, "BERT"),
        ({"model_type": "t5"}, "T5"),
        ({"model_type": "esmc"}, "ESM C"),
        ({"is_folding_model": True}, "esm2_t36_3B_UR50D"),
    ):
        config = hugging_face_config(random_esm2()) | change
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=f"That is .*{family}"):
            open_checkpoint(folder)


# ------------------------------------------------------------------ what is no checkpoint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
        (b"\n\n  <html>", "is a web page"),
        (b"", "is empty"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
        (b"GGUF" + bytes(99), "GGUF"),
        (b"\x1f\x8b" + bytes(99), "gunzip"),
        (b'{"error": "Repository not found"}', "error message of a server"),
        (b"PK\x03\x04" + bytes(99), "cut short"),
        (pickle.dumps({"a": 1}), "torch.save"),
        (pickle.dumps({"a": np.ones(3)}, protocol=2), "torch.save"),
        (b"\x00" * 99, "header"),
    ],
)
@pytest.mark.parametrize("name", ["net.pt", "net.safetensors", "model.safetensors"])
def test__file__that_is_something_else_is_said_to_be(content, message, name, tmp_path):
    if message == "torch.save" and name != "net.pt":
        message = "net|model"
    if message == "header" and name == "net.pt":
        message = "cut short"
    path = tmp_path / name
    path.write_bytes(content)
    if name == "model.safetensors":  # in a folder
        (tmp_path / "config.json").write_text(json.dumps(hugging_face_config(random_esm2())))
        path = tmp_path
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert "weights_only" not in str(caught.value)
    assert "add_safe_globals" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, "{", "", "[]", "null", "1e999", '{"a":' * 50_000, "version https://git-lfs.x",
     '{"model_type": "esm", "num_hidden_layers": 1e999}',
     '{"num_hidden_layers": 1' + "0" * 6000 + "}",
     '{"peft_type": "LORA", "r": 1e999, "base_model_name_or_path": "mini", "lora_alpha": 1}'],
)  # fmt: skip
def test__hostile_settings__end_in_an_error_of_ours(name, content, tmp_path):
    folder = write_hugging_face(random_esm2(), tmp_path / "net")
    (folder / name).write_text(content)
    if content.startswith('{"peft_type"'):
        if name == "config.json":
            return
        shutil.copy(folder / "model.safetensors", folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": ["b"]}}',
                '{"weight_map": {"a": "."}}', '{"weight_map": {"a": "\\u0000"}}', "[" * 99_999,
                '{"weight_map": {"a": "%s"}}' % ("x" * 5000)],
)  # fmt: skip
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test__hostile_index__ends_in_an_error_of_ours(name, content, tmp_path):
    (tmp_path / f"{name}.index.json").write_text(content)
    for path in (tmp_path, tmp_path / f"{name}.index.json"):
        with pytest.raises(CheckpointError) as error:
            open_checkpoint(path)
        assert len(str(error.value)) < 1000


@with_transformers
def test__truncated_shard__is_named(tmp_path):
    folder = write_bin(transformers_esm2(), tmp_path / "net", shards=3)
    shard = folder / "pytorch_model-00002-of-00003.bin"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"00002-of-00003\.bin .*cut short"):
        open_checkpoint(folder)


def test__folder__without_weights_points_to_those_in_it(tmp_path):
    write_hugging_face(random_esm2(), tmp_path / "run" / "checkpoint-20")
    with pytest.raises(CheckpointError, match=r"Did you mean .*checkpoint-20"):
        open_checkpoint(tmp_path / "run")
    write_fair_esm(random_esm2(), tmp_path / "fair" / "net.pt")
    with pytest.raises(CheckpointError, match=r"Did you mean .*net.*\.pt"):
        open_checkpoint(tmp_path / "fair")


@with_transformers
def test__old_folder__is_read_and_never_told_to_be_written_over(tmp_path):
    folder = write_bin(transformers_esm2("EsmForSequenceClassification"), tmp_path / "net")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert open_checkpoint(folder).load()
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


# ------------------------------------------------------------------ hostile pickles


def write_pickle(path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", content)
    return path


HOSTILE = {
    "system": b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00id\x85R.",
    "old opcode": b"(ios\nsystem\n.",
    "eval": b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
    "framed": b"\x80\x04\x8c\x0asubprocess\x8c\x05Popen\x93\x8c\x02id\x85R.",
    "extension": b"\x80\x02\x82\x01.",
    "deep key": b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.",
    "wide key": b"\x80\x02})" + b"2\x86" * 60 + b"Ns.",
    "large memo": b"\x80\x02}r\xff\xff\xff\xff.",
    "large text": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.",
    "large bytes": b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.",
    "attributes of a function": b"\x80\x02ctorch._utils\n_rebuild_parameter\nN}X\x0c\x00\x00\x00"
    b"__defaults__K\x01\x85s\x86b.",
    "many tuples": b"\x80\x02(" + b"(" * 9_999 + b"t" * 9_999 + b".",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test__hostile_pickle__ends_in_an_error_of_ours(content, tmp_path):
    with pytest.raises(CheckpointError):
        open_checkpoint(write_pickle(tmp_path / "net.pt", content))


def test__tensor_that_reaches_out_of_its_storage__is_refused(state, tmp_path):
    name = "esm.encoder.layer.0.intermediate.dense.weight"
    lying = dict(state)
    lying[name] = torch.ones(1).expand(128, 32)  # one number, as often as a matrix has
    torch.save(lying, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match="is damaged"):
        open_checkpoint(tmp_path / "net.pt").load()


def test__program_of_torch__is_told_how_to_save_its_weights(tmp_path):
    torch.save({}, tmp_path / "net.pt")
    with zipfile.ZipFile(tmp_path / "net.pt", "a") as archive:
        archive.writestr("net/constants.pkl", b"")
    with pytest.raises(CheckpointError, match="TorchScript"):
        open_checkpoint(tmp_path / "net.pt")


def test__renamed_files__are_told_by_their_content(state, tmp_path):
    save_file(state, tmp_path / "a.bin")
    torch.save(state, tmp_path / "b.safetensors")
    save_file(state, tmp_path / "0123abcd")
    for name in ("a.bin", "b.safetensors", "0123abcd"):
        assert_bare(tmp_path / name)
    assert load_file(tmp_path / "a.bin")
