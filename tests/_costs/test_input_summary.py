"""An input is counted in one reading, with 16 bytes for each sequence."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from esm2_features import Engine
from esm2_features._costs import input_summary as _input_summary
from esm2_features._costs.input_summary import (
    DistinctTexts,
    InputSummary,
    lengths_at,
    passes_of,
    summarise,
)
from esm2_features._inputs.views import windows
from esm2_features.exceptions import InputError


@pytest.fixture
def count(tmp_path):
    """Count sequences in a FASTA file."""

    def run(*sequences: str, text: str | None = None, **options) -> InputSummary:
        file = tmp_path / "in.fasta"
        records = "".join(f">s{i}\n{s}\n" for i, s in enumerate(sequences))
        file.write_text(records if text is None else text)
        return of_files([file], **options)

    return run


def of_files(files: list[Path], **options) -> InputSummary:
    columns = {
        name: options.pop(name) for name in ("sequence_column", "id_column") if name in options
    }
    return summarise(
        [str(file) for file in files], Engine("mini", cache=None, **options), **columns
    )


def test__count__sequences_and_different_ones(count):
    summary = count("MKT", "GGGG", "MKT", "mkt*")
    assert (summary.sequences, summary.unique, summary.residues, summary.tokens) == (4, 2, 13, 21)
    assert summary.lengths == {3: 1, 4: 1}
    assert summary.passes == {5: 1, 6: 1}
    assert summary.tokens_to_compute == 11
    assert summary.longest == 4
    assert summary.text_bytes == 13 + 4 * 2


@pytest.mark.parametrize(
    ("policy", "left_out", "total"),
    [("raise", 1, 7), ("truncate", 0, 7 + 14), ("window", 0, 7 + 14 * len(windows(30, 12)))],
)
def test__count__long_sequences_by_policy(count, policy, left_out, total):
    summary = count("MKTAA", "M" * 30, max_residues=12, too_long=policy)
    assert (summary.too_long, summary.left_out, summary.longest) == (1, left_out, 30)
    assert summary.tokens_to_compute == summary.tokens == total


def test__count__truncated_sequences_that_become_equal_are_one(count):
    summary = count("MKTAAG", "MKTAAV", max_residues=5, too_long="truncate")
    assert (summary.unique, summary.residues) == (1, 10)


def test__count__any_length(count):
    assert count("M" * 3000, max_residues=None).tokens_to_compute == 3002


def test__count__an_invalid_sequence_is_left_out_and_the_first_is_named(count, tmp_path):
    summary = count("MKT", "MK1T", "M-")
    assert (summary.sequences, summary.unique, summary.left_out) == (3, 1, 2)
    assert summary.first_error is not None
    assert summary.first_error.startswith(f"{tmp_path / 'in.fasta'}, record 2: '1' at position 3")
    assert count("MKJT", unknown="X").unique == 1


def test__count__ids_that_occur_twice(count):
    assert count(text=">a\nMKT\n>b\nMKT\n>a\nGGG\n").repeated_ids == 1


def test__count__a_record_without_residues_is_left_out(count):
    summary = count(text=">a\nMKT\n>b\n>c\nMKV\n")
    assert (summary.sequences, summary.unique, summary.left_out) == (3, 2, 1)
    assert "record 2 ('b') has no residues" in (summary.first_error or "")


def test__count__nothing(count):
    summary = count(text="")
    assert (summary.sequences, summary.unique, summary.lengths) == (0, 0, {})


def test__count__genes_are_warned_of_once(count, monkeypatch):
    monkeypatch.setattr(_input_summary, "_BATCH", 2)
    with pytest.warns(UserWarning, match="is it DNA") as warnings:
        count(*["ACGT" * 20] * 5)
    assert len(warnings) == 1


def test__count__files_folders_patterns_and_parquet(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.fasta").write_text(">a\nMKT\n")
    table = pa.table({"name": ["b", "c", "d"], "protein": ["MKT", "GGGG", None]})
    pq.write_table(table, tmp_path / "a" / "y.parquet")
    (tmp_path / "z.fa").write_text(">e\nMKTA\n")
    inputs = [tmp_path / "a", tmp_path / "*.fa", tmp_path / "z.fa"]
    summary = of_files(inputs, sequence_column="protein", id_column="name")
    assert (summary.sequences, summary.unique, summary.left_out) == (5, 3, 1)
    assert "y.parquet, record 3: Missing value" in (summary.first_error or "")
    with pytest.raises(InputError, match="should have one column of sequences"):
        of_files(inputs)


def test__count__batches_add_up(count, monkeypatch):
    monkeypatch.setattr(_input_summary, "_BATCH", 7)
    summary = count(*("MKT" + "A" * i for i in range(50)))
    assert (summary.sequences, summary.unique) == (50, 50)
    assert summary.lengths == {3 + i: 1 for i in range(50)}


def test__count__truncates_as_the_run_does(count):
    sequences = ["M" * n for n in (3, 12, 13, 40)]
    options = {"max_residues": 12, "too_long": "truncate"}
    assert count(*sequences, **options).residues == 3 + 12 + 12 + 12


def test__distinct_texts__count_what_repeats_once():
    texts = DistinctTexts()
    for i in range(1000):
        texts.add(f"text {i % 10}", i % 10)
    assert sorted(texts.numbers().tolist()) == list(range(10))
    assert DistinctTexts().numbers().tolist() == []


def test__distinct_texts__records_that_end_in_zeros_differ():
    texts = DistinctTexts()
    for number in (0, 256, 65536, 0):
        texts.add(str(number), number)
    assert sorted(texts.numbers().tolist()) == [0, 256, 65536]


def test__passes__of_windows():
    assert passes_of({5: 2, 12: 1, 30: 3}, 12) == {7: 2, 14: 1 + 3 * len(windows(30, 12))}


def test__lengths__at_quantiles():
    lengths = {10: 1, 20: 8, 30: 1}
    assert lengths_at(lengths, [0.0, 0.05, 0.5, 0.95, 0.999]) == [10, 10, 20, 30, 30]
    assert lengths_at({7: 3}, [0.5]) == [7]
