"""Arguments that several tools have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from esm2_features.agents.proteins import Sequences

FEATURE_FORMATS, TABLE_FORMATS = ("npz", "parquet", "csv"), ("csv", "tsv", "parquet")

Given = Annotated[
    Sequences | None, Field(description="Sequences by id, or a list; or pass file instead.")
]
File = Annotated[
    str | None,
    Field(description="FASTA, CSV, TSV, Parquet, Excel, GenBank or PDB in an open folder."),
]
Overwrite = Annotated[bool, Field(description="Replace the output if it exists.")]
ModelName = Annotated[str | None, Field(description="One of list_models; the default if null.")]
Unknown = Annotated[
    Literal["raise", "X", "mask"], Field(description="What to do with letters such as J.")
]
Offset = Annotated[int, Field(description="Number of the residue before the first one; usually 0.")]
Method = Literal["masked-marginals", "wildtype-marginals"]
Pooling = Literal["mean", "max", "std", "cls", "eos", "parti"]
