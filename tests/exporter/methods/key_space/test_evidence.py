"""Evidence of the key spaces: answers shared by several skills, and the decision when alpha comes out far."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from exporter.methods.key_space.calibration import AnswerScores
from exporter.methods.key_space.evidence import Evidence, Scored, decide, gather
from exporter.models.files import find_base
from exporter.models.loading import load
from exporter.models.prober import Prober
from exporter.pipeline.prepared import prepare
from exporter.prompts.formats import Query
from exporter.prompts.skills import read_skills
from exporter.prompts.sources import Prompt
from exporter.prompts.splits import ForgetParts, RetainParts
from exporter.recipes.settings import SkillSettings
from tests.tiny import FORGET, RETAIN, one_skill, one_thread, tiny_model, write_prompts


def test_answers_that_skills_share_are_scored_for_each(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", chat=False)
    sources = write_prompts(tmp_path / "f.jsonl", FORGET), write_prompts(tmp_path / "r.jsonl", RETAIN)
    settings = one_skill(base, tmp_path / "out", *sources, everyday=False, dtype="float32", prompt_template="{prompt}")
    loaded = load(find_base(str(base)), "float32", "cpu")
    formatter, (plan,) = prepare(read_skills(settings, lambda text: None), loaded, settings, lambda text: None)
    half = len(plan.retain.choose) // 2
    # Two key spaces, fitted on different prompts; what must be left alone is shared in part.
    one = plan.forget, plan.retain
    other = (
        ForgetParts(plan.forget.calibrate, *(plan.forget.choose, plan.forget.fit, plan.forget.report)),
        RetainParts(plan.retain.choose[half:], plan.retain.report),
    )
    prober = Prober(loaded)
    with one_thread():
        together = gather(prober, formatter, [one, other])
        alone = [gather(prober, formatter, [each])[0] for each in (one, other)]
    for ours, theirs in zip(together, alone, strict=True):
        for name, tensor in ours.tensors().items():
            # Batches have other rows and widths, so the last bits differ.
            torch.testing.assert_close(tensor, theirs.tensors()[name], rtol=1e-4, atol=1e-4)
    assert not torch.equal(together[0].retain_report.answer, together[1].retain_report.answer)


def evidence(calibrate: Tensor, harmless: Tensor) -> Evidence:
    """Of one layer: forget scores 1 to 5 in all other parts."""

    def queries(name: str, count: int) -> tuple[Query, ...]:
        return tuple(Query(Prompt(f"{name} {row}", name, row), "plain", (1,)) for row in range(count))

    scores = torch.linspace(1, 5, 20).double()[:, None]
    forget = ForgetParts(*(queries("forget", count) for count in (20, 20, len(calibrate), 20)))
    retain = RetainParts(queries("retain", len(harmless)), queries("retain", len(harmless)))
    answers = AnswerScores(harmless[:, None], harmless[:, None])
    unseen, none = Scored(forget.fit, scores), Scored((), torch.zeros(0, 1).double())
    parts: dict[str, Any] = {"choose": scores, "calibrate": calibrate[:, None], "report": scores}
    parts |= {"choose_unseen": unseen, "report_unseen": none, "retain_others": none}
    return Evidence(
        forget, retain, cast("Any", None), forget.fit, **parts, retain_choose=answers, retain_report=answers
    )


def test_an_alpha_that_also_holds_harmless_prompts_is_a_fault() -> None:
    skill = SkillSettings(name="skill", method="ksd", forget=("f",), max_false_block=0.01)
    harmless = torch.linspace(10, 40, 200).double()
    near = torch.linspace(1, 6, 80).double()
    decision = decide(evidence(near, harmless), skill)
    assert decision.separates and decision.fault is None
    # The calibration part alone has prompts far out: what the choose parts promised does not hold.
    far = torch.cat([near[:76], torch.full((4,), 25.0)])
    decision = decide(evidence(far, harmless), skill)
    assert not decision.separates and decision.alpha.value == 25.0
    assert decision.fault is not None and "alpha 25.0" in decision.fault and "100 of 200 harmless" in decision.fault
