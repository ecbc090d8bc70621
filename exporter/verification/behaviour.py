"""What the loaded checkpoint does: everyday prompts are answered as at the export, blocked ones refused, and neurons
changed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from custom_modeling.buffers import KSD_BOUNDS, NA_PARAMS
from custom_modeling.key_space import FORBIDDEN
from exporter.checkpoint.given import Given
from exporter.checkpoint.layout import FOLDER
from exporter.common.files import read_json
from exporter.common.version import __version__
from exporter.methods.key_space.hypercubes import closed_bounds, opened_bounds
from exporter.methods.key_space.scoring import score_keys
from exporter.models.prober import Prober
from exporter.prompts.formats import FORMATS, PLAIN, SECOND_TURN, SYSTEM, Query
from exporter.prompts.packaged import EVERYDAY, everyday_prompts, exchanges, system_prompts
from exporter.prompts.sources import Prompt
from exporter.verification.checks import NotMade, Wrong, counted
from exporter.verification.interventions import STATISTICS, key_space
from exporter.verification.live import Live, filled, move_always, unpruned

Key = tuple[str, int, str, str, int]
"""A prompt as the model sees it: source, row, sha256, format, variant."""

ASKED = 9
"""Everyday prompts whose scores are computed again; a third in each format."""
ANSWERED = 3
"""Of them, those that are answered, for so many tokens:"""
NEW_TOKENS = 8
REFUSED = 8
"""Forget prompts of each skill that are asked."""
# Relative differences of a score by rounding, as batches of other sizes give them, and the share of scores within.
ROUNDING = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
SHARE = 0.9


@dataclass(frozen=True)
class Scored:
    """One everyday prompt of the export: the query, and per skill its scores (layers,) at the prompt's last token and
    the least over its answer."""

    query: Query
    prompt: dict[str, Tensor]
    answer: dict[str, Tensor]


def check_scores(live: Live) -> str:
    """Everyday prompts' scores, as the export stored them, from the keys of the loaded model."""
    assert_repeatable(live)
    asked, statistics = recorded_everyday(live), read_statistics(live)
    prober = Prober(live.loaded)
    tolerance = ROUNDING[live.record["dtype"]]
    close = total = 0
    worst = 0.0
    for skill in blocking(live):
        keys = key_space(statistics, skill)
        found = score_keys(prober, [each.query for each in asked], keys, "everyday prompts")
        stored = torch.stack([each.prompt[skill["name"]] for each in asked])
        apart = ((found - stored) / stored).abs()
        close, total = close + int((apart <= tolerance).sum()), total + apart.numel()
        worst = max(worst, float(apart.median()))
    if close < SHARE * total:
        raise Wrong(
            f"{total - close} of {total} scores of everyday prompts are not those of the export (median difference "
            f"{worst:.1e}): the model computes something else"
        )
    return f"{close} of {total} scores of {counted(len(asked), 'everyday prompt')} come out again"


def check_answered(live: Live) -> str:
    """Everyday prompts that were outside through their answers are not refused."""
    assert_repeatable(live)
    limits = {skill["name"]: (skill["layer"], skill["alpha"]["value"]) for skill in blocking(live)}
    margin = 1 + ROUNDING[live.record["dtype"]]
    outside = [
        each.query
        for each in recorded_everyday(live)
        if all(each.answer[name][layer] > margin * alpha for name, (layer, alpha) in limits.items())
    ][:ANSWERED]
    if not outside:
        raise NotMade("no everyday prompt of the export was outside of every hypercube")
    for query in outside:
        answer = live.answer(query.ids, NEW_TOKENS, as_exported=True)
        if live.record["refusal_token_id"] in answer:
            raise Wrong(f"everyday prompt {query.prompt.row} is refused, which it was not at the export")
    return f"{counted(len(outside), 'everyday prompt')} answered"


def assert_repeatable(live: Live) -> None:
    """Raises NotMade where keys, and so scores and what is inside, are others at every forward."""
    if live.record["compat"] is not None:
        raise NotMade("the authors' code draws at random, so scores do not come out again")


def check_identity(live: Live) -> str:
    """Where nothing is refused, logits are those of the same weights without interventions, bit by bit."""
    if any(counts.get("adjusted") or counts.get("pruned") for counts in live.record["layers"].values()):
        raise NotMade("neurons are changed, so logits are to differ")
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


def without(logits: Tensor, refusal: int, size: int) -> Tensor:
    """Logits less R's column, where they have all `size` of them."""
    return torch.cat([logits[:, :refusal], logits[:, refusal + 1 :]], 1) if logits.shape[1] == size else logits


def check_neurons(live: Live) -> str:
    """Adjusted and pruned neurons change logits; adjusted ones are moved wherever their parameters say so."""
    counts = live.record["layers"].values()
    adjusted, pruned = (sum(each.get(kind, 0) for each in counts) for kind in ("adjusted", "pruned"))
    if not adjusted and not pruned:
        raise NotMade("no neurons are changed")
    refusal, changed, positions, prunes = live.record["refusal_token_id"], 0, 0, False
    for query in live.some:
        plain = live.plain.logits(query.ids)
        with filled(live, KSD_BOUNDS, closed_bounds):
            ours = live.logits(query.ids)
            with filled(live, NA_PARAMS, move_always):
                moved = live.logits(query.ids)
            with unpruned(live):
                whole = live.logits(query.ids)
        size = ours.shape[1]
        if refusal is not None:
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


def check_refused(live: Live, given: Given | None) -> str:
    """Forget prompts that were inside are refused; without any, every prompt where hypercubes hold everything."""
    if live.record["refusal_token_id"] is None:
        return "nothing is to be refused: " + generates(live)
    if given is None:
        with filled(live, KSD_BOUNDS, opened_bounds):
            for query in live.some:
                assert_refused(live, query, "an everyday prompt, with hypercubes that hold everything,")
        return f"{counted(len(live.some), 'prompt')} refused with every hypercube opened in memory (no --forget given)"
    assert_repeatable(live)
    queries = known_inside(live, given)
    if not queries:
        raise NotMade("--forget: none of its prompts was inside a hypercube in the calibration and report parts")
    for query in queries:
        assert_refused(live, query, f"{query.prompt.source} row {query.prompt.row}, inside at the export,")
    return f"{counted(len(queries), 'forget prompt')} of the export refused"


def generates(live: Live) -> str:
    for query in live.some:
        if not live.answer(query.ids, NEW_TOKENS):
            raise Wrong("an everyday prompt gets no answer")
    return f"{counted(len(live.some), 'everyday prompt')} answered"


def assert_refused(live: Live, query: Query, what: str) -> None:
    """Raises Wrong unless R and EOS follow, and print the message."""
    record = live.record
    answer = live.answer(query.ids, NEW_TOKENS)
    if answer != [record["refusal_token_id"], record["eos_token_id"]]:
        raise Wrong(f"{what} gets tokens {answer}, not the refusal and EOS")
    printed = live.loaded.tokenizer.decode(answer[:1], skip_special_tokens=True)  # no tokenizer has to hide EOS
    if printed != record["refusal"]:
        raise Wrong(f"the refusal prints '{printed}'")


def blocking(live: Live) -> list[dict[str, Any]]:
    """Skills of config.json that refuse. Raises NotMade where there are none."""
    found = [skill for skill in live.record["skills"] if "layer" in skill]
    if not found:
        raise NotMade("there are no hypercubes")
    return found


def read_statistics(live: Live) -> dict[str, Tensor]:
    return load_file(live.view.folder / STATISTICS)


def read_prompts(live: Live) -> dict[str, Any]:
    return read_json(live.view.folder / FOLDER / "prompts.json", live.view.name, "CHECKPOINT")


def recorded_everyday(live: Live) -> list[Scored]:
    """Everyday prompts that every blocking skill has scores of, some in each format. Raises NotMade where there are
    none, Wrong where one has other tokens now."""
    texts = {(prompt.row, prompt.sha256): prompt for prompt in everyday_prompts()}
    statistics, prompts, skills = read_statistics(live), read_prompts(live), blocking(live)
    found: dict[Key, dict[str, tuple[dict[str, Any], Tensor, Tensor]]] = {}
    for skill in skills:
        name = skill["name"]
        for part in ("report", "choose"):
            scores = [statistics[f"{name}.scores.retain.{part}.{what}"] for what in ("prompt", "answer")]
            for record, prompt, answer in zip(prompts[name][f"retain.{part}"], *scores, strict=True):
                if record["source"] == EVERYDAY and (record["row"], record["sha256"]) in texts:
                    found.setdefault(key_of(record), {})[name] = record, prompt, answer
    chosen: dict[str, list[Scored]] = {name: [] for name in FORMATS}
    for by_skill in found.values():
        record = next(iter(by_skill.values()))[0]
        if len(by_skill) < len(skills) or len(chosen[record["format"]]) >= ASKED // len(FORMATS):
            continue
        query = query_again(live, texts[record["row"], record["sha256"]], record)
        if query is not None:
            prompt_scores = {name: each[1] for name, each in by_skill.items()}
            answer_scores = {name: each[2] for name, each in by_skill.items()}
            chosen[record["format"]].append(Scored(query, prompt_scores, answer_scores))
    asked = [each for part in chosen.values() for each in part]
    if not asked:
        raise NotMade("the export used no everyday prompts that this unskill has")
    return asked


def key_of(record: dict[str, Any]) -> Key:
    return record["source"], record["row"], record["sha256"], record["format"], record["variant"]


def query_again(live: Live, prompt: Prompt, record: dict[str, Any]) -> Query | None:
    """A prompt of the export as it was formatted; None under a system prompt of the user's own, which is not kept."""
    known = {PLAIN: None, SYSTEM: len(system_prompts()), SECOND_TURN: len(exchanges())}[record["format"]]
    if known is not None and record["variant"] >= known:
        return None
    query = live.formatter.like(Query(prompt, record["format"], (), record["variant"]), prompt.text)
    if query is not None and len(query.ids) != record["tokens"]:
        if record["format"] != PLAIN and other_texts(live):
            raise NotMade("this unskill has other system prompts and exchanges than the one that wrote the checkpoint")
        found = f"{len(query.ids)} tokens, at the export {record['tokens']}"
        raise Wrong(f"{prompt.source} prompt {prompt.row} has {found}")
    return query


def other_texts(live: Live) -> bool:
    """Whether the packaged texts around prompts are not those of the export, as only another version has them."""
    if live.record["version"] == __version__:
        return False
    recorded = read_json(live.view.folder / FOLDER / "versions.json", live.view.name, "CHECKPOINT")
    data = files("exporter.prompts").joinpath("data")
    return any(
        recorded.get(f"packaged {name}") != hashlib.sha256(data.joinpath(name).read_bytes()).hexdigest()
        for name in ("system_prompts.jsonl", "exchanges.jsonl")
    )


def known_inside(live: Live, given: Given) -> list[Query]:
    """Forget prompts of the calibration and report parts that were inside a hypercube, beyond rounding."""
    statistics, prompts = read_statistics(live), read_prompts(live)
    margin = 1 + ROUNDING[live.record["dtype"]]
    found: list[Query] = []
    for skill in blocking(live):
        limit, own = skill["alpha"]["value"] / margin, 0
        for part in ("report", "calibrate"):
            scores = statistics[f"{skill['name']}.scores.forget.{part}"][:, skill["layer"]]
            for record, score in zip(prompts[skill["name"]][f"forget.{part}"], scores.tolist(), strict=True):
                prompt = given.find(record)
                if prompt is not None and score <= limit and own < REFUSED:
                    query = query_again(live, prompt, record)
                    if query is not None:
                        found.append(query)
                        own += 1
    return found
