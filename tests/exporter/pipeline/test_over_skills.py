"""What the skills of one checkpoint block together."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from exporter.checkpoint.reading import read_stored
from exporter.checkpoint.sentences import any_skill_line
from exporter.checkpoint.summary import StoredRate
from exporter.cli.tables.export import print_summary
from exporter.common.rates import Rate, rate
from exporter.methods.key_space.hypercubes import KeySpace
from exporter.methods.key_space.regions import Regions
from exporter.methods.moments import Gaussian
from exporter.methods.outcome import SkillOutcome
from exporter.models.prober import KeyProber
from exporter.pipeline.over_skills import blocked_by_any
from exporter.pipeline.run import export
from exporter.prompts.formats import PLAIN, Query
from exporter.prompts.packaged import EVERYDAY
from exporter.prompts.packaged_skills import packaged_skill
from exporter.prompts.sources import Prompt
from exporter.recipes.recipe import merged_settings
from exporter.recipes.settings import SkillSettings
from exporter.reporting.collect import collect
from tests.several import THIRD
from tests.tiny import FORGET, RETAIN, TEMPLATE, one_thread, tiny_model, write_prompts


def query(number: int, source: str = EVERYDAY, row: int = 1) -> Query:
    """A query whose only token is its key."""
    return Query(Prompt(f"prompt {number}", source, row), PLAIN, (number,))


def queries(*numbers: int) -> list[Query]:
    return [query(number) for number in numbers]


def plan(retain: Sequence[Query], report: Sequence[Query], forget: Sequence[Query], settings: dict[str, Any]) -> Any:
    skill = SkillSettings(("f",), ("r",), **settings)
    sides = {"forget": [each.prompt for each in forget], "retain": [each.prompt for each in retain]}
    prompts = SimpleNamespace(skill=skill, **sides)
    return SimpleNamespace(skill=skill, prompts=prompts, retain=SimpleNamespace(report=report))


def half_space(
    below: int,
    fit: Sequence[Query],
    report: Sequence[Query],
    left_out: Sequence[int] = (),
    forget: Sequence[Query] = (),
    **settings: Any,
) -> SkillOutcome:
    """A skill that blocks keys below a number. left_out: what it would block of its fit part without a fit on it."""
    regions = Regions(
        0, ("prompt",), -torch.ones(1, 1), torch.tensor([-below]), torch.zeros(1, 1), -torch.ones(1).double()
    )

    def scored(part: Sequence[Query], hits: Sequence[int]) -> Any:
        return SimpleNamespace(answered=torch.tensor([0.0 if each.ids[0] in hits else 1.0 for each in part]))

    detection = SimpleNamespace(
        regions=regions,
        threshold=0.5,
        parts=SimpleNamespace(fit=SimpleNamespace(answered=fit), report=SimpleNamespace(answered=report)),
        scores={"fit": scored(fit, left_out), "report": scored(report, range(below))},
    )
    return SkillOutcome(plan([*fit, *report], report, forget, settings), detection=cast("Any", detection))


def hypercube(alpha: float, report: Sequence[Query], **settings: Any) -> SkillOutcome:
    """A skill that blocks keys up to alpha."""
    keys = KeySpace((PLAIN,), (Gaussian(2, torch.zeros(1, 1).double(), torch.ones(1, 1).double()),))
    own = torch.tensor([[float(each.ids[0])] for each in report])
    evidence = SimpleNamespace(
        keys=keys, retain_parts=SimpleNamespace(report=report), retain_report=SimpleNamespace(prompt=own)
    )
    decision = SimpleNamespace(layer=0, alpha=SimpleNamespace(value=alpha))
    known = {"evidence": cast("Any", evidence), "decision": cast("Any", decision)}
    return SkillOutcome(plan(report, report, (), {"region": "hypercube"} | settings), **known)


class Keys:
    """Stands for a prober of one layer; `asked`: what it was given."""

    layers, key_size = 1, 1

    def __init__(self) -> None:
        self.asked: list[int] = []

    def last_token_keys(self, given: Sequence[Query], what: str, layer: int = 0) -> Iterator[tuple[list[int], Tensor]]:
        self.asked += [each.ids[0] for each in given]
        for row in reversed(range(len(given))):
            yield [row], torch.tensor([[[float(given[row].ids[0])]]])


def counted(*outcomes: SkillOutcome) -> tuple[Rate | None, list[int]]:
    """What was found, and which queries were run for it."""
    keys = Keys()
    return blocked_by_any(cast("KeyProber", keys), outcomes), sorted(keys.asked)


def test_one_skill_has_nothing_to_add_up() -> None:
    one = half_space(2, [], queries(1, 2, 3))
    assert counted(one)[0] is None
    assert counted(one, SkillOutcome(plan([], [], [], {"method": "sp"})))[0] is None


def test_a_prompt_counts_once_and_by_scores_that_no_fit_on_it_made() -> None:
    one = half_space(2, queries(10, 11, 12, 13), queries(*range(10)))
    # Its regions would block all that it was fitted on; where each is left out, prompt 2 alone.
    other = half_space(12, queries(0, 1, 2), queries(5, 10, 11, 12, 13), left_out=[2], everyday=False)
    found, asked = counted(one, other)
    assert found == rate(len({0, 1, 2, 5, 10, 11} | {3, 4, 6, 7, 8, 9}), 14) and asked == [3, 4, 6, 7, 8, 9]
    # Everyday prompts that a skill leaves out belong to it.
    other = half_space(12, queries(0, 1, 2), queries(5, 10, 11, 12, 13), left_out=[2])
    assert counted(one, other) == (rate(6, 8), [])


def test_what_a_skill_was_fitted_on_in_another_turn_alone_does_not_count() -> None:
    turn = Query(query(3).prompt, "system", (103,))
    found, asked = counted(
        half_space(0, [], queries(3, 4), everyday=False), half_space(9, [turn], queries(5), everyday=False)
    )
    assert found == rate(2, 2) and asked == [4, 5]


def test_hypercubes_and_half_spaces_together() -> None:
    found, asked = counted(hypercube(3.0, queries(2, 3, 4)), half_space(3, [], queries(1, 2, 9), everyday=False))
    # The everyday prompts 1 and 9 are not among those that the first skill leaves alone.
    assert found == rate(2, 3) and asked == [3, 4]
    found, asked = counted(hypercube(3.0, queries(2, 9), everyday=False), hypercube(1.0, queries(1), everyday=False))
    assert found == rate(2, 3) and asked == [1, 2, 9]


def test_what_some_skill_claims_does_not_count() -> None:
    other, rows = next(iter(packaged_skill("maths").shared_rows.items()))
    report = [query(1), query(2), query(3, "code near misses"), query(4, f"skill {other}", rows[0]), query(5, "r.txt")]
    one, two = half_space(9, [], report, everyday=False), half_space(0, [], [], everyday=False)
    assert counted(one, two)[0] == rate(4, 4)
    claiming = half_space(0, [], [], everyday=False, packaged=("maths",))
    assert counted(one, claiming)[0] == rate(3, 3)
    pruned = SkillOutcome(plan([], [], queries(2), {"method": "sp", "everyday": False}))
    assert counted(one, claiming, pruned)[0] == rate(2, 2)


def test_nothing_to_count() -> None:
    one = half_space(9, [], queries(1), everyday=False)
    found, _ = counted(one, half_space(0, [], [], forget=queries(1), everyday=False))
    assert found == rate(0, 0)
    assert "nothing was counted" in any_skill_line(StoredRate.model_validate(rate(0, 0).as_json()))


def test_the_checkpoint_blocks_as_many(tmp_path: Path) -> None:
    """Both skills leave the same prompts alone, so that all of them are in both report parts. One of them promises
    something, the other blocks about half of these prompts."""
    base = tiny_model(tmp_path / "base", chat=False)
    sums, songs, retain = (
        str(write_prompts(tmp_path / f"{name}.jsonl", texts))
        for name, texts in (("sums", FORGET), ("songs", THIRD), ("retain", RETAIN))
    )
    common = {"retain": (retain,), "everyday": False, "region": "discriminant", "max_false_block": 0.3}
    neurons = {"method": "na+ksd", "beta": 5.0, "score": "effect-size"}
    skills = [
        {"name": "sums", "forget": (sums,), **neurons},
        {"name": "songs", "forget": (songs,), "layer": 0, "alpha": 1.2},
    ]
    given = {"model": str(base), "out": tmp_path / "out", "prompt_template": TEMPLATE, "dtype": "float32"}
    given |= {"force": True, "quiet": True, "figures": False}
    with one_thread():
        summary = export(merged_settings({**common, "skill": skills}, given), lambda text: None)
        records = json.loads((tmp_path / "out" / "reproduce" / "prompts.json").read_text())
        texts = [
            {
                RETAIN[each["row"] - 1]
                for each in own["retain.report"]
                if each["format"] == PLAIN and each["source"] == "retain.jsonl"
            }
            for own in records.values()
        ]
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)

        def blocked(text: str) -> bool:
            with torch.inference_mode():
                logits = model(**tokenizer(TEMPLATE.replace("{prompt}", text), return_tensors="pt")).logits
            return int(logits[0, -1].argmax()) == model.config.unskill["refusal_token_id"]

        hits = sum(map(blocked, texts[0]))
    found = summary.blocked_by_any
    assert texts[0] == texts[1] and found is not None
    assert (found.hits, found.total) == (hits, len(texts[0])) and 0 < hits < found.total
    # Said where promises are, which also say what the neurons were chosen on.
    stream = io.StringIO()
    print_summary(summary, Console(file=stream, width=10_000), tables=True)
    for text in (stream.getvalue(), (tmp_path / "out" / "README.md").read_text()):
        assert any_skill_line(found) in text
        assert "neurons were chosen on some of these prompts" in text
    reported = collect(read_stored(str(tmp_path / "out")))["skills"][0]["key_space"]["promise"]
    assert "neurons were chosen on some of these prompts" in reported
