"""Generated parts of the site: tables, the help of the command line, files of the repository.

They are written to ``docs/_generated``, from which pages include them, and notebooks are copied to
``docs/examples``, with a picture of each for its card. All are made anew with each build, and not
committed.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
from click.testing import CliRunner

from esm2_features import available_models
from esm2_features._cache.keys import KEY_BYTES
from esm2_features._cache.reports import readable
from esm2_features._inputs.options import POOLINGS
from esm2_features.cli import main

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
GENERATED = DOCS / "_generated"
EXAMPLES = DOCS / "examples"

_CHECKSUM_BYTES = 4  # of each vector, beside its key
_HELP_WIDTH = 88

PAGES = {
    "README.md": "/index.md",
    "CHANGELOG.md": "/project/changelog.md",
    "CONTRIBUTING.md": "/project/contributing.md",
    "benchmarks/README.md": "/reference/benchmarks.md",
    "benchmarks/": "/reference/benchmarks.md",
    "esm2_features/data/MINI.md": "/project/mini.md",
}
"""Pages of the site that stand for files of the repository; those in docs/ stand for themselves."""


def write_all() -> None:
    """Write all generated files; leave those alone that have not changed."""
    texts = {
        "models.md": models(),
        "files.md": files(),
        "cache_sizes.md": cache_sizes(),
        "commands.md": commands(),
        "benchmarks.md": benchmarks(),
        **{
            name: relinked(ROOT / source)
            for name, source in (
                ("changelog.md", "CHANGELOG.md"),
                ("contributing.md", "CONTRIBUTING.md"),
                ("mini.md", "esm2_features/data/MINI.md"),
            )
        },
    }
    GENERATED.mkdir(exist_ok=True)
    for name, text in texts.items():
        path = GENERATED / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    copy_notebooks()


def copy_notebooks() -> None:
    """Copy the committed notebooks into the folder of the pages."""
    wanted = {path.name: path for path in (ROOT / "notebooks").glob("*.ipynb")}
    for old in EXAMPLES.glob("*.ipynb"):
        if old.name not in wanted:
            old.unlink()
    for name, path in wanted.items():
        shutil.copy2(path, EXAMPLES / name)
        (GENERATED / f"{path.stem}.png").write_bytes(card_picture(path))


def card_picture(notebook: Path) -> bytes:
    """Take the picture out of the cell of a notebook that has the tag ``card``."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    [cell] = [cell for cell in cells if "card" in cell["metadata"].get("tags", [])]
    pictures = [output.get("data", {}).get("image/png") for output in cell["outputs"]]
    [picture] = filter(None, pictures)
    return base64.b64decode("".join(picture))


# ------------------------------------------------------------------ tables


def models() -> str:
    """Tabulate the models: shapes and sizes."""
    rows = [
        (
            f"`{card.name}`",
            card.parameters,
            card.architecture.layers,
            card.architecture.dim,
            card.architecture.heads,
            "included" if card.weights is None else readable(card.weights.bytes),
            readable(4 * card.architecture.parameters),
        )
        for card in available_models()
    ]
    header = ("name", "parameters", "layers", "dim", "heads", "download", "memory, float32")
    return _table(header, rows, left=1)


def files() -> str:
    """Tabulate the official files: addresses and digests."""
    rows = [
        (f"<{file.url}>", readable(file.bytes), f"`{file.sha256}`" if file.sha256 else "none known")
        for card in available_models()
        for file in (card.weights, card.regression)
        if file is not None
    ]
    return _table(("file", "size", "SHA-256"), rows, left=3)


def cache_sizes() -> str:
    """Tabulate the size of the vectors of one sequence in the cache."""
    rows = []
    for card in available_models():
        one = 4 * card.architecture.dim + KEY_BYTES + _CHECKSUM_BYTES
        layers = card.architecture.layers + 1
        sizes = (one, one * layers, one * layers * len(POOLINGS))
        rows.append((f"`{card.name}`", *map(readable, sizes)))
    header = (
        "model",
        "one layer, one pooling",
        "all layers, one pooling",
        "all layers, all poolings",
    )
    return _table(header, rows, left=1)


def _table(header: tuple[str, ...], rows: list[tuple[object, ...]], *, left: int) -> str:
    """Format a Markdown table whose first columns are text, and the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    lines = [header, rule, *rows]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)


# ------------------------------------------------------------------ the command line


def commands() -> str:
    """Format the ``--help`` of every command, with a heading for each."""
    return "\n".join(
        f"{'#' * (1 + len(path))} {' '.join(path)}\n\n```text\n{_help(path[1:])}```\n"
        for path in _paths(main, ("esm2-features",))
    )


def _paths(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            yield from _paths(command.commands[name], (*path, name))


def _help(arguments: tuple[str, ...]) -> str:
    result = CliRunner().invoke(
        main,
        [*arguments, "--help"],
        prog_name="esm2-features",
        terminal_width=_HELP_WIDTH,
        max_content_width=_HELP_WIDTH,
        catch_exceptions=False,
    )
    if result.exit_code:
        raise RuntimeError(f"{' '.join(arguments)} --help failed: {result.output}")
    return result.output


# ------------------------------------------------------------------ included files


def benchmarks() -> str:
    """Format the README of the benchmarks, and the pictures that it does not show itself."""
    text = relinked(ROOT / "benchmarks" / "README.md")
    pictures = sorted((ROOT / "benchmarks" / "results").glob("*.png"))
    others = [path for path in pictures if path.name not in text]
    if not others:
        return text
    shown = "\n".join(
        f"```{{figure}} {_from_pages(path)}\n:alt: {_caption(path)}\n\n{_caption(path)}\n```\n"
        for path in others
    )
    return f"{text.rstrip()}\n\n## Pictures\n\n{shown}"


def _caption(picture: Path) -> str:
    """Describe a picture by the file name that `benchmarks.plot` gives it."""
    words = picture.stem.split("_")
    if words[0] == "compare":
        mix = " ".join(words[2:])
        return f"This library and others on the mix {mix} ({words[1].upper()})."
    return f"{' '.join(words).capitalize()}."


def relinked(path: Path) -> str:
    """Read a Markdown file of the repository, and let its links lead to pages of this site.

    Pictures are shown from where they are; a link to a file that is not a page becomes its text.
    """

    def relink(match: re.Match[str]) -> str:
        bang, text, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        place, _, anchor = target.partition("#")
        full = (path.parent / place).resolve()
        if bang:
            return f"![{text}]({_from_pages(full)})"
        name = full.relative_to(ROOT).as_posix() + ("/" if full.is_dir() else "")
        is_page = name.startswith("docs/") and full.suffix in (".md", ".rst")
        page = name.removeprefix("docs") if is_page else PAGES.get(name)
        if page is None:
            return text
        return f"[{text}]({page}{'#' + anchor if anchor else ''})"

    parts = re.split(r"(^```.*?^```$)", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    prose = r"(!?)\[([^\]]+)\]\(([^)\s]+)\)"
    return "".join(
        part if part.startswith("```") else re.sub(prose, relink, part) for part in parts
    )


def _from_pages(path: Path) -> str:
    """Path of a file, relative to a page; pages that include generated text are in a folder."""
    return f"../../{path.relative_to(ROOT).as_posix()}"
