"""`esm2-features estimate`, and what ``embed --dry-run`` says: what a job will cost, in words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from esm2_features._cache.reports import readable
from esm2_features._inputs.options import (
    EVERY_POOLING,
    POOLINGS,
    TOO_LONG,
    absolute_layers,
    names,
    positive,
)
from esm2_features.cli.console import examples
from esm2_features.cli.options import (
    layers_of,
    model_option,
    policy_options,
    precision_option,
    words_of,
)
from esm2_features.exceptions import InputError

if TYPE_CHECKING:
    from esm2_features._costs.census import Census
    from esm2_features._costs.model import Estimate, Job, Range
    from esm2_features._engine import Engine

DEVICES = ("cpu", "h200", "a100", "t4")
"""Those of `_estimate`, which would take a moment to import."""

_UNITS = ((86400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))

# ------------------------------------------------------------------ estimate


@click.command(
    epilog=examples(
        "esm2-features estimate proteins.fasta.gz --model esm2_t33_650M_UR50D --device a100",
        "zcat *.fasta.gz | esm2-features estimate - --device h200 --precision bfloat16 --json",
    )
)
@click.argument("fasta", metavar="IN")
@model_option
@click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="cpu",
    help="What would compute: a processor like this one, or one such card.",
)
@click.option(
    "--cores",
    type=int,
    metavar="N",
    help="Cores of the processor; by default, those that this process may use.",
)
@precision_option
@click.option(
    "--layers",
    callback=layers_of,
    metavar="N[,N...]|all",
    default="-1",
    help="As for `embed`.",
)
@click.option(
    "--pooling",
    callback=words_of,
    metavar="WORD[,WORD...]|all",
    default="mean",
    help="As for `embed`.",
)
@policy_options(too_long=TOO_LONG)
@click.option(
    "--measure",
    is_flag=True,
    help="Embed a sample of IN on this machine, for some seconds, and go by that. Needs the "
    "weights here.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, sizes in bytes, times in s.")
def estimate(
    fasta: str,
    model: str,
    device: str,
    cores: int | None,
    layers: list[int] | str,
    pooling: list[str],
    measure: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Estimate what embedding a FASTA file would cost.

    IN is read once, and nothing is computed but with --measure, and nothing written. Time, memory,
    disk and the best batch are estimates; what they rest on is printed with them. Time is that of
    one device, for sequences that are not in the cache yet, without the loading of weights.
    """
    from esm2_features._checkpoints import open_checkpoint
    from esm2_features._costs.census import count
    from esm2_features._costs.model import Job
    from esm2_features._costs.model import estimate as estimated
    from esm2_features._inputs.policy import SequencePolicy

    if cores is not None and measure:
        raise InputError("--measure uses the cores that are here: leave --cores out.")
    checkpoint = open_checkpoint(model)
    precision = options.pop("precision")
    policy = SequencePolicy(**options, region=None)
    numbers = absolute_layers(layers, depth=checkpoint.architecture.layers, model=checkpoint.name)
    poolings = POOLINGS if pooling == ["all"] else names("pooling", pooling, EVERY_POOLING)
    census = count(fasta, policy)
    if not census.unique:
        raise InputError(
            f"None of the {census.sequences} sequences can be embedded. {_why_left_out(census)}"
        )
    job = Job(
        architecture=checkpoint.architecture,
        precision=precision,
        device=device,
        pieces=census.pieces,
        sequences=census.sequences - census.left_out,
        unique=census.unique,
        longest=int(census.pieces.tokens.max()),
        text_bytes=census.text_bytes,
        columns=len(numbers) * len(poolings),
        blocks=checkpoint.architecture.layers if "parti" in poolings else max(numbers),
        cores=_cores(measure) if cores is None else positive("cores", cores),
    )
    ratio = None
    if measure:
        from esm2_features._costs.calibration import rehearse

        ratio = rehearse(
            model,
            job,
            census.sample,
            precision=precision,
            layers=layers,
            pooling=list(poolings),
            **options,
        )
    found = estimated(job, measured_ratio=ratio)
    basis = list(found.basis)
    if "parti" in poolings and not measure:
        basis.append("The attention maps that parti looks at are not counted: see --help of embed.")
    if as_json:
        click.echo(_as_json(census, checkpoint.name, job, found, basis))
        return
    kept = f"{len(numbers)} layers x {len(poolings)} poolings x {checkpoint.architecture.dim}"
    click.echo("An estimate. What it rests on stands at its end.\n")
    _say("input", fasta)
    _say_census(census, options["max_residues"])
    _say("model", f"{checkpoint.name}, {precision}; {kept} numbers for each sequence")
    _say("device", device if device != "cpu" else f"cpu, {job.cores} cores")
    _say_estimate(found, device)
    click.echo("\nWhat it rests on")
    for sentence in basis:
        click.echo(f"  - {sentence}")


def _cores(measure: bool) -> int:
    """Count the cores that a run would use; only a measurement has a use for torch's own count."""
    if measure:
        from esm2_features._model.devices import cores_of_cpu

        return cores_of_cpu()
    from joblib import cpu_count

    return max(1, int(cpu_count()))


def _say(name: str, value: str) -> None:
    click.echo(f"{name:<22} {value}".rstrip())


def _say_census(census: Census, limit: int | None) -> None:
    _say("  sequences", f"{census.sequences:,}")
    _say("  different", f"{census.unique:,}")
    _say("  residues, tokens", f"{census.residues:,}, {census.tokens:,}")
    _say("  tokens to compute", f"{census.pieces.total:,} (of the different sequences)")
    _say("  longest", f"{census.longest:,} residues")
    if limit is not None:
        _say("  too long", f"{census.too_long:,} of more than {limit:,} residues")
    if census.left_out:
        _say("  left out", f"{census.left_out:,}, which `embed` refuses. {_why_left_out(census)}")
    if census.repeated_ids:
        _say("  repeated ids", f"{census.repeated_ids:,}, which `embed` refuses")


def _why_left_out(census: Census) -> str:
    if census.first_fault is not None:
        return census.first_fault
    return "They are too long: --too-long window or truncate."


def _say_estimate(found: Estimate, device: str) -> None:
    _say("  time", f"{in_words(found.seconds)}")
    _say("  computing", f"{found.flop / 1e12:,.3g} TFLOP")
    _say("  best batch", f"{found.batch_tokens:,} tokens, which auto would take")
    what = "its memory" if device == "cpu" else "memory of the card"
    does_not = "" if found.fits is not False else ", which it does not have"
    _say(f"  {what}", f"about {readable(found.device_bytes)} at its peak{does_not}")
    _say("  `embed -o` holds", f"about {readable(found.embed_bytes)}, all vectors included")
    for name, sizes in (("output", found.output_bytes), ("cache", found.cache_bytes)):
        amounts = ", ".join(f"{readable(size)} in {dtype}" for dtype, size in sizes.items())
        _say(f"{name} on disk", amounts)


def in_words(seconds: Range) -> str:
    """Write a time and its range for people."""
    size, unit = next(((size, unit) for size, unit in _UNITS if seconds.middle >= size), _UNITS[-1])
    low, middle, high = (
        f"{value / size:,.0f}" if value >= 100 * size else f"{value / size:.2g}"
        for value in (seconds.low, seconds.middle, seconds.high)
    )
    return f"{middle} {unit} ({low} to {high} {unit})"


def _as_json(census: Census, model: str, job: Job, found: Estimate, basis: list[str]) -> str:
    from dataclasses import asdict

    counted = {
        name: value for name, value in vars(census).items() if name not in ("pieces", "sample")
    }
    return json.dumps(
        {
            "is_estimate": True,
            "input": {**counted, "tokens_to_compute": census.pieces.total},
            "job": {
                "model": model,
                "precision": job.precision,
                "device": job.device,
                "cores": job.cores,
                "columns": job.columns,
            },
            **asdict(found),
            "basis": basis,
        },
        indent=1,
    )


# ------------------------------------------------------------------ embed --dry-run


def show_plan(engine: Engine, records: list[Any], output: str) -> None:
    """Print what `embed` would do, and do nothing."""
    from esm2_features._costs.dry_run import preview

    found = preview(engine, records)
    click.echo("A plan: nothing was computed, and nothing written.\n")
    _say("sequences", f"{found.sequences:,}")
    _say("  different", f"{found.unique:,}")
    where = "without a cache" if engine.cache is None else f"in {engine.cache.path}"
    _say("  in the cache", f"{found.cached:,} ({where})")
    _say("  to be computed", f"{found.missing:,}")
    if found.batches is not None:
        plan = found.batches
        share = plan.filler / max(1, plan.tokens)
        _say("batches", f"{plan.passes:,} of {plan.budget:,} tokens at most, on {plan.device}")
        _say("  tokens", f"{plan.tokens:,}")
        _say("  padding", f"none; {plan.filler:,} rows round passes up ({share:.2%} of the tokens)")
        _say(
            "  if it were padded",
            f"{plan.padded / plan.tokens - 1:.1%} more tokens, and {_more(plan)} more in the order "
            "of the input",
        )
    if found.download is not None:
        _say("weights", f"not on this machine; {readable(found.download)} to download first")
    if found.estimate is not None:
        _say("time", f"{in_words(found.estimate.seconds)}, an estimate without loading")
        _say("memory", f"about {readable(found.estimate.embed_bytes)} at its peak")
    elif found.unknown is not None:
        _say("time", f"not known: {found.unknown}")
    n, width = found.sequences, len(engine.feature_names)
    _say("output", f"{output}: {n:,} x {width:,} features, {readable(4 * n * width)} as float32")
    if found.estimate is not None:
        click.echo("\nWhat the time rests on")
        for sentence in found.estimate.basis:
            click.echo(f"  - {sentence}")


def _more(plan: Any) -> str:
    return f"{plan.padded_as_given / plan.tokens - 1:.1%}"
