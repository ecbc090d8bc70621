"""What the experiments share: settings out of a recipe, and results as tables, figures and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from string import Formatter
from typing import Any

import pydantic
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from exporter.checkpoint.card.figure import Figure
from exporter.common.errors import BadInput
from exporter.common.rates import Rate
from exporter.evaluation.items import read_items
from exporter.prompts.sources import Prompt, Source, load_prompts
from exporter.prompts.splits import deduplicate
from exporter.recipes.recipe import read_toml
from exporter.reporting.page.render import render_png

EXPERIMENTS = ("membership", "ablation", "head_to_head", "gaussian", "conversation", "everywhere")
"""Modules of this package, each with `Settings` and `run(settings)`."""


class Experiment(pydantic.BaseModel):
    """Settings of any experiment. `data`: folder of the sources; `out`: of the results and of what is made for them.

    A source is that of `unskill export`, its path relative to `data`.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    title: str
    model: str
    data: Path
    out: Path
    seed: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    batch_size: int | None = None

    def place(self, spec: str) -> str:
        """A source where it lies."""
        beside = self.data / spec.split(",")[0]
        return str(self.data / spec) if beside.exists() else spec

    def prompts(self, spec: str, key: str, wording: str | None = None, distinct: str | None = None) -> list[Prompt]:
        """The prompts of a source without repetitions; key: of the recipe, for errors.

        wording: text in which `{column}` stands for the row's value and `{column:.500}` for its first 500 characters;
        distinct: column of it whose values are taken once, the first row of each.
        """
        if wording is None:
            return deduplicate(load_prompts(Source.parse(self.place(spec), key), key))
        names = list(dict.fromkeys(name for _, name, _, _ in Formatter().parse(wording) if name))
        items = read_items(self.place(spec), key, names)
        if distinct is not None:
            items = list({item.fields[distinct]: item for item in reversed(items)}.values())
        return deduplicate([Prompt(wording.format(**item.fields), item.source, item.row) for item in items])


def read_experiment(
    recipe: Path, data: Path, out: Path, given: Mapping[str, Any]
) -> tuple[Callable[[Any], Results], Experiment]:
    """The experiment of a recipe and its settings; `given`: values that win over the recipe's.

    Raises BadInput where the recipe cannot be read, or has a key or a value that the experiment does not.
    """
    content = read_toml(recipe, "RECIPE")
    name = content.pop("experiment", None)
    if name not in EXPERIMENTS:
        raise BadInput(f"RECIPE {recipe.name}: experiment = {name!r} is none of {', '.join(EXPERIMENTS)}")
    module = import_module(f"examples.paper.{name}")
    try:
        settings = module.Settings(**{**content, "data": data, "out": out, **given})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(each) for each in first["loc"])
        raise BadInput(f"RECIPE {recipe.name}: {where}: {first['msg']}") from error
    return module.run, settings


@dataclass(frozen=True)
class Table:
    """Rows under the names of their columns. `note`: what is to be known to read it, the limits among it."""

    title: str
    rows: Sequence[Mapping[str, str]]
    note: str = ""

    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def markdown(self) -> str:
        names = self.columns()
        lines = [names, ["---"] * len(names), *([row.get(name, "") for name in names] for row in self.rows)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join(part for part in (f"**{self.title}**", table, self.note) if part)


@dataclass(frozen=True)
class Results:
    """What an experiment found. `numbers`: everything of it, for results.json, without times and paths, so that it is
    the same twice; `timings`: in a file of their own."""

    settings: Experiment
    numbers: Mapping[str, Any]
    tables: Sequence[Table]
    figures: Sequence[Figure] = field(default_factory=tuple)
    timings: Table | None = None

    def write(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        settings = self.settings.model_dump(mode="json", exclude={"data", "out", "model"})
        whole = {
            "model": Path(self.settings.model).name,
            "settings": settings,
            "results": self.numbers,
            "figures": [asdict(figure) for figure in self.figures],
        }
        text = json.dumps(whole, indent=2, ensure_ascii=False, default=asdict) + "\n"
        (out / "results.json").write_text(text, encoding="utf-8")
        (out / "tables.md").write_text("\n\n".join(each.markdown() for each in self.tables) + "\n", encoding="utf-8")
        if self.timings is not None:
            (out / "timings.md").write_text(self.timings.markdown() + "\n", encoding="utf-8")
        for figure in self.figures:
            (out / f"{figure.id}.png").write_bytes(render_png(figure))

    def show(self, console: Console) -> None:
        for each in (*self.tables, *filter(None, [self.timings])):
            drawn = RichTable(title=each.title, title_justify="left", caption=each.note, caption_justify="left")
            for name in each.columns():
                drawn.add_column(escape(name))
            for row in each.rows:
                drawn.add_row(*(escape(row.get(name, "")) for name in each.columns()))
            console.print(drawn)


def counted(found: Rate) -> str:
    """A rate as it stands in a table: hits, total and the exact 95 % interval."""
    return f"{found.hits}/{found.total} [{found.low:.1%}, {found.high:.1%}]" if found.total else "-"
