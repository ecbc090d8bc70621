"""The colours of axes and text on a light and on a dark background."""

from __future__ import annotations

from typing import Any

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"


def theme(ink: str, faint: str, grid: str, background: str) -> dict[str, Any]:
    """A Vega-Lite config. Text has at least the contrast of 4.5 : 1 that WCAG requires."""
    labels = {"labelColor": ink, "titleColor": ink, "labelFontSize": 12}
    return {
        "background": background,
        "font": FONT,
        "padding": 6,
        "view": {"stroke": None},
        "axis": {
            **labels,
            "titleFontSize": 12.5,
            "titleFontWeight": "normal",
            "gridColor": grid,
            "domainColor": faint,
            "tickColor": faint,
            "titlePadding": 8,
        },
        "legend": {
            **labels,
            "orient": "bottom",
            "direction": "horizontal",
            "columns": 3,
            "symbolSize": 110,
            "symbolStrokeWidth": 2,
            "labelLimit": 260,
        },
        "title": {"color": ink, "fontSize": 15, "anchor": "start", "offset": 12},
        "text": {"color": ink, "fontSize": 12},
        "rule": {"color": ink},
    }


THEMES = {
    "light": theme("#1f2328", "#6e7781", "#e4e7eb", "#ffffff"),
    "dark": theme("#e6edf3", "#8b949e", "#2d333b", "#14181d"),
}
