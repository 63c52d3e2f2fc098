"""How much code there is to read, and how far a call goes through it.

python benchmarks/code_size.py           lines by folder, contracts, imports between folders
python benchmarks/code_size.py --way     frames, files and changes of file of a transform
"""

from __future__ import annotations

import ast
import re
import sys
import tempfile
import tokenize
import tomllib
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "esm2_features"
WORDS = {"say, says, said, told": r"(say|says|said|told)", "found": "found"}
"""Words that should be rare in names and docstrings."""

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Way(NamedTuple):
    """What `ESM2Transformer.transform` passes through before the first attention call."""

    stack: list[str]  # file of each frame of the package on the stack
    entered: list[str]  # file of each function of the package that was called, in order

    @property
    def changes(self) -> int:
        """How often the next call is of another file."""
        return sum(one != other for one, other in pairwise(self.entered))


def count(path: Path) -> Counter[str]:
    """Count lines, lines of docstrings and of comments, and words in names and docstrings."""
    text = path.read_text(encoding="utf-8")
    texts: list[ast.Constant] = []
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if not isinstance(node, _Documented) or not body:
            continue
        # Besides docstrings, texts behind an assignment: they document constants.
        behind = [b for a, b in pairwise(body) if isinstance(a, ast.Assign | ast.AnnAssign)]
        texts += [
            statement.value
            for statement in (body[0], *behind)
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        ]
    with path.open("rb") as file:
        tokens = list(tokenize.tokenize(file.readline))
    comments = [t for t in tokens if t.type == tokenize.COMMENT and t.line.lstrip()[:1] == "#"]
    counts = Counter(
        files=1,
        lines=len(text.splitlines()),
        docstrings=sum((one.end_lineno or 0) - one.lineno + 1 for one in texts),
        comments=len(comments),
    )
    prose = [str(one.value) for one in texts] + [
        t.string for t in tokens if t.type == tokenize.NAME
    ]
    for name, word in WORDS.items():
        pattern = re.compile(rf"(?<![a-z]){word}(?![a-z])", re.IGNORECASE)
        counts[name] = sum(len(pattern.findall(one)) for one in prose)
    return counts


def imported(path: Path) -> set[str]:
    """List the folders and modules at the top of the package from which a module imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("esm2_features."):
            names.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "esm2_features":
            names.update(alias.name for alias in node.names)
    return {
        name for name in names if (PACKAGE / name).exists() or (PACKAGE / f"{name}.py").exists()
    }


def way(cache: str | None) -> Way:
    """Follow a `transform` of two sequences to the first attention call."""
    from esm2_features import ESM2Transformer

    class Arrived(Exception):  # noqa: N818 - the end of the way
        """Raised in the first call of the attention module."""

    transformer = ESM2Transformer("mini", cache=cache).fit(["MKTAYI"])
    transformer.transform(["MKTAYI"])  # weights are loaded, modules imported
    found = Way([], [])

    def watch(frame: FrameType | None, event: str, _: object) -> None:
        assert frame is not None
        name = frame.f_code.co_filename
        if event != "call" or not name.startswith(str(PACKAGE)):
            return
        if frame.f_code.co_name in ("<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>"):
            return
        found.entered.append(name)
        if Path(name).stem == "attention":
            while frame is not None:
                if frame.f_code.co_filename.startswith(str(PACKAGE)):
                    found.stack.append(frame.f_code.co_filename)
                frame = frame.f_back
            raise Arrived

    sys.setprofile(watch)
    try:
        transformer.transform(["MKTAYIAKQRQISFVKSHFSRQ", "GSHMVLSEGEWQLVLHVWAKVEADVAGH"])
    except Arrived:
        pass
    finally:
        sys.setprofile(None)
    return found


def print_lines() -> None:
    """Print what there is to read, by folder."""
    folders: dict[str, Counter[str]] = {}
    imports: dict[str, set[str]] = {}
    longest = []
    for path in sorted(PACKAGE.rglob("*.py")):
        inner = path.relative_to(PACKAGE)
        counts = count(path)
        longest.append((counts["lines"], inner.as_posix()))
        folders.setdefault(inner.parts[0] if len(inner.parts) > 1 else ".", Counter()).update(
            counts
        )
        name = inner.parts[0].removesuffix(".py")
        imports.setdefault(name, set()).update(imported(path) - {name})
    folders["all"] = sum(folders.values(), Counter())
    print(f"{'folder':16} {'files':>5} {'lines':>6} {'docstrings':>10} {'comments':>8} {'rest':>6}")
    for folder, counts in folders.items():
        rest = counts["lines"] - counts["docstrings"] - counts["comments"]
        print(
            f"{folder:16} {counts['files']:5} {counts['lines']:6} {counts['docstrings']:10} "
            f"{counts['comments']:8} {rest:6}"
        )
    for name in WORDS:
        print(f"{name}, in names and docstrings: {folders['all'][name]}")
    print("longest modules:", *[f"{name} {lines}" for lines, name in sorted(longest)[:-6:-1]])
    print("imports between folders and modules at the top:", sum(map(len, imports.values())))
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    contracts = text[text.index("[[tool.importlinter.contracts]]") :].splitlines()
    kept = tomllib.loads(text)["tool"]["importlinter"]["contracts"]
    print(f"{len(contracts)} lines of {len(kept)} import contracts")


def print_way() -> None:
    """Print how far a `transform` goes, without a cache and with one."""
    with tempfile.TemporaryDirectory() as folder:
        for name, cache in (("without a cache", None), ("with a cache", folder)):
            one = way(cache)
            print(
                f"{name}: {len(one.stack)} frames in {len(set(one.stack))} files on the stack, "
                f"{len(set(one.entered))} files entered, {one.changes} changes of file"
            )


if __name__ == "__main__":
    print_way() if "--way" in sys.argv else print_lines()
