"""Figures as Vega-Lite charts, by their kind. Colours are Okabe and Ito's; series differ by dash and shape too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import altair as alt

from exporter.checkpoint.card.figure import Figure
from exporter.reporting.key_space import (
    ANSWERS,
    EVERYDAY_PROMPTS,
    EXPECTED,
    FORGET,
    MEASURED,
    NEAR_MISSES,
    OTHERS,
    RETAIN,
    UNSEEN,
)
from exporter.reporting.themes import THEMES

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ((1, 0), (8, 3), (3, 2), (8, 3, 2, 3), (4, 2), (12, 4))
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
# The same prompts look the same in every figure; other series take colours, dashes and shapes in order.
PLACES = {FORGET: 0, RETAIN: 1, EVERYDAY_PROMPTS: 2, ANSWERS: 3, OTHERS: 4, UNSEEN: 5, MEASURED: 0, EXPECTED: 1}
PLACES |= {NEAR_MISSES: 1}

HEIGHT, PNG_WIDTH = 300, 680

Drawn = alt.LayerChart | alt.FacetChart
"""Altair's type of a layered chart; none here has facets."""


def chart(figure: Figure) -> dict[str, Any]:
    """The Vega-Lite specification of a figure, as wide as its container; its rows are the data set "rows"."""
    drawn = CHARTS[figure.kind](figure)
    specification = drawn.properties(width="container", height=height(figure)).to_dict()
    specification["datasets"] = {"rows": figure.rows, "rules": figure.rules}
    specification["autosize"] = {"type": "fit-x", "contains": "padding"}
    specification["description"] = f"{figure.title}. {figure.caption}"
    del specification["config"]  # of altair; the page and the PNG bring their own
    return specification


def for_png(figure: Figure) -> dict[str, Any]:
    """The same with its title, on white, for a model card."""
    return chart(figure) | {"title": figure.title, "config": THEMES["light"], "width": PNG_WIDTH}


def height(figure: Figure) -> int:
    if figure.kind == "shares":
        return 60 + 14 * len(figure.rows) + 8 * len({row["by"] for row in figure.rows})
    return 60 + 44 * len({row["prompts"] for row in figure.rows}) if figure.kind in ("matrix", "methods") else HEIGHT


def lines(figure: Figure, x: alt.X, y: alt.Y, tooltip: Sequence[alt.Tooltip], *, step: bool = False) -> Drawn:
    """One line for each series, with marks unless it goes by steps, and the figure's rules. Series differ by colour
    and dash, and where there are marks by shape."""
    names = list(dict.fromkeys(row["series"] for row in figure.rows))
    known = all(name in PLACES for name in names)
    places = [PLACES[name] if known else place % len(COLOURS) for place, name in enumerate(names)]

    def by_series(channel: Callable[..., Any], values: Sequence[Any]) -> Any:
        scale = alt.Scale(domain=names, range=[values[place] for place in places])
        legend = alt.Legend(title=None, symbolType="stroke") if step else alt.Legend(title=None)
        return channel("series:N", scale=scale, sort=None, legend=legend)

    base = alt.Chart(alt.NamedData("rows")).encode(
        x=x, y=y, color=by_series(alt.Color, COLOURS), tooltip=list(tooltip)
    )
    layers: list[alt.Chart] = [
        base.mark_line(strokeWidth=2.2, interpolate="step-after" if step else "linear", clip=True).encode(
            strokeDash=by_series(alt.StrokeDash, DASHES)
        )
    ]
    if not step:
        layers.append(base.mark_point(filled=True, size=55, opacity=1).encode(shape=by_series(alt.Shape, SHAPES)))
    return alt.layer(*layers, *rules(figure))


def rules(figure: Figure) -> list[alt.Chart]:
    """A labelled line at each of the figure's rules: upright, or with "across" level."""
    layers: list[alt.Chart] = []
    for place, rule in enumerate(figure.rules):
        base = alt.Chart(alt.NamedData("rules")).transform_filter(alt.datum.label == rule["label"])
        if rule.get("across", False):
            base = base.encode(y=alt.Y("value:Q"))
            text = base.mark_text(align="left", dx=5, baseline="middle").encode(x=alt.value("width"), text="label:N")
        else:
            base = base.encode(x=alt.X("value:Q"))
            # Above the plot, where no line of data is.
            text = base.mark_text(align="center", dy=-6 - 14 * place, baseline="bottom")
            text = text.encode(y=alt.value(0), text="label:N")
        layers += [base.mark_rule(strokeWidth=1.4, strokeDash=[5, 4], opacity=0.8), text]
    return layers


SHARES: dict[str, Any] = {"title": "prompts inside", "axis": alt.Axis(format=".0%"), "scale": alt.Scale(domain=[0, 1])}


def layer_axis(figure: Figure) -> alt.X:
    last = max(row["layer"] for row in figure.rows)
    return alt.X(
        "layer:Q",
        title="layer",
        axis=alt.Axis(format="d", values=list(range(last + 1)), labelOverlap="greedy", grid=False),
        scale=alt.Scale(domain=[0, max(1, last)], nice=False, padding=12),
    )


Tip = tuple[str, str, str]
"""Of a tooltip: field with its type, title, format."""


def tips(*fields: Tip) -> list[alt.Tooltip]:
    return [alt.Tooltip(name, title=title, format=form or alt.Undefined) for name, title, form in fields]


SERIES, LAYER = ("series:N", "prompts", ""), ("layer:Q", "layer", "d")


def over_alpha(figure: Figure) -> Drawn:
    values = [row["alpha"] for row in figure.rows]
    # Scores of harmless prompts go up to hundreds of deviations; those of the forget set are around ten.
    scale = alt.Scale(type="log" if min(values) > 0 else "linear", domain=[min(values), max(values)], nice=False)
    return lines(
        figure,
        alt.X(
            "alpha:Q",
            title="alpha: half side of the hypercube, in deviations",
            scale=scale,
            axis=alt.Axis(format="~g", tickCount=8),
        ),
        alt.Y("share:Q", **SHARES),
        tips(SERIES, ("alpha:Q", "alpha", ".3f"), ("share:Q", "inside", ".1%"), ("n:Q", "prompts in all", "d")),
        step=True,
    )


def by_layer(field: str, *more: Tip, series: str = "prompts", **axis: Any) -> Callable[[Figure], Drawn]:
    """A chart over layers. more: tooltips beside series and layer; axis: of `alt.Y`."""

    def draw(figure: Figure) -> Drawn:
        return lines(
            figure, layer_axis(figure), alt.Y(f"{field}:Q", **axis), tips(("series:N", series, ""), LAYER, *more)
        )

    return draw


def separation(figure: Figure) -> Drawn:
    scale = alt.Scale(domain=[min(0.9, *(row["share"] for row in figure.rows)), 1], nice=True)
    return by_layer("share", ("share:Q", "area", ".4f"), title="area under the ROC curve", scale=scale)(figure)


def trade_off(figure: Figure) -> Drawn:
    # The base model itself, at 1, and the limit are always visible.
    marks = [1.0, *(row["ratio"] for row in figure.rows), *(r["value"] for r in figure.rules if r.get("across"))]
    scale = alt.Scale(domain=[min(marks), max(marks)], nice=True)
    return lines(
        figure,
        alt.X(
            "beta:Q",
            title="beta: share of neurons changed, in %",
            scale=alt.Scale(type="log", nice=False, padding=14),
            axis=alt.Axis(format="~g", values=sorted({row["beta"] for row in figure.rows}), grid=False),
        ),
        alt.Y("ratio:Q", title="perplexity, times the base's", scale=scale),
        tips(
            ("series:N", "score", ""),
            ("beta:Q", "beta, %", "~g"),
            ("ratio:Q", "perplexity, times", ".4f"),
            ("forget_rise:Q", "forget rise, nats", "+.4f"),
            ("retain_rise:Q", "retain rise, nats", "+.4f"),
            ("everyday_rise:Q", "everyday rise, nats", "+.4f"),
            ("upper:Q", "upper end, nats", "+.4f"),
        ),
    )


def bars(figure: Figure) -> Drawn:
    bar = (
        alt.Chart(alt.NamedData("rows"))
        .mark_bar(color=COLOURS[0], binSpacing=1)
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
            y=alt.Y("neurons:Q", title="neurons", axis=alt.Axis(tickMinStep=1, format="~s")),
            tooltip=tips(("layer:O", "layer", ""), ("neurons:Q", "neurons", "d"), ("share:Q", "of the layer", ".1%")),
        )
    )
    return alt.layer(bar)


def shares(figure: Figure) -> Drawn:
    """Bars beside each other for the series of each group, with their intervals."""
    groups, names = (list(dict.fromkeys(row[name] for row in figure.rows)) for name in ("by", "series"))
    base = alt.Chart(alt.NamedData("rows")).encode(
        y=alt.Y("by:N", sort=groups, title=None, axis=alt.Axis(labelLimit=150)),
        yOffset=alt.YOffset("series:N", sort=names),
        tooltip=tips(
            ("by:N", "asked", ""),
            ("series:N", "prompts", ""),
            ("share:Q", "blocked", ".1%"),
            ("hits:Q", "queries", "d"),
            ("total:Q", "of", "d"),
            ("low:Q", "95 % interval from", ".1%"),
            ("high:Q", "to", ".1%"),
        ),
    )
    colours = alt.Scale(domain=names, range=[COLOURS[PLACES[name]] for name in names])
    bar = base.mark_bar().encode(
        x=alt.X("share:Q", title="blocked", axis=alt.Axis(format=".0%"), scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("series:N", scale=colours, sort=None, legend=alt.Legend(title=None)),
    )
    return alt.layer(bar, base.mark_rule(strokeWidth=1.2).encode(x="low:Q", x2="high:Q"))


def cells(columns_are: str, share_is: str) -> Callable[[Figure], Drawn]:
    """A chart of counts in rows and columns, shaded by their share."""

    def draw(figure: Figure) -> Drawn:
        order = list(dict.fromkeys(row["prompts"] for row in figure.rows))
        columns = list(dict.fromkeys(row["by"] for row in figure.rows))
        base = (
            alt.Chart(alt.NamedData("rows"))
            .transform_calculate(label="datum.hits + ' of ' + datum.total")
            .encode(
                x=alt.X(
                    "by:N",
                    sort=columns,
                    title=columns_are,
                    axis=alt.Axis(labelAngle=0, orient="top", labelLimit=120),
                ),
                y=alt.Y("prompts:N", sort=[*columns, *order], title=None, axis=alt.Axis(labelLimit=130)),
                tooltip=tips(("prompts:N", "prompts", ""), ("by:N", columns_are, ""), ("share:Q", share_is, ".1%")),
            )
        )
        # One hue, light to dark: legible without colours, and the number stands in every cell.
        shade = alt.Color(
            "share:Q",
            scale=alt.Scale(domain=[0, 1], range=["#eaf3fa", "#0072B2"]),
            legend=alt.Legend(title=share_is, format=".0%", gradientLength=160),
        )
        squares = base.mark_rect(stroke="#8b949e", strokeWidth=0.5).encode(color=shade)
        text = base.mark_text(fontSize=13).encode(
            text="label:N",
            color=alt.condition("datum.share > 0.55", alt.value("#ffffff"), alt.value("#1f2328")),
        )
        return alt.layer(squares, text)

    return draw


FROM_ZERO = alt.Scale(zero=True, nice=True)
SIDE, DISTANCE, MEDIAN = "mean log10 of the side length", "Kolmogorov-Smirnov distance", "median score, deviations"
CHARTS: dict[str, Callable[[Figure], Drawn]] = {
    "alpha": over_alpha,
    "layers": by_layer(
        "share",
        ("share:Q", "inside", ".1%"),
        ("hits:Q", "prompts", "d"),
        ("total:Q", "of", "d"),
        ("low:Q", "95 % interval from", ".1%"),
        ("high:Q", "to", ".1%"),
        ("alpha:Q", "alpha", ".2f"),
        **SHARES,
    ),
    "separation": separation,
    "volume": by_layer(
        "log10_side", ("log10_side:Q", SIDE, ".3f"), title=SIDE, scale=alt.Scale(zero=False, nice=True)
    ),
    "gaussian": by_layer("distance", ("distance:Q", DISTANCE, ".3f"), title=DISTANCE, scale=FROM_ZERO),
    "median": by_layer("score", ("score:Q", MEDIAN, ".2f"), title=MEDIAN, scale=FROM_ZERO),
    "neuron_gaussian": by_layer(
        "distance",
        ("distance:Q", "median", ".3f"),
        ("high:Q", "nine of ten neurons below", ".3f"),
        ("neurons:Q", "neurons", "d"),
        series="texts",
        title=DISTANCE,
        scale=FROM_ZERO,
    ),
    "trade_off": trade_off,
    "neurons": bars,
    "shares": shares,
    "matrix": cells("inside the hypercubes of", "share inside"),
    "methods": cells("method", "share"),
}
