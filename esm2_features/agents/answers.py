"""What tools answer: small, and the same for programs and for readers."""

from __future__ import annotations

from typing import Any

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12


class Model(TypedDict):
    name: str
    parameters: str
    layers: int
    width: int
    on_this_machine: bool
    download_bytes: int


class Models(TypedDict):
    models: list[Model]
    default: str
    folders: list[str]
    max_sequences: int
    max_residues: int


class Costs(TypedDict):
    sequences: int
    distinct: int
    residues: int
    longest: int
    left_out: int
    first_error: str | None
    model: str
    device: str
    seconds: float
    seconds_range: list[float]
    memory_bytes: int
    output_bytes: int
    download_bytes: int
    basis: str


class Embedded(TypedDict):
    rows: int
    width: int
    file: str
    model: str
    layers: list[int]
    poolings: list[str]
    computed: int
    from_cache: int
    warnings: list[str]


class Substitution(TypedDict):
    variant: str
    score: float


class Scored(TypedDict):
    model: str
    method: str
    scores: list[Substitution]
    warnings: list[str]


class Position(TypedDict):
    position: int
    residue: str
    mean_score: float


class Scanned(TypedDict):
    model: str
    method: str
    residues: int
    most_harmful_positions: list[Position]
    most_tolerated_positions: list[Position]
    most_harmful: list[Substitution]
    most_favourable: list[Substitution]
    file: str | None
    note: str


class Contact(TypedDict):
    first: int
    second: int
    residues: str
    probability: float


class Contacts(TypedDict):
    model: str
    residues: int
    pairs: list[Contact]
    file: str | None


class Neighbour(TypedDict):
    id: str
    distance: float


class Found(TypedDict):
    query: str
    neighbours: list[Neighbour]


class Nearest(TypedDict):
    model: str
    found: list[Found]
    queries: int
    targets: int
    file: str | None


class Score(TypedDict):
    features: str
    kind: str
    score: float | None
    low: float | None
    high: float | None


class Compared(TypedDict):
    verdict: str
    layer_advice: str
    task: str
    scoring: str
    rows: int
    rows_without_target: int
    families: int | None
    best: list[Score]
    file: str | None
    warnings: list[str]


class Predicted(TypedDict):
    target: str | None
    rows: int
    predictions: list[dict[str, Any]]
    file: str | None
    warnings: list[str]
