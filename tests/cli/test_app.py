"""The command line writes what the engine computes, and says in one line why it does not."""

from __future__ import annotations

import gzip
import io
import re
import subprocess
import sys

import click
import numpy as np
import pytest
import torch
from checkpoints import random_esm2
from click.testing import CliRunner

from esm2_features import Cache, Engine, available_models
from esm2_features._io.features import FORMATS
from esm2_features.cli import main
from esm2_features.cli.console import as_options

SEQUENCES = {"P01308 insulin, human": "MALWMRLLPLLALL", "oxt": "CYIQNCPLG", "avp x": "CYFQNCPRG"}
FASTA = "".join(f">{label}\n{sequence}\n" for label, sequence in SEQUENCES.items())
IDS = ["P01308", "oxt", "avp"]
COMMANDS = {"esm2-features": main, **main.commands}


@pytest.fixture
def fasta(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "peptides.fasta").write_text(FASTA)
    return folder / "peptides.fasta"


@pytest.fixture
def embed(tmp_path, tiny_checkpoint, fasta):
    """Run ``embed``, without a cache, into an empty folder."""
    (tmp_path / "out").mkdir()

    def run(*options, source=fasta, out="x.npz", code=0, **runner):
        options = ["--model", tiny_checkpoint, "--cache", "none", *options]
        path = tmp_path / "out" / out
        words = ["embed", source, "-o", path, *options]
        result = CliRunner().invoke(main, [str(word) for word in words], **runner)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        if code:
            assert "Traceback" not in result.stderr
            assert listed(tmp_path / "out") == []
        return path, result.stderr

    return run


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


def invoke(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def in_a_shell(*words, text=""):
    """Run as a user would: another process, with pipes for its input and output."""
    command = [sys.executable, "-c", "from esm2_features.cli import main; main()"]
    return subprocess.run([*command, *map(str, words)], input=text, capture_output=True, text=True)


# ------------------------------------------------------------------ help


@pytest.mark.parametrize("name", COMMANDS)
def test__help__every_command_has_one_that_ends_with_an_example(name):
    words = [] if name == "esm2-features" else [name]
    text = invoke(*words, "--help").stdout
    command = COMMANDS[name]
    assert command.help
    # What a line of the example says can be parsed by the command that it names.
    title, *examples = text.rstrip().split("\n\n")[-1].splitlines()
    assert title.strip() in ("Example:", "Examples:")
    assert examples
    for line in examples:
        called, *arguments = line.rpartition("esm2-features ")[2].split()
        assert name in ("esm2-features", called)
        main.commands[called].make_context(called, arguments)


@pytest.mark.parametrize("name", COMMANDS)
def test__help__every_option_has_one(name):
    for parameter in COMMANDS[name].params:
        assert getattr(parameter, "help", None) or isinstance(parameter, click.Argument), parameter


def test__options__mirror_the_estimators():
    from esm2_features import ESM2Transformer

    ours = {parameter.name: parameter.default for parameter in main.commands["embed"].params}
    theirs = ESM2Transformer().get_params()
    # A FASTA record without residues is refused, and progress is shown on terminals only.
    # Chains are joined in tables; a FASTA file has no columns. A token on a command line is seen
    # by everybody on the machine, so it comes from the environment.
    for name in ("on_missing", "verbose", "chains", "join", "linker_length", "token"):
        del theirs[name]
    for name in ("region", "endpoint"):
        assert theirs.pop(name) is ours[name] is None
    assert {name: str(default) for name, default in theirs.items()}.items() <= ours.items()


def test__import__needs_nothing_that_takes_time():
    heavy = {"torch", "numpy", "sklearn", "matplotlib", "h5py", "pyarrow"}
    code = f"import sys, esm2_features.cli; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test__version():
    assert re.match(r"esm2-features, version \d", invoke("--version").stdout)


# ------------------------------------------------------------------ embed


def test__embed__writes_what_the_engine_computes(embed, tiny_checkpoint):
    path, said = embed("--layers", "-1,0", "--pooling", "mean,max")
    engine = Engine(tiny_checkpoint, layers=[-1, 0], pooling=["mean", "max"], cache=None)
    with np.load(path) as archive:
        np.testing.assert_array_equal(archive["embedding"], engine.embed(SEQUENCES.values()))
        assert archive["feature"].tolist() == engine.feature_names
        assert archive["id"].tolist() == IDS
    assert re.fullmatch(
        rf"3 sequences x 128 features, 3 of them computed -> {re.escape(str(path))} \(.* s\)\n",
        said,
    )


def test__embed__pools_a_region(embed, tiny_checkpoint):
    path, _ = embed("--region", "1:9")
    engine = Engine(tiny_checkpoint, region=(1, 9), cache=None)
    with np.load(path) as archive:
        np.testing.assert_array_equal(archive["embedding"], engine.embed(SEQUENCES.values()))


def test__embed__windows_for_long_sequences(embed, tiny_checkpoint):
    path, _ = embed("--too-long", "window", "--max-residues", "10")
    engine = Engine(tiny_checkpoint, too_long="window", max_residues=10, cache=None)
    with np.load(path) as archive:
        np.testing.assert_array_equal(archive["embedding"], engine.embed(SEQUENCES.values()))


def test__embed__parti_where_it_is_asked_for(embed, tiny_checkpoint):
    path, _ = embed("--pooling", "parti,mean")
    engine = Engine(tiny_checkpoint, pooling=["parti", "mean"], cache=None)
    with np.load(path) as archive:
        np.testing.assert_array_equal(archive["embedding"], engine.embed(SEQUENCES.values()))


@pytest.mark.parametrize("kind", FORMATS)
def test__embed__every_format(embed, kind):
    path, _ = embed(out=f"x.{kind}")
    assert path.exists()
    assert listed(path.parent) == [path.name]


def test__embed__pt_has_the_labels_of_fair_esm(embed, tiny_checkpoint):
    folder, _ = embed("--layers", "0,-1", "--pooling", "mean,cls", out="features.pt")
    assert listed(folder) == sorted(f"{label}.pt" for label in SEQUENCES)
    expected = Engine(tiny_checkpoint, layers=[0, 2], pooling=["mean", "cls"], cache=None)
    for (label, _), row in zip(
        SEQUENCES.items(), expected.embed(SEQUENCES.values()).reshape(3, 2, 2, 32), strict=True
    ):
        contents = torch.load(folder / f"{label}.pt", weights_only=True)
        assert contents["label"] == label
        for k, layer in enumerate((0, 2)):
            for j, kind in enumerate(("mean_representations", "bos_representations")):
                np.testing.assert_array_equal(contents[kind][layer].numpy(), row[k, j])


def test__embed__pt_agrees_with_fair_esm_itself(embed, tiny_checkpoint):
    from esm import Alphabet

    folder, _ = embed("--pooling", "mean,cls", out="features.pt")
    model = random_esm2(layers=2, dim=32, heads=2, seed=7)  # what the fixture has written
    convert = Alphabet.from_architecture("ESM-1b").get_batch_converter()
    for label, sequence in SEQUENCES.items():
        with torch.no_grad():
            found = model(convert([(label, sequence)])[2], repr_layers=[2])["representations"][2][0]
        contents = torch.load(folder / f"{label}.pt", weights_only=True)
        torch.testing.assert_close(
            contents["mean_representations"][2], found[1:-1].mean(0), atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(
            contents["bos_representations"][2], found[0], atol=1e-5, rtol=1e-5
        )


def test__embed__compressed_input(embed, tmp_path):
    (tmp_path / "x.fasta.gz").write_bytes(gzip.compress(FASTA.encode()))
    with np.load(embed(source=tmp_path / "x.fasta.gz")[0]) as archive:
        assert archive["id"].tolist() == IDS


def test__embed__standard_input_and_nothing_in_log_files(tmp_path, tiny_checkpoint):
    out = tmp_path / "x.csv"
    done = in_a_shell("embed", "-", "-o", out, "--model", tiny_checkpoint, text=FASTA)
    assert (done.returncode, done.stdout) == (0, "")
    assert len(done.stderr.splitlines()) == 1  # no progress bar
    assert [line.split(",")[0] for line in out.read_text().splitlines()] == ["id", *IDS]


def test__embed__warnings_are_lines_too(tmp_path, fasta, tiny_checkpoint):
    done = in_a_shell(
        *("embed", fasta, "-o", tmp_path / "x.npz", "--model", tiny_checkpoint),
        *("--max-residues", 9, "--too-long", "truncate"),
    )
    assert done.returncode == 0
    warning, _ = done.stderr.splitlines()
    assert warning.startswith("Warning: 1 of 3 sequences were cut to their first 9 residues")


def test__embed__uses_the_cache_that_it_is_given(embed, tmp_path):
    path, _ = embed("--cache", tmp_path / "cache")
    assert Cache(tmp_path / "cache").info().rows == len(SEQUENCES)
    again, _ = embed("--cache", tmp_path / "cache", out="again.npz")
    assert Cache(tmp_path / "cache").info().rows == len(SEQUENCES)
    np.testing.assert_array_equal(np.load(again)["embedding"], np.load(path)["embedding"])


def test__embed__replaces_only_by_force(embed, fasta):
    path, _ = embed()
    fasta.write_text(">one\nMKT\n")
    result = invoke("embed", fasta, "-o", path, "--model", "mini", code=2)
    assert "exists already" in result.stderr
    embed("--force")
    assert np.load(path)["id"].tolist() == ["one"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no records"),
        (">a\nMKT\n>a\nMKV\n", "records 1 and 2 have the same id, 'a'"),
        (">a\nMKT\n>b\n>c\nMKV\n", "record 2 ('b') has no residues"),
        (">a\u200b\nMKT\n", "record 1 ('a\\u200b') holds '\\u200b', which cannot be printed"),
        (">a\nM1\n>b\nMKT\n>c\nMK2\n", "2 of 3 records cannot be used:"),
        (">a\nMKT\n>b\nMK1T\n", "Record 2, b: '1' at position 3 of the sequence in row 1"),
        (">a\nMKT\n>b\n" + "M" * 1023, "Record 2, b: The sequence in row 1 has 1023 residues"),
    ],
)
def test__embed__wrong_input_is_named(embed, fasta, content, message):
    fasta.write_text(content, encoding="utf-8")
    _, said = embed(code=2)
    assert said.startswith("Error: ")
    assert message in said


def test__embed__no_such_input(embed, tmp_path):
    _, said = embed(source=tmp_path / "nowhere.fasta", code=2)
    assert "there is no such file" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "3"], "Got layers=[3], but tiny has the representations 0"),
        (["--layers", "last"], "'last' is neither \"all\" nor numbers"),
        (["--layers", "0,0"], "occurs twice"),
        (["--region", "3"], "'3' is not two whole numbers such as 0:120"),
        (["--region", "5:3"], "Got --region 5:3; expected None, or"),
        (["--region", "0:12"], "Record 2, oxt: The region (0, 12)"),
        (["--region", "0:3", "--pooling", "cls"], "Got --pooling cls with a region"),
        (["--pooling", "parti", "--too-long", "window"], "with --too-long window: importance"),
        (["--pooling", "mean,median"], "Got --pooling median; expected one of"),
        (["--precision", "int8"], "'int8' is not one of"),
        (["--device", "tpu"], "Got --device tpu; expected"),
        (["--batch-tokens", "0"], "Got --batch-tokens 0; expected a positive whole number"),
        (["--batch-tokens", "many"], "'many' is neither a whole number nor 'auto'"),
        (["--max-residues", "1.5"], "'1.5' is neither a whole number nor 'none'"),
        (["--too-long", "drop"], "'drop' is not one of"),
        (["--unknown", "gap"], "'gap' is not one of"),
        (["--max-residues", "9"], "--too-long truncate to keep the first 9, --max-residues none"),
        (["--format", "pt", "--pooling", "max"], "only for mean and cls"),
    ],
)
def test__embed__wrong_options_are_named(embed, options, message):
    _, said = embed(*options, code=2)
    assert message in said


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("x.hdf", "ends in '.hdf'"),
        ("no/x.npz", "There is no folder"),
        ("/dev/stdout", "'/dev/stdout' is no file"),
    ],
)
def test__embed__output_is_checked_before_the_input(embed, out, message):
    _, said = embed(source="nowhere.fasta", out=out, code=2)
    assert message in said


def test__embed__never_overwrites_its_own_input(embed, fasta):
    before = fasta.read_bytes()
    _, said = embed("--force", "--format", "csv", out=fasta, code=2)
    assert "OUT is IN" in said
    assert fasta.read_bytes() == before


def test__embed__no_such_model(embed):
    _, said = embed("--model", "esm2_t6_8M", code=2)
    assert "There is no model 'esm2_t6_8M'" in said
    assert "Did you mean --model esm2_t6_8M_UR50D?" in said


def test__embed__model_that_is_not_here_and_may_not_be_fetched(embed):
    _, said = embed("--model", "esm2_t6_8M_UR50D", code=2)
    assert "ESM2_FEATURES_OFFLINE" in said


def test__embed__unknown_and_long_sequences_as_asked(embed, fasta, tiny_checkpoint):
    fasta.write_text(">a\nMKJT\n>b\n" + "MK" * 600)
    path, _ = embed("--unknown", "X", "--max-residues", "none", "--batch-tokens", "2000")
    expected = Engine(tiny_checkpoint, max_residues=None, cache=None).embed(["MKXT", "MK" * 600])
    np.testing.assert_array_equal(np.load(path)["embedding"], expected)


class Interrupted(io.BytesIO):
    """An input at which the user loses patience."""

    def read(self, size=-1):
        if size == 0:  # only asks whether this is binary
            return b""
        raise KeyboardInterrupt

    readline = readinto = read1 = readinto1 = peek = read


def test__embed__interrupted(embed, tmp_path):
    _, said = embed(source="-", input=Interrupted(), code=130)
    assert "Interrupted; " in said
    assert "nothing is kept, because of --cache none" in said
    _, said = embed("--cache", tmp_path / "cache", source="-", input=Interrupted(), code=130)
    assert f"what was computed is in the cache, {tmp_path / 'cache'}" in said
    assert "Error" not in said


def test__embed__damaged_input_in_a_shell(tmp_path):
    done = in_a_shell("embed", "-", "-o", tmp_path / "x.npz", "--model", "mini", text="MKT")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: standard input: ")
    assert len(done.stderr.splitlines()) == 1
    assert listed(tmp_path) == []


# ------------------------------------------------------------------ other commands


def test__models__lists_all_and_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "esm2_t6_8M_UR50D.pt"
    file.parent.mkdir(parents=True)
    file.touch()
    header, *lines = invoke("models").stdout.splitlines()
    assert header.split()[:4] == ["name", "parameters", "layers", "dim"]
    assert [line.split()[0] for line in lines] == [card.name for card in available_models()]
    assert lines[0].endswith("yes, with this library")
    assert lines[1].endswith(str(file))
    assert re.search(r"650M +33 +1280 +2\.6 GB +2\.6 GB  no$", lines[4])


def test__verify__agrees(tiny_checkpoint, fasta):
    result = invoke("verify", "--model", tiny_checkpoint, "--sequences", fasta)
    assert "tiny on " in result.stdout
    assert "12 sequences of 1 to 1022 residues" in result.stdout
    assert result.stderr == ""


def test__verify__wrong_precision(tiny_checkpoint):
    result = invoke("verify", "--model", tiny_checkpoint, "--precision", "int8", code=2)
    assert "int8" in result.stderr


def test__demo__folder_that_cannot_be_made(tmp_path):
    (tmp_path / "demo").touch()
    result = invoke("demo", "--output", tmp_path / "demo", code=2)
    assert result.stderr == f"Error: {tmp_path / 'demo'}: File exists\n"


@pytest.mark.parametrize(
    ("python", "shell"),
    [
        ('pass too_long="truncate" to', "pass --too-long truncate to"),
        ("or max_residues=None.", "or --max-residues none."),
        ("Got layers=[0, 99], but", "Got layers=[0, 99], but"),
        ("or pass its path as model=.", "or pass its path as --model."),
        ('model="/path/to/x.pt", with', "--model /path/to/x.pt, with"),
        ("Got batch_tokens=-1; expected", "Got --batch-tokens -1; expected"),
        ("Got region=(5, 3); expected", "Got --region 5:3; expected"),
        ('use over="tokens", or', "use --over tokens, or"),
        ("but with offset=-3 the wild type", "but with --offset -3 the wild type"),
        ('pass method="pseudo-perplexity".', "pass --method pseudo-perplexity."),
        ("Pass per_residue=True to compare", "Pass --per-residue to compare"),
        ('model="/a, b.pt" is', "--model /a, b.pt is"),
    ],
)
def test__messages__name_options_as_the_shell_does(python, shell):
    assert as_options(python) == shell
