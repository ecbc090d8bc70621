"""Prompts that a model wrote from a description of a skill: which of them are usable, and their file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.common.errors import BadInput
from exporter.prompts.packaged_skills import NEAR_MISSES
from exporter.prompts.requests import FORGET, NEAR_MISS, examples, texts
from exporter.prompts.sources import Prompt, Source, fingerprint, open_source

SOURCE = "description"
"""Label of the source of these prompts; near misses have that of packaged ones behind it."""
AT_LEAST = {FORGET: 24, NEAR_MISS: 12}
"""Fewest usable prompts of each side."""
FORMS_AT_LEAST = 4
"""Fewest forms of the forget prompts: whole forms are left out to see how others fare."""
SHORTEST, LONGEST = 8, 800
"""Characters of a usable prompt."""
LONGEST_WORD, DIFFERENT = 40, 0.4
"""Characters of its longest word, and share of different words: small models fall into repeating themselves."""
GRAM, SIMILAR = 5, 0.5
"""Prompts are near-copies where they share more than half of their runs of five characters."""

REFUSAL = re.compile(
    r"\bi(['’]m| am) (sorry|unable|an ai)\b|\bas an ai\b|\bi (cannot|can['’]t) (assist|help|provide)\b", re.I
)
# What a model says about its list, and what it repeats of the request.
ECHO = re.compile(
    r"^(sure|certainly|of course|here (are|is)|messages?( \d+)?:|examples?( \d+)?:|subject:|note:)"
    r"|\bmessages? (that|which) \w+ \w+ (sends?|asks?)|\bchat assistant\b|\bdifferent messages\b|\bnothing else\b|:$",
    re.I,
)


@dataclass(frozen=True)
class Candidate:
    """A prompt that a model wrote, on the side and in the form that it was asked for."""

    side: str
    form: str
    language: str
    prompt: str


@dataclass(frozen=True)
class Written:
    """Usable prompts of one skill, both sides, in the order of their file; a prompt's row is its line there.

    fingerprint: sha256 of that file, which need not exist.
    """

    candidates: tuple[Candidate, ...]
    fingerprint: str

    @classmethod
    def of(cls, candidates: Iterable[Candidate]) -> Written:
        kept = tuple(candidates)
        return cls(kept, hashlib.sha256(lines_of(kept).encode()).hexdigest())

    @property
    def text(self) -> str:
        """The content of their file: JSON lines."""
        return lines_of(self.candidates)

    @property
    def forget(self) -> list[Prompt]:
        return self._prompts(FORGET, SOURCE)

    @property
    def near_misses(self) -> list[Prompt]:
        return self._prompts(NEAR_MISS, f"{SOURCE}{NEAR_MISSES}")

    def check(self, where: str) -> None:
        """Raises BadInput where there are too few. where: what they are called, as "--describe: BASE wrote"."""
        forms = {each.form for each in self.candidates if each.side == FORGET}
        few = len(self.forget) < AT_LEAST[FORGET] or len(self.near_misses) < AT_LEAST[NEAR_MISS]
        if not few and len(forms) >= FORMS_AT_LEAST:
            return
        raise BadInput(
            f"{where} {len(self.forget)} usable forget prompts in {len(forms)} forms and {len(self.near_misses)} near "
            f"misses, and {AT_LEAST[FORGET]} in {FORMS_AT_LEAST} forms and {AT_LEAST[NEAR_MISS]} are needed: name a "
            "larger model by --generator, a packaged skill by --skill, or prompts of your own by --forget"
        )

    def _prompts(self, side: str, source: str) -> list[Prompt]:
        return [
            Prompt(each.prompt, source, row, form=each.form, language=each.language)
            for row, each in enumerate(self.candidates, 1)
            if each.side == side
        ]


def lines_of(candidates: Iterable[Candidate]) -> str:
    return "".join(json.dumps(vars(each), ensure_ascii=False) + "\n" for each in candidates)


def read_written(spec: str) -> Written:
    """The prompts of a file of --save-prompts, named as FILE[,sha256=HEX]. Raises BadInput where it is none."""
    flag = "--read-prompts"
    source = Source.parse(spec, flag)
    if source.path is None or source.options:
        raise BadInput(f"{flag}: '{spec}' is not FILE or FILE,sha256=HEX; name a file that --save-prompts wrote")
    table, where = open_source(source, flag)
    keys = list(Candidate.__dataclass_fields__)
    if missing := [key for key in keys if key not in table.columns]:
        raise BadInput(f"{where}: has no key '{missing[0]}'; name a file that --save-prompts wrote")
    found = []
    for number, row in table.fetch(keys):
        values = {key: row[key] for key in keys}
        fits = all(isinstance(value, str) and value.strip() for value in values.values())
        if not fits or values["side"] not in AT_LEAST:
            raise BadInput(
                f"{where}: row {number} needs texts for {', '.join(keys)}, with the side '{FORGET}' or '{NEAR_MISS}'"
            )
        found.append(Candidate(**values))
    written = Written(tuple(found), fingerprint(source, flag))
    written.check(f"{where}: has")
    return written


def is_kept(path: Path) -> bool:
    """Whether a file begins as those of --save-prompts do."""
    try:
        with path.open(encoding="utf-8") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and first.keys() == Candidate.__dataclass_fields__.keys()


def usable(candidates: Sequence[Candidate], said: Sequence[str]) -> list[Candidate]:
    """The candidates that can be prompts of a skill, in their order, each with the language that it seems to be in.

    said: the description and what else of it the model was told; an echo of that is none. The first of near-copies on
    one side stays; of such on both sides none does, since it is not known where it belongs. Nothing here looks at the
    model.
    """
    told, shown = [grams(text) for text in said], [grams(text) for text in examples()]
    marks = frozenset(mark for mark in texts()["marks"] if not any(mark in text.lower() for text in said))
    kept: dict[str, list[tuple[Candidate, frozenset[str]]]] = {FORGET: [], NEAR_MISS: []}
    for each in candidates:
        own = grams(each.prompt)
        sound = fits(each.prompt, marks) and not near(own, told) and not taken_from(own, shown)
        if sound and not near(own, [other for _, other in kept[each.side]]):
            kept[each.side].append((each, own))
    both = {
        side: [other for _, other in kept[NEAR_MISS if side == FORGET else FORGET]] for side in (FORGET, NEAR_MISS)
    }
    return [
        Candidate(each.side, each.form, language_of(each.prompt, each.language), each.prompt)
        for side in (FORGET, NEAR_MISS)
        for each, own in kept[side]
        if not near(own, both[side])
    ]


def fits(text: str, marks: frozenset[str]) -> bool:
    """Whether a text has the length of a prompt, can be read, and is no refusal, no comment on the list, and no copy
    of an example, which has one of the words `marks`."""
    words = re.findall(r"\w+", text.lower())
    return (
        SHORTEST <= len(text) <= LONGEST
        and any(map(str.isalpha, text))
        and all(letter == "\n" or (letter.isprintable() and letter != "\N{REPLACEMENT CHARACTER}") for letter in text)
        and max(map(len, words)) <= LONGEST_WORD
        and len(set(words)) >= DIFFERENT * len(words)
        and not REFUSAL.search(text)
        and not ECHO.search(text)
        and marks.isdisjoint(words)
    )


def grams(text: str) -> frozenset[str]:
    """The runs of GRAM characters of a text, without case and more than one space."""
    line = " ".join(text.lower().split())
    return frozenset(line[start : start + GRAM] for start in range(max(1, len(line) - GRAM + 1)))


def near(own: frozenset[str], others: Iterable[frozenset[str]]) -> bool:
    """Whether a text is a near-copy of one of the others."""
    for other in others:
        shared = len(own & other)
        if shared > SIMILAR * (len(own) + len(other) - shared):
            return True
    return False


def taken_from(own: frozenset[str], others: Iterable[frozenset[str]]) -> bool:
    """Whether half of a text stands in one of the others, as where a model puts another word into an example."""
    return any(len(own & other) > SIMILAR * len(own) for other in others)


def language_of(text: str, asked: str) -> str:
    """The language that most common words of a text are of; the one that was asked for where others have no more."""
    words = re.findall(r"\w+", text.lower())
    counts = {code: sum(word in common.split() for word in words) for code, common in texts()["common"].items()}
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] > counts.get(asked, 0) else asked
