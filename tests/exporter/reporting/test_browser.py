"""The page in a real browser: the numbers that it has drawn, in light and dark, wide and on a phone."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.several import HOSTILE, Several

pytestmark = pytest.mark.slow

Reported = Callable[..., tuple[Path, dict[str, Any]]]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DARK = "--blink-settings=preferredColorScheme=0"


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """browse(address, flags...) is what the browser, without a network, prints."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is there")

    def run(address: str, *flags: str) -> str:
        profile = tmp_path_factory.mktemp("profile")
        command = [found, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        command += [f"--user-data-dir={profile}", "--virtual-time-budget=60000", "--hide-scrollbars"]
        done = subprocess.run([*command, *flags, address], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


def plotted(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="plotted">(.*?)</script>', page, re.DOTALL)
    assert found, "the page has drawn nothing"
    return json.loads(html.unescape(found.group(1)))


def markup(page: str) -> str:
    return re.sub("<script.*?</script>", "", page, flags=re.DOTALL)


def inverse(scale: dict[str, Any], position: float) -> float:
    """The value that a scale puts at a position, in pixels."""
    share = (position - scale["range"][0]) / (scale["range"][1] - scale["range"][0])
    low, high = scale["domain"]
    if scale["type"] == "log":
        return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return low + share * (high - low)


FIELDS = {
    "alpha": ("alpha", "share"),
    "layers": ("layer", "share"),
    "separation": ("layer", "share"),
    "volume": ("layer", "log10_side"),
    "gaussian": ("layer", "distance"),
    "median": ("layer", "score"),
    "neuron_gaussian": ("layer", "distance"),
    "trade_off": ("beta", "ratio"),
}


def test_what_is_drawn_is_what_report_json_says(
    several: Several, reported: Reported, browse: Callable[..., str]
) -> None:
    out, _ = reported(several.checkpoint, base=str(several.base), **several.sources)
    numbers = json.loads((out / "report.json").read_text())
    page = browse(f"file://{out}/report.html#plotted", "--dump-dom", "--window-size=1000,900")
    # Prompts are text, never markup.
    assert "<title>checkpoint: report</title>" in page and "<img" not in markup(page)
    assert html.escape(HOSTILE, quote=False) in page
    drawn = plotted(page)
    figures = [numbers["matrix"], *(each for skill in numbers["skills"] for each in skill["figures"])]
    assert drawn.keys() == {figure["id"] for figure in figures}
    for figure in figures:
        found = drawn[figure["id"]]
        rows = [{name: row[name] for name in figure["rows"][0]} for row in found["rows"]]
        assert rows == figure["rows"], figure["id"]
        if figure["kind"] not in FIELDS:
            assert len(found["marks"]) == len(figure["rows"])  # bars, cells
            continue
        # Not the data alone: every mark is where its numbers belong.
        x, y = FIELDS[figure["kind"]]
        lines = [mark for mark in found["marks"] if mark["type"] == "line"]
        assert len(lines) == len(figure["rows"])
        for mark in found["marks"]:
            for scale, axis, field in ((found["scales"]["x"], "x", x), (found["scales"]["y"], "y", y)):
                span = abs(scale["domain"][1] - scale["domain"][0])
                assert inverse(scale, mark[axis]) == pytest.approx(mark["datum"][field], abs=1e-6 * span)
        names = (x, y, "series")
        assert {tuple(mark["datum"][name] for name in names) for mark in lines} == {
            tuple(row[name] for name in names) for row in figure["rows"]
        }


def figure_count(numbers: dict[str, Any]) -> int:
    return 1 + sum(len(skill["figures"]) for skill in numbers["skills"])


@pytest.mark.parametrize("flags", [(), (DARK,)])
def test_light_and_dark(
    several: Several, reported: Reported, browse: Callable[..., str], flags: tuple[str, ...]
) -> None:
    """The page's own background and that of its charts follow the reader's system, and text stands out from it."""
    out, numbers = reported(several.checkpoint)
    page = browse(f"file://{out}/report.html", "--dump-dom", *flags)
    background, ink = ("rgb(20, 24, 29)", "#e6edf3") if flags else ("rgb(255, 255, 255)", "#1f2328")
    charts = re.findall(r"<svg.*?</svg>", markup(page), re.DOTALL)
    assert len(charts) == figure_count(numbers)
    for chart in charts:
        assert f"background-color: {background}" in chart and ink in chart
    titles = re.findall(r"<h3>(.*?)</h3>", page)
    assert "Share of prompts inside the hypercube by layer" in titles


PHONE = """<!doctype html><iframe width="390" height="844" srcdoc="{page}"></iframe><script>
setTimeout(() => {{
  const page = document.querySelector("iframe").contentDocument.documentElement;
  const widths = [...page.querySelectorAll(".chart svg")].map((chart) => chart.getBoundingClientRect().width);
  const tables = [...page.querySelectorAll(".wide")].map((table) => table.scrollWidth - table.clientWidth);
  document.body.textContent = JSON.stringify({{ width: page.clientWidth, scroll: page.scrollWidth, widths, tables }});
}}, 20000);
</script>"""


def test_on_a_phone_nothing_is_wider_than_the_screen(
    several: Several, reported: Reported, browse: Callable[..., str], tmp_path: Path
) -> None:
    out, numbers = reported(several.checkpoint)
    # In a frame as wide as a phone: a window of its own is never narrower than 500 pixels.
    (tmp_path / "phone.html").write_text(PHONE.format(page=html.escape((out / "report.html").read_text())))
    page = browse(f"file://{tmp_path}/phone.html", "--dump-dom", "--window-size=800,900")
    found = json.loads(re.search(r"<body>(.*?)</body>", page, re.DOTALL).group(1))
    assert found["width"] == found["scroll"] <= 390
    assert len(found["widths"]) == figure_count(numbers)
    assert found["tables"] and not any(found["tables"])  # all columns are seen
    assert all(300 < width <= found["width"] for width in found["widths"])
    picture = tmp_path / "phone.png"
    browse(f"file://{out}/report.html", f"--screenshot={picture}", "--window-size=390,844", DARK)
    assert picture.read_bytes().startswith(b"\x89PNG")
