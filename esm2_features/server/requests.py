"""The body of a request: the pydantic models that describe it, and its checks.

    version 1      {"instances": [{"data": {"text": SEQUENCE}}], "params": {...}}
    versions 2, 3  {"items": [{"sequence": SEQUENCE}], "params": {...}}

R writes a list of length 1 as its element, and an empty list as ``[]``; ``params`` allows both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
    create_model,
)
from pydantic.json_schema import SkipJsonSchema

from esm2_features._checkpoints.catalogue import Architecture
from esm2_features._inputs.alphabet import MASK, TOKENS
from esm2_features._inputs.options import POOLING_OF, SPECIAL_TOKENS
from esm2_features._inputs.regions import read_region
from esm2_features._inputs.residues import are_normal, normalise
from esm2_features._inputs.views import SequenceView
from esm2_features.server.errors import ApiError
from esm2_features.server.settings import Settings

Action = Literal["encode", "predict", "log_prob"]
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
_LONGEST_REGION = 1 << 14
_JSON_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_VALUES_OF_ITEM = 16
_BYTES_OF_ITEM = 4096
"""Memory of the objects of a sequence, besides its arrays."""
_EXAMPLE = "MKTAYIAKQRQISFVKSHFSRQ"

Output = Literal[
    "mean", "per_token", "bos", "contacts", "logits", "attentions", "eos", "max", "std", "parti"
]

# ------------------------------------------------------------------ models of bodies


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str | int | float) else value


def _as_integer(value: object) -> object:
    """Accept 2.0 as 2, as JSON Schema does."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Outputs = Annotated[list[Output], Field(min_length=1, max_length=32)]
_Layer = Annotated[StrictInt, BeforeValidator(_as_integer)]
_Layers = Annotated[list[_Layer], Field(min_length=1, max_length=64)]
_Window = Annotated[StrictInt, Field(ge=1)]


class Strict(BaseModel):
    """A JSON object that has no other keys than these."""

    model_config = ConfigDict(extra="forbid")


class Params(Strict):
    """Which outputs, and of which layers."""

    include: Annotated[
        _Outputs,
        BeforeValidator(_as_list, json_schema_input_type=_Outputs | Output),
        Field(description="Outputs for each sequence."),
    ] = ["mean"]
    repr_layers: Annotated[
        _Layers,
        BeforeValidator(_as_list, json_schema_input_type=_Layers | _Layer),
        Field(
            description="Layers of the representations; 0 is the embedding, and negative numbers "
            "count from the end."
        ),
    ] = [-1]
    # Sequences of more residues run in overlapping windows of this size. This and `Item.region`
    # are for this library's own clients: whether they are allowed depends on the rest of the
    # request, which a JSON Schema cannot express, so that they are left out of it.
    window: Annotated[SkipJsonSchema[_Window | None], BeforeValidator(_as_integer)] = None


_EMPTY_LIST = BeforeValidator(lambda value: {} if value == [] else value)  # as no parameters
AnyParams = Annotated[Params, _EMPTY_LIST]


class Item(Strict):
    """A sequence of versions 2 and 3."""

    sequence: StrictStr = Field(min_length=1, description="A protein in one-letter code.")
    # The residues to pool over, counted from 0, such as "26:33,50:58".
    region: Annotated[
        SkipJsonSchema[StrictStr | None], Field(pattern=_REGION, max_length=_LONGEST_REGION)
    ] = None


class Items(Strict):
    """The body of versions 2 and 3."""

    items: list[Item] = Field(min_length=1)
    params: AnyParams = Field(default_factory=Params)

    @property
    def sequences(self) -> list[Item]:
        return self.items

    @staticmethod
    def example(sequence: str) -> dict[str, Any]:
        """Return the body for one sequence."""
        return {"items": [{"sequence": sequence}]}


# ------------------------------------------------------------------ a request, checked


COMPUTATIONS = ("embed", "per_token", "contacts", "attentions", "logits", "log_prob")
"""The names of computations, in the order of their outputs in an answer."""
_TOGETHER = ("embed", "per_token", "contacts", "logits")
"""What can be read off one forward pass; attentions and parti need a pass of their own."""


class Computation(NamedTuple):
    """What an engine computes for sequences; equal computations share a batch."""

    name: str  # of several outputs of one forward pass, such as "embed+logits", joined
    layers: tuple[int, ...] = ()
    poolings: tuple[str, ...] = ()  # as `Engine` calls them


@dataclass(frozen=True)
class FeatureRequest:
    """What a request asks for, whichever version it came in."""

    model: str  # a key of `Settings.models`
    action: Action
    # Normalised, with masks as ``<mask>``; where regions or windows are asked for, the text of a
    # `SequenceView`.
    sequences: list[str]
    lengths: list[int]  # residues
    include: tuple[str, ...]  # outputs besides that of the action
    layers: tuple[int, ...]  # from 0
    n_bytes: int = 0  # of memory, from its first batch until its answer is sent

    @property
    def poolings(self) -> tuple[str, ...]:
        """Outputs that are one vector per sequence and layer."""
        return tuple(word for word in self.include if word in POOLING_OF)

    @property
    def computations(self) -> list[Computation]:
        """What has to be computed, in the order of the results."""
        poolings = tuple(POOLING_OF[word] for word in self.poolings)
        needed = {
            Computation("embed", self.layers, poolings): bool(poolings),
            Computation("per_token", self.layers): "per_token" in self.include,
            Computation("contacts"): "contacts" in self.include,
            Computation("attentions"): "attentions" in self.include,
            Computation("logits"): "logits" in self.include or self.action == "predict",
            Computation("log_prob"): self.action == "log_prob",
        }
        asked = [computation for computation, is_needed in needed.items() if is_needed]
        together = [one for one in asked if one.name in _TOGETHER and "parti" not in one.poolings]
        if len(together) < 2:
            return asked
        joined = Computation("+".join(one.name for one in together), self.layers, poolings)
        return [joined, *(one for one in asked if one not in together)]


def _named_per_token(value: object) -> object:
    if isinstance(value, list):
        return [_named_per_token(word) for word in value]
    return "per_token" if value == "per_residue" else value


_HubOutput = Output | Literal["per_residue"]


class HubParams(Params):
    """As `Params`, where ``per_residue`` is another word for ``per_token``."""

    include: Annotated[
        _Outputs,
        BeforeValidator(
            lambda value: _as_list(_named_per_token(value)),
            json_schema_input_type=list[_HubOutput] | _HubOutput,
        ),
        Field(description="Outputs for each sequence."),
    ] = ["mean"]


class HubItems(Items):
    """The body of the hub's addresses."""

    params: Annotated[HubParams, _EMPTY_LIST] = Field(default_factory=HubParams)


@dataclass(frozen=True)
class ApiVersion:
    """A version of the hosted API: its addresses, and the JSON of its bodies and answers."""

    number: int | str
    path: str  # of an operation, with {model}; the name of the operation follows
    operations: Mapping[str, Action]
    body: Any  # a pydantic model with `sequences`, `params` and `example`
    # Writes an answer in parts, one for each sequence: `parts(request, results)`.
    parts: Callable[[FeatureRequest, list[dict[str, Any]]], Iterator[bytes]]


def read_request(
    content: bytes,
    *,
    version: ApiVersion,
    action: Action,
    model: str,
    shape: Architecture,
    settings: Settings,
) -> FeatureRequest:
    """Read and check the body of a request."""
    _check_number_of_values(content, settings.max_items)
    try:
        parsed = _limited(version.body, settings.max_items).model_validate_json(content)
    except ValidationError as error:
        raise _invalid_body(error, settings) from None
    items, params = parsed.sequences, parsed.params
    sequences = [item.sequence for item in items]
    if not are_normal(sequences):
        sequences = [normalise(text, index=row) for row, text in enumerate(sequences)]
    for row, sequence in enumerate(sequences):
        if len(sequence) > settings.max_residues:
            limit = settings.max_residues
            raise ApiError("too_long", row=row, length=len(sequence), limit=limit)
        _check_masks(action, row, sequence)
    views = _views(sequences, [item.region for item in items], params, action)
    # `include` has a default, which is for encode only.
    is_asked = action == "encode" or "include" in params.model_fields_set
    request = FeatureRequest(
        model=model,
        action=action,
        sequences=[view.replace(MASK, "<mask>") for view in views],
        lengths=[len(sequence) for sequence in sequences],
        include=tuple(dict.fromkeys(params.include)) if is_asked else (),
        layers=_layers(params.repr_layers, shape.layers, model),
    )
    return replace(request, n_bytes=_check_answer_size(request, shape, settings))


def _check_number_of_values(content: bytes, max_items: int) -> None:
    """Count the values of a body before it is parsed, which holds up all other threads."""
    most = max_items * _VALUES_OF_ITEM + 1024
    n = max(content.count(b'"') // 2, content.count(b"{"))
    if n <= most:
        n = _JSON_STRING.sub(b"", content).count(b",")
    if n > most:
        text = (
            "The body has more than {n} values; this server accepts up to {most} sequences at a "
            "time. Send several requests."
        )
        raise ApiError("too_many_items", text, n=n, most=max_items)


@cache
def _limited(body: Any, most: int) -> Any:
    """Let validation stop at the first error, and at the most sequences that are allowed.

    Otherwise, a body of a few kilobytes, unpacked, would keep the event loop busy for minutes.
    """
    [name] = {"items", "instances"} & set(body.model_fields)
    limits: Any = Annotated[
        body.model_fields[name].annotation, FailFast(), Field(min_length=1, max_length=most)
    ]
    fields: dict[str, Any] = {name: (limits, ...)}
    return create_model(body.__name__, __base__=body, **fields)


def _views(
    sequences: list[str], regions: list[str | None], params: Params, action: Action
) -> list[str]:
    """Add regions and windows to the sequences, where they are asked for."""
    window = params.window or 0
    if not window and not any(regions):
        return sequences
    poolings = {POOLING_OF.get(word) for word in params.include}
    if action != "encode" or None in poolings:
        raise ApiError("no_parts", outputs=", ".join(POOLING_OF))
    if any(regions) and poolings.intersection(SPECIAL_TOKENS):
        raise ApiError("no_parts", "bos and eos are special tokens, which no region holds.")
    if window and "parti" in poolings:
        raise ApiError("no_parts", "parti needs all residues at once: leave out window.")
    return [
        str(
            SequenceView(
                sequence,
                window if len(sequence) > window else 0,
                read_region(region, length=len(sequence), index=row) if region else (),
            )
        )
        for row, (sequence, region) in enumerate(zip(sequences, regions, strict=True))
    ]


def _check_masks(action: Action, row: int, sequence: str) -> None:
    is_masked = MASK in sequence
    if action == "predict" and not is_masked:
        raise ApiError("no_mask", row=row)
    if action == "log_prob" and is_masked:
        raise ApiError("masked", row=row, position=sequence.index(MASK) + 1)


def _layers(layers: Sequence[int], depth: int, model: str) -> tuple[int, ...]:
    for layer in layers:
        if not -depth - 1 <= layer <= depth:
            raise ApiError("no_such_layer", model=model, layer=layer, depth=depth, n=depth + 1)
    return tuple(dict.fromkeys(layer % (depth + 1) for layer in layers))


def _check_answer_size(request: FeatureRequest, shape: Architecture, settings: Settings) -> int:
    """Check the size of the answer before any of it is computed; return the memory it needs."""

    def numbers(length: int) -> int:
        of_computation = {
            "embed": len(request.poolings) * len(request.layers) * shape.dim,
            "per_token": len(request.layers) * shape.dim * length,
            "contacts": length**2,
            "attentions": shape.layers * length,
            "logits": len(TOKENS) * length,
            "log_prob": 0,
        }
        names = [name for one in request.computations for name in one.name.split("+")]
        return sum(of_computation[name] for name in names)

    each = [numbers(length) for length in request.lengths]
    if 4 * sum(each) > settings.max_answer_bytes:
        most = settings.max_answer_bytes // 4
        raise ApiError("answer_too_large", numbers=sum(each), most=most)
    # The results, and what writing those of one sequence takes.
    return 4 * (sum(each) + 4 * max(each)) + _BYTES_OF_ITEM * len(each)


def _invalid_body(error: ValidationError, settings: Settings) -> ApiError:
    """Describe the first thing that is wrong with a body, and where it is."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return ApiError("invalid_json", reason=first["msg"])
    location = first["loc"]
    if first["type"] == "too_long" and location in (("items",), ("instances",)):
        n = first["ctx"]["actual_length"]
        return ApiError("too_many_items", n=n, most=settings.max_items)
    is_of_sequence = len(location) > 1 and location[0] in ("items", "instances")
    where: dict[str, Any] = {"row": int(location[1])} if is_of_sequence else {}
    path = ".".join(map(str, location))
    at = f"At {path[:80]}: " if path else ""
    return ApiError("invalid_request", at=at, reason=first["msg"], **where)


# ------------------------------------------------------------------ description


def request_schema(
    version: ApiVersion, action: Action, *, depth: int, settings: Settings
) -> dict[str, Any]:
    """Describe the body of a request as JSON Schema, with the limits of this server.

    The limits are not part of the pydantic models, so that requests that exceed them get errors
    with codes of their own.
    """
    schema = version.body.model_json_schema()
    whole: dict[str, Any] = _without_references(schema, schema.pop("$defs"))
    items, params = whole["properties"].values()
    items["maxItems"] = settings.max_items
    item = items["items"]["properties"]
    text = item["sequence"] if "sequence" in item else item["data"]["properties"]["text"]
    text["pattern"] = _PATTERNS[action]
    for layers in params["properties"]["repr_layers"]["anyOf"]:
        layers.get("items", layers).update(minimum=-depth - 1, maximum=depth)
    # The schemas of some versions of pydantic fail with a model in `json_schema_input_type`.
    whole["properties"]["params"] = {"anyOf": [params, {"type": "array", "maxItems": 0}]}
    return whole


def request_body(
    version: ApiVersion, action: Action, *, depth: int, settings: Settings
) -> dict[str, Any]:
    """Describe the body of a request for OpenAPI."""
    sequence = _EXAMPLE.replace("T", "<mask>", 1) if action == "predict" else _EXAMPLE
    content = {
        "schema": request_schema(version, action, depth=depth, settings=settings),
        "example": version.body.example(sequence),
    }
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def _without_references(node: Any, definitions: dict[str, Any]) -> Any:
    """Replace each ``$ref`` of a JSON Schema by what it refers to."""
    if isinstance(node, list):
        return [_without_references(part, definitions) for part in node]
    if not isinstance(node, dict):
        return node
    node = dict(node)
    target = definitions[node.pop("$ref").rpartition("/")[2]] if "$ref" in node else {}
    return {
        key: _without_references(value, definitions) for key, value in {**target, **node}.items()
    }
