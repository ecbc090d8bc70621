"""What the loaded checkpoint does: everyday prompts are answered as at the export, blocked ones refused, and neurons
changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from custom_modeling.buffers import NA_PARAMS
from custom_modeling.key_space import FORBIDDEN
from exporter.checkpoint.environment import packaged_sha256
from exporter.checkpoint.given_prompts import Given, by_key
from exporter.checkpoint.layout import PROMPTS, VERSIONS
from exporter.common.text import counted
from exporter.common.version import __version__
from exporter.methods.key_space.hypercubes import closed_bounds, opened_bounds
from exporter.methods.key_space.region_probe import region_scores
from exporter.methods.key_space.scoring import score_keys
from exporter.models.prober import Prober
from exporter.prompts.formats import PLAIN, SECOND_TURN, SYSTEM, Query
from exporter.prompts.packaged import EVERYDAY, everyday_prompts, exchanges, system_prompts
from exporter.prompts.sources import Prompt
from exporter.recipes.settings import DISCRIMINANT
from exporter.verification.checks import NotMade, Wrong
from exporter.verification.in_memory import InMemory, filled, move_always, regions_filled, unpruned
from exporter.verification.interventions import key_space, regions

ASKED = 9
"""Everyday prompts whose scores are computed again; a third in each format."""
ANSWERED, NEW_TOKENS = 3, 8
"""How many of them are answered, and in how many tokens."""
REFUSED = 8
"""Forget prompts of each skill that are asked."""
AROUND = ("system_prompts.jsonl", "exchanges.jsonl")
"""The packaged texts that stand around prompts."""
# Relative differences of a score by rounding, in batches of other sizes, and the least share of scores within them.
ROUNDING = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
SHARE = 0.9


@dataclass(frozen=True)
class Scored:
    """One everyday prompt of the export, and of each skill its scores, each (layers,): at the prompt's last token, and
    the least over the answer."""

    query: Query
    scores: dict[str, tuple[Tensor, Tensor]]


def check_scores(live: InMemory) -> str:
    """The loaded model gives everyday prompts the scores that the export stored."""
    assert_repeatable(live)
    asked, prober = recorded_everyday(live), Prober(live.loaded)
    apart = []
    queries = [each.query for each in asked]
    for skill in blocking(live):
        if along_discriminants(skill):
            found = region_scores(prober, queries, regions(live.view.statistics, skill), "everyday prompts")[:, None]
        else:
            keys = key_space(live.view.statistics, skill)
            found = score_keys(prober, queries, keys, "everyday prompts")
        stored = torch.stack([each.scores[skill["name"]][0] for each in asked])
        apart.append(((found - stored) / stored).abs())
    close = sum(int((each <= ROUNDING[live.record["dtype"]]).sum()) for each in apart)
    total = sum(each.numel() for each in apart)
    if close < SHARE * total:
        worst = max(float(each.median()) for each in apart)
        raise Wrong(
            f"{total - close} of {total} scores of everyday prompts are not those of the export (median difference "
            f"{worst:.1e}): the model computes something else"
        )
    return f"{close} of {total} scores of {counted(len(asked), 'everyday prompt')} are those of the export"


def check_answered(live: InMemory) -> str:
    """Everyday prompts that were outside every hypercube through their answers are not refused."""
    assert_repeatable(live)
    rounding = ROUNDING[live.record["dtype"]]
    limits = {
        skill["name"]: (column(skill), skill["alpha"]["value"] + rounding * abs(skill["alpha"]["value"]))
        for skill in blocking(live)
    }
    outside = [
        each.query
        for each in recorded_everyday(live)
        if all(each.scores[name][1][place] > limit for name, (place, limit) in limits.items())
    ][:ANSWERED]
    if not outside:
        raise NotMade("no everyday prompt of the export was outside every region")
    for query in outside:
        answer = live.answer(query.ids, NEW_TOKENS, as_exported=True)
        if live.record["refusal_token_id"] in answer:
            raise Wrong(f"everyday prompt {query.prompt.row} is refused, which it was not at the export")
    return f"{counted(len(outside), 'everyday prompt')} answered"


def assert_repeatable(live: InMemory) -> None:
    """Raises NotMade where keys, and so scores and what is inside, differ at every forward."""
    if live.record["compat"] is not None:
        raise NotMade("the authors' code draws at random, so scores cannot be compared")


def check_identity(live: InMemory) -> str:
    """Where nothing is refused, logits are those of the same weights without interventions, bit by bit."""
    if any(counts.get("adjusted") or counts.get("pruned") for counts in live.record["layers"].values()):
        raise NotMade("neurons are changed, so logits have to differ")
    refusal, positions = live.record["refusal_token_id"], 0
    for query in live.some:
        ours = live.logits(query.ids)
        theirs = live.plain.logits(query.ids)
        free = ours[:, refusal] == torch.tensor(FORBIDDEN).to(ours)
        ours, theirs = (without(each[free], refusal, ours.shape[1]) for each in (ours, theirs))
        if not torch.equal(ours, theirs):
            raise Wrong(f"logits differ by up to {(ours - theirs).abs().max():.1e} from the same weights alone")
        positions += len(ours)
    if not positions:
        raise NotMade("every position of the everyday prompts is refused")
    return f"{positions} positions of everyday prompts, bit by bit"


def without(logits: Tensor, refusal: int | None, size: int) -> Tensor:
    """Logits without R's column, where there is an R and they have all `size` columns."""
    if refusal is None or logits.shape[1] != size:
        return logits
    return torch.cat([logits[:, :refusal], logits[:, refusal + 1 :]], 1)


def check_neurons(live: InMemory) -> str:
    """Adjusted and pruned neurons change logits; adjusted ones are moved wherever their parameters say so."""
    counts = live.record["layers"].values()
    adjusted, pruned = (sum(each.get(kind, 0) for each in counts) for kind in ("adjusted", "pruned"))
    if not adjusted and not pruned:
        raise NotMade("no neurons are changed")
    refusal, changed, positions, prunes = live.record["refusal_token_id"], 0, 0, False
    for query in live.some:
        plain = live.plain.logits(query.ids)
        with regions_filled(live, closed_bounds):
            ours = live.logits(query.ids)
            with filled(live, NA_PARAMS, move_always):
                moved = live.logits(query.ids)
            with unpruned(live):
                whole = live.logits(query.ids)
        size = ours.shape[1]
        ours, moved, whole, plain = (without(each, refusal, size) for each in (ours, moved, whole, plain))
        changed, positions = changed + int((ours != plain).any(-1).sum()), positions + len(ours)
        prunes = prunes or not torch.equal(whole, ours)
        if adjusted and torch.equal(moved[1:], ours[1:]):
            raise Wrong("logits do not depend on the adjusted neurons' parameters")
    if pruned and not prunes:
        raise Wrong("logits are those of the same weights without pruned neurons")
    kinds = {"adjusted neuron": adjusted, "pruned neuron": pruned}
    what = " and ".join(counted(number, kind) for kind, number in kinds.items() if number)
    return f"{what}: logits differ at {changed} of {positions} positions of everyday prompts"


def check_refused(live: InMemory, given: Given | None) -> str:
    """Forget prompts that were inside are refused; without any, every prompt where hypercubes hold everything."""
    if live.record["refusal_token_id"] is None:
        if not all(live.answer(query.ids, NEW_TOKENS) for query in live.some):
            raise Wrong("an everyday prompt gets no answer")
        return f"nothing is to be refused: {counted(len(live.some), 'everyday prompt')} answered"
    if given is None:
        with regions_filled(live, opened_bounds):
            for query in live.some:
                assert_refused(live, query, "an everyday prompt, with regions that hold everything,")
        return f"{counted(len(live.some), 'prompt')} refused with every region opened in memory (no --forget given)"
    assert_repeatable(live)
    queries = known_inside(live, given)
    if not queries:
        raise NotMade("--forget: none of its prompts that nothing was fitted on was inside a region")
    for query in queries:
        assert_refused(live, query, f"{query.prompt.source} row {query.prompt.row}, inside at the export,")
    return f"{counted(len(queries), 'forget prompt')} of the export refused"


def assert_refused(live: InMemory, query: Query, what: str) -> None:
    """Raises Wrong unless R and EOS follow, and print the message."""
    record = live.record
    answer = live.answer(query.ids, NEW_TOKENS)
    if answer != [record["refusal_token_id"], record["eos_token_id"]]:
        raise Wrong(f"{what} gets tokens {answer}, not the refusal and EOS")
    printed = live.loaded.tokenizer.decode(answer[:1], skip_special_tokens=True)  # no tokenizer has to hide EOS
    if printed != record["refusal"]:
        raise Wrong(f"the refusal prints '{printed}'")


def blocking(live: InMemory) -> list[dict[str, Any]]:
    """Skills of config.json that refuse. Raises NotMade where there are none."""
    found = [skill for skill in live.record["skills"] if "layer" in skill]
    if not found:
        raise NotMade("there are no regions")
    return found


def recorded_everyday(live: InMemory) -> list[Scored]:
    """Everyday prompts that every blocking skill has scores of, some in each format. Raises NotMade where there are
    none, Wrong where one has other tokens now."""
    texts, skills, formats = by_key(everyday_prompts()), blocking(live), live.formatter.formats_used
    statistics, prompts = live.view.statistics, live.view.read(PROMPTS)
    records: dict[tuple[Any, ...], dict[str, Any]] = {}
    found: defaultdict[tuple[Any, ...], dict[str, tuple[Tensor, Tensor]]] = defaultdict(dict)
    for skill in skills:
        name = skill["name"]
        # Scores of a fit part with discriminants are of directions without each prompt.
        for part in ("report",) if along_discriminants(skill) else ("report", "choose"):
            asked, *scores = harmless_scores(statistics, prompts[name], skill, part)
            for record, prompt, answer in zip(asked, *scores, strict=True):
                key = tuple(record[each] for each in ("row", "sha256", "format", "variant"))
                if record["source"] == EVERYDAY and key[:2] in texts and record["format"] in formats:
                    records[key], found[key][name] = record, (prompt, answer)
    chosen: dict[str, list[Scored]] = {name: [] for name in formats}
    for key, by_skill in found.items():
        own = chosen[records[key]["format"]]
        if len(by_skill) == len(skills) and len(own) < ASKED // len(formats):
            query = query_again(live, texts[key[:2]], records[key])
            if query is not None:
                own.append(Scored(query, by_skill))
    if not any(chosen.values()):
        raise NotMade("the export used no everyday prompts that this unskill has")
    return [each for own in chosen.values() for each in own]


def along_discriminants(skill: dict[str, Any]) -> bool:
    """Whether a skill of config.json has regions along discriminants; format 1 knows hypercubes alone."""
    return bool(skill.get("region") == DISCRIMINANT)


def column(skill: dict[str, Any]) -> int:
    """The column of a skill's stored scores that decides: hypercubes have scores of every layer."""
    return 0 if along_discriminants(skill) else int(skill["layer"])


def harmless_scores(
    statistics: dict[str, Tensor], prompts: dict[str, Any], skill: dict[str, Any], part: str
) -> tuple[list[dict[str, Any]], Tensor, Tensor]:
    """Records of a part's harmless prompts, and their scores at the last token and over the answer, (n, columns)."""
    name = skill["name"]
    if not along_discriminants(skill):
        prompt, answer = (statistics[f"{name}.scores.retain.{part}.{what}"] for what in ("prompt", "answer"))
        return prompts[f"retain.{part}"], prompt, answer
    prompt, records = statistics[f"{name}.scores.retain.{part}"], prompts[f"retain.{part}"]
    answer = torch.full_like(prompt, -torch.inf)  # where no answer was looked at, nothing is known of it
    answer[statistics[f"{name}.scores.retain.{part}.answer.row"]] = statistics[f"{name}.scores.retain.{part}.answer"]
    # Other kinds of turn than the plain one are not formatted again.
    rows = [row for row, record in enumerate(records) if record["format"] == PLAIN]
    return [records[row] for row in rows], prompt[rows, None], answer[rows, None]


def query_again(live: InMemory, prompt: Prompt, record: dict[str, Any]) -> Query | None:
    """A prompt of the export as it was formatted; None under a system prompt of the user's own, which is not kept."""
    around: Sequence[object] | None = {SYSTEM: system_prompts(), SECOND_TURN: exchanges()}.get(record["format"])
    if around is not None and record["variant"] >= len(around):
        return None
    query = live.formatter.like(Query(prompt, record["format"], (), record["variant"]), prompt.text)
    if query is not None and len(query.ids) != record["tokens"]:
        if record["format"] != PLAIN and other_texts(live):
            raise NotMade("this unskill has other system prompts and exchanges than the one that wrote the checkpoint")
        counts = f"{len(query.ids)} tokens, at the export {record['tokens']}"
        raise Wrong(f"{prompt.source} prompt {prompt.row} has {counts}")
    return query


def other_texts(live: InMemory) -> bool:
    """Whether another version wrote the checkpoint, with other packaged texts around prompts."""
    recorded, ours = live.view.read(VERSIONS), packaged_sha256(AROUND)
    return live.record["version"] != __version__ and any(recorded.get(name) != ours[name] for name in ours)


def known_inside(live: InMemory, given: Given) -> list[Query]:
    """Forget prompts that nothing was fitted on and that were inside a region, beyond rounding."""
    statistics, prompts = live.view.statistics, live.view.read(PROMPTS)
    found: list[Query] = []
    for skill in blocking(live):
        alpha, name = skill["alpha"]["value"], skill["name"]
        limit = alpha - ROUNDING[live.record["dtype"]] * abs(alpha)
        own: list[Query] = []
        plain_alone = along_discriminants(skill)
        for part in ("report",) if plain_alone else ("report", "calibrate"):
            scores = statistics[f"{name}.scores.forget.{part}"]
            scores = scores if plain_alone else scores[:, skill["layer"]]
            for record, score in zip(prompts[name][f"forget.{part}"], scores.tolist(), strict=True):
                prompt = None if plain_alone and record["format"] != PLAIN else given.find(record)
                if prompt is not None and score <= limit and len(own) < REFUSED:
                    own += filter(None, [query_again(live, prompt, record)])
        found += own
    return found
