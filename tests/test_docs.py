"""Documentation: its code runs, its tables match the catalogue, its pages can be reached.

Blocks marked ``python`` and ``bash`` are run, those of a page together, in their order. ``console``
and ``{code-block}`` show what needs weights, the network or other machines.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from checkpoints import random_esm2, write_fair_esm
from joblib.externals.loky import get_reusable_executor
from threadpoolctl import threadpool_limits

import esm2_features
from esm2_features import (
    ESM2Transformer,
    available_models,
    datasets,
    distributed,
    exceptions,
    model_selection,
)
from esm2_features._cache.keys import KEY_BYTES
from esm2_features._inputs.options import POOLINGS
from esm2_features.cli import main

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
MADE = {"_build", "_generated", "_templates", "api"}


def committed_pages() -> list[Path]:
    found = [path for path in DOCS.rglob("*") if path.suffix in (".md", ".rst")]
    return sorted(path for path in found if not MADE.intersection(path.relative_to(DOCS).parts))


PAGES = committed_pages()
BLOCKS = {
    path: re.findall(r"^```(\S+)\n(.*?)^```$", path.read_text("utf-8"), flags=re.M | re.S)
    for path in PAGES
}


SLOW = {("bash", "guide/scaling-out.md"), ("bash", "guide/evaluate.md")}
"""Pages that start a cluster of Ray, and that compare features."""


def pages_with(language: str) -> list[Any]:
    names = {path: path.relative_to(DOCS).as_posix() for path in PAGES}
    return [
        pytest.param(
            path, id=names[path], marks=[pytest.mark.slow] * ((language, names[path]) in SLOW)
        )
        for path, blocks in BLOCKS.items()
        if any(tag == language for tag, _ in blocks)
    ]


def code_of(path: Path, language: str) -> str:
    return "\n".join(code for tag, code in BLOCKS[path] if tag == language)


def environment(folder: Path) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "ESM2_FEATURES_CACHE": str(folder / "cache")}


def run(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), timeout=300, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def module_of(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    return module_of("_generate")


# ------------------------------------------------------------------ code on pages


def test__pages__mark_every_block_with_a_language_that_is_known():
    known = {"python", "bash", "console", "{code-block}", "{include}", "{toctree}"}
    assert {tag for blocks in BLOCKS.values() for tag, _ in blocks} <= known


def test__pages__have_code_to_run():
    assert len(pages_with("python")) >= 10
    assert len(pages_with("bash")) >= 5


@pytest.mark.parametrize("path", pages_with("python"))
def test__page__python_runs(path, tmp_path, monkeypatch):
    # In this process, where warnings are errors, too: a new one would import torch for each page.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESM2_FEATURES_CACHE", str(tmp_path / "cache"))
    # Workers of joblib that another test has started are in another folder.
    get_reusable_executor().shutdown(wait=True)
    with threadpool_limits(1):  # matrices are small, and threads would wait for each other
        exec(compile(code_of(path, "python"), str(path), "exec"), {"__name__": "page"})


@pytest.mark.parametrize("path", pages_with("bash"))
def test__page__commands_run(path, tmp_path):
    run(["bash", "-euo", "pipefail", "-c", code_of(path, "bash")], tmp_path)


def test__commands_that_are_shown__exist_with_these_options():
    known = {"esm2-features": main}
    for command in main.commands.values():
        known[f"esm2-features {command.name}"] = command
        for sub in getattr(command, "commands", {}).values():
            known[f"esm2-features {command.name} {sub.name}"] = sub
    shown = 0
    for path in PAGES:
        text = re.sub(r"\\\n", " ", path.read_text("utf-8"))
        for line in re.findall(r"^\s*(?:\$ )?(esm2-features .*)$", text, flags=re.M):
            words = line.partition(" #")[0].split()
            name = next(" ".join(words[:n]) for n in (3, 2, 1) if " ".join(words[:n]) in known)
            assert name != "esm2-features", f"{path.name}: {line}"
            options = {o for parameter in known[name].params for o in parameter.opts}
            assert {word for word in words if word.startswith("-") and word != "-"} <= options, line
            shown += 1
    assert shown > 20


# ------------------------------------------------------------------ the same job elsewhere

VOCABULARY = (
    "<cls> <pad> <eos> <unk> L A G V S E R T I D P K Q N F Y M H W C X B U Z O . - <null_1> <mask>"
)


@pytest.fixture(scope="module")
def tabs() -> dict[str, str]:
    text = (DOCS / "start" / "migration.md").read_text("utf-8")
    found = re.findall(
        r"^```\{code-block\} python\n:name: with-(\S+)\n\n(.*?)^```$", text, flags=re.M | re.S
    )
    return dict(found)


@pytest.fixture
def hugging_face_folder(tmp_path) -> Path:
    """A small random network with its tokenizer, as transformers writes them."""
    import torch
    from transformers import EsmConfig, EsmForMaskedLM, EsmTokenizer

    folder = tmp_path / "hugging_face"
    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=33, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=128, pad_token_id=1, mask_token_id=32, token_dropout=True,
        position_embedding_type="rotary", emb_layer_norm_before=False, layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    EsmForMaskedLM(config).save_pretrained(folder)
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(VOCABULARY.split()))
    EsmTokenizer(str(vocabulary)).save_pretrained(folder)
    return folder


def embedding_of(code: str) -> np.ndarray:
    space: dict[str, Any] = {}
    exec(compile(code, "migration.md", "exec"), space)
    return space["embedding"]


def test__migration__has_the_three_tabs(tabs):
    assert set(tabs) == {"esm2-features", "fair-esm", "transformers"}


def test__migration__transformers_gives_the_same_vectors(tabs, hugging_face_folder):
    folder = str(hugging_face_folder)
    ours = tabs["esm2-features"].replace("esm2_t6_8M_UR50D", folder)
    theirs = tabs["transformers"].replace("facebook/esm2_t6_8M_UR50D", folder)
    assert folder in ours
    assert folder in theirs
    np.testing.assert_allclose(embedding_of(ours), embedding_of(theirs), rtol=1e-5, atol=1e-5)


def test__migration__layers_of_transformers_have_the_same_numbers(tabs, hugging_face_folder):
    folder = str(hugging_face_folder)
    code = tabs["transformers"].replace("facebook/esm2_t6_8M_UR50D", folder)
    code = code.replace("**batch)", "**batch, output_hidden_states=True)")
    for layer in range(3):
        picked = code.replace(".last_hidden_state", f".hidden_states[{layer}]")
        assert picked.count("hidden_states[") == 1
        ours = tabs["esm2-features"].replace('"esm2_t6_8M_UR50D"', f"{folder!r}, layers={layer}")
        np.testing.assert_allclose(embedding_of(ours), embedding_of(picked), rtol=1e-5, atol=1e-5)


def test__migration__fair_esm_gives_the_same_vectors(tabs, tmp_path, monkeypatch):
    # Under the official names, where torch hub looks before it asks the network.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "esm2_t6_8M_UR50D.pt"
    path.parent.mkdir(parents=True)
    write_fair_esm(random_esm2(layers=2, dim=32, heads=2, seed=3), path)
    ours = tabs["esm2-features"].replace("esm2_t6_8M_UR50D", str(path))
    assert str(path) in ours
    np.testing.assert_allclose(
        embedding_of(ours), embedding_of(tabs["fair-esm"]), rtol=1e-5, atol=1e-5
    )


# ------------------------------------------------------------------ pages and what is generated


def test__pages__are_all_reached_from_the_index():
    def below(path: Path) -> set[Path]:
        text = path.read_text("utf-8")
        entries = re.findall(r"^```\{toctree\}\n(.*?)^```$", text, flags=re.M | re.S)
        found = {path}
        for line in "\n".join(entries).splitlines():
            target = re.sub(r"^.*<(.+)>$", r"\1", line.strip())
            if not target or target.startswith((":", "[")):
                continue
            place = DOCS / target[1:] if target.startswith("/") else path.parent / target
            [page] = [
                p for p in (place.with_name(place.name + e) for e in (".md", ".rst")) if p.is_file()
            ]
            found |= below(page)
        return found

    assert set(PAGES) == below(DOCS / "index.md")


def test__links_between_pages__lead_somewhere():
    for path in PAGES:
        for target in re.findall(r"\]\((?![a-z]+:|#)([^)#]+)", path.read_text("utf-8")):
            assert (path.parent / target).is_file(), f"{path.name}: {target}"


def test__faults__name_tests_that_exist():
    named = re.findall(
        r"`(tests/\S+\.py)::(\w+)`", (DOCS / "design" / "faults.md").read_text("utf-8")
    )
    assert len(named) > 40
    for path, name in named:
        source = (ROOT / path).read_text("utf-8")
        assert re.search(rf"^def {name}\(", source, flags=re.M), f"{path}::{name}"


def test__reference__has_every_public_name():
    text = (DOCS / "api.rst").read_text("utf-8")
    errors = [
        n
        for n, v in vars(exceptions).items()
        if isinstance(v, type) and v.__module__ == exceptions.__name__
    ]
    modules = datasets, distributed, model_selection
    names = {*esm2_features.__all__, *errors, *(n for module in modules for n in module.__all__)}
    wanted = names - {"datasets", "distributed", "exceptions", "model_selection"}
    assert wanted == set(re.findall(r"^   (\w+)$", text, flags=re.M))


def test__reference__pages_are_in_one_folder():
    text = (DOCS / "api.rst").read_text("utf-8")
    assert set(re.findall(r":toctree: (.+)", text)) == {"api"}


def test__generated__models_are_those_of_the_catalogue(generate):
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in generate.models().splitlines()[2:]
    ]
    cards = available_models()
    assert [row[0] for row in rows] == [f"`{card.name}`" for card in cards]
    for row, card in zip(rows, cards, strict=True):
        shape = card.architecture
        assert row[1:5] == [card.parameters, *map(str, (shape.layers, shape.dim, shape.heads))]
        assert (row[5] == "included") == (card.weights is None)


def test__generated__files_have_every_address_and_digest(generate):
    table = generate.files()
    for card in available_models():
        for file in (card.weights, card.regression):
            if file is not None:
                [row] = [line for line in table.splitlines() if f"<{file.url}>" in line]
                assert f"`{file.sha256}`" in row or (file.sha256 is None and "none known" in row)


def test__generated__cache_sizes_are_those_of_vectors_and_keys(generate):
    rows = [line.strip("|").split("|") for line in generate.cache_sizes().splitlines()[2:]]
    units = {"kB": 1e3, "MB": 1e6}
    for card, (name, *cells) in zip(available_models(), rows, strict=True):
        assert name.strip() == f"`{card.name}`"
        shape = card.architecture
        layers, one = shape.layers + 1, 4 * shape.dim + KEY_BYTES + 4  # a key and its checksum
        kept = one, one * layers, one * layers * len(POOLINGS)
        for cell, size in zip(cells, kept, strict=True):
            number, unit = cell.split()
            assert float(number) * units[unit] == pytest.approx(size, rel=0.05)


def test__generated__commands_have_the_help_of_all_of_them(generate):
    text = generate.commands()
    for name, command in main.commands.items():
        assert f"## esm2-features {name}\n" in text
        for sub in getattr(command, "commands", {}):
            assert f"### esm2-features {name} {sub}\n" in text
    for option in ("--too-long", "--store", "--log-probs", "--unused-days"):
        assert option in text


def test__generated__card_of_each_notebook_has_its_picture(generate):
    page = (DOCS / "examples" / "index.md").read_text("utf-8")
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert generate.card_picture(notebook).startswith(b"\x89PNG")
        assert f":link: {notebook.stem}\n" in page
        assert f":img-top: ../_generated/{notebook.stem}.png\n" in page


def test__included_files__lead_to_pages_of_the_site(generate, tmp_path):
    for page in generate.PAGES.values():
        assert (DOCS / page.lstrip("/")).is_file()
    text = generate.relinked(ROOT / "CONTRIBUTING.md") + generate.benchmarks()
    for bang, target in re.findall(r"(!?)\[[^\]]+\]\(([^)#\s]+)", text):
        if bang:
            assert (DOCS / "reference" / target).is_file()
        else:
            assert target.startswith(("http", "/")), target


def test__transformer__of_the_first_page_is_what_it_says():
    default = ESM2Transformer().model
    assert f"The default is `{default}`" in (DOCS / "reference" / "models.md").read_text("utf-8")


# ------------------------------------------------------------------ the check of what was built


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="other.html">x</a>', "leads nowhere"),
        ('<a href="#there">x</a>', "no such place"),
        ('<img src="a.png" alt=" ">', "no alt text"),
        ('<img src="missing.png" alt="x">', "not there"),
        ('<script src="https://elsewhere/x.js"></script>', "another host"),
        ('<img alt="x" src="a.png" srcset="a.png 1x, https://elsewhere/b.png 2x">', "another host"),
        ('<video src="//elsewhere/x.mp4"></video>', "another host"),
        ('<object data="https://elsewhere/x"></object>', "another host"),
        ('<style>@import "https://elsewhere/x.css";</style>', "another host"),
        ('<link rel="stylesheet" href="s.css">', "loads https://elsewhere/f.woff"),
    ],
)
def test__check__finds(body, fault, tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "s.css").write_text("@font-face {src: url('https://elsewhere/f.woff')}")
    if "s.css" not in body:
        (tmp_path / "s.css").unlink()
    (tmp_path / "a.html").write_text(f"<html>{body}</html>")
    [found] = module_of("_check").faults(tmp_path)
    assert fault in found


def test__check__leaves_a_sound_page_alone(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "a.html").write_text(
        '<link rel="canonical" href="https://elsewhere/"><h1 id="top">x</h1>'
        '<a href="https://elsewhere">x</a><a href="a.html#top">y</a><img src="a.png" alt="y">'
    )
    assert list(module_of("_check").faults(tmp_path)) == []
