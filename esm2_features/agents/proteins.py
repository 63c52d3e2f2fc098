"""Sequences of a call: given as text, or in a file, and within limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from esm2_features._inputs.fasta import FastaRecord
from esm2_features._inputs.records import SequenceFile, iter_entries, read_records
from esm2_features.agents.settings import AgentSettings
from esm2_features.exceptions import InputError, printable, shorten

Sequences = dict[str, str] | list[str]


def read_proteins(
    settings: AgentSettings,
    sequences: Mapping[str, str] | Sequence[str] | None,
    file: str | None,
    **columns: str | None,
) -> SequenceFile:
    """Read the sequences of a call: records, and what they are called in messages."""
    if (not sequences) == (file is None):
        raise InputError("Pass either sequences, at least one, or file.")
    most = settings.service.max_items
    if file is not None:
        path = settings.folders.to_read(file)
        check_number(
            iter_entries(path, column=columns.get("column"), usual_column=columns.get("usual")),
            most,
        )
        usual = columns.pop("usual", None)
        found = read_records(path, name=shown_id(file), usual_column=usual, **columns)
    else:
        given = sequences or {}
        named = given if isinstance(given, Mapping) else dict(enumerate(given))
        check_number(iter(named), most)
        found = SequenceFile(
            [FastaRecord(str(key), str(key), text) for key, text in named.items()],
            [f"Sequence {shown_id(str(key))}" for key in named],
        )
        for record, place in zip(*found, strict=True):
            if not record.id.isprintable() or not record.id.strip():
                raise InputError(f"{place}: an id has to consist of printable characters.")
    check_lengths([record.seq for record in found.records], found.places, settings)
    return found


def read_protein(
    settings: AgentSettings, sequence: str | None, file: str | None, record: str | None
) -> FastaRecord:
    """Read the one protein of a call."""
    if record is not None and file is None:
        raise InputError("record is for a file of several records. Leave it out.")
    given = None if sequence is None else {"protein": sequence}
    records, _ = read_proteins(settings, given, file)
    if record is None and len(records) == 1:
        return records[0]
    found = [one for one in records if one.id == record]
    if not found:
        some = ", ".join(shown_id(one.id) for one in records[:5])
        raise InputError(f"Pass record, the id of one of the {len(records)} records: {some}, ...")
    return found[0]


def check_number(items: Iterator[Any], most: int, what: str = "sequences") -> None:
    for number, _ in enumerate(items, start=1):
        if number > most:
            raise InputError(
                f"There are more than {most} {what}, the most of a call. Divide them, use "
                "`esm2-features embed` in a shell, or ask the user to start the server with a "
                "larger --max-sequences."
            )


def check_lengths(texts: Sequence[str], places: Sequence[str], settings: AgentSettings) -> None:
    most = settings.service.max_residues
    for text, place in zip(texts, places, strict=True):
        if len(text) > most:
            raise InputError(
                f"{place}: {len(text)} residues, and the most here are {most}. Pass a part of it, "
                "or ask the user to start the server with a larger --max-residues."
            )


@contextmanager
def naming_rows(places: Sequence[str]) -> Iterator[None]:
    """Put the place of a record in front of an error that knows its row."""
    try:
        yield
    except InputError as error:
        index: Any = getattr(error, "index", None)
        if index is None or index >= len(places):
            raise
        raise InputError(f"{places[index]}: {error}") from error


def shown_id(text: str) -> str:
    """Shorten an id, and escape what it could do to the text around it."""
    return shorten(printable(text), 60)
