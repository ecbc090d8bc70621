"""The skills that come with the tool: prompts of each, near misses, and a page that says what belongs to it."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest

from exporter.common.errors import BadInput
from exporter.prompts.formats import PLAIN
from exporter.prompts.packaged import (
    AROUND_FILES,
    DATA,
    EVERYDAY_FILES,
    RENDERING_FILES,
    TURN_FILES,
    everyday_prompts,
    packaged_sha256,
    records_of,
)
from exporter.prompts.sources import Prompt
from exporter.recipes.recorded import text_sha256
from exporter.recipes.settings import ExportSettings

NEAR_MISSES = " near misses"
"""What the source of a packaged skill's near misses ends with, behind the skill's name."""
LANGUAGE = "language:"
"""What the name of a skill begins with whose prompts are the everyday prompts in one language."""
OTHERS = 60
"""Forget prompts of each other packaged skill that a packaged skill is to leave alone."""


@dataclass(frozen=True)
class PackagedSkill:
    """One skill: its page and its prompts.

    Attributes:
        name: As `--skill` takes it.
        title: A name for people.
        description: What the skill is, in a sentence.
        belongs: What belongs to it, a sentence each.
        not_belonging: What is near and does not.
        everyday_kinds: Kinds of everyday prompts that belong to it.
        everyday_prompts: Rows of single everyday prompts that do.
        shared: By other skill, which of its prompts belong to this one too.
        shared_rows: These prompts by other skill, as their rows there.
        forget: Its prompts; source is the name, row the line of the file.
        near_misses: Prompts that look like it and are not.
        files: Where all that is, below `data/`.
    """

    name: str
    title: str
    description: str
    belongs: tuple[str, ...]
    not_belonging: tuple[str, ...]
    everyday_kinds: tuple[str, ...]
    everyday_prompts: tuple[int, ...]
    shared: Mapping[str, str]
    shared_rows: Mapping[str, tuple[int, ...]]
    forget: tuple[Prompt, ...]
    near_misses: tuple[Prompt, ...]
    files: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """The sha256 of its file of prompts; of several, that of theirs."""
        digests = [digest for name, digest in packaged_sha256(self.files).items() if name.endswith(".jsonl")]
        return text_sha256("".join(digests)) if len(digests) > 1 else digests[0]


@cache
def packaged_skills() -> tuple[str, ...]:
    """The names of the packaged skills that have a page, sorted."""
    found = (each.name for each in DATA.joinpath("skills").iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml")))


def is_near_miss(prompt: Prompt) -> bool:
    """Whether a prompt is one of a packaged skill's near misses."""
    return prompt.source.endswith(NEAR_MISSES)


@cache
def packaged_skill(name: str) -> PackagedSkill:
    """The packaged skill of that name. Raises BadInput where there is none."""
    if name in languages():
        return language_skill(name.removeprefix(LANGUAGE))
    if name not in packaged_skills():
        codes = ", ".join(each.removeprefix(LANGUAGE) for each in languages())
        raise BadInput(
            f"--skill: no skill '{name}'; there are {', '.join(packaged_skills())}, and {LANGUAGE}CODE with CODE one "
            f"of {codes}"
        )
    page = tomllib.loads(DATA.joinpath(page_file(name)).read_text(encoding="utf-8"))
    sides: defaultdict[str, list[Prompt]] = defaultdict(list)
    for row, record in enumerate(records_of(prompts_file(name)), start=1):
        source = name if record["side"] == "forget" else f"{name}{NEAR_MISSES}"
        form, language = record["form"], record["language"]
        sides[record["side"]].append(Prompt(record["prompt"], source, row, form=form, language=language))
    return PackagedSkill(
        name=name,
        title=page["title"],
        description=page["description"],
        belongs=tuple(page["belongs"]),
        not_belonging=tuple(page["not"]),
        everyday_kinds=tuple(page["everyday_kinds"]),
        everyday_prompts=tuple(page["everyday_prompts"]),
        shared=page["shared"],
        shared_rows={other: tuple(rows) for other, rows in page.get("shared_rows", {}).items()},
        forget=tuple(sides["forget"]),
        near_misses=tuple(sides["near-miss"]),
        files=(prompts_file(name), page_file(name)),
    )


@cache
def languages() -> tuple[str, ...]:
    """The names of the skills that are a language, sorted."""
    return tuple(sorted({f"{LANGUAGE}{prompt.language}" for prompt in everyday_prompts()}))


def language_skill(code: str) -> PackagedSkill:
    """Everything in one language: the everyday prompts in it. In other skills it is what is in that language."""
    own = [prompt for prompt in everyday_prompts() if prompt.language == code]
    skills = map(packaged_skill, packaged_skills())
    rows = {skill.name: tuple(prompt.row for prompt in skill.forget if prompt.language == code) for skill in skills}
    shared = {name: found for name, found in rows.items() if found}
    return PackagedSkill(
        name=f"{LANGUAGE}{code}",
        title=f"Language {code}",
        description=f"Answering in the language with the code {code}, whatever is asked in it.",
        belongs=(f"Every prompt in the language {code}.",),
        not_belonging=("Prompts in any other language, also about this one.",),
        everyday_kinds=(),
        everyday_prompts=tuple(prompt.row for prompt in own),
        shared=dict.fromkeys(shared, f"Prompts in the language {code}."),
        shared_rows=shared,
        forget=tuple(Prompt(each.text, f"{LANGUAGE}{code}", each.row, form=each.kind, language=code) for each in own),
        near_misses=(),
        files=EVERYDAY_FILES,
    )


def other_prompts(skills: Sequence[PackagedSkill]) -> list[Prompt]:
    """Up to OTHERS forget prompts of every other packaged skill, as many of each form as there are; none of those that
    belong to one of these skills too. Their source is "skill" and the other skill's name."""
    named = {skill.name for skill in skills}
    found = []
    for other in (packaged_skill(name) for name in packaged_skills() if name not in named):
        shared = {row for skill in skills for row in skill.shared_rows.get(other.name, ())}
        forms: defaultdict[str | None, list[Prompt]] = defaultdict(list)
        for prompt in sorted(other.forget, key=lambda prompt: prompt.sha256):
            if prompt.row not in shared:
                forms[prompt.form].append(
                    Prompt(
                        prompt.text,
                        f"skill {other.name}",
                        prompt.row,
                        form=prompt.form,
                        language=prompt.language,
                    )
                )
        dealt = (prompt for turn in zip_longest(*forms.values()) for prompt in turn if prompt is not None)
        found += list(dealt)[:OTHERS]
    return found


def everyday_besides(skills: Sequence[PackagedSkill], without: Sequence[str]) -> tuple[list[Prompt], int]:
    """The everyday prompts that belong to none of these skills, and how many that leaves out.

    without: kinds that are left out anyway. Raises as `everyday_prompts`.
    """
    before = everyday_prompts(without)
    kinds = {kind for skill in skills for kind in skill.everyday_kinds}
    rows = {row for skill in skills for row in skill.everyday_prompts}
    left = everyday_prompts([*without, *sorted(kinds)], rows)
    return left, len(before) - len(left)


def packaged_files(settings: ExportSettings) -> list[str]:
    """The packaged files whose contents an export with these settings depends on, by their names below `data/`."""
    names: list[str] = []
    for skill in settings.skills:
        for own in skill.packaged:
            names += packaged_skill(own).files
        if skill.everyday:
            names += EVERYDAY_FILES
            names += map(prompts_file, packaged_skills()) if skill.packaged else ()
    if any(skill.discriminates and skill.forget for skill in settings.skills):
        names += RENDERING_FILES
    if settings.blocks and settings.formats != PLAIN and settings.prompt_template in ("auto", "chat"):
        names += AROUND_FILES
        names += TURN_FILES if any(skill.discriminates for skill in settings.skills) else ()
    return list(dict.fromkeys(names))


def prompts_file(name: str) -> str:
    return f"skills/{name}.jsonl"


def page_file(name: str) -> str:
    return f"skills/{name}.toml"
