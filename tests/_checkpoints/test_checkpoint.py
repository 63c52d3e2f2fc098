"""Checkpoints in every format give fair-esm's tensors bit for bit, and nothing else is believed."""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import (
    bare_state,
    contact_state,
    fair_esm_contents,
    hugging_face_config,
    hugging_face_state,
    random_esm2,
    write_fair_esm,
    write_hugging_face,
    write_safetensors,
)
from esm.model.esm2 import ESM2
from safetensors.torch import load_file, save_file

from esm2_features._checkpoints import Checkpoint, open_checkpoint
from esm2_features._checkpoints.catalogue import OFFICIAL, Architecture, ModelCard, RemoteFile
from esm2_features._checkpoints.trunk import find_network
from esm2_features.exceptions import CheckpointError, DownloadError

ARCHITECTURE = Architecture(layers=2, dim=32, heads=4)
MINI = Path(__file__).resolve().parents[2] / "esm2_features" / "data" / "mini.safetensors"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model():
    return random_esm2(layers=2, dim=32, heads=4, seed=0)


def write(model, folder: Path, kind: str) -> Path:
    """Write ``model`` in one of the formats; return the path to open."""
    if kind == "fair-esm":
        return write_fair_esm(model, folder / "network.pt")
    if kind == "state dict":
        torch.save(model.state_dict(), folder / "network.pth")
        return folder / "network.pth"
    if kind == "legacy":
        contents = fair_esm_contents(model)
        contents["model"] |= contact_state(model)
        torch.save(contents, folder / "network.pt", _use_new_zipfile_serialization=False)
        return folder / "network.pt"
    if kind == "safetensors":
        return write_safetensors(model, folder / "network.safetensors")
    if kind == "safetensors, no metadata":
        return write_safetensors(model, folder / "network.safetensors", metadata=False)
    write_hugging_face(model, folder / "network")
    if kind == "Hugging Face, one file":
        return (folder / "network" / "model.safetensors").rename(folder / "network.safetensors")
    if kind == "Hugging Face, sharded":
        shard(folder / "network")
    return folder / "network"


def shard(folder: Path) -> None:
    """Split the one file of a Hugging Face folder into two."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {
        name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(sorted(state))
    }
    for file in set(where.values()):
        part = {name: tensor for name, tensor in state.items() if where[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


FORMATS = [
    "fair-esm",
    "state dict",
    "legacy",
    "safetensors",
    "safetensors, no metadata",
    "Hugging Face",
    "Hugging Face, one file",
    "Hugging Face, sharded",
]


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


# ------------------------------------------------------------------ formats


@pytest.mark.parametrize("kind", FORMATS)
def test_round_trip_is_bit_for_bit(model, tmp_path, kind):
    checkpoint = open_checkpoint(write(model, tmp_path, kind))
    assert (checkpoint.name, checkpoint.architecture) == ("network", ARCHITECTURE)
    assert_same(checkpoint.load(), bare_state(model))
    weight, bias = checkpoint.contact_regression()
    assert torch.equal(weight, model.contact_head.regression.weight)
    assert torch.equal(bias, model.contact_head.regression.bias)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_tensor_owns_its_memory(model, tmp_path, kind):
    weights = open_checkpoint(write(model, tmp_path, kind)).load()
    storages = [tensor.untyped_storage() for tensor in weights.values()]
    assert [it.nbytes() for it in storages] == [tensor.nbytes for tensor in weights.values()]
    assert len({it.data_ptr() for it in storages}) == len(weights)
    assert all(tensor.is_contiguous() for tensor in weights.values())


def test_views_of_one_storage_get_memory_of_their_own(model, tmp_path):
    contents = fair_esm_contents(model)
    flat = torch.cat([tensor.flatten() for tensor in contents["model"].values()])
    pieces = flat.split([tensor.numel() for tensor in contents["model"].values()])
    contents["model"] = {
        name: piece.view(tensor.shape)
        for (name, tensor), piece in zip(contents["model"].items(), pieces, strict=True)
    }
    torch.save(contents, tmp_path / "views.pt")
    weights = open_checkpoint(tmp_path / "views.pt").load()
    assert_same(weights, bare_state(model))
    assert all(it.untyped_storage().nbytes() == it.nbytes for it in weights.values())


def test_half_precision_stays_as_stored(tmp_path):
    model = random_esm2(seed=3).half()
    for path in (
        write_fair_esm(model, tmp_path / "a.pt"),
        write_hugging_face(model, tmp_path / "b"),
    ):
        assert_same(open_checkpoint(path).load(), bare_state(model))


@pytest.mark.parametrize("rotary", ["shared", "starred", "absent"])
def test_hugging_face_rotary_frequencies_of_each_generation(model, tmp_path, rotary):
    folder = write_hugging_face(model, tmp_path / "network")
    state = hugging_face_state(model)
    per_layer = [name for name in state if name.endswith("inv_freq")]
    frequencies = [state.pop(name) for name in per_layer][-1]
    if rotary == "shared":
        state["esm.rotary_embeddings.inv_freq"] = frequencies
    elif rotary == "starred":
        state["esm.encoder.layer.*.attention.self.rotary_embeddings.inv_freq"] = frequencies
    save_file(state, folder / "model.safetensors")
    expected = bare_state(model)
    if rotary == "absent":
        expected = {name: it for name, it in expected.items() if not name.endswith("inv_freq")}
    checkpoint = open_checkpoint(folder)
    assert checkpoint.architecture == ARCHITECTURE
    assert_same(checkpoint.load(), expected)


@pytest.mark.xdist_group("transformers")  # which takes seconds to import
def test_what_transformers_writes_today(model, tmp_path):
    import transformers  # slow, and only here

    theirs = transformers.EsmForMaskedLM.from_pretrained(write_hugging_face(model, tmp_path / "a"))
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    theirs.esm.save_pretrained(tmp_path / "trunk")
    expected = bare_state(model)
    assert_same(open_checkpoint(tmp_path / "whole").load(), expected)
    assert_same(open_checkpoint(tmp_path / "sharded").load(), expected)
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    trunk = {name: it for name, it in expected.items() if not name.startswith("lm_head.")}
    assert_same(open_checkpoint(tmp_path / "trunk").load(), trunk)


def test_trunk_of_a_classifier_loads_without_its_heads(model, tmp_path):
    folder = write_hugging_face(model, tmp_path / "network")
    state = {
        name: it
        for name, it in hugging_face_state(model).items()
        if not name.startswith("lm_head.")
    }
    state["classifier.dense.weight"] = torch.zeros(32, 32)
    state["esm.pooler.dense.bias"] = torch.zeros(32)
    save_file(state, folder / "model.safetensors")
    weights = open_checkpoint(folder).load()
    assert not any(name.startswith(("lm_head.", "classifier.")) for name in weights)


@pytest.mark.parametrize("card", OFFICIAL.values(), ids=lambda card: card.parameters)
def test_name_tables_cover_the_official_networks(card):
    shape = card.architecture
    with torch.device("meta"):
        model = ESM2(shape.layers, shape.dim, shape.heads)
        hugging_face = hugging_face_state(model)
        bare = bare_state(model) | contact_state(model)
        fair_esm = fair_esm_contents(model)["model"]
    for state, expected in (
        (bare, set(bare)),
        (hugging_face, set(bare)),
        (fair_esm, (set(bare) | {"lm_head.weight"}) - set(contact_state(model))),
    ):
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        names = find_network(shapes, shape, path="here").names
        assert set(names.values()) == expected
        assert all(
            state[theirs].shape == bare[ours].shape
            for theirs, ours in names.items()
            if ours in bare
        )


def test_embedded_model_loads_by_name():
    checkpoint = open_checkpoint("mini")
    assert checkpoint.name == "mini"
    assert checkpoint.identity == f"sha256:{hashlib.sha256(MINI.read_bytes()).hexdigest()}"
    weights = checkpoint.load()
    assert weights["embed_tokens.weight"].shape == (33, checkpoint.architecture.dim)


def test_embedded_model_says_that_it_has_no_contact_regression():
    with pytest.raises(CheckpointError, match="the demonstration model ships without"):
        open_checkpoint("mini").contact_regression()


# ------------------------------------------------------------------ names and paths


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_names_touch_no_file(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("ESM2_FEATURES_OFFLINE", "1")
    checkpoint = open_checkpoint(name)
    assert checkpoint.name == name
    assert checkpoint.architecture == OFFICIAL[name].architecture
    assert checkpoint.identity == OFFICIAL[name].identity


@pytest.mark.parametrize(
    "asked", ["esm2_t6_8M", "esm2_8m", "my/esm2_t6_8M.pt", "ESM2_T6_8M_ur50d.pt"]
)
def test_unknown_name_suggests_the_closest(asked):
    with pytest.raises(CheckpointError, match=r'Did you mean model="esm2_t6_8M_UR50D"\?'):
        open_checkpoint(asked)


def test_unknown_bare_name_lists_what_there_is():
    with pytest.raises(CheckpointError, match=r"no model 'nonsense'.*esm2_t48_15B_UR50D, mini"):
        open_checkpoint("nonsense")


@pytest.mark.parametrize("empty", ["", " "])
def test_empty_name_is_refused(empty):
    with pytest.raises(CheckpointError, match="There is no model"):
        open_checkpoint(empty)


@pytest.mark.parametrize(
    "text", ["/", ".", "..", "a\0b", "x" * 9000, "\ud800", "~nobody/x", "https://host/a", "@"]
)
def test_text_that_is_no_model_is_refused(text):
    with pytest.raises(CheckpointError):
        open_checkpoint(text)


@pytest.mark.parametrize("wrong", [None, 3, b"mini", ["mini"]])
def test_other_types_are_refused(wrong):
    with pytest.raises(TypeError, match="pass the name of a model or a path"):
        open_checkpoint(wrong)


def test_names_and_paths_do_not_shadow_each_other(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_hugging_face(model, Path("esm2_t6_8M_UR50D"))
    write_hugging_face(model, Path("mine"))
    official = open_checkpoint("esm2_t6_8M_UR50D")
    assert official.architecture == OFFICIAL["esm2_t6_8M_UR50D"].architecture
    assert open_checkpoint("./esm2_t6_8M_UR50D").architecture == ARCHITECTURE
    assert open_checkpoint(Path("esm2_t6_8M_UR50D")).architecture == ARCHITECTURE
    assert open_checkpoint("mine").architecture == ARCHITECTURE


def test_path_stays_right_when_the_working_directory_changes(model, tmp_path, monkeypatch):
    write_safetensors(model, tmp_path / "network.safetensors")
    monkeypatch.chdir(tmp_path)
    checkpoint = open_checkpoint("network.safetensors")
    monkeypatch.chdir("/")
    assert_same(pickle.loads(pickle.dumps(checkpoint)).load(), bare_state(model))


def test_generic_file_name_gives_way_to_its_folder(model, tmp_path):
    folder = write_hugging_face(model, tmp_path / "mine")
    assert open_checkpoint(folder / "model.safetensors").name == "mine"


def test_describing_and_identifying_import_no_torch(model, tmp_path):
    formats = [it for it in FORMATS if it != "legacy"]
    paths = []
    for kind in formats:
        (tmp_path / kind).mkdir()
        paths.append(str(write(model, tmp_path / kind, kind)))
    script = (
        "import sys\n"
        "from esm2_features._checkpoints import open_checkpoint\n"
        "for model in sys.argv[1:]:\n"
        "    checkpoint = open_checkpoint(model)\n"
        "    assert checkpoint.identity.startswith('sha256:'), model\n"
        "    assert 'torch' not in sys.modules, model\n"
    )
    models = [*paths, "esm2_t33_650M_UR50D", "mini"]
    subprocess.run([sys.executable, "-c", script, *models], check=True, cwd=ROOT)


# ------------------------------------------------------------------ identity


@pytest.mark.parametrize("kind", FORMATS)
def test_identity_follows_the_bytes(model, tmp_path, kind):
    (tmp_path / "a").mkdir()
    path = write(model, tmp_path / "a", kind)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copy = tmp_path / "b" / path.name
    identity = open_checkpoint(path).identity
    assert open_checkpoint(copy).identity == identity
    file = next(copy.glob("*.safetensors")) if copy.is_dir() else copy
    content = bytearray(file.read_bytes())
    # A byte of a tensor: they come last, but for zip archives, which end in a directory.
    content[len(content) // 2 if kind in ("fair-esm", "state dict") else -1] ^= 1
    file.write_bytes(content)
    assert open_checkpoint(copy).identity != identity


def test_identity_of_a_single_file_is_its_digest(model, tmp_path):
    path = write_safetensors(model, tmp_path / "network.safetensors")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert open_checkpoint(path).identity == f"sha256:{digest}"
    folder = write_hugging_face(model, tmp_path / "network")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert open_checkpoint(folder).identity == f"sha256:{digest}"


def test_identity_knows_heads_that_only_the_config_tells(model, tmp_path):
    folder = write_hugging_face(model, tmp_path / "network")
    state = {
        name: tensor
        for name, tensor in hugging_face_state(model).items()
        if not name.endswith("inv_freq") and "contact" not in name
    }
    save_file(state, folder / "model.safetensors")
    identities = set()
    for heads in (2, 4):
        config = hugging_face_config(model) | {"num_attention_heads": heads}
        (folder / "config.json").write_text(json.dumps(config))
        identities.add(open_checkpoint(folder).identity)
    assert len(identities) == 2


def test_files_of_an_official_model_share_its_identity(model, tmp_path, monkeypatch):
    pt = write_fair_esm(model, tmp_path / "copy.pt")
    folder = write_hugging_face(model, tmp_path / "copy")
    card = ModelCard(
        name="tiny",
        parameters="0M",
        architecture=ARCHITECTURE,
        weights=RemoteFile("http://127.0.0.1/tiny.pt", sha256(pt)),
        safetensors_sha256=sha256(folder / "model.safetensors"),
    )
    monkeypatch.setitem(OFFICIAL, "tiny", card)
    names = ("tiny", pt, folder, folder / "model.safetensors")
    assert {open_checkpoint(name).identity for name in names} == {card.identity}


def test_file_that_was_replaced_after_its_identity_was_told_is_refused(model, tmp_path):
    path = write_safetensors(model, tmp_path / "network.safetensors")
    checkpoint = open_checkpoint(path)
    assert checkpoint.identity
    write_safetensors(random_esm2(seed=7), path)
    with pytest.raises(CheckpointError, match="is not what it was"):
        checkpoint.load()
    assert_same(open_checkpoint(path).load(), bare_state(random_esm2(seed=7)))


# ------------------------------------------------------------------ official files


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def official(model, tmp_path, monkeypatch) -> Checkpoint:
    """A small model as if it were official; its files lie in ``tmp_path / "release"``."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("ESM2_FEATURES_HOME", str(tmp_path / "own"))
    monkeypatch.setenv("ESM2_FEATURES_OFFLINE", "1")
    weights = write_fair_esm(model, tmp_path / "release" / "tiny.pt")
    regression = weights.with_name("tiny-contact-regression.pt")
    hugging_face = write_hugging_face(model, tmp_path / "release" / "hf") / "model.safetensors"
    card = ModelCard(
        name="tiny",
        parameters="0M",
        architecture=ARCHITECTURE,
        weights=RemoteFile("http://127.0.0.1:9/tiny.pt", sha256(weights)),
        regression=RemoteFile("http://127.0.0.1:9/tiny-contact-regression.pt", sha256(regression)),
        safetensors_sha256=sha256(hugging_face),
        hf_repo="facebook/tiny",
    )
    return Checkpoint("tiny", ARCHITECTURE, card)


def place(file: Path, at: Path) -> Path:
    at.parent.mkdir(parents=True, exist_ok=True)
    at.write_bytes(file.read_bytes())
    return at


PLACES = {
    "torch hub": ("tiny.pt", "torch/hub/checkpoints/tiny.pt"),
    "Hugging Face": (
        "hf/model.safetensors",
        "hub/models--facebook--tiny/snapshots/1/model.safetensors",
    ),
    "own folder": ("tiny.pt", "own/checkpoints/tiny.pt"),
}


@pytest.mark.parametrize("where", PLACES)
def test_official_weights_are_found(official, model, tmp_path, where):
    source, target = PLACES[where]
    place(tmp_path / "release" / source, tmp_path / target)
    assert_same(official.load(), bare_state(model))


def test_official_places_are_searched_in_order(official, model, tmp_path):
    # Each place is damaged in turn; the error tells which one was looked at first.
    for where in ("own folder", "Hugging Face", "torch hub"):
        source, target = PLACES[where]
        path = place(tmp_path / "release" / source, tmp_path / target)
        path.write_bytes(b"damaged")
        with pytest.raises(CheckpointError, match="is not the official file") as caught:
            official.load()
        assert caught.value.path == str(path)


def test_other_revision_in_the_hugging_face_cache_is_passed_over(official, model, tmp_path):
    repository = tmp_path / "hub" / "models--facebook--tiny"
    place(tmp_path / "release" / "tiny.pt", repository / "blobs" / "0123")
    (repository / "snapshots" / "1").mkdir(parents=True)
    (repository / "snapshots" / "1" / "model.safetensors").symlink_to("../../blobs/0123")
    with pytest.raises(DownloadError, match="is not on this machine"):
        official.load()
    pin = official.source.safetensors_sha256
    place(tmp_path / "release" / "hf" / "model.safetensors", repository / "blobs" / pin)
    (repository / "snapshots" / "2").mkdir()
    (repository / "snapshots" / "2" / "model.safetensors").symlink_to(f"../../blobs/{pin}")
    assert_same(official.load(), bare_state(model))


def test_wrong_digest_is_an_error_that_tells_both(official, tmp_path):
    path = place(tmp_path / "release" / "tiny.pt", tmp_path / "torch/hub/checkpoints/tiny.pt")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        official.load()
    for fact in (str(path), sha256(path), official.source.weights.sha256, "Delete it"):
        assert fact in str(caught.value)


def test_official_contact_regression_is_looked_for_only_on_demand(official, model, tmp_path):
    place(tmp_path / "release" / "tiny.pt", tmp_path / "own/checkpoints/tiny.pt")
    official.load()
    with pytest.raises(DownloadError, match=r"tiny-contact-regression\.pt is not on this machine"):
        official.contact_regression()
    name = "tiny-contact-regression.pt"
    place(tmp_path / "release" / name, tmp_path / "own/checkpoints" / name)
    assert torch.equal(official.contact_regression()[0], model.contact_head.regression.weight)


def test_official_contact_regression_comes_from_hugging_face_too(official, model, tmp_path):
    source, target = PLACES["Hugging Face"]
    place(tmp_path / "release" / source, tmp_path / target)
    assert torch.equal(official.contact_regression()[0], model.contact_head.regression.weight)


def test_model_without_a_pin_loads_with_a_warning(official, model, tmp_path):
    place(tmp_path / "release" / "tiny.pt", tmp_path / "own/checkpoints/tiny.pt")
    card = replace(official.source, weights=replace(official.source.weights, sha256=None))
    checkpoint = replace(official, source=card)
    assert checkpoint.identity == "name:tiny"
    with pytest.warns(UserWarning, match="No public source states the digest"):
        assert_same(checkpoint.load(), bare_state(model))


def test_file_of_another_size_under_an_official_name_is_refused(official, tmp_path):
    path = write_fair_esm(random_esm2(layers=3), tmp_path / "own/checkpoints/tiny.pt")
    card = replace(official.source, weights=replace(official.source.weights, sha256=sha256(path)))
    with pytest.raises(CheckpointError, match="layers=3"):
        replace(official, source=card).load()


# ------------------------------------------------------------------ what must be refused


class Hostile:
    """A pickle that writes a file when it is loaded without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickle_is_refused_and_not_run(model, tmp_path, zipped):
    target = tmp_path / "written"
    path = tmp_path / "hostile.pt"
    contents = fair_esm_contents(model) | {"extra": Hostile(target)}
    torch.save(contents, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="could run code"):
        open_checkpoint(path)
    with pytest.raises(CheckpointError, match="could run code"):
        Checkpoint("hostile", ARCHITECTURE, path).load()
    assert not target.exists()
    torch.load(path, weights_only=False)["extra"].close()
    assert target.exists(), "the pickle was harmless, and the test proved nothing"


def test_hostile_contact_regression_is_refused_and_not_run(model, tmp_path):
    target = tmp_path / "written"
    path = write_fair_esm(model, tmp_path / "network.pt")
    torch.save({"model": Hostile(target)}, tmp_path / "network-contact-regression.pt")
    with pytest.raises(CheckpointError, match="could run code"):
        open_checkpoint(path).contact_regression()
    assert not target.exists()


def test_harmless_settings_that_only_torch_knows_are_accepted(model, tmp_path):
    contents = fair_esm_contents(model)
    contents["cfg"]["model"].extras = {"dtype": torch.float32, "size": torch.Size([3])}
    torch.save(contents, tmp_path / "network.pt")
    assert_same(open_checkpoint(tmp_path / "network.pt").load(), bare_state(model))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
def test_truncated_file_is_refused(model, tmp_path, kind, kept):
    path = write(model, tmp_path, kind)
    file = max(path.glob("*.safetensors")) if path.is_dir() else path
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path).load()
    assert file.name in str(caught.value)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"\x08" + bytes(7) + b"[1, 2]  ", b"not a checkpoint" * 9, b"{}"]
)
def test_file_that_is_no_checkpoint_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"network{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert caught.value.path == str(path)


@pytest.mark.parametrize("contents", [None, [1, 2], {"model": {"weight": torch.zeros(2)}}, {}])
def test_pt_file_of_something_else_is_refused(tmp_path, contents):
    torch.save(contents, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="is not an ESM-2 checkpoint"):
        open_checkpoint(tmp_path / "other.pt")


@pytest.mark.parametrize("kind", ["fair-esm", "safetensors", "Hugging Face"])
@pytest.mark.parametrize("fault", ["missing", "unexpected", "misshaped"])
def test_wrong_tensors_are_listed(model, tmp_path, kind, fault):
    path = write(model, tmp_path, kind)
    contents = torch.load(path, weights_only=False) if kind == "fair-esm" else {}
    file = path / "model.safetensors" if path.is_dir() else path
    state = contents["model"] if contents else load_file(file)
    victim = next(name for name in state if "1" in name and name.endswith("weight"))
    if fault == "missing":
        del state[victim]
    elif fault == "unexpected":
        victim = "embed_positions.weight"
        state[victim] = torch.zeros(3)
    else:
        state[victim] = torch.zeros(3, 5)
    metadata = {"layers": "2", "dim": "32", "heads": "4"} if kind == "safetensors" else None
    torch.save(contents, file) if contents else save_file(state, file, metadata=metadata)
    with pytest.raises(CheckpointError, match=f"1 {fault} ") as caught:
        open_checkpoint(path)
    assert victim in str(caught.value)
    assert caught.value.path == str(path)


def test_long_lists_of_names_are_cut(model, tmp_path):
    state = {name: it for name, it in bare_state(model).items() if "layers.1" not in name}
    metadata = {"layers": "2", "dim": "32", "heads": "4"}
    save_file(state, tmp_path / "network.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=r"16 missing \(.*, \.\.\.\)") as caught:
        open_checkpoint(tmp_path / "network.safetensors")
    assert str(caught.value).count("layers.1") == 5


@pytest.mark.parametrize("kept", [0, 3])
def test_trunk_without_a_whole_language_model_head_gives_no_logits(model, tmp_path, kept):
    state = bare_state(model)
    head = [name for name in state if name.startswith("lm_head.")]
    for name in head[kept:]:
        del state[name]
    save_file(state, tmp_path / "network.safetensors")
    weights = open_checkpoint(tmp_path / "network.safetensors").load()
    assert_same(weights, {name: it for name, it in state.items() if name not in head})


def test_untied_output_is_refused(model, tmp_path):
    contents = fair_esm_contents(model)
    contents["model"]["encoder.lm_head.weight"] = torch.zeros(33, 32)
    torch.save(contents, tmp_path / "network.pt")
    with pytest.raises(CheckpointError, match="an output matrix of its own"):
        open_checkpoint(tmp_path / "network.pt").load()


@pytest.mark.parametrize("kind", ["fair-esm", "safetensors"])
def test_quantised_weights_are_refused(model, tmp_path, kind):
    path = write(model, tmp_path, kind)
    if kind == "fair-esm":
        contents = torch.load(path, weights_only=False)
        name = "encoder.sentence_encoder.layers.0.fc1.weight"
        contents["model"][name] = contents["model"][name].to(torch.int8)
        torch.save(contents, path)
    else:
        state = load_file(path)
        state["layers.0.fc1.weight"] = state["layers.0.fc1.weight"].to(torch.int8)
        save_file(state, path)
    with pytest.raises(CheckpointError, match=r"layers\.0\.fc1\.weight as .*quantised"):
        open_checkpoint(path).load()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "bert"),
        ("position_embedding_type", "absolute"),
        ("emb_layer_norm_before", True),
        ("token_dropout", False),
        ("layer_norm_eps", 1e-12),
        ("vocab_size", 446),
    ],
)
def test_config_of_another_model_is_refused(model, tmp_path, key, value):
    folder = write_hugging_face(model, tmp_path / "network")
    config = hugging_face_config(model) | {key: value}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"is not an ESM-2 model: its {key} is {value!r}"):
        open_checkpoint(folder)


@pytest.mark.parametrize("heads", [None, 0, 3, "many", 32])
def test_config_with_impossible_heads_is_refused(model, tmp_path, heads):
    folder = write_hugging_face(model, tmp_path / "network")
    config = hugging_face_config(model) | {"num_attention_heads": heads}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="layers, width and heads are"):
        open_checkpoint(folder)


def test_config_that_contradicts_the_weights_is_refused(model, tmp_path):
    folder = write_hugging_face(model, tmp_path / "network")
    config = hugging_face_config(model) | {"num_attention_heads": 2}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"inv_freq is \(4,\), not \(8,\)"):
        open_checkpoint(folder)


@pytest.mark.parametrize("token_dropout", [False, None])
def test_fair_esm_model_without_token_dropout_is_refused(model, tmp_path, token_dropout):
    contents = fair_esm_contents(model)
    contents["cfg"]["model"].token_dropout = token_dropout
    torch.save(contents, tmp_path / "network.pt")
    with pytest.raises(CheckpointError, match="its token_dropout is"):
        open_checkpoint(tmp_path / "network.pt")


def test_heads_that_nothing_tells_are_asked_for(model, tmp_path):
    state = {name: it for name, it in bare_state(model).items() if not name.endswith("inv_freq")}
    save_file(state, tmp_path / "network.safetensors")
    with pytest.raises(
        CheckpointError, match=r"Nothing tells how many attention heads.*config\.json"
    ):
        open_checkpoint(tmp_path / "network.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(hugging_face_config(model)))
    assert open_checkpoint(tmp_path / "network.safetensors").architecture == ARCHITECTURE


def test_config_of_something_else_beside_a_file_is_passed_over(model, tmp_path):
    path = write_safetensors(model, tmp_path / "network.safetensors", metadata=False)
    (tmp_path / "config.json").write_text('{"learning_rate": 0.1}')
    assert open_checkpoint(path).architecture == ARCHITECTURE


def test_heads_of_an_official_shape_need_not_be_told(tmp_path):
    model = random_esm2(6, 320, 20)
    state = {name: it for name, it in bare_state(model).items() if not name.endswith("inv_freq")}
    save_file(state, tmp_path / "network.safetensors")
    assert open_checkpoint(tmp_path / "network.safetensors").architecture == Architecture(
        6, 320, 20
    )


def test_folder_without_weights_tells_what_is_missing(model, tmp_path):
    with pytest.raises(CheckpointError, match=r"it has no config\.json"):
        open_checkpoint(tmp_path)
    folder = write_hugging_face(model, tmp_path / "network")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["gone.safetensors", "../model.safetensors", "/etc/passwd"])
def test_shards_must_lie_in_the_folder(model, tmp_path, name):
    folder = write_hugging_face(model, tmp_path / "network")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"weight_map": {"embed_tokens.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="is not in"):
        open_checkpoint(folder)


@pytest.mark.parametrize("kind", ["fair-esm", "safetensors", "Hugging Face"])
def test_contact_regression_may_be_absent_until_it_is_needed(model, tmp_path, kind):
    path = write(model, tmp_path, kind)
    if kind == "fair-esm":
        path.with_name("network-contact-regression.pt").unlink()
    else:
        file = path / "model.safetensors" if path.is_dir() else path
        save_file({k: v for k, v in load_file(file).items() if "contact" not in k}, file)
    checkpoint = open_checkpoint(path)
    assert_same(checkpoint.load(), bare_state(model))
    with pytest.raises(CheckpointError, match=r"needs a contact regression, and .* has none"):
        checkpoint.contact_regression()


def test_contact_regression_of_another_model_is_refused(model, tmp_path):
    path = write_fair_esm(model, tmp_path / "network.pt")
    other = contact_state(random_esm2(layers=3))
    torch.save({"model": other}, tmp_path / "network-contact-regression.pt")
    with pytest.raises(CheckpointError, match=r"\(1, 12\).*not \[\(1, 8\)"):
        open_checkpoint(path).contact_regression()


def test_checkpoint_of_an_older_family_is_refused(model, tmp_path):
    contents = {"args": argparse.Namespace(arch="roberta_large"), **fair_esm_contents(model)}
    del contents["cfg"]
    contents["model"]["encoder.sentence_encoder.embed_positions.weight"] = torch.zeros(1026, 32)
    torch.save(contents, tmp_path / "esm1b.pt")
    with pytest.raises(CheckpointError, match=r"1 unexpected .*embed_positions"):
        open_checkpoint(tmp_path / "esm1b.pt")


# ------------------------------------------------------------------ memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("kind", ["fair-esm", "safetensors"])
def test_loading_holds_the_weights_once(tmp_path, kind):
    path = write(random_esm2(layers=4, dim=640, heads=20), tmp_path, kind)
    script = (
        "import re, sys, numpy, torch\n"
        "from pathlib import Path\n"
        "from esm2_features._checkpoints import open_checkpoint\n"
        "def memory(what):\n"
        "    found = re.search(what + r':\\s+(\\d+) kB', Path('/proc/self/status').read_text())\n"
        "    return 1024 * int(found[1])\n"
        "checkpoint = open_checkpoint(sys.argv[1])\n"
        "before = memory('VmRSS')\n"
        "weights = checkpoint.load()\n"
        "print((memory('VmHWM') - before) / sum(it.nbytes for it in weights.values()))\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    output = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert float(output) < 1.2
