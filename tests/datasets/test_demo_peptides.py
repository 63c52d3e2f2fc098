"""The bundled demo peptides: layout, alphabet, uniqueness, and agreement with reference data."""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import esm2_features

TABLE = Path(esm2_features.__file__).parent / "data" / "demo_peptides.csv"
REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "data"
COLUMNS = ["name", "organism", "accession", "sequence", "class"]
CANONICAL = set("ACDEFGHIKLMNPQRSTVWY")


def _rows() -> list[dict[str, str]]:
    with TABLE.open(encoding="ascii", newline="") as handle:
        return list(csv.DictReader(handle))


def _reference_text(folder: Path) -> str:
    """All reference sequences, one a line, so that no match can span two of them."""
    sequences: set[str] = set()
    with gzip.open(folder / "natural_proteins.fasta.gz", "rt", encoding="ascii") as handle:
        for record in handle.read().split(">")[1:]:
            sequences.add("".join(record.splitlines()[1:]))
    for name, column in (
        ("toxicity_peptides.csv.gz", "sequence"),
        ("affinity_skempi_pairs.csv.gz", "sequence_a"),
        ("affinity_skempi_pairs.csv.gz", "sequence_b"),
    ):
        with gzip.open(folder / name, "rt", encoding="ascii", newline="") as handle:
            sequences.update(row[column] for row in csv.DictReader(handle))
    for path in sorted(folder.glob("real_esm2_*.npz")):
        with np.load(path, allow_pickle=False) as archive:
            sequences.update(str(sequence) for sequence in archive["sequence"])
    return "\n".join(sorted(sequences))


def test_header_line_endings_and_encoding() -> None:
    raw = TABLE.read_bytes()
    assert raw.isascii()
    assert b"\r" not in raw
    assert raw.endswith(b"\n")
    assert raw.split(b"\n", 1)[0].decode("ascii").split(",") == COLUMNS


def test_every_row_has_every_field() -> None:
    for row in _rows():
        assert list(row) == COLUMNS
        assert all(value and value == value.strip() for value in row.values()), row


def test_classes_are_large_enough() -> None:
    counts = Counter(row["class"] for row in _rows())
    assert set(counts) == {"toxin", "hormone"}
    assert min(counts.values()) >= 60


def test_sequences_are_short_and_canonical() -> None:
    for row in _rows():
        assert set(row["sequence"]) <= CANONICAL, row["name"]
        assert 8 <= len(row["sequence"]) <= 80, row["name"]


def test_names_and_sequences_are_unique() -> None:
    rows = _rows()
    assert len({row["name"] for row in rows}) == len(rows)
    assert len({row["sequence"] for row in rows}) == len(rows)


def test_rows_are_sorted_by_class_then_name() -> None:
    keys = [(row["class"], row["name"]) for row in _rows()]
    assert keys == sorted(keys)


def test_hormones_are_human_and_toxins_are_not() -> None:
    for row in _rows():
        assert (row["organism"] == "Homo sapiens") == (row["class"] == "hormone"), row["name"]


def test_sequences_are_found_verbatim_in_reference_data() -> None:
    if not REFERENCE.is_dir():
        pytest.skip("reference sequences not available: no shared/data beside the checkout")
    text = _reference_text(REFERENCE)
    missing = [row["name"] for row in _rows() if row["sequence"] not in text]
    assert not missing
