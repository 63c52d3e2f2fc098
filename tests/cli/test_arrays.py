"""Commands for residues, logits, contacts and attention write what the engine gives."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from esm2_features import Engine
from esm2_features._inputs.alphabet import CANONICAL_RESIDUES, TOKENS
from esm2_features._io.arrays import ARRAY_FORMATS
from esm2_features.cli import main

SEQUENCES = {"P01308 insulin, human": "MALWMRLLPLLALL", "a/b": "CYIQNCPLG", "avp x": "CYFQXCPRG"}
FASTA = "".join(f">{label}\n{sequence}\n" for label, sequence in SEQUENCES.items())
IDS = ["P01308", "a/b", "avp"]
COMMANDS = ("residues", "logits", "contacts", "attentions")


@pytest.fixture
def run(tmp_path, tiny_checkpoint):
    """Run a command on the sequences, into an empty folder."""
    (tmp_path / "x.fasta").write_text(FASTA)
    (tmp_path / "out").mkdir()

    def run(command, *options, fasta=tmp_path / "x.fasta", out="x.npz", code=0, **runner):
        path = tmp_path / "out" / out
        words = [command, fasta, "-o", path, "--model", tiny_checkpoint, *options]
        result = CliRunner().invoke(main, [str(word) for word in words], **runner)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        if code:
            assert "Traceback" not in result.stderr
            assert listed(tmp_path / "out") == []
        return path, result.stderr

    return run


@pytest.fixture
def engine(tiny_checkpoint):
    return Engine(tiny_checkpoint, cache=None)


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


def check_npz(path, expected):
    with np.load(path) as archive:
        assert archive.files == IDS
        for identifier, array in zip(IDS, expected, strict=True):
            assert archive[identifier].dtype == np.float32
            np.testing.assert_array_equal(archive[identifier], array)


# ------------------------------------------------------------------ what is written


def test__residues__are_those_of_the_engine(run, engine):
    path, said = run("residues")
    check_npz(path, engine.residues(list(SEQUENCES.values())))
    assert re.fullmatch(rf"residues of 3 sequences -> {re.escape(str(path))} \(\d+\.\d s\)\n", said)


def test__logits__of_masked_residues(run, engine, tmp_path):
    masked = tmp_path / "masked.fasta"
    masked.write_text(">a\nMKT<mask>YI\n>b\n<mask>\n")
    path, _ = run("logits", fasta=masked)
    with np.load(path) as archive:
        for array, expected in zip(
            archive.values(), engine.logits(["MKT<mask>YI", "<mask>"]), strict=True
        ):
            np.testing.assert_array_equal(array, expected)


@pytest.mark.filterwarnings("default")
def test__warnings__of_sequences_are_said_once(run, tmp_path):
    odd = tmp_path / "odd.fasta"
    odd.write_text(f">a\n{'ACGT' * 6}\n>b\n{'MKTAYIAKQR' * 3}\n")
    _, said = run("logits", "--max-residues", 25, "--too-long", "truncate", fasta=odd)
    assert said.count("is it DNA") == 1
    assert said.count("1 of 2 sequences were cut") == 1


def test__residues__several_layers_in_the_order_asked(run, engine):
    path, _ = run("residues", "--layers", "-1,0")
    found = engine.residues(list(SEQUENCES.values()), layers=[2, 0])
    check_npz(path, [np.stack([layers[2], layers[0]]) for layers in found])


def test__residues__all_layers(run, engine):
    path, _ = run("residues", "--layers", "all")
    found = engine.residues(list(SEQUENCES.values()), layers=[0, 1, 2])
    check_npz(path, [np.stack([layers[k] for k in range(3)]) for layers in found])


def test__residues__pt_agrees_with_fair_esm_itself(run):
    from checkpoints import random_esm2
    from esm import Alphabet

    folder, _ = run("residues", "--layers", "1,2", out="x.pt")
    model = random_esm2(layers=2, dim=32, heads=2, seed=7)  # what the fixture has written
    convert = Alphabet.from_architecture("ESM-1b").get_batch_converter()
    names = dict(zip(SEQUENCES, ["P01308 insulin, human", "a_b", "avp x"], strict=True))
    assert listed(folder) == sorted(f"{name}.pt" for name in names.values())
    for label, sequence in SEQUENCES.items():
        with torch.no_grad():
            found = model(convert([(label, sequence)])[2], repr_layers=[1, 2])["representations"]
        contents = torch.load(folder / f"{names[label]}.pt", weights_only=True)
        assert contents["label"] == label
        for layer in (1, 2):
            torch.testing.assert_close(
                contents["representations"][layer], found[layer][0, 1:-1], atol=1e-5, rtol=1e-5
            )


def test__logits__are_those_of_the_engine(run, engine):
    path, said = run("logits")
    check_npz(path, engine.logits(list(SEQUENCES.values())))
    assert said.startswith("logits of 3 sequences -> ")


@pytest.mark.parametrize("over", ["residues", "tokens"])
def test__log_probs__are_those_of_the_engine(run, engine, over):
    path, said = run("logits", "--log-probs", "--over", over)
    check_npz(path, engine.log_probs(list(SEQUENCES.values()), over=over))
    assert said.startswith("log-probabilities of 3 sequences -> ")


def test__log_probs__over_residues_if_nobody_says(run, engine):
    path, _ = run("logits", "--log-probs")
    check_npz(path, engine.log_probs(list(SEQUENCES.values())))


def test__contacts__are_those_of_the_engine(run, engine):
    path, _ = run("contacts")
    check_npz(path, engine.contacts(list(SEQUENCES.values())))


def test__contacts__are_drawn_where_asked(run, engine, tmp_path):
    path, said = run("contacts", "--plot", tmp_path / "out" / "maps")
    check_npz(path, engine.contacts(list(SEQUENCES.values())))
    assert listed(tmp_path / "out") == ["maps", "x.npz"]
    assert listed(tmp_path / "out" / "maps") == ["P01308.png", "a_b.png", "avp.png", "ids.csv"]
    index = (tmp_path / "out" / "maps" / "ids.csv").read_text()
    assert index == "file,id\nP01308.png,P01308\na_b.png,a/b\navp.png,avp\n"
    assert f"drawn in {tmp_path / 'out' / 'maps'} (" in said
    run("contacts", "--plot", tmp_path / "out" / "maps", "--force")
    assert listed(tmp_path / "out") == ["maps", "x.npz"]


@pytest.mark.parametrize(("layers", "numbers"), [("all", [1, 2]), ("-1", [2]), ("2,1", [2, 1])])
def test__attentions__are_those_of_the_engine(run, engine, layers, numbers):
    path, _ = run("attentions", "--layers", layers)
    check_npz(path, engine.attentions(list(SEQUENCES.values()), layers=numbers))


def test__attentions__of_all_layers_if_nobody_says(run, engine):
    path, _ = run("attentions")
    check_npz(path, engine.attentions(list(SEQUENCES.values())))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ARRAY_FORMATS)
def test__every_command__every_format(run, command, kind):
    path, _ = run(command, "--format", kind, out="x.data")
    assert listed(path.parent) == ["x.data"]
    assert path.is_dir() == (kind in ("npy", "pt"))


@pytest.mark.parametrize(
    ("words", "layers", "tokens"),
    [
        (["residues"], [2], None),
        (["residues", "--layers", "all"], [0, 1, 2], None),
        (["logits"], None, list(TOKENS)),
        (["logits", "--log-probs"], None, list(CANONICAL_RESIDUES)),
        (["logits", "--log-probs", "--over", "tokens"], None, list(TOKENS)),
        (["contacts"], None, None),
        (["attentions"], [1, 2], None),
        (["attentions", "--layers", "-1"], [2], None),
    ],
)
def test__h5__says_what_its_arrays_are(run, words, layers, tokens):
    import h5py

    with h5py.File(run(*words, out="x.h5")[0]) as file:
        attributes = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in file.attrs.items()
        }
        assert list(file) == ["P01308", "a%2Fb", "avp"]
    product = "log_probs" if "--log-probs" in words else words[0]
    assert attributes.pop("esm2_features")
    expected = {"product": product, "model": "tiny", "precision": "float32"}
    lists = {"layers": layers, "tokens": tokens}
    assert attributes == expected | {k: v for k, v in lists.items() if v is not None}


@pytest.mark.parametrize("command", ["residues", "logits"])
def test__windows__are_those_of_the_engine(run, tiny_checkpoint, command):
    path, _ = run(command, "--max-residues", "10", "--too-long", "window")
    engine = Engine(tiny_checkpoint, max_residues=10, too_long="window", cache=None)
    check_npz(path, getattr(engine, command)(list(SEQUENCES.values())))


@pytest.mark.filterwarnings("default::esm2_features.exceptions.TruncationWarning")
@pytest.mark.parametrize("command", COMMANDS)
def test__truncate__cuts_and_warns_once(run, command):
    path, said = run(command, "--max-residues", "10", "--too-long", "truncate")
    assert said.startswith("Warning: 1 of 3 sequences were cut to their first 10 residues")
    assert said.count("Warning") == 1
    with np.load(path) as archive:
        extra = 2 if command == "attentions" else 0
        assert archive["P01308"].shape[-2] == 10 + extra


def test__cache__is_not_there(run, tmp_path, monkeypatch):
    monkeypatch.setenv("ESM2_FEATURES_CACHE", str(tmp_path / "cache"))
    for command in COMMANDS:
        run(command, out=f"{command}.npz")
    assert not (tmp_path / "cache").exists()


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no records"),
        (">a\nMKT\n>b\nMK1T\n", "Record 2, b: '1' at position 3 of the sequence in row 1"),
        (">a\nMKT\n>b\n" + "M" * 1023, "Record 2, b: The sequence in row 1 has 1023 residues"),
        (">a\nMKT\n>a.npy\nMKV\n", "numpy.load cannot distinguish the ids 'a' and 'a.npy'"),
    ],
)
def test__wrong_input__is_named_before_anything_is_computed(
    run, tmp_path, command, content, message, monkeypatch
):
    monkeypatch.setattr(Engine, "stream", None)
    (tmp_path / "wrong.fasta").write_text(content)
    _, said = run(command, fasta=tmp_path / "wrong.fasta", code=2)
    assert message in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["logits", "--over", "tokens"], "--over is for probabilities: add --log-probs"),
        (["logits", "--log-probs", "--over", "letters"], "'letters' is not one of"),
        (["residues", "--layers", "3"], "Got --layers 3, but tiny has"),
        (["residues", "--layers", "1,1"], "in which one occurs twice"),
        (["attentions", "--layers", "0"], "representation 0, the embedding, comes of no attention"),
        (["contacts", "--too-long", "window"], "'window' is not one of"),
        (["attentions", "--too-long", "window"], "'window' is not one of"),
        (["contacts", "--model", "mini"], "Predicting contacts needs a contact regression"),
        (["contacts", "--device", "tpu"], "Got --device tpu; expected"),
        (["residues", "--cache", "none"], "No such option"),
    ],
)
def test__wrong_options__are_named(run, words, message):
    _, said = run(*words, code=2)
    assert message in said


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("out", "message"), [("x.csv", "ends in '.csv'"), ("no/x.npz", "There is no folder")]
)
def test__output__is_checked_before_the_input(run, command, out, message):
    _, said = run(command, fasta="nowhere.fasta", out=out, code=2)
    assert message in said


def test__output__never_overwrites_its_own_input(run, tmp_path):
    _, said = run("residues", "--force", "--format", "npz", out=tmp_path / "x.fasta", code=2)
    assert "OUT is IN" in said
    assert (tmp_path / "x.fasta").read_text() == FASTA


def test__output__is_replaced_by_force_only(run):
    path, _ = run("residues")
    before = path.read_bytes()
    words = ["residues", path.parents[1] / "x.fasta", "-o", path, "--model", "mini"]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert path.read_bytes() == before
    run("logits", "--force")
    assert path.read_bytes() != before


def test__plot__in_the_place_of_the_numbers(run, tmp_path):
    place = tmp_path / "out" / "x.npy"
    _, said = run("contacts", "--plot", place, out="x.npy", code=2)
    assert "Pictures and numbers have the same name" in said


@pytest.mark.parametrize("outer", ["out/x.npy", "out"])
def test__plot__and_numbers_in_each_other(run, tmp_path, outer, monkeypatch):
    monkeypatch.setattr(Engine, "stream", None)
    monkeypatch.setattr(Engine, "_normalise", None)
    inside = tmp_path / "out" / "x.npy" / "maps"
    plot = inside if outer == "out/x.npy" else tmp_path / outer
    _, said = run("contacts", "--plot", plot, "--force", out="x.npy", code=2)
    assert "Write them side by side" in said


@pytest.mark.parametrize("is_file", [True, False])
def test__plot__never_overwrites_its_own_input(run, tmp_path, is_file):
    fasta = tmp_path / "maps" / "x.png"
    fasta.parent.mkdir()
    fasta.write_text(FASTA)
    words = ["--plot", fasta if is_file else fasta.parent, "--force"]
    _, said = run("contacts", *words, fasta=fasta, code=2)
    assert "The folder of pictures is" in said
    assert "which would be lost" in said
    assert fasta.read_text() == FASTA


def test__force__says_what_it_replaces():
    texts = {}
    for command in COMMANDS:
        [option] = [o for o in main.commands[command].params if o.name == "force"]
        texts[command] = option.help
    assert "of --plot" in texts.pop("contacts")
    assert set(texts.values()) == {"Replace OUT if it exists."}


@pytest.mark.parametrize("command", COMMANDS)
def test__too_long__names_only_ways_that_the_command_has(run, command):
    _, said = run(command, "--max-residues", 13, code=2)
    assert "Record 1, P01308: The sequence in row 0 has 14 residues, more than" in said
    assert "Pass --too-long" in said
    assert "--too-long truncate to keep the first 13, --max-residues none" in said
    options = {option.name: option for option in main.commands[command].params}
    offered = options["too_long"].type.choices
    assert ("--too-long window" in said) == ("window" in offered)


def test__output__that_is_a_circle_of_links(run, tmp_path):
    loop = tmp_path / "loop.npz"
    loop.symlink_to(loop)
    _, said = run("residues", out=loop, code=2)
    assert "loop.npz" in said


def test__plot__without_matplotlib(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    _, said = run("contacts", "--plot", tmp_path / "out" / "maps", code=2)
    assert 'pip install "esm2-features[plot]"' in said


def test__h5__without_h5py(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    _, said = run("residues", out="x.h5", code=2)
    assert 'pip install "esm2-features[h5]"' in said


@pytest.mark.parametrize("kind", ARRAY_FORMATS)
def test__interrupted__nothing_is_left(run, tmp_path, kind, monkeypatch):
    def stream(*_, **__):
        yield np.zeros((14, 14), np.float32)
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "stream", stream)
    options = ["--plot", tmp_path / "out" / "maps"]
    path, said = run("contacts", *options, out=f"x.{kind}", code=130)
    assert said.splitlines()[-1] == (
        f"Interrupted; {path} was not written, and nothing is kept of what was computed."
    )
