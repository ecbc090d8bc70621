"""How many prompts and answers a skill with regions is fitted and judged on, which its promises follow from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """Most queries, each a prompt in one kind of turn, and most answers.

    fit, report: queries of a part: forget prompts, prompts to be answered, messages after a refusal. tried: those of
    the fit part, half of each side, that are run through every layer to choose one. answers: harmless prompts of
    either part whose answers are looked at, at every position. placed: other answers of the fit part, and positions
    inside them, that the places are told from.
    """

    fit: tuple[int, int, int]
    report: tuple[int, int, int]
    tried: int
    answers: int
    placed: tuple[int, int]


EFFORTS = {
    "quick": Effort((700, 1000, 400), (200, 250, 120), 300, 40, (40, 500)),
    "normal": Effort((2000, 2600, 1000), (360, 600, 240), 500, 100, (60, 800)),
    "thorough": Effort((2800, 3200, 1400), (600, 1000, 360), 1000, 150, (60, 800)),
}
"""A fit solves a system of as many equations as it has rows."""
