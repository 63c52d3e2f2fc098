"""Checks of the built pages that Sphinx does not make.

    python docs/_check.py docs/_build/html

The exit code is 1 if a link is dead, a picture has no alt text, or a page or a style sheet loads
something from another host. Requests that scripts make while they run are not checked.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOADS = ("src", "srcset", "poster", "data", "background")
"""Attributes whose targets a browser loads; of ``link``, it is ``href``."""
_FOREIGN_STYLE = re.compile(r"(?:url\(\s*|@import\s+)[\"']?((?:https?:)?//[^)\"'\s]+)")
_NO_LOAD = {"canonical", "index", "search", "next", "prev", "author", "copyright", "top", "up"}


@dataclass
class Page(HTMLParser):
    """The links, pictures and other files of one page."""

    path: Path
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    without_text: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the targets of a tag."""
        given = {name: value or "" for name, value in attrs}
        self.ids.update(given[name] for name in ("id", "name") if given.get(name))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag == "img" and not given.get("alt", "").strip():
            self.without_text.append(given.get("src", "?")[:80])
        targets = [given[name] for name in _LOADS if given.get(name) and name != "srcset"]
        targets += [one.split()[0] for one in given.get("srcset", "").split(",") if one.strip()]
        if tag == "link" and not _NO_LOAD.intersection(given.get("rel", "").split()):
            targets.append(given.get("href", ""))
        self.loads += filter(None, targets)


def faults(site: Path) -> Iterator[str]:
    """Yield a sentence for each fault in the folder of a site."""
    files = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    pages = {path.resolve(): Page(path) for path in files}
    if not pages:
        yield f"{site} holds no pages."
    for page in pages.values():
        for fault in _faults_of(page, pages):
            yield f"{page.path.relative_to(site)}: {fault}"
    for sheet in [*site.rglob("*.css"), *files]:
        for target in _FOREIGN_STYLE.findall(sheet.read_text("utf-8")):
            yield f"{sheet.relative_to(site)}: loads {target} from another host."


def _faults_of(page: Page, pages: dict[Path, Page]) -> Iterator[str]:
    for source in page.without_text:
        yield f"the picture {source} has no alt text."
    for target in page.loads:
        if urlsplit(target).netloc:
            yield f"loads {target} from another host."
        elif not target.startswith("data:") and not _place(page.path, target).is_file():
            yield f"loads {target}, which is not there."
    for link in page.links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        place = _place(page.path, link)
        if not place.is_file():
            yield f"the link {link} leads nowhere."
        elif place in pages and parts.fragment and unquote(parts.fragment) not in pages[place].ids:
            yield f"{link} leads to no such place on its page."


def _place(page: Path, link: str) -> Path:
    path = unquote(urlsplit(link).path)
    return (page.parent / path).resolve() if path else page.resolve()


if __name__ == "__main__":
    sentences = list(faults(Path(sys.argv[1])))
    sys.stdout.writelines(f"{sentence}\n" for sentence in sentences)
    sys.exit(1 if sentences else 0)
