"""The page: one HTML file that holds the numbers, the charts and the code that draws them."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

import vl_convert
from jinja2 import Environment
from markupsafe import Markup

from exporter.checkpoint.card.figure import Figure
from exporter.reporting.charts import chart, for_png
from exporter.reporting.themes import THEMES

PNG_SCALE = 2
BUNDLE = "window.vegaEmbed = vegaEmbed;"


def figures_of(numbers: dict[str, Any]) -> list[Figure]:
    """Every figure of a report, in the order of the page."""
    found = [numbers["matrix"], *(figure for skill in numbers["skills"] for figure in skill["figures"])]
    return [Figure(**figure) for figure in found if figure]


def render_png(figure: Figure) -> bytes:
    """A figure with its title on white, drawn without a browser."""
    return bytes(vl_convert.vegalite_to_png(for_png(figure), scale=PNG_SCALE, allowed_base_urls=[]))


def render_page(numbers: dict[str, Any]) -> str:
    """report.html. Its Content-Security-Policy lists its scripts by sha256, so that no prompt can run as one."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "ensure_ascii": False}
    folder = resources.files("exporter.reporting.page")
    scripts = [script(vl_convert.javascript_bundle(BUNDLE)), script(folder.joinpath("report.js").read_text("utf-8"))]
    template = environment.from_string(folder.joinpath("report.html.jinja").read_text("utf-8"))
    return template.render(
        report=numbers,
        specifications={figure.id: chart(figure) for figure in figures_of(numbers)},
        themes=THEMES,
        style=Markup(folder.joinpath("report.css").read_text("utf-8")),
        scripts=[Markup(each) for each in scripts],
        hashes=[sha256(each) for each in scripts],
    )


def script(code: str) -> str:
    """JavaScript, escaped for a script element."""
    return code.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def sha256(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
