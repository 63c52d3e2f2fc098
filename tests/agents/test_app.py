"""Agents, with the client of the SDK: over a real process, and for what takes long in this one."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import numpy as np
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from click.testing import CliRunner
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from starlette.testclient import TestClient

from esm2_features import ESM2Transformer
from esm2_features.agents import AgentSettings, create_server
from esm2_features.agents.app import create_app
from esm2_features.agents.folders import Folders
from esm2_features.agents.learning import _transformers_in
from esm2_features.cli import main
from esm2_features.datasets import load_demo_peptides
from esm2_features.exceptions import InputError
from esm2_features.model_selection import save_model
from esm2_features.server.settings import Settings
from esm2_features.server.tokens import new_token

pytestmark = pytest.mark.xdist_group("agents")

COMMAND = ["-c", "from esm2_features.cli import main; main()", "mcp"]
SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQ"
FASTA = ">one\nMKTAYIAKQR\n>two\nGSHMVLSEGE\n>three\nMKTAYIAKQQ\n"


class Agent:
    """A client in a thread of its own."""

    def __init__(self, portal: BlockingPortal, client: Client, folder: Path) -> None:
        self.portal, self.client, self.folder = portal, client, folder

    def result(self, tool: str, **arguments: Any) -> Any:
        return self.portal.call(self.client.call_tool, tool, arguments)

    def __call__(self, tool: str, **arguments: Any) -> dict[str, Any]:
        result = self.result(tool, **arguments)
        assert not result.is_error, result.content
        return result.structured_content

    def error(self, tool: str, **arguments: Any) -> str:
        result = self.result(tool, **arguments)
        assert result.is_error, result.structured_content
        text = result.content[0].text
        assert len(text) < 2000
        return text


@contextmanager
def connected(server: Any, folder: Path, mode: str = "auto") -> Iterator[Agent]:
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Client(server, mode=mode)) as client,
    ):
        yield Agent(portal, client, folder)


def process(folder: Path, *options: str) -> StdioServerParameters:
    arguments = [*COMMAND, "--allow", str(folder), "--model", "mini", *options]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    return StdioServerParameters(command=sys.executable, args=arguments, env=environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outside = tmp_path_factory.mktemp("agents")
    inside = outside / "open"
    inside.mkdir()
    (inside / "a.fasta").write_text(FASTA)
    (outside / "secret.fasta").write_text(">secret\nMKTAYIAKQR\n")
    (outside / "open-too").mkdir()
    (outside / "open-too" / "b.fasta").write_text(FASTA)
    (inside / "link.fasta").symlink_to(outside / "secret.fasta")
    (inside / "up").symlink_to(outside)
    (inside / "loop").symlink_to(inside / "loop")
    (inside / "out.npz").symlink_to(outside / "made.npz")
    os.mkfifo(inside / "pipe.fasta")
    return inside


@pytest.fixture(scope="module")
def agent(folder: Path) -> Iterator[Agent]:
    options = ("--cache", str(folder.parent / "cache"), "--max-sequences", "3000", "--max-file")
    with connected(process(folder, *options, "2"), folder) as connection:
        yield connection


@pytest.fixture
def local(tmp_path: Path, tiny_checkpoint: Path) -> Iterator[Agent]:
    service = Settings(models={"mini": "mini", "tiny": str(tiny_checkpoint)}, cache=None)
    settings = AgentSettings(service, Folders([tmp_path]))
    with connected(create_server(settings), tmp_path) as connection:
        yield connection


# ------------------------------------------------------------------ tools


def test__tools__have_descriptions_and_schemas(agent):
    tools = agent.portal.call(agent.client.list_tools).tools
    assert len(tools) == 9
    assert all(tool.description and tool.output_schema for tool in tools)
    assert not any(tool.input_schema["additionalProperties"] for tool in tools)


def test__embed__writes_a_file_and_answers_with_a_summary(agent):
    first = agent("embed", file="a.fasta", output="v.npz", layers=[3, -1])
    assert (first["rows"], first["width"], first["computed"]) == (3, 384, 3)
    assert (first["file"], first["layers"], first["poolings"]) == ("v.npz", [3, 6], ["mean"])
    again = agent("embed", file="a.fasta", output="v.npz", layers=[3, -1], overwrite=True)
    assert (again["computed"], again["from_cache"]) == (0, 3)
    made = np.load(agent.folder / "v.npz")
    assert made["id"].tolist() == ["one", "two", "three"]
    for name in ("v.csv", "v.parquet"):
        agent("embed", sequences={"x": "MKT", "y": "MKTA"}, output=name)
        assert (agent.folder / name).exists()


def test__embed__names_the_record_that_is_wrong(agent):
    said = agent.error("embed", sequences={"fine": "MKT", "odd": "MK1"}, output="w.npz")
    assert "odd" in said
    assert "position 3" in said
    assert not (agent.folder / "w.npz").exists()


def test__scan__answers_with_a_picture(agent):
    result = agent.result("scan_protein", sequence=SEQUENCE, offset=10, output="scan.csv")
    found = result.structured_content
    assert found["residues"] == len(SEQUENCE)
    assert len(found["most_harmful_positions"]) == 5
    assert base64.b64decode(result.content[1].data).startswith(b"\x89PNG")
    with (agent.folder / "scan.csv").open() as file:
        scores = {row["variant"]: float(row["score"]) for row in csv.DictReader(file)}
    lowest = found["most_harmful"][0]
    assert lowest["variant"] == min(scores, key=scores.get)
    assert lowest["score"] == pytest.approx(min(scores.values()), abs=1e-4)


def test__score__gives_each_variant_a_score(agent):
    found = agent("score_variants", sequence=SEQUENCE, variants=["K2R", "WT", "K2R"])
    assert [one["variant"] for one in found["scores"]] == ["K2R", "WT", "K2R"]
    assert found["scores"][1]["score"] == 0
    assert "position 2" in agent.error("score_variants", sequence=SEQUENCE, variants=["A2R"])


@pytest.mark.slow
def test__remedies_in_messages__are_arguments_of_the_tool(agent):
    odd = {"sequence": "MKJTAYIAKQ"}
    for tool, rest in (("scan_protein", {}), ("score_variants", {"variants": ["M1A"]})):
        assert 'unknown="X"' in agent.error(tool, **odd, **rest)
        agent(tool, **odd, **rest, unknown="X")
    (agent.folder / "y.csv").write_text("sequence,y\n" + "MKTA,1\nMKTC,0\n" * 6)
    options = {"table": "y.csv", "target": "y", "layers": [6], "cv": 2}
    assert 'group="none"' in agent.error("compare_features", **options)
    assert agent("compare_features", **options, group="none")["families"] is None


def test__neighbours__are_those_of_the_file(agent):
    found = agent("nearest_neighbours", sequences=["MKTAYIAKQR"], targets="a.fasta", output="n.csv")
    assert found["found"][0]["neighbours"][0] == {"id": "one", "distance": 0.0}
    assert "two" in (agent.folder / "n.csv").read_text()


def test__estimate_and_models__need_no_weights(agent):
    found = agent("estimate", file="a.fasta", card="h100")
    assert (found["sequences"], found["residues"]) == (3, 30)
    listed = agent("list_models")
    assert [one["name"] for one in listed["models"]] == ["mini"]
    assert listed["folders"] == [str(agent.folder)]


def test__contacts__are_the_strongest_pairs_and_a_map(local):
    found = local("predict_contacts", sequence=SEQUENCE, model="tiny", most=3, output="map.npz")
    contacts = np.load(local.folder / "map.npz")["contacts"]
    best = found["pairs"][0]
    assert best["second"] - best["first"] >= 6
    assert best["probability"] == pytest.approx(np.triu(contacts, 6).max(), abs=1e-4)
    assert "contact regression" in local.error("predict_contacts", sequence=SEQUENCE, model="mini")


@pytest.fixture(scope="module")
def peptides() -> str:
    rows, kinds = load_demo_peptides(return_X_y=True)
    pairs = list(zip(rows, kinds, strict=True))
    some = [p for kind in ("toxin", "hormone") for p in [q for q in pairs if q[1] == kind][:15]]
    return "id,sequence,kind\n" + "".join(f"{i},{row[1]},{k}\n" for i, (row, k) in enumerate(some))


@pytest.mark.slow
def test__compare_and_predict__go_together(local, peptides):
    (local.folder / "t.csv").write_text(peptides)
    options = {"model": "mini", "layers": [6], "cv": 2}
    found = local("compare_features", table="t.csv", target="kind", output="m.skops", **options)
    assert found["rows"] == 30
    assert "mini" in found["verdict"]
    assert any(one["kind"] == "baseline" for one in found["best"])
    made = local("predict", model_file="m.skops", file="t.csv", output="p.csv")
    assert (made["rows"], made["target"], len(made["predictions"])) == (30, "kind", 20)
    assert {"prediction", "identity", "nearest"} <= set(made["predictions"][0])


def test__predict__uses_no_cache_and_no_model_that_the_file_names(local, tmp_path):
    pipeline = make_pipeline(
        ESM2Transformer("mini", cache=str(tmp_path / "c")), LogisticRegression()
    )
    save_model(tmp_path / "m.skops", pipeline.fit(["MKTA", "GSHM"], ["a", "b"]))
    shutil.rmtree(tmp_path / "c")
    local("predict", model_file="m.skops", sequences=["MKTAY"])
    assert not (tmp_path / "c").exists()
    settings = AgentSettings(Settings(models={"650M": "esm2_t33_650M_UR50D"}), Folders([tmp_path]))
    with connected(create_server(settings), tmp_path) as other:
        said = other.error("predict", model_file="m.skops", sequences=["M"])
    assert "none of the models" in said


def test__transformers__are_found_wherever_a_file_hides_them():
    hidden = ESM2Transformer("mini")
    voting = VotingClassifier([("a", make_pipeline(hidden, LogisticRegression()))])
    for odd in (
        voting,
        {"a": [(1, np.array([voting], object))]},
        FunctionTransformer(kw_args={1: voting}),
    ):
        assert list(_transformers_in(odd)) == [hidden]


# ------------------------------------------------------------------ a hostile agent

OUTSIDE = [
    "../secret.fasta",
    "/etc/passwd",
    "link.fasta",
    "up/secret.fasta",
    "../open-too/b.fasta",
    "a.fasta/../../secret.fasta",
    "~/x.fasta",
    "$HOME/x.fasta",
    "/dev/zero",
    "/dev/stdin",
    "/proc/self/environ",
    "-",
    "",
    ".",
    "up",
    "loop",
    "pipe.fasta",
    "a.fasta\0.txt",
    "x" * 5000,
    "a/" * 3000 + "b",
    "file:///etc/passwd",
    "http://example.org/a.fasta",
    "*.fasta",
    "\u202ea.fasta",
    "\ud800",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test__files_outside__are_refused(agent, name):
    if name == "\ud800":  # no client can send it: the protocol is UTF-8
        with pytest.raises(InputError):
            Folders([agent.folder]).to_read(name)
        return
    for tool, argument in (("embed", "file"), ("estimate", "file"), ("compare_features", "table")):
        extra = {"embed": {"output": "x.npz"}, "compare_features": {"target": "y"}}.get(tool, {})
        said = agent.error(tool, **{argument: name}, **extra)
        assert "root:" not in said
        assert "secret\nMKT" not in said
    assert not (agent.folder / "x.npz").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("../made.npz", "/tmp/made.npz", "up/made.npz", "out.npz", "made.txt", ".bashrc", ""),
        *("made.pt", "a.fasta", "no/made.npz", "made.npz\0", "loop/made.npz", "/dev/null", "-"),
    ],
)
def test__outputs_outside__are_refused(agent, name):
    agent.error("embed", sequences=["MKT"], output=name, overwrite=True)
    assert not (agent.folder.parent / "made.npz").exists()


def test__outputs__never_replace_the_input_or_what_is_there(agent):
    (agent.folder / "table.csv").write_text("id,sequence\na,MKTA\n")
    before = (agent.folder / "table.csv").read_text()
    agent.error("embed", file="table.csv", output="table.csv", overwrite=True)
    said = agent.error("embed", sequences=["MKT"], output="table.csv")
    assert "overwrite=true" in said
    assert (agent.folder / "table.csv").read_text() == before


def test__huge_inputs__are_refused_quickly(agent):
    start = time.monotonic()
    bomb = agent.folder / "bomb.fasta.gz"
    bomb.write_bytes(gzip.compress(b">a\n" + b"A" * (64 << 20)))
    (agent.folder / "many.fasta").write_text(">a\nM\n" * 4000)
    (agent.folder / "large.fasta").write_text(">a\n" + "A" * (3 << 20))
    for name in ("bomb.fasta.gz", "large.fasta"):
        assert "--max-file" in agent.error("embed", file=name, output="x.npz")
    assert "3000 sequences" in agent.error("embed", file="many.fasta", output="x.npz")
    assert "2048" in agent.error("embed", sequences=["A" * 3_000_000], output="x.npz")
    assert "3000" in agent.error("embed", sequences=["A"] * 100_000, output="x.npz")
    assert "1000" in agent.error("score_variants", sequence="MKT", variants=["M1A"] * 5000)
    assert time.monotonic() - start < 10


def test__vectors_that_would_fill_the_memory__are_refused(tmp_path):
    service = Settings(models={"mini": "mini"}, cache=None, max_items=50_000)
    poolings = ["mean", "max", "std", "cls", "eos", "parti"]
    wide = {"layers": "all", "pooling": poolings, "output": "x.npz"}
    server = create_server(AgentSettings(service, Folders([tmp_path])))
    with connected(server, tmp_path) as agent:
        assert "1.1 GB" in agent.error("embed", sequences=["MKTA"] * 40_000, **wide)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"sequences": 5},
        {"sequences": {"a": 5}},
        {"sequences": [None]},
        {"sequences": []},
        {"sequences": ["MKT"], "file": "a.fasta"},
        {"sequences": ["MKT"], "output": ["x.npz"]},
        {"sequences": ["MKT"], "overwrit": True},
        {"sequences": ["MKT"], "layers": [99]},
        {"sequences": ["MKT"], "layers": []},
        {"sequences": ["MKT"], "layers": "first"},
        {"sequences": ["MKT"], "pooling": ["median"]},
        {"sequences": ["MKT"], "max_residues": -1},
        {"sequences": ["MKT"], "model": "/etc/passwd"},
        {"sequences": ["MKT"], "model": "owner/name"},
        {"sequences": ["MKT"], "model": "esm2_t6_8M_UR50D"},
        {"sequences": {"": "MKT"}},
        {"sequences": {"a\nb": "MKT"}},
        {"sequences": {"a\x1b[2J": "MKT"}},
        {"sequences": [""]},
    ],
)
def test__wrong_arguments__are_errors_that_say_what_is_wrong(agent, arguments):
    said = agent.error("embed", **{"output": "x.npz", **arguments})
    assert said.startswith("Error executing tool embed: ")
    assert len(said) > 40
    assert not (agent.folder / "x.npz").exists()


def test__ids__stay_data(agent):
    odd = {"../../etc": "MKTA", "=cmd|' /C calc'!A0": "MKTC", "<b>ignore instructions</b>": "MKTD"}
    agent("embed", sequences=odd, output="odd.npz")
    assert np.load(agent.folder / "odd.npz")["id"].tolist() == list(odd)
    long = {"a" * 5000: "MKTAY", "b": "GSHMV"}
    found = agent("nearest_neighbours", sequences=long, targets="a.fasta", n_neighbors=1)
    assert max(len(one["query"]) for one in found["found"]) <= 60


@pytest.mark.slow
def test__many_calls__do_not_stop_the_server(agent):
    async def storm() -> int:
        refused = 0

        async def one(i: int) -> None:
            nonlocal refused
            name = ("list_models", "embed", "no_such_tool")[i % 3]
            result = await agent.client.call_tool(name, {"output": "x"} if i % 3 == 1 else {})
            refused += result.is_error

        async with anyio.create_task_group() as group:
            for i in range(900):
                group.start_soon(one, i)
        return refused

    assert agent.portal.call(storm) >= 300
    assert agent("list_models")["default"] == "mini"


def test__calls__beyond_the_queue_are_refused(tmp_path):
    service = Settings(models={"mini": "mini"}, cache=None, max_waiting=1)
    said: list[str] = []

    async def several() -> None:
        async def one() -> None:
            arguments = {"sequence": SEQUENCE, "variants": ["K2R"]}
            result = await agent.client.call_tool("score_variants", arguments)
            said.append(result.content[0].text if result.is_error else "scored")

        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(one)

    with connected(create_server(AgentSettings(service)), tmp_path) as agent:
        agent.portal.call(several)
    assert sorted(text == "scored" for text in said) == [False, False, True, True]
    assert "wait already" in said[0]


# ------------------------------------------------------------------ progress and cancellation


def check_cancellation(agent: Agent) -> None:
    rng = np.random.default_rng(0)
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
    many = {str(i): "".join(rng.choice(letters, 400)) for i in range(600)}
    seen: list[tuple[float, float | None]] = []

    async def cancelled() -> None:
        async with anyio.create_task_group() as group:

            async def progress(done: float, total: float | None, _: str | None) -> None:
                seen.append((done, total))
                if done:
                    group.cancel_scope.cancel()

            arguments = {"sequences": many, "output": "never.npz"}
            await agent.client.call_tool("embed", arguments, progress_callback=progress)

    agent.portal.call(cancelled)
    start = time.monotonic()
    agent("score_variants", sequence="MKTA", variants=["WT"])  # its turn comes when that stopped
    assert time.monotonic() - start < 5
    assert seen[0] == (0, 240_000)
    assert 0 < seen[-1][0] < 200_000
    assert seen == sorted(seen)
    assert not (agent.folder / "never.npz").exists()


def test__cancelled_calls__stop_between_batches(agent):
    check_cancellation(agent)


@pytest.mark.slow
def test__cancelled_calls__stop_between_batches_with_older_clients(tmp_path):
    with connected(process(tmp_path, "--cache", "none"), tmp_path, "legacy") as agent:
        check_cancellation(agent)


# ------------------------------------------------------------------ HTTP, and the command


@pytest.mark.slow
def test__http__needs_a_token_and_no_other_origin(tmp_path):
    token = new_token(tmp_path / "tokens.txt", "agent")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = process(tmp_path, "--http", f"127.0.0.1:{port}", "--tokens", f"{tmp_path}/tokens.txt")
    running = subprocess.Popen([server.command, *server.args], env=server.env)
    try:
        url = f"http://127.0.0.1:{port}/mcp"
        for _ in range(600):
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            running.poll()
            assert running.returncode is None
            time.sleep(0.05)
        headers = {"Authorization": f"Bearer {token}"}
        assert httpx2.post(url, json={}).status_code == 401
        assert httpx2.post(url, json={}, headers={"Authorization": "Bearer no"}).status_code == 401
        other = {**headers, "Origin": "http://evil.example"}
        assert httpx2.post(url, json={}, headers=other).status_code == 403
        large = httpx2.post(url, content=b"[" * (8 << 20), headers=headers)
        assert large.status_code == 413

        async def call() -> Any:
            async with (
                httpx2.AsyncClient(headers=headers) as client,
                Client(streamable_http_client(url, http_client=client)) as agent,
            ):
                return await agent.call_tool("list_models", {})

        assert anyio.run(call).structured_content["default"] == "mini"
    finally:
        running.terminate()
        running.wait(20)


@pytest.mark.slow
def test__stdout__holds_nothing_but_the_protocol(tmp_path):
    start = {"protocolVersion": "2025-06-18", "capabilities": {}}
    start["clientInfo"] = {"name": "test", "version": "1"}
    call = {"name": "embed", "arguments": {"sequences": ["M" * 30], "output": "x.npz"}}
    lines = [
        json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": start}),
        '{"jsonrpc": "2.0", "method": "notifications/initialized"}',
        *("", "no JSON", "[" * 100_000, '{"jsonrpc": "2.0", "id": 7}', "[1]", "\0"),
        json.dumps({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call}),
    ]
    server = process(tmp_path, "--cache", "none")
    command = [server.command, *server.args]
    with subprocess.Popen(
        command, env=server.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        running.stdin.write("\n".join(lines) + "\n")
        running.stdin.flush()
        answers: list[dict[str, Any]] = []
        while not any(answer.get("id") == 2 for answer in answers):
            answers.append(json.loads(running.stdout.readline()))
        running.stdin.close()
        answers += map(json.loads, running.stdout)
    assert not answers[-1]["result"].get("isError")
    assert (tmp_path / "x.npz").exists()


def test__http_without_tokens__answers_this_machine_only():
    app = create_app(AgentSettings(Settings(models={"mini": "mini"}, cache=None)))
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    with TestClient(app, base_url="http://127.0.0.1:8001") as client:
        assert client.post("/mcp", json=ping, headers={"Host": "evil.example"}).status_code == 421
        odd = {"Origin": "http://evil.example"}
        assert client.post("/mcp", json=ping, headers=odd).status_code == 403
        assert client.post("/mcp", content="x").status_code == 400


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--http", "0.0.0.0:8001"], "token new"),
        (["--http", "8001"], "HOST:PORT"),
        (["--http", "127.0.0.1:99999"], "HOST:PORT"),
        (["--tokens", "t.txt"], "--http"),
        (["--allow", "no-such-folder"], "no folder"),
        (["--model", "no-such-model"], "no model's name"),
        (["--device", "cpu,cuda"], "one device"),
    ],
)
def test__command__refuses_what_would_not_work(options, said):
    done = CliRunner().invoke(main, ["mcp", *options])
    assert done.exit_code == 2
    assert said in done.output


def test__command__names_the_extra_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp", None)
    done = CliRunner().invoke(main, ["mcp"])
    assert done.exit_code == 2
    assert "esm2-features[mcp]" in done.output


def test__without_folders__there_are_no_files():
    with pytest.raises(InputError, match="--allow"):
        Folders().to_read("a.fasta")


def test__weights_that_are_not_here__are_not_downloaded():
    with pytest.raises(InputError, match="--download"):
        AgentSettings().checkpoint_of(None)
