"""All rows, and the page of the documentation that says what comes of each."""

from __future__ import annotations

from pathlib import Path

from tests.odd_inputs.flags import FLAGS
from tests.odd_inputs.models import MODELS
from tests.odd_inputs.prompt_files import PROMPT_FILES
from tests.odd_inputs.rows import Row

DOCS = Path(__file__).parents[2] / "docs" / "odd-inputs.md"
ROWS: dict[str, list[Row]] = {"model": MODELS, "prompt file": PROMPT_FILES, "flag": FLAGS}
HEAD = """# Odd inputs, and what comes of each

Every row is run through `unskill export` on a tiny random model. What must come out is stated before: exit 2 in one
line within {seconds} seconds of CPU time, before any forward, no file made or changed; or a checkpoint that passes
`unskill verify`, was made of the prompts that were meant, refuses forget prompts, and where it refuses nothing has the
base's logits, bit by bit. `make odd-inputs` runs all {count} rows and writes this page; `tests/odd_inputs/` has the
inputs.{failing}
"""
FAILING = " Of {count} something else comes out, which stands beside them."


def markdown() -> str:
    """The page."""
    from tests.odd_inputs.run import SECONDS

    count = sum(map(len, ROWS.values()))
    failing = sum(bool(row.fails) for rows in ROWS.values() for row in rows)
    parts = [HEAD.format(seconds=SECONDS, count=count, failing=FAILING.format(count=failing) if failing else "")]
    for kind, rows in ROWS.items():
        parts.append(f"\n## {kind.capitalize()}s\n\n| input | what comes out |\n|---|---|\n")
        parts += [f"| {cell(row.name)} | {cell(str(row.out))}{failing_cell(row)} |\n" for row in rows]
    return "".join(parts)


def failing_cell(row: Row) -> str:
    return f" **but**: {cell(row.fails)}" if row.fails else ""


def cell(text: str) -> str:
    """Text in a table of Markdown, with nothing in it that formats."""
    for letter in "\\|<>*_`[]":
        text = text.replace(letter, f"\\{letter}")
    return text.replace("\n", " ")
