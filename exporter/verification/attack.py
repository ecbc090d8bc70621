"""`unskill verify --attack`: packaged skills asked for in every kind of turn, and what the checkpoint refuses.

Prompts are those of the report part that the export recorded, put into the report part's phrases, system prompts and
conversations: nothing was fitted or calibrated on them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from exporter.checkpoint.given_prompts import Given, read_given
from exporter.checkpoint.layout import RECIPE
from exporter.checkpoint.reading import Stored, StoredSkill, read_stored
from exporter.checkpoint.reproduce import records
from exporter.common.errors import BadInput
from exporter.common.rates import Rate, rate
from exporter.common.text import Notify, counted
from exporter.methods.key_space.budget import at_most
from exporter.methods.key_space.region_probe import spread
from exporter.models.tokens import context_of
from exporter.prompts.formats import PLAIN, SYSTEM, Query
from exporter.prompts.packaged import DATA, EVERYDAY, packaged_sha256
from exporter.prompts.packaged_skills import NEAR_MISSES
from exporter.prompts.sources import Prompt
from exporter.prompts.turns import REPORT, Said, Turns
from exporter.recipes.recipe import RECORDED, read_recipe
from exporter.verification.behaviour import ROUNDING, assert_repeatable, blocking
from exporter.verification.checks import NotMade, none_of
from exporter.verification.in_memory import InMemory
from exporter.verification.on_disk import OnDisk

MOST = 60
"""Prompts of a skill that are asked in each kind of turn, near misses and everyday prompts, at most."""
EXACT = 1e-5
"""Distance of a score from the threshold, on a scale where the means of both sides are 1 apart, within which rounding
may decide in float32. Other dtypes have theirs in ROUNDING."""
SURE = 0.95
"""Confidence that what is promised is not there, before a checkpoint fails."""
IDENTITY = ("source", "row", "sha256", "format", "variant")
"""What a query of the export is known by."""


@dataclass(frozen=True)
class Packaged:
    """What the export recorded, its skills that are asked, and the texts of packaged prompts."""

    stored: Stored
    skills: tuple[StoredSkill, ...]
    texts: Given


@dataclass(frozen=True)
class Asked:
    """A query and whether the checkpoint refuses it. score: that of the export, None where there is none; was: whether
    it was refused there, None where that is not known; close: whether rounding may decide."""

    query: Query
    refused: bool
    score: float | None
    was: bool | None
    close: bool


@dataclass(frozen=True)
class Attack:
    """What the checkpoint refuses of one skill.

    Attributes:
        skill: Its name.
        kinds: Kinds of turn that it was asked for in.
        asked: Its prompts in every kind of turn.
        harmless: Plain prompts that are to be answered, by what they are.
        promise: Least share of further prompts blocked; None where nothing is promised of packaged prompts alone.
        left_out: Number of queries that are longer than the model's context.
    """

    skill: str
    kinds: tuple[str, ...]
    asked: tuple[Asked, ...]
    harmless: Mapping[str, tuple[Asked, ...]]
    promise: float | None
    left_out: int

    def by_kind(self) -> dict[str, Rate]:
        """Shares of the skill's queries that are refused, by kind of turn."""
        return {kind: refused(each for each in self.asked if each.query.format == kind) for kind in self.kinds}

    def by_form(self) -> dict[str, Rate]:
        """The same by form, over all kinds of turn."""
        groups: dict[str, list[Asked]] = defaultdict(list)
        for each in self.asked:
            groups[each.query.prompt.form or ""].append(each)
        return {form: refused(group) for form, group in groups.items()}

    @property
    def plain(self) -> Rate:
        return self.by_kind()[PLAIN]

    @property
    def upper_bound(self) -> float:
        """Of the share of plain prompts that are refused."""
        return at_most(self.plain.hits, self.plain.total, confidence=SURE).bound

    @property
    def compared(self) -> list[Asked]:
        """Queries of which it is known whether they were refused at the export."""
        every = [*self.asked, *chain.from_iterable(self.harmless.values())]
        return [each for each in every if each.was is not None]

    @property
    def otherwise(self) -> list[Asked]:
        """Those that are decided otherwise now."""
        return [each for each in self.compared if each.refused is not each.was]

    def as_json(self) -> dict[str, Any]:
        return {
            "skill": self.skill,
            "kinds": {name: found.as_json() for name, found in self.by_kind().items()},
            # A prompt is among them in several kinds of turn, so they have no interval.
            "forms": {name: {"hits": found.hits, "total": found.total} for name, found in self.by_form().items()},
            "harmless": {name: refused(group).as_json() for name, group in self.harmless.items()},
            "promise": self.promise,
            "upper_bound": self.upper_bound,
            "compared": len(self.compared),
            "otherwise": [
                {"source": each.query.prompt.source, "row": each.query.prompt.row, "format": each.query.format}
                | {"refused": each.refused, "score": each.score, "close": each.close}
                for each in self.otherwise
            ],
            "left_out": self.left_out,
        }


def refused(asked: Iterable[Asked]) -> Rate:
    """The share of queries that the checkpoint refuses."""
    found = [each.refused for each in asked]
    return rate(sum(found), len(found))


def read_packaged(view: OnDisk) -> Packaged:
    """Raises BadInput where no skill of the checkpoint can be asked, or packaged texts have changed since."""
    stored = read_stored(str(view.folder))
    skills = tuple(
        skill
        for skill in stored.skills
        if packaged_names(skill)
        and skill.summary.key_space is not None
        and skill.summary.key_space.discriminant is not None
    )
    if not skills:
        raise BadInput(
            f"--attack: CHECKPOINT {view.name} refuses no packaged skill by half-spaces; export it with --skill NAME "
            "(see unskill skills), or give --forget SOURCE instead to ask the prompts of a source"
        )
    digests = read_recipe(view.folder / RECIPE)[RECORDED].packaged
    present = packaged_sha256(name for name in digests if DATA.joinpath(name).is_file())
    if other := sorted(name for name in digests if digests[name] != present.get(name)):
        raise BadInput(
            f"--attack: packaged prompts are not as the export read them (sha256): {', '.join(other)}; unskill "
            f"{stored.summary.unskill} has them as they were"
        )
    return Packaged(stored, skills, read_given(stored, (), ()))


def packaged_names(skill: StoredSkill) -> set[str]:
    """The packaged skills that its forget prompts are from."""
    return {source.label for source in skill.summary.sources if source.flag == "--skill"}


def attack(live: InMemory, packaged: Packaged, notify: Notify, done: list[Attack]) -> str:
    """Ask every skill, and append what was found to `done`."""
    recipe = packaged.stored.recipe
    for skill in packaged.skills:
        # The user's own system prompts are not kept, and they would be dealt with the packaged ones.
        left = {SYSTEM} if recipe["system_prompts"] else set()
        turns = Turns(live.formatter, Said(recipe["refusal"]), recipe["seed"], context_of(live.loaded.model))
        done.append(ask(live, skill, packaged.texts, turns, [name for name in turns.used if name not in left], notify))
    total = sum(len(each.asked) + sum(map(len, each.harmless.values())) for each in done)
    own = "; not under system prompts, as the export had some that it did not keep" if recipe["system_prompts"] else ""
    return f"{counted(total, 'question')} asked{own}"


def ask(
    live: InMemory, skill: StoredSkill, texts: Given, turns: Turns, kinds: Sequence[str], notify: Notify
) -> Attack:
    """Ask prompts of a skill's report part in these kinds of turn, and plain ones that are to be answered."""
    key_space, names = skill.summary.key_space, packaged_names(skill)
    assert key_space is not None
    plain = [record for record in skill.prompts["forget.report"] if record["format"] == PLAIN]
    own = [record for record in plain if record["source"] in names]
    retain = [record for record in skill.prompts["retain.report"] if record["format"] == PLAIN]
    harmless = {
        "near misses": [each for each in retain if each["source"].endswith(NEAR_MISSES)],
        "everyday prompts": [each for each in retain if each["source"] == EVERYDAY],
    }
    scores, threshold, alone = recorded_scores(skill), key_space.alpha.value, len(blocking(live)) == 1
    rounding = EXACT if live.record["dtype"] == "float32" else ROUNDING[live.record["dtype"]]

    def asked(query: Query, record: Mapping[str, Any]) -> Asked:
        found, score = is_refused(live, query), scores.get(identity(record))
        if score is None:
            return Asked(query, found, None, None, False)
        inside = score <= threshold
        # What this skill leaves may be refused for another one.
        was = inside if inside or alone else None
        return Asked(query, found, score, was, abs(score - threshold) <= rounding)

    def put(prompts: Sequence[Prompt], kinds: Sequence[str]) -> tuple[Asked, ...]:
        queries = [query for prompt in spread(prompts, MOST) for query in turns.put(prompt, kinds, REPORT)]
        notify(f"{skill.name}: asking {counted(len(queries), 'question')} ...")
        return tuple(map(asked, queries, records(queries)))

    return Attack(
        skill.name,
        tuple(kinds),
        put(texts.known(own), kinds),
        {name: put(texts.known(group), [PLAIN]) for name, group in harmless.items()},
        key_space.alpha.promise if len(own) == len(plain) else None,
        turns.skipped,
    )


def is_refused(live: InMemory, query: Query) -> bool:
    """Whether the checkpoint refuses right after the query."""
    return bool(live.loaded.refused(live.logits(query.ids)[-1]))


def recorded_scores(skill: StoredSkill) -> dict[tuple[Any, ...], float]:
    """Scores of the report part at the export, by the identity of its queries."""
    return {
        identity(record): score
        for side in ("forget", "retain")
        for record, score in zip(
            skill.prompts[f"{side}.report"], skill.tensors[f"scores.{side}.report"].tolist(), strict=True
        )
    }


def identity(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in IDENTITY)


def check_promise(attacks: Sequence[Attack]) -> str:
    """The share of plain prompts refused may be what is promised, by its one-sided 95 % bound."""
    below: list[str] = []
    seen: list[str] = []
    for each in attacks:
        plain, bound = each.plain, each.upper_bound
        if each.promise is None or not plain.total:
            continue
        text = f"{each.skill}: {plain.hits} of {plain.total} plain prompts are refused, so at most {bound:.1%} of all"
        text += f" (95 % confidence); at least {each.promise:.1%} are promised"
        (below if bound < each.promise else seen).append(text)
    none_of(below)
    if not seen:
        raise NotMade("nothing is promised of packaged prompts alone")
    return "; ".join(seen)


def check_recorded(live: InMemory, attacks: Sequence[Attack]) -> str:
    """Prompts of the export are decided as they were there."""
    assert_repeatable(live)
    found = [(each, query) for each in attacks for query in each.otherwise]
    none_of(described(query) for each, query in found if not query.close)
    compared = sum(len(each.compared) for each in attacks)
    text = f"{counted(compared, 'question')} of the export decided as there"
    close = ", ".join(described(query) for _, query in found)
    return f"{text}, but by rounding {close}" if close else text


def described(each: Asked) -> str:
    """A query that is decided otherwise than at the export."""
    prompt, now = each.query.prompt, "is refused, which it was not" if each.refused else "is not refused, as it was"
    return f"{prompt.source} row {prompt.row} ({each.query.format}) {now} at the export"
