"""Tools that embed, score and compare sequences."""

from __future__ import annotations

import io
import json
from typing import Annotated, Any, Literal

import numpy as np
from mcp.server.mcpserver import Image
from mcp_types import CallToolResult, ContentBlock, TextContent
from pydantic import Field

from esm2_features import _costs
from esm2_features._cache.reports import readable
from esm2_features._checkpoints.checkpoint import open_checkpoint
from esm2_features._costs.cards import CARDS
from esm2_features._costs.input_summary import summarise
from esm2_features._engine import Engine
from esm2_features._inputs.alphabet import CANONICAL_RESIDUES
from esm2_features._io.arrays import Arrays, check_array_output, write_arrays
from esm2_features._io.features import (
    Features,
    check_feature_ids,
    check_features_output,
    write_features,
)
from esm2_features._io.paths import check_output
from esm2_features._io.predictions import check_table_output, write_table
from esm2_features._io.variants import write_scan
from esm2_features._neighbors.search import nearest
from esm2_features._variants import normalise_wildtype, scan_variants, score_variants
from esm2_features.agents import answers
from esm2_features.agents.arguments import (
    FEATURE_FORMATS,
    TABLE_FORMATS,
    File,
    Given,
    Method,
    ModelName,
    Offset,
    Overwrite,
    Pooling,
    Unknown,
)
from esm2_features.agents.jobs import as_arguments, collecting_warnings
from esm2_features.agents.proteins import (
    check_lengths,
    check_number,
    naming_rows,
    read_protein,
    read_proteins,
    shown_id,
)
from esm2_features.agents.settings import AgentSettings
from esm2_features.exceptions import InputError, MissingDependencyError

_MOST_SHOWN = 50
"""Queries or predictions that an answer lists; a file has all."""
_MOST_BYTES = 1 << 30
"""Bytes of the vectors of a call, which are held in memory."""
_MOST_DRAWN = 450
"""Residues of a scan that is drawn: longer ones make pictures that hosts refuse."""
_MOST_VARIANTS = 1000


class FeatureTools:
    """The tools that need no targets."""

    def __init__(self, settings: AgentSettings) -> None:
        self.settings = settings

    def list_models(self) -> answers.Models:
        """List the models, whether their weights are on this machine, and the open folders."""
        service, models = self.settings.service, []
        for name, source in service.models.items():
            checkpoint = open_checkpoint(source)
            shape, missing = checkpoint.architecture, checkpoint.to_fetch
            models.append(
                answers.Model(
                    name=name,
                    parameters=f"{shape.parameters / 1e6:.3g}M",
                    layers=shape.layers,
                    width=shape.dim,
                    on_this_machine=missing is None,
                    download_bytes=missing or 0,
                )
            )
        return answers.Models(
            models=models,
            default=self.settings.default_model,
            folders=list(map(str, self.settings.folders.paths)),
            max_sequences=service.max_items,
            max_residues=service.max_residues,
        )

    def estimate(
        self,
        file: str,
        model: ModelName = None,
        card: Annotated[
            str | None,
            Field(description=f"A GPU that is not here: {', '.join(CARDS)}. Null: this machine."),
        ] = None,
        column: str | None = None,
        id_column: str | None = None,
    ) -> answers.Costs:
        """Count the sequences of a file, and estimate what embedding them takes.

        On this machine, a sample is timed for some seconds, with random weights.
        """
        if card is not None and card not in CARDS:
            raise InputError(f"Got card={shown_id(card)!r}; expected one of {', '.join(CARDS)}.")
        path = self.settings.folders.to_read(file)
        name = self._known(model)
        device = "auto" if card else self.settings.service.devices[0]
        engine = Engine(self.settings.service.models[name], cache=None, device=device)
        counts = summarise([path], engine, sequence_column=column, id_column=id_column)
        if not counts.unique:
            raise InputError(f"No sequence of the file can be embedded: {counts.first_error}")
        found = _costs.estimate(engine, counts, card=card)
        return answers.Costs(
            sequences=counts.sequences,
            distinct=counts.unique,
            residues=counts.residues,
            longest=counts.longest,
            left_out=counts.left_out,
            first_error=counts.first_error and as_arguments(counts.first_error),
            model=name,
            device=found.device,
            seconds=float(found.seconds.middle),
            seconds_range=[float(found.seconds.low), float(found.seconds.high)],
            memory_bytes=int(found.device_bytes),
            output_bytes=int(found.output_bytes["float32"]),
            download_bytes=engine.checkpoint.to_fetch or 0,
            basis=found.basis,
        )

    def embed(
        self,
        output: Annotated[str, Field(description="File to write: .npz, .parquet or .csv.")],
        sequences: Given = None,
        file: File = None,
        model: ModelName = None,
        layers: Annotated[
            list[int] | Literal["all"], Field(description="0 to the last; -1 is the last.")
        ] = [-1],  # noqa: B006 - the schema needs the value, and nobody changes it
        pooling: list[Pooling] = ["mean"],  # noqa: B006
        too_long: Annotated[
            Literal["raise", "truncate", "window"], Field(description="Above max_residues.")
        ] = "raise",
        max_residues: int | None = 1022,
        unknown: Unknown = "raise",
        column: str | None = None,
        id_column: str | None = None,
        overwrite: Overwrite = False,
    ) -> answers.Embedded:
        """Embed protein sequences: one vector of features for each, written into a file.

        The answer is a summary. Vectors are kept in a cache, so that repeated calls are quick.
        """
        engine = self._engine(
            model,
            layers=layers,
            pooling=pooling,
            too_long=too_long,
            max_residues=max_residues,
            unknown=unknown,
        )
        records, places = read_proteins(
            self.settings, sequences, file, column=column, id_column=id_column
        )
        inputs = [] if file is None else [self.settings.folders.to_read(file)]
        path = self.settings.folders.to_write(output, formats=FEATURE_FORMATS, inputs=inputs)
        checked = check_features_output(path, poolings=engine.poolings, force=overwrite)
        ids = [record.id for record in records]
        check_feature_ids(checked, ids)
        size = 4 * len(ids) * len(engine.columns.wanted) * engine.columns.width
        if size > _MOST_BYTES:
            raise InputError(
                f"{len(ids)} sequences x {size // len(ids) // 4} features take {readable(size)}, "
                f"and the most here is {readable(_MOST_BYTES)}. Choose fewer layers or poolings, "
                "or divide the sequences."
            )
        with collecting_warnings() as warnings, naming_rows(places):
            views = engine.policy.column_views(records, owner="embed")
            values = engine.runner.embed(views, engine.columns)
        features = Features(
            ids=ids,
            labels=[record.description for record in records],
            values=values,
            names=engine.feature_names,
            layers=engine.layers,
            poolings=engine.poolings,
        )
        write_features(checked, features)
        return answers.Embedded(
            rows=len(ids),
            width=values.shape[1],
            file=self.settings.folders.shown(checked.path),
            model=engine.checkpoint.name,
            layers=list(engine.layers),
            poolings=list(engine.poolings),
            computed=engine.n_computed,
            from_cache=len(set(views)) - engine.n_computed,
            warnings=warnings,
        )

    def score_variants(
        self,
        variants: Annotated[
            list[str], Field(description="Such as A123G, A123G:D42N, p.Ala123Gly, or a sequence.")
        ],
        sequence: str | None = None,
        file: File = None,
        record: str | None = None,
        model: ModelName = None,
        method: Method | Literal["pseudo-perplexity"] = "masked-marginals",
        offset: Offset = 0,
        per_residue: Annotated[
            bool, Field(description="Compare means; for insertions and deletions.")
        ] = False,
        unknown: Unknown = "raise",
    ) -> answers.Scored:
        """Score variants of a protein by their log-likelihood ratio to the wild type, in nats.

        0 is the wild type; a higher score is what the model finds more likely. Insertions and
        deletions need the method pseudo-perplexity, which is slow.
        """
        engine = self._engine(model, max_residues=None, unknown=unknown)
        check_number(iter(variants), _MOST_VARIANTS, "variants")
        check_lengths(variants, [f"Variant {i}" for i in range(len(variants))], self.settings)
        protein = read_protein(self.settings, sequence, file, record)
        with collecting_warnings() as warnings:
            scores = score_variants(
                engine, protein.seq, variants, method, offset=offset, per_residue=per_residue
            )
        scored = [
            _substitution(score, shown_id(variant))
            for variant, score in zip(variants, scores.tolist(), strict=True)
        ]
        return answers.Scored(
            model=engine.checkpoint.name, method=method, scores=scored, warnings=warnings
        )

    def scan_protein(
        self,
        sequence: str | None = None,
        file: File = None,
        record: str | None = None,
        model: ModelName = None,
        method: Method = "masked-marginals",
        offset: Offset = 0,
        unknown: Unknown = "raise",
        output: Annotated[str | None, Field(description=".csv of all scores.")] = None,
        overwrite: Overwrite = False,
    ) -> Annotated[CallToolResult, answers.Scanned]:
        """Score all single substitutions of a protein: which positions tolerate them.

        The answer has the extremes and, of a protein that is not too long, a heat map.
        """
        engine = self._engine(model, max_residues=None, unknown=unknown)
        protein = read_protein(self.settings, sequence, file, record)
        wildtype = normalise_wildtype(engine, protein.seq)
        checked = None
        if output is not None:
            path = self.settings.folders.to_write(output, formats=("csv",))
            checked = check_output(path, formats=("csv",), force=overwrite)
        scores = scan_variants(engine, wildtype, method)
        if checked is not None:
            write_scan(checked, wildtype, CANONICAL_RESIDUES, scores.tolist(), offset=offset)
        known = [i for i, residue in enumerate(wildtype) if residue in CANONICAL_RESIDUES]
        # The score of the wild type is 0: the mean is over the 19 others.
        means = sorted((float(scores[i].sum() / 19), i) for i in known)
        single = sorted(
            (float(score), f"{wildtype[i]}{i + 1 + offset}{residue}")
            for i in known
            for residue, score in zip(CANONICAL_RESIDUES, scores[i], strict=True)
            if residue != wildtype[i]
        )
        picture, note = self._drawn(scores, wildtype, offset, shown_id(protein.description))
        found = answers.Scanned(
            model=engine.checkpoint.name,
            method=method,
            residues=len(wildtype),
            most_harmful_positions=[_position(wildtype, offset, *one) for one in means[:5]],
            most_tolerated_positions=[_position(wildtype, offset, *m) for m in means[:-6:-1]],
            most_harmful=[_substitution(*one) for one in single[:5]],
            most_favourable=[_substitution(*one) for one in single[:-6:-1]],
            file=None if checked is None else self.settings.folders.shown(checked.path),
            note=note,
        )
        text = TextContent(type="text", text=_as_text(found))
        content: list[ContentBlock] = [text] if picture is None else [text, picture]
        return CallToolResult(content=content, structured_content=dict(found))

    def predict_contacts(
        self,
        sequence: str | None = None,
        file: File = None,
        record: str | None = None,
        model: ModelName = None,
        min_separation: Annotated[int, Field(ge=1)] = 6,
        unknown: Unknown = "raise",
        most: Annotated[int, Field(ge=1, le=500, description="Pairs in the answer.")] = 20,
        output: Annotated[str | None, Field(description=".npz of the whole map.")] = None,
        overwrite: Overwrite = False,
    ) -> answers.Contacts:
        """Predict which residues of a protein are in contact (C-beta atoms within 8 angstroms)."""
        engine = self._engine(model, max_residues=None, unknown=unknown)
        protein = read_protein(self.settings, sequence, file, record)
        checked = None
        if output is not None:
            path = self.settings.folders.to_write(output, formats=("npz",))
            checked = check_array_output(path, force=overwrite)
        [contacts] = engine.contacts([protein.seq])
        name = engine.checkpoint.name
        if checked is not None:
            about = Arrays("contacts", ["contacts"], [protein.id], name, engine.precision)
            write_arrays(checked, about, iter([contacts]))
        first, second = np.triu_indices(len(contacts), min_separation)
        order = np.argsort(-contacts[first, second], kind="stable")[:most]
        text = normalise_wildtype(engine, protein.seq)
        pairs = [
            answers.Contact(
                first=i + 1,
                second=j + 1,
                residues=text[i] + text[j],
                probability=round(float(contacts[i, j]), 4),
            )
            for i, j in zip(first[order].tolist(), second[order].tolist(), strict=True)
        ]
        shown = None if checked is None else self.settings.folders.shown(checked.path)
        return answers.Contacts(model=name, residues=len(contacts), pairs=pairs, file=shown)

    def nearest_neighbours(
        self,
        targets: Annotated[str, Field(description="File of the sequences that are searched.")],
        sequences: Given = None,
        file: File = None,
        model: ModelName = None,
        layer: int = -1,
        n_neighbors: Annotated[int, Field(ge=1, le=20)] = 3,
        unknown: Unknown = "raise",
        output: Annotated[str | None, Field(description="Table of all: .csv or .parquet.")] = None,
        overwrite: Overwrite = False,
    ) -> answers.Nearest:
        """Find which proteins of a file are nearest to given ones, by their embeddings.

        Distances are 1 - cosine similarity of standardised mean embeddings.
        """
        engine = self._engine(model, layers=layer, max_residues=None, unknown=unknown)
        queries, query_places = read_proteins(self.settings, sequences, file)
        known, places = read_proteins(self.settings, None, targets)
        paths = [self.settings.folders.to_read(one) for one in (file, targets) if one is not None]
        checked = None
        if output is not None:
            path = self.settings.folders.to_write(output, formats=TABLE_FORMATS, inputs=paths)
            checked = check_table_output(path, force=overwrite)
        with naming_rows(query_places):
            vectors = engine.embed(queries)
        with naming_rows(places):
            others = engine.embed(known)
        indices, distances = nearest(vectors, others, n_neighbors=n_neighbors)
        if checked is not None:
            columns: dict[str, Any] = {
                "query": [one.id for one in queries for _ in range(n_neighbors)],
                "neighbour": [known[i].id for i in indices.ravel()],
                "distance": distances.ravel(),
            }
            write_table(checked, columns)
        found = [
            answers.Found(
                query=shown_id(one.id),
                neighbours=[
                    answers.Neighbour(id=shown_id(known[i].id), distance=round(float(distance), 4))
                    for i, distance in zip(row, far, strict=True)
                ],
            )
            for one, row, far in zip(queries[:_MOST_SHOWN], indices, distances, strict=False)
        ]
        return answers.Nearest(
            model=engine.checkpoint.name,
            found=found,
            queries=len(queries),
            targets=len(known),
            file=None if checked is None else self.settings.folders.shown(checked.path),
        )

    def _known(self, model: str | None) -> str:
        """Return the name of a model whose weights need not be here."""
        service = self.settings.service
        name = self.settings.default_model if model is None else service.find(model)
        if name is None:
            self.settings.checkpoint_of(model)  # this raises
        return str(name)

    def _engine(self, model: str | None, **options: Any) -> Engine:
        service = self.settings.service
        return Engine(
            self.settings.checkpoint_of(model),
            device=service.devices[0],
            precision=service.precision,
            cache=service.cache,
            **options,
        )

    def _drawn(self, scores: Any, wildtype: str, offset: int, title: str) -> tuple[Any, str]:
        """Draw a scan, or say why not."""
        if len(wildtype) > _MOST_DRAWN:
            return None, f"Proteins of more than {_MOST_DRAWN} residues are not drawn."
        try:
            from esm2_features._io.figures import scan_figure

            figure = scan_figure(scores, wildtype, offset=offset, title=title)
        except MissingDependencyError as error:
            return None, str(error)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi="figure")
        note = "Red: less likely than the wild type; blue: more likely."
        return Image(data=file.getvalue(), format="png").to_image_content(), note


def _position(wildtype: str, offset: int, mean: float, at: int) -> answers.Position:
    return answers.Position(
        position=at + 1 + offset, residue=wildtype[at], mean_score=round(mean, 4)
    )


def _substitution(score: float, variant: str) -> answers.Substitution:
    return answers.Substitution(variant=variant, score=round(score, 4))


def _as_text(answer: Any) -> str:
    return json.dumps(answer, indent=2)
