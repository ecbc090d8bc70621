"""The model card: what the checkpoint does, how well, and what it is not."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from exporter.checkpoint.card.figure import Figure
from exporter.checkpoint.card.metadata import card_metadata, is_dataset, title
from exporter.checkpoint.card.text import PLACEHOLDER, markdown
from exporter.checkpoint.sentences import RATES, any_skill_line, promise, warning_lines
from exporter.checkpoint.summary import SkillSummary, SourceRates, StoredRate, Summary
from exporter.checkpoint.verdict import verdict
from exporter.common.rates import rate
from exporter.models.files import Base
from exporter.recipes.settings import ExportSettings

METHODS = {
    "ksd": "Key Space Detection: refused",
    "na": "Neuron Adjust: made unlikely",
    "na+ksd": "Neuron Adjust and Key Space Detection: made unlikely, and refused",
    "sp": "Selective Pruning: neurons set to zero",
}


def render_card(
    base: Base,
    settings: ExportSettings,
    summary: Summary,
    code: Path,
    figures: Sequence[Figure] = (),
    mlx: str | None = None,
) -> str:
    """README.md of a checkpoint, with the base's licence where its card names one.

    code: its modeling file; figures: what lies in figures/ (see `draw_figures`); mlx: name of its file for MLX.
    """
    data = card_metadata(base, settings.base_model, summary)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = resources.files("exporter.checkpoint.card").joinpath("card.md.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        card_data=data.to_yaml(),
        here=PLACEHOLDER,
        title=title(base.name, summary.skills),
        base=base,
        settings=settings,
        summary=summary,
        refused=refused(summary.skills),
        code=code.name,
        mlx=mlx,
        family_class=re.findall(r"^class Unskill(\w+ForCausalLM)\(", code.read_text(encoding="utf-8"), re.MULTILINE)[
            0
        ],
        code_sha256=hashlib.sha256(code.read_bytes()).hexdigest(),
        figures=lambda prefix: [figure for figure in figures if figure.id.startswith(prefix)],
        licence=licence(data.to_dict()),
        methods=METHODS,
        rates=RATES,
        exp=math.exp,
        markdown=markdown,
        share=share,
        total=total,
        sources=sources,
        promise=promise,
        any_skill_line=any_skill_line,
        verdict=verdict,
        warnings=warning_lines(summary),
    )


def licence(data: Mapping[str, Any]) -> str | None:
    """The licence as Markdown, with a link to its text where that is a file of the checkpoint or on the web."""
    if "license" not in data:
        return None
    named = data["license"] if isinstance(data["license"], list) else [data["license"]]
    text = ", ".join(map(markdown, named))
    if isinstance(name := data.get("license_name"), str):
        text += f" ({markdown(name)})"
    link = data.get("license_link")
    if isinstance(link, str) and re.match(r"https?://|[^:]+\Z", link):
        text += f", [its text]({quote(link, safe=':/?#&=%+,;@~')})"
    return text


def refused(skills: Sequence[SkillSummary]) -> str:
    """The skills whose prompts are refused, in words."""
    if len(skills) == 1:
        return "the skill"
    *some, last = [markdown(skill.name) for skill in skills if skill.key_space] or [""]
    return f"{', '.join(some)} and {last}" if some else last


def total(found: SourceRates) -> StoredRate:
    """A rate over all sources together."""
    parts = [formats["all"] for formats in found.values()]
    over_all = rate(sum(each.hits for each in parts), sum(each.total for each in parts))
    return StoredRate.model_validate(over_all.as_json())


def share(found: StoredRate) -> str:
    """A rate with its interval: 39 of 40 (97.5 %; 86.8 - 99.9 %)."""
    if found.rate is None:
        return "none measured"
    interval = f"{100 * found.low:.1f} - {100 * found.high:.1f} %"
    return f"{found.hits} of {found.total} ({100 * found.rate:.1f} %; {interval})"


def sources(skill: SkillSummary, *flags: str) -> str:
    """A skill's sources of these flags as Markdown, those of the Hub as links."""
    found = []
    for each in skill.sources:
        name = markdown(each.label)
        if is_dataset(each):
            name = f"[{name}](https://huggingface.co/datasets/{each.name}/tree/{each.fingerprint})"
        found += [f"{name} ({each.prompts})"] if each.flag in flags else []
    return ", ".join(found)
