"""`esm2-features estimate`, and what ``embed --dry-run`` prints."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from esm2_features._cache.reports import readable
from esm2_features.cli.console import examples
from esm2_features.cli.options import column_options, input_argument, run_option, run_options
from esm2_features.exceptions import InputError

if TYPE_CHECKING:
    from esm2_features._costs.cards import Range
    from esm2_features._engine import Engine
    from esm2_features.distributed.plan import ShardPlan

_UNITS = ((86400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@click.command(
    epilog=examples(
        "esm2-features estimate folder/ 'more/*.parquet' --device h100 --json",
        "zcat *.fasta.gz | esm2-features estimate -",
    )
)
@input_argument("inputs", metavar="IN...", nargs=-1, required=True)
@run_option("model")
@run_option(
    "device",
    help="A device of this machine, which is timed: auto, cpu, cuda, cuda:1, mps. Or a card that "
    "is not here, by its data sheet: h200, h100, a100, l4, t4.",
)
@run_options("precision", "layers", "pooling", "max_residues", "too_long", "unknown")
@column_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, sizes in bytes, times in s.")
def estimate(
    inputs: tuple[str, ...], model: str, device: str, as_json: bool, **options: Any
) -> None:
    """Count an input, and estimate what embedding it takes.

    IN are files of sequences (as for `embed`), folders, patterns such as 'data/*.fasta.gz', or -
    for standard input. They are read once, and nothing is written. A sample of the same lengths is
    timed on this machine for some seconds, with random weights, so that nothing is downloaded. Time
    is that of one device, for sequences that are not in the cache yet, without loading weights.
    """
    from esm2_features import _costs
    from esm2_features._costs.cards import CARDS
    from esm2_features._costs.input_summary import lengths_at, summarise
    from esm2_features._engine import Engine
    from esm2_features.distributed.sources import left_out, repeated

    card = device if device in CARDS else None
    columns = {"sequence_column": options.pop("column"), "id_column": options.pop("id_column")}
    engine = Engine(model, device="auto" if card else device, cache=None, **options)
    summary = summarise(inputs, engine, **columns)
    reason = summary.first_error or "They are too long: --too-long window or truncate."
    if not summary.unique:
        reason = reason if summary.sequences else f"{' '.join(inputs)} holds no records."
        raise InputError(f"None of the {summary.sequences} sequences can be embedded. {reason}")
    result = _costs.estimate(engine, summary, card=card)
    counts = {name: value for name, value in vars(summary).items() if name != "lengths"}
    lengths = dict(zip(_QUANTILES, lengths_at(summary.lengths, _QUANTILES), strict=True))
    about: dict[str, Any] = {"model": engine.checkpoint.name, "precision": engine.precision}
    if as_json:
        about |= {"is_estimate": True, "input": counts | {"length_quantiles": lengths}}
        about |= vars(result) | {"seconds": result.seconds._asdict()}
        click.echo(json.dumps(about, indent=1))
        return
    shares = ", ".join(f"{share:.0%}: {length}" for share, length in lengths.items())
    rows = {f"  {name.replace('_', ' ')}": f"{counts[name]:,}" for name in list(counts)[:9]}
    missing = "" if result.fits is not False else ", which it does not have"
    rows |= {
        "  lengths": f"{shares} residues",
        **about,
        "device": result.device,
        "  time": in_words(result.seconds),
        "  batch": f"{result.batch_tokens:,} tokens, which auto takes",
        "  memory": f"about {readable(result.device_bytes)} at its peak{missing}",
        "  `embed -o` holds": f"about {readable(result.embed_bytes)}, all vectors included",
    }
    for name, sizes in (("output", result.output_bytes), ("cache", result.cache_bytes)):
        rows[f"{name} on disk"] = ", ".join(f"{readable(n)} in {kind}" for kind, n in sizes.items())
    if summary.left_out:
        rows["  left out"] += f", which `embed` refuses. {reason}"
    for others in left_out(inputs):
        click.echo(f"Left out of the input folder: {others}.", err=True)
    for name in repeated(name for name in inputs if name != "-"):
        click.echo(f"{name}: counted once.", err=True)
    click.echo("An estimate. What the time rests on stands at its end.\n")
    _print("input", " ".join(inputs))
    for name, value in rows.items():
        _print(name, value)
    click.echo(f"\n{result.basis}")


def _print(name: str, value: str) -> None:
    click.echo(f"{name:<22} {value}".rstrip())


def in_words(seconds: Range) -> str:
    """Write a time and its range for people."""
    size, unit = next((each for each in _UNITS if seconds.middle >= each[0]), _UNITS[-1])
    low, middle, high = (
        f"{value / size:,.0f}" if value >= 100 * size else f"{value / size:.2g}"
        for value in seconds
    )
    return f"{middle} {unit} ({low} to {high} {unit})"


def print_dry_run(engine: Engine, records: list[Any], output: str) -> None:
    """Print what `embed` would do, and do nothing."""
    from esm2_features import _costs

    plan = _costs.dry_run(engine, records)
    where = "without a cache" if engine.cache is None else f"in {engine.cache.path}"
    click.echo("A dry run: nothing was computed, and nothing written.\n")
    _print("sequences", f"{plan.sequences:,}")
    _print("  different", f"{plan.unique:,}")
    _print("  in the cache", f"{plan.unique - plan.missing:,} ({where})")
    _print("  to be computed", f"{plan.missing:,}")
    if plan.missing:
        size = f"at most {plan.batch_tokens:,} tokens, {plan.tokens:,} together"
        _print("batches", f"{plan.batches:,} of {size}, on {plan.device}")
    if plan.download is not None:
        _print("weights", f"not on this machine; {readable(plan.download)} to download first")
    rows, width = plan.sequences, len(engine.feature_names)
    _print("output", f"{output}: {rows:,} x {width:,} features, {readable(4 * rows * width)}")


def print_shard_plan(plan: ShardPlan, folder: str) -> None:
    """Print what `embed` would do with a folder of shards."""
    click.echo("A dry run: nothing was computed, and nothing written.\n")
    _print("inputs", f"{plan.inputs:,}")
    _print("shards", f"{plan.present + plan.missing + plan.failed:,}")
    _print("  finished", f"{plan.present:,}")
    _print("  to be computed", f"{plan.missing:,}")
    _print("  to be set aside", f"{plan.failed:,}, and {plan.invalid:,} records")
    _print("sequences", f"{plan.sequences:,} to be computed, of {plan.residues:,} residues")
    if plan.download is not None:
        _print("weights", f"not on this machine; {readable(plan.download)} to download first")
    size = readable(plan.bytes)
    _print("output", f"{folder}: {plan.sequences:,} x {plan.width:,} features more, {size}")
