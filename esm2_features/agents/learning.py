"""Tools that compare features on a labelled table, and predict with a saved model."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from esm2_features._inputs.labelled import LabelledTable, read_labelled_table
from esm2_features._inputs.records import iter_entries
from esm2_features._io.paths import check_output
from esm2_features._io.predictions import check_table_output, write_table
from esm2_features._sklearn.base import SequenceTransformer
from esm2_features._sklearn.embedding import ESM2Transformer
from esm2_features.agents import answers
from esm2_features.agents.arguments import (
    TABLE_FORMATS,
    File,
    Given,
    ModelName,
    Overwrite,
    Pooling,
    Unknown,
)
from esm2_features.agents.jobs import collecting_warnings
from esm2_features.agents.proteins import (
    check_lengths,
    check_number,
    naming_rows,
    read_proteins,
    shown_id,
)
from esm2_features.agents.settings import AgentSettings
from esm2_features.exceptions import InputError, MissingDependencyError
from esm2_features.model_selection import cluster_sequences, compare_features, save_model
from esm2_features.model_selection.model_files import load_adjusted

_MOST_SHOWN = 20
_INDEPENDENT = "none"


class LearningTools:
    """The tools that learn from targets."""

    def __init__(self, settings: AgentSettings) -> None:
        self.settings = settings

    def compare_features(
        self,
        table: Annotated[
            str, Field(description="CSV, TSV, Parquet or Excel with sequences and targets.")
        ],
        target: Annotated[str, Field(description="Column to predict: numbers, or classes.")],
        column: str | None = None,
        id_column: str | None = None,
        group: Annotated[
            str | None,
            Field(description="Column of families, or none; null: by identity."),
        ] = None,
        min_identity: Annotated[float, Field(gt=0, le=1)] = 0.4,
        task: Literal["auto", "classification", "regression"] = "auto",
        model: ModelName = None,
        layers: list[int] | Literal["all"] = "all",
        poolings: list[Pooling] = ["mean"],  # noqa: B006 - nobody changes it
        cv: Annotated[int, Field(ge=2, le=20)] = 5,
        unknown: Unknown = "raise",
        output: Annotated[str | None, Field(description=".skops of the best model.")] = None,
        overwrite: Overwrite = False,
    ) -> answers.Compared:
        """Find out whether embeddings predict a column of a table better than simple features.

        Families of related sequences stay on one side of every split. With output, the best
        pipeline is saved for the tool predict.
        """
        settings = self.settings
        path = settings.folders.to_read(table)
        checked = None
        if output is not None:
            wanted = settings.folders.to_write(output, formats=("skops",), inputs=[path])
            checked = check_output(wanted, formats=("skops",), force=overwrite)
        check_number(iter_entries(path, column=column), settings.service.max_items)
        column_of_groups = None if group == _INDEPENDENT else group
        data = read_labelled_table(
            path,
            target=target,
            column=column,
            id_column=id_column,
            group=column_of_groups,
            task=task,
        )
        places = [f"{shown_id(table)}: {place}" for place in data.places]
        check_lengths(data.sequences, places, settings)
        transformer = ESM2Transformer(
            settings.checkpoint_of(model),
            max_residues=None,
            unknown=unknown,
            device=settings.service.devices[0],
            precision=settings.service.precision,
            cache=settings.service.cache,
        )
        with collecting_warnings() as warnings, naming_rows(places):
            groups: Any = data.groups
            if group is None:
                groups = cluster_sequences(
                    data.sequences, min_identity=min_identity, unknown=unknown
                )
            found = compare_features(
                data.sequences,
                data.targets,
                groups=groups,
                transformer=transformer,
                layers=layers,
                poolings=poolings,
                task=task,
                cv=cv,
            )
        if checked is not None:
            self._save(checked.path, found, data, target, force=overwrite)
        names = answers.Score.__annotations__
        columns = zip(*(found.results[name] for name in names), strict=True)
        scored = [dict(zip(names, row, strict=True)) for row in columns]
        scored.sort(key=lambda one: -np.nan_to_num(one["score"], nan=-np.inf))
        return answers.Compared(
            verdict=found.verdict,
            layer_advice=found.layer_advice,
            task=found.task,
            scoring=found.scoring,
            rows=len(data.ids),
            rows_without_target=data.n_dropped,
            families=None if found.groups is None else len(np.unique(found.groups)),
            best=[_finite(one) for one in scored[:_MOST_SHOWN]],
            file=None if checked is None else settings.folders.shown(checked.path),
            warnings=warnings,
        )

    def predict(
        self,
        model_file: Annotated[str, Field(description=".skops of compare_features or evaluate.")],
        sequences: Given = None,
        file: File = None,
        column: str | None = None,
        id_column: str | None = None,
        coverage: Annotated[float, Field(gt=0, lt=1)] = 0.9,
        output: Annotated[str | None, Field(description="Table of all: .csv or .parquet.")] = None,
        overwrite: Overwrite = False,
    ) -> answers.Predicted:
        """Predict with a saved model, and say how near the training sequences are.

        A prediction far from all training sequences (identity) deserves less trust.
        """
        folders = self.settings.folders
        path = folders.to_read(model_file)
        inputs = [path] if file is None else [path, folders.to_read(file)]
        checked = None
        if output is not None:
            wanted = folders.to_write(output, formats=TABLE_FORMATS, inputs=inputs)
            checked = check_table_output(wanted, force=overwrite)
        with collecting_warnings() as warnings:
            saved = load_adjusted(path, self._adjust)
            columns = saved.columns or []
            if len(columns) > 1:
                raise InputError("The model needs several columns of sequences; use Python.")
            records, places = read_proteins(
                self.settings,
                sequences,
                file,
                column=column,
                id_column=id_column,
                usual=next(iter(columns), None),
            )
            with naming_rows(places):
                try:
                    found = saved.predict(records, coverage=coverage)
                except MissingDependencyError:
                    found = saved.predict(records, coverage=coverage, neighbours=False)
        ids = [record.id for record in records]
        if checked is not None:
            write_table(checked, {"id": ids, **found})
        shown = {name: list(values[:_MOST_SHOWN]) for name, values in found.items()}
        rows = [
            _finite({"id": name} | {key: _plain(shown[key][i]) for key in shown})
            for i, name in enumerate(ids[:_MOST_SHOWN])
        ]
        return answers.Predicted(
            target=saved.target and shown_id(saved.target),
            rows=len(ids),
            predictions=rows,
            file=None if checked is None else folders.shown(checked.path),
            warnings=warnings,
        )

    def _adjust(self, _: Mapping[str, Any], estimator: Any) -> None:
        """Let a model use nothing but what the settings allow, wherever it hides transformers."""
        service = self.settings.service
        own = {
            "cache": service.cache,
            "device": service.devices[0],
            "endpoint": None,
            "token": None,
            "verbose": False,
        }
        for transformer in _transformers_in(estimator):
            options = transformer.get_params(deep=False)
            transformer.set_params(**{name: own[name] for name in own if name in options})
            if "model" in options:
                given = os.fspath(options["model"])
                by_path = {path: name for name, path in service.models.items()}
                name = by_path.get(given, given)
                transformer.set_params(model=self.settings.checkpoint_of(name))

    def _save(
        self, path: Any, found: Any, data: LabelledTable, target: str, *, force: bool
    ) -> None:
        is_regression = found.classes is None
        save_model(
            path,
            found.estimator,
            target=target,
            sequences=data.sequences,
            ids=data.ids,
            residuals=found.targets - found.predictions if is_regression else None,
            groups=found.groups if is_regression else None,
            force=force,
        )


def _transformers_in(value: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """Find all transformers that can be reached from an object, in any attribute."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, SequenceTransformer):
        yield value
    parts: list[Any] = []
    if isinstance(value, Mapping):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        parts = list(value)
    elif isinstance(value, np.ndarray):
        parts = value.ravel().tolist() if value.dtype == object else []
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        parts = list(vars(value).values())
    for part in parts:
        yield from _transformers_in(part, seen)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _finite(row: Any) -> Any:
    """Round numbers, let those be null that JSON does not have, and shorten texts."""

    def finite(value: Any) -> Any:
        if isinstance(value, float):
            return round(value, 4) if math.isfinite(value) else None
        return shown_id(value) if isinstance(value, str) else value

    return {key: finite(value) for key, value in row.items()}
