"""The command line's options are made of one table, which the signatures of the library match."""

from __future__ import annotations

import inspect

import click
import pytest
from click.testing import CliRunner

from esm2_features import Engine, ESM2LikelihoodTransformer, ESM2Transformer
from esm2_features._checkpoints.catalogue import DEFAULT_MODEL
from esm2_features._inputs.options import OPTIONS
from esm2_features.cli import main
from esm2_features.cli.options import run_option
from esm2_features.distributed import embed_shards

# The folder of shards is what is kept; all else has the same default everywhere.
DIFFERENT = {(embed_shards, "cache"): None}
# Likelihoods are computed here.
ABSENT = {
    ESM2LikelihoodTransformer: {
        *("layers", "pooling", "region", "cache_dtype", "store", "endpoint"),
    },
}


@pytest.mark.parametrize(
    "called", [Engine, ESM2Transformer, ESM2LikelihoodTransformer, embed_shards]
)
def test__signature__has_every_option_with_its_default(called):
    parameters = inspect.signature(called).parameters
    shared = [name for name in parameters if name in OPTIONS]
    assert shared == [name for name in OPTIONS if name not in ABSENT.get(called, ())]
    for name in shared:
        default = DIFFERENT.get((called, name), OPTIONS[name].default)
        assert parameters[name].default == default, name


def test__signature__of_engine_has_nothing_else():
    others = set(inspect.signature(Engine).parameters) - set(OPTIONS)
    assert others == {"verbose", "token"}  # a token on a command line could be seen by everybody


def test__default__of_the_model_is_that_of_the_catalogue():
    assert OPTIONS["model"].default == DEFAULT_MODEL


@pytest.mark.parametrize("name", main.commands)
def test__commands__have_the_defaults_of_the_table(name):
    # Servers have devices and limits of their own; `verify` and `demo` need no download.
    own = {"serve": {"max_residues", "batch_tokens"}, "mcp": {"max_residues"}}
    own |= {"attentions": {"layers"}}
    own |= {"verify": {"model"}, "demo": {"model"}, "evaluate": {"layers", "pooling"}}
    for parameter in main.commands[name].params:
        option = OPTIONS.get(parameter.name or "")
        if option is not None and parameter.name not in own.get(name, set()):
            expected = None if option.default is None else str(option.default)
            assert parameter.default == expected, parameter.name


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test__option__has_a_sentence_of_help_and_its_default_among_its_choices(option):
    assert option.help[0].isupper() or option.help.startswith("auto ")
    assert option.help.endswith(".")
    assert not option.choices or option.default in option.choices


@pytest.mark.parametrize(
    ("name", "typed", "value"),
    [
        ("layers", "0,-1", [0, -1]),
        ("layers", "all", "all"),
        ("pooling", "mean, max", ["mean", "max"]),
        ("region", "3:9", (3, 9)),
        ("batch_tokens", "512", 512),
        ("batch_tokens", "auto", "auto"),
        ("max_residues", "none", None),
        ("max_residues", "30", 30),
        ("cache", "none", None),
        ("cache", "folder", "folder"),
        ("too_long", "window", "window"),
    ],
)
def test__option__is_read_as_the_engine_takes_it(name, typed, value):
    values = []

    @click.command()
    @run_option(name)
    def command(**options):
        values.append(options[name])

    result = CliRunner().invoke(command, [f"--{name.replace('_', '-')}", typed])
    assert result.exit_code == 0, result.output
    assert values == [value]
