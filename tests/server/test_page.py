"""The web page: its files, and in a browser where there is one."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import os
import re
import shutil
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import uvicorn
from sklearn.decomposition import PCA
from starlette.testclient import TestClient

from esm2_features import Engine, scan_variants
from esm2_features._inputs.residues import warn_of_nucleotides
from esm2_features.datasets import load_demo_peptides
from esm2_features.server.app import create_app
from esm2_features.server.models import LoadedModels
from esm2_features.server.settings import Settings
from esm2_features.server.tokens import new_token

FILES = Path(__file__).resolve().parents[2] / "esm2_features" / "data" / "server"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("page")]  # one browser for all
MELITTIN = "GIGAVLKVLTTGLPALISWIKRKRQQ"

# ------------------------------------------------------------------ its files


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    app = create_app(Settings(models={"mini": "mini"}, devices=("cpu",), cache=None))
    with TestClient(app, base_url="http://127.0.0.1") as found:
        yield found


@pytest.mark.parametrize("name", ["", *sorted(path.name for path in FILES.iterdir())])
def test_files_are_served_under_a_strict_policy(client, name):
    response = client.get(f"/{name}")
    assert response.status_code == 200
    assert response.content == (FILES / (name or "index.html")).read_bytes()
    assert response.headers["content-type"].startswith(TYPES[Path(name or "x.html").suffix])
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "*" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"


def test_files_load_nothing_from_other_sites():
    texts = {path.name: path.read_text() for path in FILES.iterdir()}
    for name, text in texts.items():
        without = text.replace("http://www.w3.org", "")
        assert not re.findall(r"(?:https?:)?//[\w.]+\.\w", without), name
    named = re.findall(r'(?:src|href)="([^"#]+)"', texts["index.html"])
    named += [file for text in texts.values() for file in re.findall(r'from "\./([^"]+)"', text)]
    assert {name for name in named if "." in name} - {"openapi.json"} == set(texts) - {"index.html"}


def test_the_page_holds_no_script_and_no_style():
    text = (FILES / "index.html").read_text()
    assert re.findall(r"<script[^>]*>[^<]", text) == []
    assert "<style" not in text
    assert re.findall(r"<[^>]*\s(?:on\w+|style)\s*=", text) == []


def test_every_field_has_a_label():
    text = (FILES / "index.html").read_text()
    fields = re.findall(r'<(?:input|select|textarea)[^>]*\bid="([^"]+)"', text)
    assert len(fields) >= 7
    assert set(fields) <= set(re.findall(r'<label[^>]*\bfor="([^"]+)"', text))


def test_colours_are_far_enough_apart():
    schemes = re.findall(r":root \{([^}]*)\}", (FILES / "style.css").read_text())
    assert len(schemes) == 2
    for scheme in schemes:
        colour = dict(re.findall(r"--([\w-]+): (#\w{6})", scheme))
        for text, ground, least in (
            *((text, "ground", 4.5) for text in ("text", "soft", "accent")),
            *((text, "panel", 4.5) for text in ("text", "soft", "accent")),
            ("on-accent", "accent", 4.5),
            ("bad", "bad-ground", 4.5),
            ("line", "ground", 3),
        ):
            assert contrast(colour[text], colour[ground]) >= least, (text, ground, scheme)


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2."""

    def luminance(colour: str) -> float:
        share = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def test_the_example_is_of_the_bundled_peptides(client):
    lines = client.get("/example.fasta").text.splitlines()
    peptides = load_demo_peptides()
    kinds = {
        (name.replace(" ", "_"), kind): sequence
        for (name, sequence), kind in zip(peptides.data, peptides.target, strict=True)
    }
    assert len(lines) == 120
    for header, sequence in zip(lines[::2], lines[1::2], strict=True):
        name, kind = header.removeprefix(">").split(" kind=")
        assert kinds[name, kind] == sequence


# ------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None or importlib.util.find_spec("playwright") is None:
        reason = "a browser needs Chromium, and the extra: pip install 'esm2-features[browser]'"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    playwright = importlib.import_module("playwright.sync_api")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield found
        found.close()


@pytest.fixture
def serve(tiny_checkpoint: Path) -> Iterator[Callable[..., str]]:
    """Start a server, and return its address."""
    stops = []

    def start(**options: Any) -> str:
        models = {"mini": "mini", "tiny": str(tiny_checkpoint)}
        settings = Settings(**{"models": models, "devices": ("cpu",), "cache": None, **options})
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(create_app(settings), log_level="warning", ws="none", lifespan="on")
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        stops.append((server, thread, listening))
        return f"http://127.0.0.1:{listening.getsockname()[1]}/"

    yield start
    for server, thread, listening in stops:
        server.should_exit = True
        thread.join(60)
        listening.close()


@pytest.fixture
def visit(browser: Any, serve: Callable[..., str]) -> Iterator[Callable[..., Any]]:
    """Open the page of a server; messages on its console are errors, unless a request failed."""
    contexts, said, asked = [], [], []

    def open_page(address: str | None = None, **options: Any) -> Any:
        address = address or serve()
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append((address, request.url)))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [text for text in said if not text.startswith("Failed to load resource")] == []
    assert [url for address, url in asked if not url.startswith((address, "blob:"))] == []


def embed(page: Any, text: str | None = None, **chosen: str) -> None:
    """Fill in the form and wait until there are results, or an error."""
    page.wait_for_selector("#start:enabled")
    if text is None:
        page.click("#example")
        page.wait_for_function("() => document.getElementById('text').value")
    else:
        page.fill("#text", text)
    for field, value in chosen.items():
        page.select_option(f"#{field}", value)
    page.click("#start")
    page.wait_for_selector("#results:not([hidden]), #trouble:not([hidden])")
    page.wait_for_selector("#start:enabled")


def download(page: Any, button: str) -> bytes:
    with page.expect_download() as waiting:
        page.click(button)
    return Path(waiting.value.path()).read_bytes()


def names(page: Any, table: str = "#list") -> list[str]:
    return page.locator(f"{table} tbody th").all_inner_texts()


def example(page: Any) -> tuple[list[str], list[str]]:
    lines = page.input_value("#text").splitlines()
    return [line[1:].split()[0] for line in lines[::2]], lines[1::2]


def test_numbers_are_those_of_the_library(visit):
    page = visit()
    embed(page, layer="5", pooling="bos")
    ids, sequences = example(page)
    rows = Engine("mini", device="cpu", cache=None, layers=[5], pooling="cls").embed(sequences)
    assert names(page) == ids

    pca = PCA(2, svd_solver="full").fit(rows.astype(np.float64))
    shown = np.array(
        [
            [float(cell) for cell in row[-2:]]
            for row in (
                line.split("\t") for line in page.locator("#list tbody tr").all_inner_texts()
            )
        ]
    )
    expected = pca.transform(rows.astype(np.float64))
    signs = np.sign((shown * expected).sum(0))
    np.testing.assert_allclose(shown, expected * signs, atol=6e-4)
    shares = re.findall(r"(\d+) %", page.inner_text("#map-about"))
    expected_shares = [round(100 * share) for share in pca.explained_variance_ratio_]
    assert [int(share) for share in shares] == expected_shares

    page.locator("#list tbody button").nth(3).click()
    assert page.inner_text("#one-name") == ids[3]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit[3]
    nearest = [i for i in np.argsort(-cosines) if i != 3][:10]
    assert names(page, "#near") == [ids[i] for i in nearest]
    said = page.locator("#near tbody td:nth-child(2)").all_inner_texts()
    np.testing.assert_allclose([float(text) for text in said], cosines[nearest], atol=6e-5)


def test_files_hold_the_same_numbers(visit, tmp_path):
    page = visit()
    text = ">one, two kind=a\nMKTAYI\n>ü kind=b\nGIGAVL\nKVL\n>one, kind=b\nGSHM\n"
    embed(page, text)
    ids, sequences = ["one,", "ü", "one, (2)"], ["MKTAYI", "GIGAVLKVL", "GSHM"]
    engine = Engine("mini", device="cpu", cache=None)
    rows = engine.embed(sequences)
    features = [f"mini_L6_mean_{i}" for i in range(192)]

    with np.load(io.BytesIO(download(page, "[data-save=npz]")), allow_pickle=False) as npz:
        assert npz["id"].tolist() == ids
        assert npz["sequence"].tolist() == sequences
        assert npz["feature"].tolist() == features
        assert npz["embedding"].dtype == np.float32
        np.testing.assert_array_equal(npz["embedding"], rows)

    table = pq.read_table(io.BytesIO(download(page, "[data-save=parquet]")))
    assert table.column_names == ["id", "sequence", "embedding"]
    assert table["id"].to_pylist() == ids
    assert table["sequence"].to_pylist() == sequences
    np.testing.assert_array_equal(np.float32(table["embedding"].to_pylist()), rows)
    assert (
        pd.Series(features).to_json(orient="values").encode()
        == (table.schema.metadata[b"feature_names"])
    )

    frame = pd.read_csv(io.BytesIO(download(page, "[data-save=csv]")), dtype=str)
    assert frame.columns.tolist() == ["id", "sequence", *features]
    assert frame["id"].tolist() == ids
    np.testing.assert_array_equal(frame[features].to_numpy(np.float32), rows)


def test_a_scan_is_that_of_the_library(visit):
    page = visit()
    embed(page, f">melittin\n{MELITTIN}X\n>other\nGSHM\n")
    page.locator("#list tbody button").first.click()
    page.click("#ask-scan")
    page.wait_for_selector("#scan-view .heat")
    text = download(page, "#scan-save").decode()
    shown = {line["variant"]: float(line["score"]) for line in csv.DictReader(io.StringIO(text))}
    engine = Engine("mini", device="cpu", cache=None)
    scores = scan_variants(engine, f"{MELITTIN}X")
    expected = {
        f"{wild}{i + 1}{letter}": scores[i, k]
        for i, wild in enumerate(MELITTIN)
        for k, letter in enumerate("ACDEFGHIKLMNPQRSTVWY")
        if letter != wild
    }
    assert shown.keys() == expected.keys()  # an X has no likelihood to compare with
    np.testing.assert_allclose([shown[key] for key in expected], list(expected.values()), atol=1e-4)

    page.focus("#scan-view canvas[tabindex]")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    assert page.inner_text("#scan-view output") == (
        f"I2A: {expected['I2A']:+.2f}".replace("-", "\N{MINUS SIGN}")
    )


def test_contacts_are_those_of_the_library(visit, tiny_checkpoint):
    page = visit()
    embed(page, MELITTIN, model="tiny")
    page.locator("#list tbody button").first.click()
    page.click("#ask-contacts")
    page.wait_for_selector("#contacts-view .heat")
    pairs = np.loadtxt(
        io.BytesIO(download(page, "#contacts-save")), delimiter=",", skiprows=1, ndmin=2
    )
    expected = Engine(tiny_checkpoint, device="cpu", cache=None).contacts([MELITTIN])[0]
    assert len(pairs) == len(MELITTIN) * (len(MELITTIN) - 1) / 2
    i, j = pairs[:, :2].astype(int).T - 1
    np.testing.assert_allclose(pairs[:, 2], expected[i, j], atol=1e-6)


def test_contacts_of_a_model_without_regression_show_an_error(visit):
    page = visit()
    embed(page, MELITTIN)
    page.locator("#list tbody button").first.click()
    page.click("#ask-contacts")
    assert "mini has no contact regression" in page.inner_text("#contacts-view .error")
    assert "needs 3 sequences" in page.inner_text("#map-none")


def test_an_error_names_the_sequence_which_can_be_skipped(visit):
    page = visit()
    embed(page, ">good\nMKTAYI\n>wrong\nMKJ\n>third\nGSHM\n>fourth\nGIGAV\n")
    said = page.inner_text("#trouble-text")
    assert said.startswith("Sequence 2 of 4, wrong: It holds 'J' at position 3, which stands for")
    page.click("#show-row")
    field = page.locator("#text")
    marked = field.evaluate("field => field.value.slice(field.selectionStart, field.selectionEnd)")
    assert marked == ">wrong\nMKJ"
    page.click("#leave-out")
    page.wait_for_selector("#results:not([hidden])")
    assert names(page) == ["good", "third", "fourth"]


def test_all_wrong_sequences_are_left_out_at_once(visit, serve):
    page = visit(serve(max_residues=9))
    wrong = {"gap": "MK-T", "empty": "", "stop": "*", "hidden": "MK\u200bT", "digit": "MK2"}
    long = {"long": "M" * 10, "longer": "M" * 12}
    good = {"first": "MKTAYI", "second": "GSHM", "third": "GIGAV"}
    records = {**good, **wrong, "fourth": "CCCC", **long, "last": "WWWW"}
    embed(page, "".join(f">{name}\n{sequence}\n" for name, sequence in records.items()))
    assert page.inner_text("#trouble-text") == "5 of 12 sequences cannot be embedded:"
    said = page.locator("#trouble-list li").all_inner_texts()
    assert said[0].startswith("Sequence 4 of 12, gap: It holds '-' at position 3")
    assert said[1] == "Sequence 5 of 12, empty: It is empty. Add its residues, or leave it out."
    assert said[2] == "Sequence 6 of 12, stop: It is empty. Add its residues, or leave it out."
    assert said[3].startswith("Sequence 7 of 12, hidden: It holds U+200B at position 3")
    assert page.locator("#results").is_hidden()
    assert page.inner_text("#leave-out") == "Leave out all 5"
    page.click("#leave-out")
    page.wait_for_selector("#trouble:not([hidden])")  # only the server knows how long is too long
    said = page.locator("#trouble-list li").all_inner_texts()
    assert [line.partition(";")[0] for line in said] == [
        "Sequence 10 of 12, long: It has 10 residues",
        "Sequence 11 of 12, longer: It has 12 residues",
    ]
    page.click("#leave-out")
    page.wait_for_selector("#left-out:not([hidden])")
    page.wait_for_selector("#trouble", state="hidden")
    kept = [name for name in records if name not in {**wrong, **long}]
    assert names(page) == kept
    page.click("#left-out summary")
    left = page.locator("#left-out li").all_inner_texts()
    assert [line.partition(":")[0] for line in left] == [*wrong, *long]
    with np.load(io.BytesIO(download(page, "[data-save=npz]")), allow_pickle=False) as npz:
        assert npz["id"].tolist() == kept


def test_more_wrong_sequences_than_fit_are_counted(visit):
    page = visit()
    embed(page, ">good\nMKTAYI\n" + "".join(f">bad{i}\nMJ\n" for i in range(300)))
    said = page.locator("#trouble-list li").all_inner_texts()
    assert len(said) == 21
    assert said[-1] == "and 280 more"
    page.click("#leave-out")
    page.wait_for_selector("#results:not([hidden])")
    assert names(page) == ["good"]
    assert page.inner_text("#left-out summary") == "300 sequences are left out"


def test_all_sequences_can_be_wrong(visit):
    page = visit()
    embed(page, ">a\n>b\n")
    assert page.inner_text("#trouble-text") == "2 of 2 sequences cannot be embedded:"
    page.click("#leave-out")
    page.wait_for_function(
        "() => /left out/.test(document.getElementById('trouble-text').textContent)"
    )
    assert page.locator("#results").is_hidden()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (">gene\nATGGCTAGCTAGCTAGCATG\n>two\nAUGGCUAGCUAGCUAGCAUGN\n", "gene (and 1 more) holds"),
        ("acgtacgtacgtacgtacgt\n", "sequence 1 holds the letters ACGTUN only: is it DNA?"),
        (">short\nATGGCTAGCTAGCTAGCAT\n>protein\nATGGCTAGCTAGCTAGCATL\n", ""),
    ],
)
def test_nucleotides_are_noticed_as_in_the_library(visit, text, said):
    page = visit()
    page.fill("#text", text)
    assert page.inner_text("#dna").startswith(said)
    assert bool(page.inner_text("#dna")) == bool(said)
    sequences = [line for line in text.splitlines() if not line.startswith(">")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_nucleotides([s.upper() for s in sequences], rows=range(len(sequences)))
    assert bool(caught) == bool(said)


def test_regions_have_names_of_their_own(visit):
    page = visit()
    embed(page)
    page.locator("#list tbody button").first.click()
    page.click("#ask-scan")
    page.wait_for_selector("#scan-view .heat")
    tree = page.locator("body").aria_snapshot()
    regions = re.findall(r'^\s*- region "(.*)"', tree, re.MULTILINE)
    assert len(regions) >= 6
    assert len(set(regions)) == len(regions)


def test_an_empty_form_shows_an_error(visit):
    page = visit()
    embed(page, " \n")
    assert "There are no sequences" in page.inner_text("#trouble-text")


def test_a_token_is_requested_and_never_in_an_address(visit, serve, tmp_path):
    token = new_token(tmp_path / "tokens", "tests")
    page = visit(serve(tokens=tmp_path / "tokens"))
    page.wait_for_selector("#trouble:not([hidden])")
    assert "asks for a token" in page.inner_text("#trouble-text")
    assert page.locator("#start").is_disabled()
    addresses = []
    page.on("request", lambda request: addresses.append(request.url))
    for text, ending in (("esm2_wrong", "Use token"), (token, "Enter")):
        page.fill("#token", text)
        if ending == "Enter":
            page.press("#token", "Enter")
        else:
            page.click("#token-use")
            page.wait_for_function(
                "() => document.getElementById('trouble-text').textContent"
                ".includes('does not know')"
            )
    embed(page, "MKTAYI\nGSHM\n")
    assert names(page) == ["sequence 1", "sequence 2"]
    page.reload()
    page.wait_for_selector("#start:enabled")  # this tab knows it still
    assert page.input_value("#token") == ""
    for link, text in (("Status", "in memory"), ("HTTP API", "encode"), ("OpenAPI", "openapi")):
        page.click(f"footer >> text='{link}'")
        page.wait_for_function(
            """word => { const held = document.activeElement;
                return held.id === "served-title" && held.textContent === word; }""",
            arg=link,
        )
        assert text in page.inner_text("#served-text")
    page.click("#served-close")
    assert page.locator("#served").is_hidden()
    assert focused(page) == "OpenAPI"
    assert addresses
    assert not any(token in url for url in addresses)


def test_embedding_can_be_cancelled_and_continued(visit, monkeypatch):
    compute, slow = LoadedModels.compute, threading.Event()
    slow.set()
    batches = []

    def slowly(self: LoadedModels, model: str, kind: Any, sequences: list[str]) -> Any:
        batches.append(sequences)
        if slow.is_set() and len(batches) > 1:
            time.sleep(1)
        return compute(self, model, kind, sequences)

    monkeypatch.setattr(LoadedModels, "compute", slowly)
    page = visit()
    page.wait_for_selector("#start:enabled")
    page.click("#example")
    page.wait_for_function("() => document.getElementById('text').value")
    page.click("#start")
    page.wait_for_function("() => /^[1-9]/.test(document.getElementById('progress').textContent)")
    assert re.fullmatch(r"\d+ of 60 sequences", page.inner_text("#progress"))
    page.click("#cancel")
    page.wait_for_selector("#trouble:not([hidden])")
    [done] = re.findall(r"Cancelled: (\d+) of 60 are done", page.inner_text("#trouble-text"))
    assert 0 < int(done) < 60
    page.wait_for_selector("#results:not([hidden])")
    assert len(names(page)) == int(done)
    slow.clear()
    page.click("#go-on")
    page.wait_for_function("() => document.querySelectorAll('#list tbody tr').length === 60")
    assert page.locator("#trouble").is_hidden()


def test_the_page_waits_when_the_server_is_busy(visit, serve):
    page = visit(serve(rate=(2, 1.0), max_items=20))
    embed(page)
    assert len(names(page)) == 60


def drawn(page: Any) -> str:
    """The map, as the browser has drawn it."""
    found: str = page.evaluate(
        """() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() =>
            done(document.getElementById("map").toDataURL()))))"""
    )
    return found


def test_the_map_can_be_used_with_the_keyboard(visit):
    page = visit()
    embed(page)
    said = page.locator("#map-said")
    page.focus("#map-frame canvas")
    seen = set()
    for key in ("ArrowRight", "ArrowUp", "ArrowLeft", "ArrowLeft", "ArrowDown"):
        page.keyboard.press(key)
        seen.add(said.inner_text())
    assert len(seen) >= 4
    assert all(re.search(r", kind (toxin|hormone), \d+ residues$", text) for text in seen)
    name = said.inner_text().partition(",")[0]
    page.keyboard.press("Enter")
    assert page.inner_text("#one-name") == name
    before = drawn(page)
    page.keyboard.press("+")
    assert drawn(page) != before
    page.keyboard.press("0")
    assert drawn(page) == before


def test_a_point_can_be_pointed_at_dragged_and_chosen(visit):
    page = visit()
    embed(page, ">left\nMKTAYI\n>middle\nGSHMGSHM\n>right\nCCCCCC\n>more\nWWWWWW\n")
    page.locator("#map").scroll_into_view_if_needed()
    box = page.locator("#map").bounding_box()
    cells = [line.split("\t") for line in page.locator("#list tbody tr").all_inner_texts()]
    places = np.array([[float(cell) for cell in row[-2:]] for row in cells])
    room = np.array([box["width"], box["height"]])
    low, high = places.min(0), places.max(0)
    scale = ((room - [122, 58]) / (high - low)).min()  # all are within a margin
    at = room / 2 + (places - (low + high) / 2) * scale * [1, -1] + [box["x"], box["y"]]
    mouse = page.mouse
    for i, name in enumerate(("left", "middle", "right", "more")):
        mouse.move(*at[i])
        page.wait_for_function(
            "name => document.getElementById('map-tip').textContent === name", arg=name
        )
        assert page.inner_text("#map-said").startswith(f"{name}, ")
    mouse.click(*at[1])
    assert page.inner_text("#one-name") == "middle"
    mouse.move(*(room / 2 + [box["x"], box["y"]]))
    mouse.down()
    mouse.move(*(room / 2 + [box["x"] + 30, box["y"] - 20]), steps=5)
    mouse.up()
    mouse.move(*(at[2] + [30, -20]))
    page.wait_for_function("() => document.getElementById('map-tip').textContent === 'right'")
    mouse.move(*(at[0] + [30, -20]))
    page.wait_for_function("() => document.getElementById('map-tip').textContent === 'left'")
    mouse.wheel(0, -200)  # about the point that is pointed at, which stays
    mouse.move(*(at[0] + [31, -20]))
    assert page.inner_text("#map-tip") == "left"


@pytest.mark.parametrize("width", [1280, 390])
def test_a_map_of_1500_residues_fits_the_page(visit, width):
    page = visit(viewport={"width": width, "height": 844})
    embed(page, f">long\n{(MELITTIN * 58)[:1500]}\n", model="tiny")
    page.locator("#list tbody button").first.click()
    page.click("#ask-contacts")
    page.wait_for_selector("#contacts-view .heat")
    canvas = page.locator("#contacts-view .heat canvas")
    page.wait_for_function(
        "() => document.querySelector('#contacts-view canvas[tabindex]').width > 300"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box, frame = canvas.bounding_box(), page.locator("#contacts-view .heat").bounding_box()
    assert box["width"] <= frame["width"]
    assert box["width"] >= min(900, 0.9 * frame["width"])
    assert canvas.evaluate("canvas => canvas.width") == pytest.approx(box["width"], abs=1)
    canvas.hover(position={"x": box["width"] - 4, "y": 19})  # the last column of the first row
    said = page.inner_text("#contacts-view output")
    assert re.match(r"\w[1-9] and \w1(49\d|500): 0\.", said), said
    page.set_viewport_size({"width": 600, "height": 844})
    page.wait_for_function(
        """() => { const canvas = document.querySelector("#contacts-view canvas[tabindex]");
            return Math.abs(canvas.clientWidth - canvas.parentElement.clientWidth) < 9; }"""
    )


def test_a_contact_of_two_residues_is_seen_in_a_large_map(visit):
    page = visit()
    darkest = page.evaluate(
        """async () => {
            const { heatMap } = await import("./heat.js");
            const { blues } = await import("./colours.js");
            const names = Array.from({ length: 1500 }, (_, i) => String(i + 1));
            const value = (i, j) => Number(i === 700 && j === 300);
            const map = heatMap({ label: "x", rows: names, columns: names, value, colour: blues,
                say: () => "", cell: 1, isFitted: true, rowsToo: true });
            map.style.width = "390px";
            document.body.append(map);
            const canvas = map.querySelector("canvas");
            while (canvas.width < 320) await new Promise(requestAnimationFrame);
            const { data } = canvas.getContext("2d").getImageData(40, 22, canvas.width - 44, 340);
            let found = 0;
            for (let k = 0; k < data.length; k += 4) found += data[k] === 8 && data[k + 2] === 107;
            return found;
        }"""
    )
    assert darkest == 1


def test_the_focus_stays_where_it_is(visit):
    page = visit()
    page.wait_for_selector("#start:enabled")
    page.fill("#text", ">good\nMKTAYI\n>bad\nMJ\n>other\nGSHM\n>third\nGIGAV\n")
    page.focus("#start")
    page.keyboard.press("Enter")
    page.wait_for_selector("#trouble:not([hidden])")
    assert focused(page) == "start"
    page.focus("#leave-out")
    page.keyboard.press("Enter")
    page.wait_for_selector("#results:not([hidden])")
    page.wait_for_selector("#work", state="hidden")
    assert focused(page) == "start"
    page.keyboard.press("Enter")
    page.wait_for_selector("#trouble:not([hidden])")
    page.click("#leave-out")
    page.wait_for_selector("#results:not([hidden])")
    page.focus("#list tbody tr:nth-child(2) button")
    page.keyboard.press("Enter")
    assert focused(page) == "one-name"
    for kind in ("scan", "contacts"):
        page.focus(f"#ask-{kind}")
        page.keyboard.press("Enter")
        page.wait_for_selector(f"#{kind}-view .heat, #{kind}-view .error")
        assert focused(page) == f"ask-{kind}"


def focused(page: Any) -> str:
    found: str = page.evaluate("document.activeElement.id || document.activeElement.textContent")
    return found


def test_a_long_scan_says_how_long_it_takes_and_asks(visit):
    page = visit()
    page.evaluate(
        "const now = performance.now.bind(performance); performance.now = () => 99999 * now()"
    )
    posts = []
    page.on("request", lambda request: posts.append(request.url))
    embed(page, f"{MELITTIN * 2}\n{MELITTIN}\n")
    page.locator("#list tbody button").first.click()
    assert page.inner_text("#scan-time") == ""
    page.click("#ask-scan")
    page.wait_for_selector("#scan-view button.main")
    assert re.fullmatch(r"About \d+ (s|min|h) for 52 positions\.", page.inner_text("#scan-view p"))
    assert sum("predict" in url for url in posts) == 2
    page.focus("#scan-view button.main")
    page.keyboard.press("Enter")
    assert focused(page) in ("Cancel", "scan-title")
    page.wait_for_selector("#scan-view .heat")
    assert focused(page) == "scan-title"
    page.locator("#list tbody button").nth(1).click()
    assert re.fullmatch(r"A scan takes about \d+ (s|min|h)\.", page.inner_text("#scan-time"))
    page.click("#ask-scan")
    page.wait_for_selector("#scan-view button.main, #scan-view .heat")


def test_a_long_scan_can_be_declined(visit):
    page = visit()
    page.evaluate(
        "const now = performance.now.bind(performance); performance.now = () => 99999 * now()"
    )
    embed(page, MELITTIN * 4)
    page.locator("#list tbody button").first.click()
    page.click("#ask-scan")
    page.wait_for_selector("#scan-view button.main")
    page.get_by_role("button", name="Cancel").click()
    assert page.inner_text("#scan-view") == "Cancelled."
    assert focused(page) in ("scan-title", "ask-scan")


def test_the_search_looks_at_names(visit):
    page = visit()
    embed(page, ">P1 melittin kind=a\nMKTAYI\n>melittin_2 kind=b\nGSHM\n>P3 kind=a\nGIGAV\n")
    for words, found in (("MELIT", ["melittin_2"]), ("p", ["P1", "P3"]), ("gsh", []), ("kind", [])):
        page.fill("#filter", words)
        assert names(page) == found


def test_others_are_grey(visit):
    page = visit()
    kinds = [f"k{i}" for i in range(10)]
    text = "".join(f">s{i} kind={kind}\n{MELITTIN[i:]}\n" for i, kind in enumerate(kinds))
    embed(page, text + f">t kind=k0\n{MELITTIN}\n>u\n{MELITTIN}\n")
    said = page.locator("#legend li").all_inner_texts()
    assert said[0] == "k0 (2)"
    assert said[-2:] == ["others (3)", "no value (1)"]
    colours = page.locator("#legend canvas").evaluate_all(
        "all => all.map(one => [...one.getContext('2d').getImageData(16, 16, 1, 1).data])"
    )
    assert [colour[:3] for colour in colours[-2:]] == [[136, 136, 136]] * 2
    assert len({tuple(colour) for colour in colours}) == len(colours) - 1


def test_names_are_text_whatever_they_hold(visit):
    page = visit()
    name = "<img/src=x/onerror=alert(1)>"
    embed(page, f">{name} kind=<b>\nMKTAYI\n>b kind=c\nGSHM\n>d kind=c\nGSHMGS\n")
    assert names(page)[0] == name
    page.locator("#list tbody button").first.click()
    assert page.inner_text("#one-name") == name
    assert page.locator("main img, main b").count() == 0


def test_a_file_can_be_chosen(visit, tmp_path):
    import gzip

    page = visit()
    page.wait_for_selector("#start:enabled")
    path = tmp_path / "some.fasta.gz"
    path.write_bytes(gzip.compress(b">a\nMKTAYI\n>b\nGSHM\n"))
    page.set_input_files("#file", path)
    page.wait_for_function("() => document.getElementById('count').textContent")
    assert page.inner_text("#count") == "2 sequences of 4 to 6 residues"


def upload(page: Any, name: str, content: str) -> None:
    page.wait_for_selector("#start:enabled")
    file = {"name": name, "mimeType": "text/plain", "buffer": content.encode()}
    page.set_input_files("#file", file)
    page.wait_for_function("() => document.getElementById('count').textContent")


def legend(page: Any) -> list[str]:
    found: list[str] = page.locator("#legend > li").all_inner_texts()
    return found


def test_a_table_colours_the_map(visit):
    page = visit()
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "protein": [f'name, "{i}"' for i in range(30)],
            "activity": [*rng.normal(size=29).round(3), None],
            "label": ["toxin", "hormone", None] * 10,
            "Sequence": [MELITTIN[i % 13 :] for i in range(30)],
            "fold": np.arange(30) % 5,
        }
    )
    upload(page, "proteins.csv", frame.to_csv(index=False))
    assert page.inner_text("#count") == "30 sequences of 14 to 26 residues"
    assert page.input_value("#sequence-column") == "Sequence"
    assert page.input_value("#name-column") == "protein"
    embed(page, page.input_value("#text"))
    assert names(page) == frame["protein"].tolist()
    options = page.locator("#colour option").all_inner_texts()
    assert options == ["label", "fold", "activity", "length"]
    assert page.input_value("#colour") == "label"
    assert legend(page) == ["hormone (10)", "toxin (10)", "no value (10)"]
    page.select_option("#colour", "fold")
    assert legend(page) == [f"{i} (6)" for i in range(5)]
    before = drawn(page)
    page.select_option("#colour", "activity")
    low, high = frame["activity"].min(), frame["activity"].max()
    assert legend(page)[0] == "activity"
    assert [float(text) for text in legend(page)[1].split()] == [low, high]
    assert legend(page)[2:] == ["no value (1)"]
    assert drawn(page) != before
    cells = page.locator("#list tbody tr:first-child td").all_inner_texts()
    assert float(cells[1]) == frame["activity"][0]
    embed(page, f"id,sequence,class\na,{MELITTIN},x\nb,GSHM,y\nc,GIG,y\n")
    assert legend(page) == ["y (2)", "x (1)"]  # a choice is for its own columns


@pytest.mark.parametrize(
    ("content", "columns", "found", "colours"),
    [
        ("id\tsequence\ty\nP1\tMKTAYI\t1\nP2\tGSHM\t0\nP3\tGIG\tNaN\n",
         ["sequence", "id"], ["P1", "P2", "P3"], ["0 (1)", "1 (1)", "no value (1)"]),
        ("\ufeff\"seq\";\"dG (kcal)\"\r\nMKTAYI;0,5\r\n\r\nGSHM;-1,5\r\nGIG;2\r\n",
         ["seq", "(numbered)"], ["sequence 1", "sequence 2", "sequence 3"],
         ["dG (kcal)", "\N{MINUS SIGN}1.5\n2"]),
        ("one,MKTAYIAKQRQI,a\ntwo,GSHMGSHMGSHM,b\nmore,GIGAVLKVLTTG,a\n",
         ["column 2", "column 1"], ["one", "two", "more"],
         ["a (2)", "b (1)"]),
        ("sequence\nMKTAYI\nGSHM\nGIG\n",
         ["sequence", "(numbered)"], ["sequence 1", "sequence 2", "sequence 3"], None),
        ("id,kind,kind,chain\na,x,p,MKTAYI\na,x,q,GSHM\na,y,q,GIGAVL\n",
         ["chain", "id"], ["a", "a (2)", "a (3)"], ["x (2)", "y (1)"]),
        ("name\tconstructor\tprotein sequence\na\t\tMKTAYI\nb\tx\tGSHM\na\t\"x\n\"\tGIG*\n",
         ["protein sequence", "name"], ["a", "b", "a (2)"], ["x (2)", "no value (1)"]),
    ],
)  # fmt: skip
def test_tables_as_programs_write_them(visit, content, columns, found, colours):
    page = visit()
    upload(page, "table.txt", content)
    assert [page.input_value(f"#{kind}-column") for kind in ("sequence", "name")] == columns
    page.click("#start")
    page.wait_for_selector("#results:not([hidden])")
    assert names(page) == found
    if colours is not None:
        shown = [re.sub(r"\s+", "\n", text) if "\n" in text else text for text in legend(page)]
        assert [text.replace("-", "\N{MINUS SIGN}") for text in shown] == colours


@pytest.mark.parametrize(
    ("encoding", "line"),
    [("utf-16", "\n"), ("utf-16-be", "\n"), ("utf-8-sig", "\r\n"), ("cp1252", "\r")],
)
def test_files_in_other_encodings(visit, tmp_path, encoding, line):
    page = visit()
    page.wait_for_selector("#start:enabled")
    lines = ["# made by hand, for tests", "id\tsequence\tkind", "é\tMKTAYI\tñ", "b\tGSHM\tx"]
    text = line.join([*lines, "c\tGSHMG\tñ", ""])
    path = tmp_path / "table.tsv"
    path.write_bytes((b"\xfe\xff" if encoding.endswith("be") else b"") + text.encode(encoding))
    page.set_input_files("#file", path)
    page.wait_for_function("() => document.getElementById('count').textContent")
    page.click("#start")
    page.wait_for_selector("#results:not([hidden])")
    assert names(page) == ["é", "b", "c"]
    assert legend(page) == ["ñ (2)", "x (1)"]


def test_many_equal_names_are_numbered_in_no_time(visit):
    page = visit()
    seconds = page.evaluate(
        """async text => {
            const { parse } = await import("./fasta.js");
            const begun = performance.now();
            parse(text);
            return (performance.now() - begun) / 1000;
        }""",
        ">a\nMKT\n" * 30_000,
    )
    assert seconds < 5
    embed(page, "id,sequence\na,MKT\na (2),MKT\na,GSHM\na,GIG\na (2),GIG\n")
    assert names(page) == ["a", "a (2)", "a (3)", "a (4)", "a (2) (2)"]


def test_columns_of_a_table_can_be_chosen(visit):
    page = visit()
    upload(
        page, "x.csv", "id,heavy_seq,light_seq,kind\na,MKTAYI,GSH,x\nb,GIGAVL,CCC,y\nc,WWWW,,y\n"
    )
    page.select_option("#sequence-column", "light_seq")
    page.select_option("#name-column", "heavy_seq")
    assert page.inner_text("#count") == "3 sequences of 0 to 3 residues"
    page.click("#start")
    page.wait_for_selector("#trouble:not([hidden])")
    assert page.inner_text("#trouble-text").startswith("Sequence 3 of 3, WWWW: It is empty.")
    page.click("#show-row")
    field = page.locator("#text")
    marked = field.evaluate("field => field.value.slice(field.selectionStart, field.selectionEnd)")
    assert marked == "c,WWWW,,y"
    page.click("#leave-out")
    page.wait_for_selector("#results:not([hidden])")
    assert names(page) == ["MKTAYI", "GIGAVL"]


def test_a_line_with_too_many_cells_is_an_error(visit):
    page = visit()
    content = 'id,sequence\n"a\nb",MKTAYI\nc,GSHM,x\n'
    upload(page, "x.csv", content)
    said = "Line 4 has 3 cells, and the first line has 2."
    assert page.inner_text("#count").startswith(said)
    page.click("#start")
    assert page.inner_text("#trouble-text").startswith(said)
    page.fill("#text", content.replace(",x", ""))
    assert page.inner_text("#count") == "2 sequences of 4 to 6 residues"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_in_any_state(visit, serve, tmp_path, scheme, width):
    axe = importlib.import_module("axe_playwright_python.sync_playwright").Axe()
    found = {}
    looks = {"viewport": {"width": width, "height": 844}, "color_scheme": scheme}

    def check(page: Any, state: str) -> None:
        violations = axe.run(page).response["violations"]
        found[state] = [
            (one["id"], [node["target"] for node in one["nodes"]]) for one in violations
        ]

    page = visit(**looks)
    page.wait_for_selector("#start:enabled")
    check(page, "empty")
    embed(page, f">a\nMK-T\n>b\n>dna\n{'ACGT' * 5}\n>c kind=x\nGSHM\n>d\nGIGA\n")
    check(page, "error")
    page.click("#leave-out")
    page.wait_for_selector("#results:not([hidden])")
    page.click("#left-out summary")
    check(page, "left out")
    embed(page, model="tiny")
    check(page, "map")
    page.locator("#list tbody button").first.click()
    for kind in ("scan", "contacts"):
        page.click(f"#ask-{kind}")
        page.wait_for_selector(f"#{kind}-view .heat")
        page.click(f"#{kind}-view summary")
        check(page, kind)
    rows = "".join(f"p{i},{MELITTIN[i:]},{i / 3},k{i}\n" for i in range(10))
    embed(page, f"id,sequence,activity,kind\n{rows}long,{MELITTIN * 40},,\n", model="mini")
    for choice in ("activity", "kind", "length"):
        page.select_option("#colour", choice)
        check(page, f"coloured by {choice}")
    page.locator("#list tbody button").last.click()
    page.click("#ask-contacts")
    page.wait_for_selector("#contacts-view .error")
    check(page, "a long sequence, and no contacts")

    token = new_token(tmp_path / "tokens", "tests")
    page = visit(serve(tokens=tmp_path / "tokens"), **looks)
    page.wait_for_selector("#trouble:not([hidden])")
    check(page, "token")
    page.fill("#token", token)
    page.press("#token", "Enter")
    page.wait_for_selector("#start:enabled")
    for link in page.locator("footer a").all():
        link.click()
        page.wait_for_function("() => document.activeElement.id === 'served-title'")
        check(page, link.inner_text())
    assert not any(found.values()), found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(visit, scheme):
    page = visit(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    embed(page)
    page.locator("#list tbody button").first.click()
    page.click("#ask-scan")
    page.wait_for_selector("#scan-view .heat")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
