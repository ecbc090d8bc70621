"""Colours of the charts: told apart by everybody, on both backgrounds."""

from __future__ import annotations

import itertools

import numpy as np

from exporter.reporting.charts import COLOURS, DASHES, SHAPES
from exporter.reporting.themes import THEMES

# Linear RGB as it is seen without red, green or blue cones: Machado, Oliveira and Fernandes (2009), severity 1.
BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour: str) -> np.ndarray:
    value = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(colour: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB, D65."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ colour.clip(0, 1)
    root = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def test_series_are_told_apart_by_the_colour_blind() -> None:
    assert len(set(COLOURS)) == len(set(DASHES)) == len(set(SHAPES)) == 6  # and never by colour alone
    for name, matrix in BLINDNESS.items():
        seen = [lab(np.array(matrix) @ linear(colour)) for colour in COLOURS]
        for (one, first), (two, second) in itertools.combinations(zip(COLOURS, seen, strict=True), 2):
            assert np.linalg.norm(first - second) > 12, (name, one, two)  # a difference of 2 is seen side by side


def test_text_stands_out_from_both_backgrounds() -> None:
    """Contrast as WCAG 2 has it: 4.5 for text, and 2 at least for lines, which differ by dashes and shapes too."""

    def luminance(colour: str) -> float:
        return float(linear(colour) @ [0.2126, 0.7152, 0.0722])

    def contrast(one: str, two: str) -> float:
        low, high = sorted((luminance(one), luminance(two)))
        return (high + 0.05) / (low + 0.05)

    for theme in THEMES.values():
        assert contrast(theme["axis"]["labelColor"], theme["background"]) > 4.5
        assert all(contrast(colour, theme["background"]) > 2 for colour in COLOURS)
