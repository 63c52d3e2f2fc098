"""Where data sets lie, how they are fetched (from a server on this machine), what is refused."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import pickle
import threading
import tracemalloc
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from cache_helpers import as_another_user, fork, succeeded

from esm2_features.datasets import files as _dataset_files
from esm2_features.datasets import sources as _dataset_sources
from esm2_features.datasets.files import (
    DataFile,
    Pin,
    Provider,
    data_folder,
    read_table,
    write_table,
)
from esm2_features.exceptions import DatasetError

TABLE = b"name,value\na,1.0\nb,2.5\n"
UPSTREAM = b",label,x\n0,a,1\n1,b,2.50\n"


def convert(parts: Any) -> Iterator[tuple[str, str]]:
    for line in parts[0].read_text().splitlines()[1:]:
        _, name, value = line.split(",")
        yield name, repr(float(value))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


FILE = DataFile(
    name="small.csv.gz",
    columns=("name", "value"),
    tables={"": Pin(len(TABLE), sha256(TABLE))},
    sources=(Provider("someone/data", "abc123", ("a folder/table.csv",)),),
    convert=convert,
    size="1 kB",
)
ARCHIVE = DataFile(
    name="all.zip",
    columns=FILE.columns,
    tables={"a.csv": FILE.tables[""]},
    sources=tuple(Provider("someone/data", revision, ("all.zip",)) for revision in ("old", "main")),
    convert=None,
    size="1 kB",
)


def archived(content: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, text in (("a.csv", content), ("something else.txt", b"")):
            entry = zipfile.ZipInfo(name)  # of 1980: bytes are the same in every process
            entry.compress_type = method
            archive.writestr(entry, text)
    return packed.getvalue()


def encrypted(packed: bytes) -> bytes:
    """Set the flag that says so, in both headers of the first file."""
    changed = bytearray(packed)
    for header, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        changed[packed.index(header) + flags] |= 1
    return bytes(changed)


def of_method(packed: bytes, method: int) -> bytes:
    """Say that the first file is packed by another method, in both headers."""
    changed = bytearray(packed)
    for header, at in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        changed[packed.index(header) + at] = method
    return bytes(changed)


DAMAGED = [
    (encrypted(archived(TABLE)), "is encrypted, password required"),
    (of_method(archived(TABLE), 12), "compression method 12 is not read"),  # bzip2
    (of_method(archived(TABLE), 14), "compression method 14 is not read"),  # LZMA
    (of_method(archived(TABLE), 99), "compression method 99 is not read"),
    (archived(TABLE)[:60], "File is not a zip file"),
]


def names_in(folder: Path) -> list[str]:
    """Names of the files in a folder, but for the locks, which may stay."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


class Web:
    """A server on this machine that stands for the host of the repositories."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []
        self.gates: dict[str, threading.Event] = {}  # what has the name in its path, waits
        asked, gates = self.asked, self.gates

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                for name, gate in list(gates.items()):
                    if name in self.path:
                        gate.wait(30)
                super().do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root)))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def put(self, source: Provider, contents: list[bytes]) -> None:
        for path, content in zip(source.paths, contents, strict=True):
            target = self.root / source.repository / source.revision / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def web(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    server = Web(tmp_path_factory.mktemp("web"))
    monkeypatch.setattr(_dataset_files, "HOST", server.url)
    monkeypatch.delenv("ESM2_FEATURES_OFFLINE")
    yield server
    server.close()


# ------------------------------------------------------------------ where they lie


def test__data_folder__is_the_callers_or_named_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.delenv("ESM2_FEATURES_HOME")
    monkeypatch.delenv("ESM2_FEATURES_DATA", raising=False)
    assert data_folder() == platformdirs.user_cache_path("esm2_features") / "datasets"
    monkeypatch.setenv("ESM2_FEATURES_HOME", str(tmp_path / "home"))
    assert data_folder() == tmp_path / "home" / "datasets"
    monkeypatch.setenv("ESM2_FEATURES_DATA", "~/data")
    assert data_folder() == Path.home() / "data"
    assert data_folder(tmp_path) == tmp_path


def test__a_file_that_is_there__is_read_without_a_network(tmp_path: Path):
    write_table(FILE.columns, iter([("a", "1.0"), ("b", "2.5")]), tmp_path / FILE.name)
    tmp_path.chmod(0o555)
    assert read_table(FILE, data_home=tmp_path) == [["a", "1.0"], ["b", "2.5"]]
    assert names_in(tmp_path) == [FILE.name]


def test__a_copy_packed_by_another_tool__is_as_good(tmp_path: Path):
    (tmp_path / FILE.name).write_bytes(gzip.compress(TABLE, compresslevel=1, mtime=12345))
    assert len(read_table(FILE, data_home=tmp_path)) == 2


def test__the_same_rows__make_the_same_file(tmp_path: Path):
    for name in ("one.csv.gz", "two.csv.gz"):
        write_table(FILE.columns, iter([("a", "1.0")]), tmp_path / name)
    assert (tmp_path / "one.csv.gz").read_bytes() == (tmp_path / "two.csv.gz").read_bytes()


# ------------------------------------------------------------------ fetching


def test__a_missing_file__is_fetched_converted_and_kept(tmp_path: Path, web: Web):
    web.put(FILE.sources[0], [UPSTREAM])
    home = tmp_path / "home" / "data"
    for _ in range(2):
        assert read_table(FILE, data_home=home) == [["a", "1.0"], ["b", "2.5"]]
    assert web.asked == ["/someone/data/abc123/a%20folder/table.csv"]
    assert gzip.decompress((home / FILE.name).read_bytes()) == TABLE
    assert names_in(home) == [FILE.name]


def test__a_download__says_what_comes_from_where(
    tmp_path: Path, web: Web, capfd: pytest.CaptureFixture[str]
):
    web.put(FILE.sources[0], [UPSTREAM])
    read_table(FILE, data_home=tmp_path)
    said = capfd.readouterr().err
    assert (
        "downloading small.csv.gz (1 kB) from a folder/table.csv of "
        "https://github.com/someone/data at abc123 to "
    ) in said


def test__fetches_that_overlap__give_their_own_tables(tmp_path: Path, web: Web):
    files = {
        name: replace(FILE, sources=(replace(FILE.sources[0], revision=name),)) for name in "ab"
    }
    threads, tables = {}, {}

    def read(name: str) -> None:
        tables[name] = read_table(files[name], data_home=tmp_path / name)

    for name, file in files.items():
        web.put(file.sources[0], [UPSTREAM])
        web.gates[f"/{name}/"] = threading.Event()
        threads[name] = threading.Thread(target=read, args=(name,))
        threads[name].start()
        while len(web.asked) < len(threads):
            threads[name].join(0.01)
            assert threads[name].is_alive()
    for name in files:
        web.gates[f"/{name}/"].set()
        threads[name].join()
    assert tables == {name: [["a", "1.0"], ["b", "2.5"]] for name in "ab"}


def test__processes_that_start_together__fetch_once(tmp_path: Path, web: Web):
    web.put(FILE.sources[0], [UPSTREAM])
    came: list[int] = []
    threads = [
        threading.Thread(target=lambda: came.append(len(read_table(FILE, data_home=tmp_path))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert came == [2] * 4
    assert len(web.asked) == 1


def test__parts_that_came_before_a_cut__are_not_fetched_again(tmp_path: Path, web: Web):
    source = Provider("someone/data", "abc123", ("table.csv", "more.csv"))
    file = replace(FILE, sources=(source,))
    web.put(replace(source, paths=("table.csv",)), [UPSTREAM])
    with pytest.raises(DatasetError, match=r"404.*is kept in .*small\.csv\.gz\.parts: run again"):
        read_table(file, data_home=tmp_path)
    web.put(source, [UPSTREAM, b""])
    web.asked.clear()
    assert len(read_table(file, data_home=tmp_path)) == 2
    assert web.asked == ["/someone/data/abc123/more.csv"]


def test__an_archive__is_taken_from_the_first_address_that_gives_the_right_tables(
    tmp_path: Path, web: Web
):
    other = replace(ARCHIVE.sources[0], revision="other")
    file = replace(ARCHIVE, sources=(ARCHIVE.sources[0], other, ARCHIVE.sources[1]))
    web.put(other, [archived(UPSTREAM)])
    web.put(file.sources[-1], [archived(TABLE)])
    assert read_table(file, "a.csv", data_home=tmp_path) == [["a", "1.0"], ["b", "2.5"]]
    assert [path.split("/")[3] for path in web.asked] == ["old", "other", "main"]


@pytest.mark.parametrize(("content", "why"), DAMAGED)
def test__a_damaged_archive__is_left_for_the_next_address(
    tmp_path: Path, web: Web, content: bytes, why: str, capfd: pytest.CaptureFixture[str]
):
    old, main = ARCHIVE.sources
    web.put(old, [content])
    web.put(main, [archived(TABLE)])
    assert len(read_table(ARCHIVE, "a.csv", data_home=tmp_path)) == 2
    assert why in capfd.readouterr().err
    assert (tmp_path / ARCHIVE.name).read_bytes() == archived(TABLE)
    assert names_in(tmp_path) == [ARCHIVE.name]


@pytest.mark.parametrize(("content", "why"), DAMAGED)
def test__a_damaged_archive__does_not_stay_when_the_address_mends(
    tmp_path: Path, web: Web, content: bytes, why: str
):
    file = replace(ARCHIVE, sources=ARCHIVE.sources[:1])
    web.put(file.sources[0], [content])
    with pytest.raises(DatasetError, match=rf"its table a\.csv cannot be unpacked: .*{why}"):
        read_table(file, "a.csv", data_home=tmp_path)
    assert names_in(tmp_path) == []
    web.put(file.sources[0], [archived(TABLE)])
    assert len(read_table(file, "a.csv", data_home=tmp_path)) == 2


@pytest.mark.parametrize(
    ("came", "why"),
    [
        (b",label,x\n0,a,1\n", f"the sha256 of the 17 bytes .*, expected {sha256(TABLE)}"),
        (b"<html>sign in</html>\n<p>\n", "not enough values to unpack"),
    ],
)
def test__another_content_than_the_pinned_one__is_refused_and_deleted(
    tmp_path: Path, web: Web, came: bytes, why: str
):
    web.put(FILE.sources[0], [came])
    with pytest.raises(DatasetError, match=f"not what small.csv.gz is made from: {why}") as caught:
        read_table(FILE, data_home=tmp_path)
    assert caught.value.path == str(tmp_path / FILE.name)
    assert caught.value.url == FILE.sources[0].urls()[0]
    assert names_in(tmp_path) == []
    web.put(FILE.sources[0], [UPSTREAM])
    assert len(read_table(FILE, data_home=tmp_path)) == 2


@pytest.mark.parametrize(
    ("came", "why"),
    [
        (b",wt_seq,mut_seq,ddg,pdb_id,mut_info,pos\n0,A\n", "float"),  # a row that is cut
        (b",wt_seq,mut_seq,ddg,pdb_id,mut_info,pos\n0," + b"A" * 200_000, "field larger than"),
    ],
)
def test__a_published_table_that_cannot_be_read__is_deleted(
    tmp_path: Path, web: Web, came: bytes, why: str
):
    file = _dataset_sources.S2648
    web.put(file.sources[0], [came])
    with pytest.raises(DatasetError, match=f"is not what {file.name} is made from: .*{why}"):
        read_table(file, data_home=tmp_path)
    assert names_in(tmp_path) == []


def test__without_a_network__the_error_says_where_from_and_where_to(
    tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch
):
    web.close()
    with pytest.raises(DatasetError, match=r"could not be fetched \(.*refused") as caught:
        read_table(FILE, data_home=tmp_path)
    for what in ("127.0.0.1", str(tmp_path / FILE.name), "ESM2_FEATURES_DATA", "data_home="):
        assert what in str(caught.value)
    assert FILE.sources[0].place() in str(caught.value)
    assert "Max retries" not in str(caught.value)
    assert caught.value.url == FILE.sources[0].urls()[0]


def test__offline__nothing_is_asked_and_the_remedy_named(
    tmp_path: Path, web: Web, monkeypatch: Any
):
    monkeypatch.setenv("ESM2_FEATURES_OFFLINE", "1")
    with pytest.raises(DatasetError, match="ESM2_FEATURES_OFFLINE forbids") as caught:
        read_table(FILE, data_home=tmp_path / "new")
    assert FILE.sources[0].place() in str(caught.value)
    assert str(tmp_path / "new" / FILE.name) in str(caught.value)
    assert web.asked == []
    assert not (tmp_path / "new").exists()


def test__download_if_missing_false__fetches_nothing(tmp_path: Path, web: Web):
    with pytest.raises(DatasetError, match="download_if_missing=False") as caught:
        read_table(FILE, data_home=tmp_path, download_if_missing=False)
    assert isinstance(caught.value, OSError)  # as scikit-learn's fetchers raise
    assert web.asked == []


def test__a_folder_that_cannot_be_made__is_an_error_with_a_remedy(tmp_path: Path, web: Web):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"cannot be written: .*ESM2_FEATURES_DATA"):
        read_table(FILE, data_home=tmp_path / "file")


def test__a_read_only_folder__is_an_error_with_a_remedy(web: Web):
    def work() -> None:
        as_another_user()
        with pytest.raises(DatasetError, match=r"cannot be written: .*ESM2_FEATURES_DATA"):
            read_table(FILE, data_home=Path("/"))

    assert succeeded(fork(work))


# ------------------------------------------------------------------ files that are not right


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            gzip.compress(TABLE.replace(b"2.5", b"2.6"), mtime=0),
            r"the sha256 of the 23 bytes that it has, unpacked, is .*, expected",
        ),
        (gzip.compress(TABLE, mtime=0)[:-12], "it cannot be unpacked: Compressed file ended"),
        (b"<html>", "it cannot be unpacked: Not a gzipped file"),
    ],
)
def test__a_file_that_is_not_the_pinned_one__is_refused_and_left(
    tmp_path: Path, content: bytes, said: str
):
    path = tmp_path / FILE.name
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=said) as caught:
        read_table(FILE, data_home=tmp_path)
    assert str(caught.value).startswith(f"{path} is not the published file: ")
    assert "Delete it and run again" in str(caught.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("content", "why"),
    [*DAMAGED, (archived(TABLE).replace(b"a.csv", b"b.csv"), "There is no item named 'a.csv'")],
)
def test__an_archive_that_is_damaged__is_refused_and_left(tmp_path: Path, content: bytes, why: str):
    path = tmp_path / ARCHIVE.name
    path.write_bytes(content)
    said = rf"all\.zip is not .*: its table a\.csv cannot be unpacked: .*{why}"
    with pytest.raises(DatasetError, match=said):
        read_table(ARCHIVE, "a.csv", data_home=tmp_path)
    assert path.read_bytes() == content


def test__a_damaged_byte_anywhere__never_gives_another_error_or_another_table(tmp_path: Path):
    whole = archived(TABLE)
    refused = 0
    for at in range(len(whole)):
        for damage in (0x01, 0xFF):
            content = bytearray(whole)
            content[at] ^= damage
            (tmp_path / ARCHIVE.name).write_bytes(content)
            try:
                assert len(read_table(ARCHIVE, "a.csv", data_home=tmp_path)) == 2
            except DatasetError:
                refused += 1
    assert refused > len(TABLE)


@pytest.mark.parametrize("file", [FILE, ARCHIVE])
def test__a_bomb__is_not_unpacked(tmp_path: Path, file: DataFile):
    zeros = bytes(64_000_000)
    packed = gzip.compress(zeros) if file is FILE else archived(zeros)
    (tmp_path / file.name).write_bytes(packed)
    del zeros
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError, match=f"has, unpacked, more than the {len(TABLE)} bytes"):
            read_table(file, next(iter(file.tables)), data_home=tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


def test__trouble_with_the_disk__is_not_called_a_wrong_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / ARCHIVE.name).write_bytes(archived(TABLE))

    def fail(self: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        read_table(ARCHIVE, "a.csv", data_home=tmp_path)
    assert not isinstance(caught.value, DatasetError)


def test__a_dataset_error__survives_a_pickle():
    error = pickle.loads(pickle.dumps(DatasetError("gone", path="a", url="b")))
    assert (str(error), error.path, error.url) == ("gone", "a", "b")


# ------------------------------------------------------------------ what is published

TOXICITY = """,sequence,label
0,GCGDINAACKSDCDCCGNSVTCDCYFTDCKCRESAIRKQF,1
1,MGIIYLILFLIVIYLLYRILDVLEQK,0
"""
S2648 = """,wt_seq,mut_seq,ddg,pdb_id,mut_info,pos
0,TSILDIRQGPKEPF,TSILDIRQAPKEPF,-2.4,1A43A,G156A,8
1,TSILDIRQGPKEPF,TSILDIRQGPKDPF,-4.55,1A43A,E159D,11
"""
MEGASCALE = """protein_id,mutation_pdb,mutation_fasta,DDG,RSA,secondary_structure
1aoy_A_7-75,QA1A,Q1A,0.0738893853524143,99.97,X
1aoy_A_7-75,EA2C,E2C,-0.9938979658358144,89.28,A"""  # these files end without a line break
MEGASCALE_FASTA = ">1aoy_A_7-75\nQEELVKAF\n"


def rows(convert: Any, folder: Path, *texts: str) -> list[tuple[str, ...]]:
    paths = []
    for i, text in enumerate(texts):
        paths.append(folder / str(i))
        paths[-1].write_bytes(text.encode())
    return list(convert(paths))


def test__toxicity__is_made_from_the_published_columns(tmp_path: Path):
    assert rows(_dataset_sources.TOXICITY.convert, tmp_path, TOXICITY) == [
        ("GCGDINAACKSDCDCCGNSVTCDCYFTDCKCRESAIRKQF", "1"),
        ("MGIIYLILFLIVIYLLYRILDVLEQK", "0"),
    ]


def test__s2648__is_made_from_the_published_columns(tmp_path: Path):
    assert rows(_dataset_sources.S2648.convert, tmp_path, S2648) == [
        ("1A43A", "G156A", "8", "TSILDIRQGPKEPF", "TSILDIRQAPKEPF", "-2.4"),
        ("1A43A", "E159D", "11", "TSILDIRQGPKEPF", "TSILDIRQGPKDPF", "-4.55"),
    ]


def test__megascale__is_made_from_tables_and_fasta_files(tmp_path: Path):
    assert rows(_dataset_sources.MEGASCALE.convert, tmp_path, MEGASCALE, MEGASCALE_FASTA) == [
        ("1aoy_A_7-75", "Q1A", "0.0738893853524143", "AEELVKAF"),
        ("1aoy_A_7-75", "E2C", "-0.9938979658358144", "QCELVKAF"),
        ("1aoy_A_7-75", "WT", "0.0", "QEELVKAF"),
    ]


def test__megascale__refuses_a_mutation_that_does_not_fit_its_wild_type(tmp_path: Path):
    with pytest.raises(ValueError, match="Q1A does not fit the wild type of 1aoy_A_7-75"):
        rows(_dataset_sources.MEGASCALE.convert, tmp_path, MEGASCALE, ">x\nKEELVKAF\n")


def test__every_source__is_pinned_to_a_commit_or_proved_by_digest():
    for file in (
        _dataset_sources.TOXICITY,
        _dataset_sources.S2648,
        _dataset_sources.MEGASCALE,
        _dataset_sources.GB1_SPLITS,
    ):
        assert all(len(pin.sha256) == 64 and pin.size > 0 for pin in file.tables.values())
        assert len(file.sources[0].revision) == 40
        assert all(url.startswith("https://") and " " not in url for url in file.sources[0].urls())


# ------------------------------------------------------------------ the real ones


def read(path: Path) -> list[list[str]]:
    return [line.split(",") for line in gzip.decompress(path.read_bytes()).decode().split()[1:]]


def test__the_published_toxicity_file__gives_the_pinned_table(
    tmp_path: Path, shared_data: Path, web: Web
):
    file = _dataset_sources.TOXICITY
    table = read(shared_data / file.name)
    text = ",sequence,label\n" + "".join(f"{i},{','.join(r)}\n" for i, r in enumerate(table))
    assert len(text) == 136112  # as the published file is long
    web.put(file.sources[0], [text.encode()])
    assert read_table(file, data_home=tmp_path) == table


def test__the_published_s2648_file__gives_the_pinned_table(
    tmp_path: Path, shared_data: Path, web: Web
):
    file = _dataset_sources.S2648
    table = read(shared_data / file.name)
    text = ",wt_seq,mut_seq,ddg,pdb_id,mut_info,pos\n" + "".join(
        f"{i},{wild},{mutant},{ddg},{protein},{mutation},{at}\n"
        for i, (protein, mutation, at, wild, mutant, ddg) in enumerate(table)
    )
    assert len(text) == 761449  # as the published file is long
    web.put(file.sources[0], [text.encode()])
    assert read_table(file, data_home=tmp_path) == table


def test__the_published_domains__give_the_pinned_table(tmp_path: Path, shared_data: Path, web: Web):
    file = _dataset_sources.MEGASCALE
    table = read(shared_data / file.name)
    tables: dict[str, list[str]] = {}
    fastas: dict[str, str] = {}
    for domain, mutation, ddg, sequence in table:
        lines = tables.setdefault(domain, ["protein_id,mutation_pdb,mutation_fasta,DDG,RSA"])
        if mutation == "WT":
            fastas[domain] = f">{domain}\n{sequence}\n"
        else:
            lines.append(f"{domain},{mutation[0]}A{mutation[1:]},{mutation},{ddg},0.0")
    contents = [
        text.encode() for domain in tables for text in ("\n".join(tables[domain]), fastas[domain])
    ]
    web.put(file.sources[0], contents)
    assert read_table(file, data_home=tmp_path) == table


def test__the_archive_of_gb1__is_kept_as_it_comes(tmp_path: Path, shared_data: Path, web: Web):
    file = _dataset_sources.GB1_SPLITS
    content = (shared_data / file.name).read_bytes()
    web.put(file.sources[-1], [content])
    assert len(read_table(file, "splits/sampled.csv", data_home=tmp_path)) == 8733
    assert (tmp_path / file.name).read_bytes() == content
