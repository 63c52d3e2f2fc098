"""Vectors under the names of sequences: HDF5, and fair-esm's files."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch

from esm2_features import Cache
from esm2_features._cache.embedding_files import read_extract_files, sequence_hash
from esm2_features.exceptions import CacheWarning, InputError

MODEL, DIM = "esm2_t6_8M_UR50D", 320
SEQUENCES = {"P1": "MKTAYIAKQR", "sp|P2|B_HUMAN": "GSHMVLSEGE", "c/3": "MKV"}
OPTIONS = {"model": MODEL, "layer": 6, "pooling": "mean"}


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "p.fasta"
    path.write_text("".join(f">{name} a protein\n{text}\n" for name, text in SEQUENCES.items()))
    return path


@pytest.fixture
def vectors():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(DIM).astype(np.float32) for name in SEQUENCES}


def write_h5(path, items, **attributes):
    with h5py.File(path, "w") as file:
        for name, (array, attrs) in items.items():
            dataset = file.create_dataset(name, data=array)
            dataset.attrs.update(attrs | attributes)
    return path


def stored(cache, layer=6, pooling="mean"):
    """The vectors of a cache, by the digest of their sequence."""
    import pyarrow.parquet as pq

    cache.export(path := cache.path / "x.parquet", layer=layer, pooling=pooling)
    table = pq.read_table(path)
    path.unlink()
    return sorted(
        np.frombuffer(row, np.float32).tolist() if isinstance(row, bytes) else list(row)
        for row in table["vector"].to_pylist()
    )


def expected(vectors):
    return sorted(vector.tolist() for vector in vectors.values())


@pytest.mark.parametrize("layout", ["id", "hash", "number", "accession"])
def test__h5__of_every_layout(tmp_path, fasta, vectors, layout):
    items = {}
    for i, (name, text) in enumerate(SEQUENCES.items()):
        key = {
            "id": name.replace("/", "%2F"),
            "hash": sequence_hash(text),
            "number": str(i),
            "accession": {"sp|P2|B_HUMAN": "P2"}.get(name, name.replace("/", "%2F")),
        }[layout]
        items[key] = (vectors[name], {"original_id": name} if layout in ("hash", "number") else {})
    file = write_h5(tmp_path / "x.h5", items)
    cache = Cache(tmp_path / "cache")
    assert cache.import_(file, sequences=fasta, **OPTIONS).added == 3
    assert stored(cache) == expected(vectors)


def test__h5__of_residues_is_pooled(tmp_path, fasta):
    rng = np.random.default_rng(0)
    arrays = {n: rng.standard_normal((len(s), DIM)).astype("f2") for n, s in SEQUENCES.items()}
    items = {name.replace("/", "%2F"): (array, {}) for name, array in arrays.items()}
    cache = Cache(tmp_path / "cache")
    cache.import_(write_h5(tmp_path / "x.h5", items), sequences=fasta, **OPTIONS)
    means = sorted(a.astype(np.float32).mean(axis=0).tolist() for a in arrays.values())
    np.testing.assert_allclose(stored(cache), means, atol=1e-6)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((4, DIM), "f4"), r"has the shape \(4, 320\).* 10 x d numbers"),
        (np.zeros(7, "f4"), "has 7 components, and esm2_t6_8M_UR50D has 320"),
        (np.zeros(DIM, "i4"), "the dtype int32"),
        (np.full(DIM, np.nan, "f4"), "no finite float32"),
    ],
)
def test__h5__wrong_arrays_are_named(tmp_path, fasta, array, said):
    file = write_h5(tmp_path / "x.h5", {"P1": (array, {})})
    with pytest.raises(InputError, match=said):
        Cache(tmp_path / "cache").import_(file, sequences=fasta, **OPTIONS)


def test__h5__what_is_missing_is_said(tmp_path, fasta, vectors):
    cache = Cache(tmp_path / "cache")
    file = write_h5(tmp_path / "x.h5", {"P1": (vectors["P1"], {}), "P9": (vectors["P1"], {})})
    with pytest.raises(
        InputError, match=r"no sequences\. Give the file that they are in: sequences="
    ):
        cache.import_(file, **OPTIONS)
    with pytest.raises(InputError, match="model and layer and pooling must be given"):
        cache.import_(file, sequences=fasta)
    with pytest.warns(CacheWarning, match="1 of 2 vectors of .* are left out"):
        assert cache.import_(file, sequences=fasta, **OPTIONS).added == 1
    other = write_h5(tmp_path / "y.h5", {"P9": (vectors["P1"], {})})
    with pytest.raises(InputError, match="None of the 1 names"):
        cache.import_(other, sequences=fasta, **OPTIONS)
    (tmp_path / "z.h5").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        cache.import_(tmp_path / "z.h5", sequences=fasta, **OPTIONS)
    with pytest.raises(InputError, match=r"has its own\. Leave it out"):
        cache.import_(tmp_path / "p.fasta", sequences=fasta, **OPTIONS)


# ------------------------------------------------------------------ fair-esm


def extract(folder, vectors, layers=(5, 6), residues=False):
    """Write what scripts/extract.py does."""
    folder.mkdir(exist_ok=True)
    for name, vector in vectors.items():
        tensor = torch.tensor(vector)
        contents = {"label": f"{name} a protein"}
        if residues:
            rows = torch.stack([tensor * i for i in range(len(SEQUENCES[name]))])
            contents["representations"] = {layer: rows + layer for layer in layers}
        else:
            contents["mean_representations"] = {layer: tensor + layer for layer in layers}
            contents["bos_representations"] = {layer: tensor - layer for layer in layers}
        torch.save(contents, folder / f"{name.replace('/', '_')}.pt")
    return folder


def test__extract__all_layers_of_a_folder(tmp_path, fasta, vectors):
    folder, cache = extract(tmp_path / "out", vectors), Cache(tmp_path / "cache")
    assert cache.import_(folder, model=MODEL, sequences=fasta).added == 3 * 2 * 2
    for layer in (5, 6):
        mean = {name: vector + np.float32(layer) for name, vector in vectors.items()}
        cls = {name: vector - np.float32(layer) for name, vector in vectors.items()}
        assert stored(cache, layer) == expected(mean)
        assert stored(cache, layer, "cls") == expected(cls)


def test__extract__one_layer_one_pooling_one_file(tmp_path, fasta, vectors):
    folder, cache = extract(tmp_path / "out", vectors), Cache(tmp_path / "cache")
    options = {"model": MODEL, "layer": 6, "pooling": "mean", "sequences": fasta}
    assert cache.import_(folder / "P1.pt", **options).added == 1
    assert cache.import_(folder, **options).added == 2


def test__extract__of_residues_is_pooled(tmp_path, fasta, vectors):
    folder, cache = extract(tmp_path / "out", vectors, residues=True), Cache(tmp_path / "cache")
    assert cache.import_(folder, model=MODEL, layer=6, sequences=fasta).added == 3 * 3
    means = [float(np.mean(range(len(text)))) for text in SEQUENCES.values()]
    pairs = zip(vectors.values(), means, strict=True)
    rows = sorted((vector * mean + 6).tolist() for vector, mean in pairs)
    np.testing.assert_allclose(stored(cache), rows, atol=1e-4)


def test__extract__what_runs_code_is_refused(tmp_path, fasta):
    folder = tmp_path / "out"
    folder.mkdir()
    torch.save({"label": torch.nn.Linear(2, 2)}, folder / "x.pt")
    with pytest.raises(InputError, match="is not expected in it"):
        Cache(tmp_path / "cache").import_(folder, model=MODEL, sequences=fasta)
    torch.save({"model": {}}, folder / "x.pt")
    with pytest.raises(InputError, match=r"is no file of scripts/extract\.py"):
        list(read_extract_files(folder))


def test__extract__long_sequences_were_cut(tmp_path, vectors):
    fasta = tmp_path / "long.fasta"
    fasta.write_text(f">P1\nMKTAYIAKQR\n>c/3\n{'M' * 1023}\n")
    folder = extract(tmp_path / "out", {name: vectors[name] for name in ("P1", "c/3")})
    with pytest.warns(CacheWarning, match="1 of 2 vectors .* more than 1022 residues"):
        report = Cache(tmp_path / "cache").import_(folder, model=MODEL, sequences=fasta)
    assert report.added == 4


def test__folder_of_neither__says_what_it_could_be(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"There is no cache in .* and no \.pt of fair-esm's"):
        Cache(tmp_path / "cache").import_(tmp_path / "out")
