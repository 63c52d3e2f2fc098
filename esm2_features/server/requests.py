"""What a request asks for: the bodies of all versions, checked, in one form.

    version 1      {"instances": [{"data": {"text": SEQ}}], "params": {...}}
    versions 2, 3  {"items": [{"sequence": SEQ}], "params": {...}}

``params`` is the same in all: ``include`` says which outputs, ``repr_layers`` of which layers. R
writes a list of one as its element, and an empty one as ``[]``; both are understood.

This library's own clients say two things more of vectors: ``"region": "2:5,8:9"`` in an item is the
part that is pooled, and ``"window": 1022`` in ``params`` has longer sequences run in windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
)

from esm2_features._checkpoints.catalogue import Architecture
from esm2_features._inputs.alphabet import CANONICAL_RESIDUES, MASK
from esm2_features._inputs.options import POOLING_OF, SPECIAL_TOKENS
from esm2_features._inputs.regions import read_region
from esm2_features._inputs.residues import are_normal, normalise
from esm2_features._inputs.views import SequenceView
from esm2_features.exceptions import MissingSequenceError, SequenceTooLongError
from esm2_features.server.errors import ApiError
from esm2_features.server.settings import Settings

ACTIONS = ("encode", "predict", "log_prob")
_LETTER = "[A-IK-Za-ik-z]"  # all but J
_PATTERNS = {
    action: f"^[ \\t\\n\\r]*{residues}\\*?[ \\t\\n\\r]*$"
    for action, residues in (
        ("encode", f"({_LETTER}|<mask>)+"),
        ("predict", f"({_LETTER}|<mask>)*<mask>({_LETTER}|<mask>)*"),
        ("log_prob", f"{_LETTER}+"),
    )
}
_REGION = "^[0-9]{1,9}(:[0-9]{1,9})?(,[0-9]{1,9}(:[0-9]{1,9})?)*$"
PREDICTED = len(CANONICAL_RESIDUES)
"""Scores at a residue."""

Include = Literal[
    "mean", "per_token", "bos", "contacts", "logits", "attentions", "eos", "max", "std", "parti"
]


def _listed(value: object) -> object:
    """Read what R makes of a vector of length 1."""
    return [value] if isinstance(value, str | int | float) else value


def _whole(value: object) -> object:
    """Read 2.0 as 2, as JSON Schema does."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _keyed(value: object) -> object:
    """Read what R makes of ``list()``."""
    return {} if value == [] else value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Params(_Strict):
    """Which outputs, and of which layers."""

    include: Annotated[
        list[Include],
        BeforeValidator(_listed),
        Field(min_length=1, max_length=32, description="Outputs to give for each sequence."),
    ] = ["mean"]
    repr_layers: Annotated[
        list[Annotated[StrictInt, BeforeValidator(_whole)]],
        BeforeValidator(_listed),
        Field(
            min_length=1,
            max_length=64,
            description="Representations of which layers; 0 is the embedding, and negative "
            "numbers count from the end.",
        ),
    ] = [-1]
    window: Annotated[
        Annotated[StrictInt, Field(ge=1)] | None,
        BeforeValidator(_whole),
        Field(
            description="Run sequences of more residues in overlapping windows of so many. For "
            "outputs that are one vector."
        ),
    ] = None


_Given = Annotated[Params, BeforeValidator(_keyed)]


class Item(_Strict):
    """One sequence of versions 2 and 3."""

    sequence: StrictStr = Field(min_length=1, description="A protein in one-letter code.")
    region: StrictStr | None = Field(
        default=None,
        pattern=_REGION,
        description="The residues to pool over, from 0, such as 26:33,50:58. For outputs that are "
        "one vector of residues.",
    )


class Items(_Strict):
    """The body of versions 2 and 3."""

    items: list[Item] = Field(min_length=1)
    params: _Given = Params()


class Text(_Strict):
    """The innermost part of version 1."""

    text: StrictStr = Field(min_length=1, description="A protein in one-letter code.")


class Instance(_Strict):
    """One sequence of version 1."""

    data: Text


class Instances(_Strict):
    """The body of version 1."""

    instances: list[Instance] = Field(min_length=1)
    params: _Given = Params()


Kind = tuple[Any, ...]
"""What is computed of sequences, and with which options; equal ones are computed together."""


@dataclass(frozen=True)
class FeatureRequest:
    """What a request asks for."""

    model: str  # as it is served
    action: str  # one of `ACTIONS`
    # normalised, masks written as ``<mask>``. Where parts or windows are asked for, views, as
    # `SequenceView` writes them
    sequences: list[str]
    lengths: list[int]  # in residues
    include: tuple[str, ...]  # outputs, besides that of the action
    layers: tuple[int, ...]  # from 0

    @property
    def poolings(self) -> tuple[str, ...]:
        """Outputs that are one vector for a sequence."""
        return tuple(word for word in self.include if word in POOLING_OF)

    @property
    def kinds(self) -> list[Kind]:
        """What has to be computed."""
        found: list[Kind] = []
        if self.poolings:
            words = tuple(POOLING_OF[word] for word in self.poolings)
            found.append(("embed", self.layers, words))
        if "per_token" in self.include:
            found.append(("residues", self.layers))
        found += [(word,) for word in ("contacts", "attentions") if word in self.include]
        if "logits" in self.include or self.action == "predict":
            found.append(("logits",))
        if self.action == "log_prob":
            found.append(("log_prob",))
        return found


def read_request(
    body: bytes, *, version: int, action: str, model: str, shape: Architecture, settings: Settings
) -> FeatureRequest:
    """Read and check the body of a request."""
    schema = Instances if version == 1 else Items
    try:
        read = schema.model_validate_json(body)
    except ValidationError as error:
        raise _misread(error) from None
    texts = (
        [instance.data.text for instance in read.instances]
        if isinstance(read, Instances)
        else [item.sequence for item in read.items]
    )
    if len(texts) > settings.max_items:
        raise ApiError(
            422,
            "too_many_items",
            f"The request has {len(texts)} sequences; this server takes up to "
            f"{settings.max_items} at a time. Send several requests.",
        )
    sequences = _normalised(texts)
    for row, sequence in enumerate(sequences):
        if len(sequence) > settings.max_residues:
            raise SequenceTooLongError(
                "", index=row, length=len(sequence), limit=settings.max_residues
            )
        _check_masks(action, row, sequence)
    views = _views(sequences, read, action)
    # Only what was asked for by name goes with predictions; the default is for vectors.
    asked = action == "encode" or "include" in read.params.model_fields_set
    job = FeatureRequest(
        model=model,
        action=action,
        sequences=[view.replace(MASK, "<mask>") for view in views],
        lengths=[len(sequence) for sequence in sequences],
        include=tuple(dict.fromkeys(read.params.include)) if asked else (),
        layers=_layers(read.params.repr_layers, shape.layers, model),
    )
    _check_size(job, shape, settings)
    return job


def request_schema(version: int, action: str, *, depth: int, settings: Settings) -> dict[str, Any]:
    """Describe the body of a request as JSON Schema, with the limits of this server.

    What this library's own clients say besides, ``region`` and ``window``, is left out: whether it
    goes with the rest of a request depends on the sequences, which no schema can say.
    """
    found = (Instances if version == 1 else Items).model_json_schema()
    parts = found.pop("$defs")
    whole: dict[str, Any] = _inlined(found, parts)
    many = whole["properties"]["instances" if version == 1 else "items"]
    many["maxItems"] = settings.max_items
    item = many["items"]["properties"]
    text = item["data"]["properties"]["text"] if version == 1 else item["sequence"]
    text["pattern"] = _PATTERNS[action]
    item.pop("region", None)
    params = whole["properties"]["params"]
    of_params = params["properties"]
    del of_params["window"]
    of_params["repr_layers"]["items"].update(minimum=-depth - 1, maximum=depth)
    for name in ("include", "repr_layers"):
        of_params[name] = {"anyOf": [of_params[name], of_params[name]["items"]]}
    whole["properties"]["params"] = {"anyOf": [params, {"type": "array", "maxItems": 0}]}
    return whole


def _inlined(node: Any, parts: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_inlined(part, parts) for part in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        rest = {key: value for key, value in node.items() if key != "$ref"}
        return {**_inlined(parts[node["$ref"].rpartition("/")[2]], parts), **rest}
    return {key: _inlined(value, parts) for key, value in node.items()}


def _normalised(texts: list[str]) -> list[str]:
    if are_normal(texts):
        return texts
    found = []
    for row, text in enumerate(texts):
        try:
            found.append(normalise(text, index=row))
        except MissingSequenceError:
            raise ApiError(
                422,
                "invalid_sequence",
                f"The sequence in row {row} is missing: {text[:20]!r}.",
                row=row,
            ) from None
    return found


def _views(sequences: list[str], read: Items | Instances, action: str) -> list[str]:
    """Say which parts of the sequences are asked for, and in which windows they run."""
    window = read.params.window
    regions: list[str | None] = [None] * len(sequences)
    if isinstance(read, Items):
        regions = [item.region for item in read.items]
    if window is None and not any(regions):
        return sequences
    words = {POOLING_OF.get(word) for word in read.params.include}
    if action != "encode" or None in words:
        raise ApiError(
            422,
            "no_parts",
            "region and window are for encode, and for outputs that are one vector of a sequence: "
            f"{', '.join(POOLING_OF)}.",
        )
    if any(regions) and words.intersection(SPECIAL_TOKENS):
        raise ApiError(422, "no_parts", "The special tokens of bos and eos are in no region.")
    if window is not None and "parti" in words:
        raise ApiError(422, "no_parts", "parti looks at all residues at once: leave out window.")
    return [
        str(
            SequenceView(
                sequence,
                window if window is not None and len(sequence) > window else 0,
                read_region(region, length=len(sequence), index=row) if region else (),
            )
        )
        for row, (sequence, region) in enumerate(zip(sequences, regions, strict=True))
    ]


def _check_masks(action: str, row: int, sequence: str) -> None:
    masks = sequence.count(MASK)
    if action == "predict" and not masks:
        raise ApiError(
            422,
            "no_mask",
            f"The sequence in row {row} holds no <mask>, so there is nothing to predict. Put "
            "<mask> in the place of each residue that is asked for.",
            row=row,
        )
    if action == "log_prob" and masks:
        raise ApiError(
            422,
            "masked",
            f"The sequence in row {row} holds <mask>, so it has no likelihood. Write residues.",
            row=row,
            position=sequence.index(MASK) + 1,
        )


def _layers(asked: Sequence[int], depth: int, model: str) -> tuple[int, ...]:
    for layer in asked:
        if not -depth - 1 <= layer <= depth:
            raise ApiError(
                422,
                "no_such_layer",
                f"{model} has no layer {layer}: its representations are 0 (the embedding) to "
                f"{depth}, and negative numbers count from the end, down to {-depth - 1}.",
            )
    return tuple(dict.fromkeys(layer % (depth + 1) for layer in asked))


def _check_size(job: FeatureRequest, shape: Architecture, settings: Settings) -> None:
    """Refuse what would be too large to hold, before anything of it is computed."""
    residues = sum(job.lengths)
    numbers = len(job.poolings) * len(job.layers) * shape.dim * len(job.lengths)
    if "per_token" in job.include:
        numbers += len(job.layers) * shape.dim * residues
    if "contacts" in job.include:
        numbers += sum(length**2 for length in job.lengths)
    if "attentions" in job.include:
        numbers += shape.layers * residues
    if ("logits",) in job.kinds:
        numbers += PREDICTED * residues
    if 4 * numbers > settings.max_answer_bytes:
        raise ApiError(
            413,
            "answer_too_large",
            f"The answer would hold {numbers} numbers; this server gives up to "
            f"{settings.max_answer_bytes // 4} at a time. Send fewer sequences, or ask for less "
            "of them.",
        )


def _misread(error: ValidationError) -> ApiError:
    """Say what is wrong with a body, and where: the first thing that is."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "invalid_json", f"The body is not JSON. {first['msg']}.")
    place = first["loc"]
    of_sequence = len(place) > 1 and place[0] in ("items", "instances")
    where = {"row": int(place[1])} if of_sequence else {}
    written = ".".join(str(part) for part in place)
    at = f"At {written[:80]}: " if written else ""
    return ApiError(422, "invalid_request", f"{at}{first['msg']}.", **where)
