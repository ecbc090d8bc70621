"""How many prompts and answers a skill with regions is fitted and judged on, which its promises follow from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """Most queries, each a prompt in one kind of turn, and most answers.

    fit, calibrate, report: queries of a part: forget prompts, prompts to be answered, messages after a refusal. tried:
    those of the fit part that are run through every layer to choose one. answers: harmless prompts of the calibration
    part, and as many of the report part, whose answers are looked at, at every position. placed: such answers of the
    fit part, and positions inside them, that the places are told from.
    """

    fit: tuple[int, int, int]
    calibrate: tuple[int, int, int]
    report: tuple[int, int, int]
    tried: int
    answers: int
    placed: tuple[int, int]


EFFORTS = {
    "quick": Effort((500, 450, 150), (200, 400, 100), (150, 250, 80), 400, 40, (24, 300)),
    "normal": Effort((1000, 900, 300), (300, 900, 160), (250, 500, 120), 700, 100, (40, 500)),
    "thorough": Effort((1500, 1300, 400), (450, 1500, 250), (450, 1000, 250), 1000, 150, (60, 800)),
}
"""With positions inside answers a fit has at most 4,000 rows; a bound on false blocks takes more prompts than one on
what is blocked."""
