"""What the benches share: an export beside its base, pairs of timings, a line of the table."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, PreTrainedModel

from exporter.checkpoint import writing as checkpoint
from exporter.checkpoint.findings import Findings, Plan
from exporter.checkpoint.summary import Summary
from exporter.methods.key_space import evidence
from exporter.methods.key_space import hypercubes as key_space
from exporter.methods.outcome import SkillOutcome
from exporter.models.files import find_base
from exporter.models.prober import Prober
from exporter.pipeline.run import export
from tests.tiny import FORGET, RETAIN, one_skill, write_prompts

remarks = Console(stderr=True)


@dataclass(frozen=True)
class Row:
    """One line of the table: a value of either side per pair, in `unit`."""

    what: str
    against: str
    bare: list[float]
    ours: list[float]
    unit: str
    aim: str = ""

    def cells(self) -> list[str]:
        ratios = [ours / bare for bare, ours in zip(self.bare, self.ours, strict=True)]
        values = [f"{median(side):,.2f} {self.unit}" for side in (self.bare, self.ours)]
        spread = f"{min(ratios):.3f} - {max(ratios):.3f}"
        return [self.what, self.against, *values, f"{median(ratios):.3f}", spread, self.aim]


def interleave(arms: dict[str, Callable[[], object]], pairs: int, before: Callable[[], object] = int) -> dict:
    """Seconds of each arm in each of `pairs` rounds, after one round that warms up; `before` runs outside of them."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(-1, pairs):
        for name in list(arms)[:: -1 if turn % 2 else 1]:
            before()
            start = time.perf_counter()
            arms[name]()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


class Subject:
    """BASE, a quick export of it, and what that export was made from; each made when first asked for."""

    def __init__(self, base: Path, work: Path) -> None:
        self.base, self.work, self.out = base, work, work / "exported"

    @cached_property
    def arguments(self) -> tuple[Plan, Findings, Summary, Any]:
        """What the export gave to write_checkpoint, without the folder. Writes `out`."""
        sources = []
        for prompts, count in ((FORGET, 40), (RETAIN, 24)):  # of one to six sentences, in all formats
            texts = [" ".join((prompts * 2)[start : start + 1 + start % 6]) for start in range(count)]
            sources.append(f"'{write_prompts(self.work / f'{count}-prompts.jsonl', texts)}'")
        layer = find_base(str(self.base)).config["num_hidden_layers"] * 3 // 5  # 18 of 30
        chosen = {"everyday": False, "dtype": "float32", "force": True, "quiet": True}
        settings = one_skill(self.base, self.out, *sources, layer=layer, alpha=12.0, **chosen)
        with (
            # How well it separates is not asked here; hypercubes there are as many as in an export of many prompts.
            mock.patch.object(evidence, "ANSWER_TOKENS", 2),
            mock.patch.object(key_space, "FIT_PER_FORMAT", 2),
            mock.patch("exporter.pipeline.run.write_checkpoint", wraps=checkpoint.write_checkpoint) as writer,
        ):
            export(settings, remarks.print)
        return writer.call_args.args[1:]

    @cached_property
    def prober(self) -> Prober:
        return Prober(self.arguments[1].loaded)

    @property
    def outcome(self) -> SkillOutcome:
        return self.arguments[1].outcomes[0]

    @cached_property
    def adjusted(self) -> PreTrainedModel:
        """The base with one per cent of its neurons adjusted."""
        out = self.work / "adjusted"
        sources = (f"'{self.work / f'{count}-prompts.jsonl'}'" for count in (40, 24))
        assert self.arguments  # the prompts are there
        chosen = {"method": "na", "beta": 1.0, "score": "effect-size", "everyday": False, "dtype": "float32"}
        export(one_skill(self.base, out, *sources, **chosen, force=True, quiet=True), remarks.print)
        return AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, trust_remote_code=True).eval()

    @cached_property
    def models(self) -> tuple[PreTrainedModel, PreTrainedModel]:
        """The base and the exported model, both loaded as their users do."""
        assert self.arguments
        base = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        ours = AutoModelForCausalLM.from_pretrained(self.out, dtype=torch.float32, trust_remote_code=True)
        return base.eval(), ours.eval()
