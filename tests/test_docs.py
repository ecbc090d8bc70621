"""The pages: every relative link and anchor leads somewhere, README is short, and no page of docs/ is out of reach."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted(DOCS.glob("*.md")),
    *sorted(path for path in (ROOT / "examples").rglob("*.md") if "node_modules" not in path.parts),
]


def inline_tokens(page: Path) -> Iterator[tuple[str, list[Token]]]:
    """The type of each block of text, such as heading_open, and what is in it."""
    tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))
    for before, token in pairwise(tokens):
        if token.type == "inline":
            yield before.type, token.children or []


def links(page: Path) -> list[str]:
    """Targets of the links and images within the project."""
    found = [
        str(token.attrs.get("href", token.attrs.get("src", "")))
        for _, tokens in inline_tokens(page)
        for token in tokens
        if token.type in ("link_open", "image")
    ]
    return [target for target in found if not re.match("[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """What GitHub, and the site of `make docs`, call the headings of a page."""
    texts = [
        "".join(token.content for token in tokens) for kind, tokens in inline_tokens(page) if kind == "heading_open"
    ]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    found = []
    for target in links(page):
        name, _, anchor = unquote(target).partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.is_file() or (anchor and anchor not in anchors(file)):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_what_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Two `words`, here\n")
    page = tmp_path / "page.md"
    good = "[a](other.md) [b](other.md#two-words-here) [c](https://a.org/x) [d](#one)"
    page.write_text(f"# One\n\n{good}\n\n| [e](gone.md) |\n|---|\n| [f](other.md#gone) [g](#gone) ![h](gone.png) |\n")
    assert broken(page) == ["gone.md", "other.md#gone", "#gone", "gone.png"]


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_every_page_is_on_the_map(page: Path) -> None:
    """And in the site's own, which `make docs` does not build in the tests."""
    assert page.name == "index.md" or page.name in links(DOCS / "index.md")
    assert f": docs/{page.name}\n" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
