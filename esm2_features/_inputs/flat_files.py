"""Flat files of databases, which Biopython reads: GenBank, EMBL, UniProt, mmCIF and PDB.

The proteins of a GenBank or EMBL file of nucleotides are the translations of its genes. Those of a
structure are its SEQRES records: the whole chain, with residues that have no coordinates.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from typing import Any

from esm2_features._inputs.fasta import FastaRecord
from esm2_features._inputs.streams import input_error, unreadable
from esm2_features.exceptions import InputError, import_optional

ENDINGS = {
    **dict.fromkeys((".gb", ".gbk", ".gbff", ".gp", ".gpff", ".genbank"), "genbank"),
    ".embl": "embl",
    ".swiss": "swiss",
    ".dat": "swiss",
    **dict.fromkeys((".cif", ".mmcif"), "cif-seqres"),
    **dict.fromkeys((".pdb", ".ent"), "pdb-seqres"),
}
"""Endings of the files, and the names of their formats in Biopython."""

BEGINNINGS = {
    "LOCUS ": "genbank",
    "ID   ": "swiss",
    "data_": "cif-seqres",
    "HEADER ": "pdb-seqres",
    "SEQRES ": "pdb-seqres",
}
"""How such files begin."""

_ADVICE = {
    "genbank": "Choose a record with a sequence, or with genes that are translated.",
    "cif-seqres": "Download the mmCIF file of the PDB, or write the chains as FASTA.",
    "pdb-seqres": "Download the file of the PDB, or write the chains as FASTA.",
}


def read_flat_file(text: io.TextIOBase, kind: str, name: str) -> Iterator[FastaRecord]:
    """Read the proteins of a file, one by one."""
    reader: Any = import_optional("Bio.SeqIO", extra="biopython", purpose=f"Reading {name}")

    n = 0
    try:
        with warnings.catch_warnings(action="ignore"):  # of lines that say nothing of sequences
            for found in reader.parse(text, kind):
                for record in _proteins(found):
                    n += 1
                    yield record
    except (GeneratorExit, InputError):
        raise
    except Exception as error:  # Biopython's errors are ValueError, KeyError, AssertionError, ...
        raise input_error(name, unreadable(error)) from error
    if not n:
        holds = "SEQRES records" if "seqres" in kind else "protein sequences"
        advice = _ADVICE.get(kind, "Give a file that has some.")
        raise input_error(name, f"holds no {holds}. {advice}")


def _proteins(record: Any) -> Iterator[FastaRecord]:
    kind = str(record.annotations.get("molecule_type", "protein")).lower()
    if "dna" not in kind and "rna" not in kind:
        description = f"{record.id} {record.description}".strip()
        yield FastaRecord(record.id, description, str(record.seq))
        return
    for i, feature in enumerate(record.features, start=1):
        about = feature.qualifiers
        if feature.type == "CDS" and "translation" in about:
            names = [*about.get("protein_id", ()), *about.get("locus_tag", ())]
            identifier = names[0] if names else f"{record.id}_{i}"
            description = " ".join([identifier, *about.get("product", ())])
            yield FastaRecord(identifier, description, about["translation"][0])
