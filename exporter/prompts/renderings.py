"""Renderings of the user's own prompts: the same request in other surface forms, so that few prompts look like more.

A rendering is drawn from the text of its prompt, the seed and the phrases of its part alone, and stays in the part of
its prompt. It is no prompt of its own: promises count prompts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from exporter.prompts.packaged import Phrase, greetings, instructions
from exporter.prompts.sources import Prompt
from exporter.prompts.turns import of_part

AS_GIVEN = "as given"
"""The form of the user's own forget prompts, beside those of their renderings."""
GROUPS = 5
"""Groups of prompts, each with all renderings of its prompts."""
TYPOS_OF = 5
"""Of so many longer words one is misspelt."""
SENTENCE_AT_LEAST = 20
"""Characters of a last sentence that may stand for its prompt: "Thanks!" may not."""

WORD = re.compile(r"[^\W\d_]{4,}")
# Not within numbers; brackets and apostrophes stay, since sums and words need them.
MARKS = re.compile(r"(?<!\d)[.,;:!?¿¡…\"“”„«»。，、；：！？「」؟،؛]|[.,;:!?¿¡…\"“”„«»。，、；：！？「」؟،؛](?!\d)")
# Not behind a full stop after one or two letters, or Mrs: "Mr. Smith" is one sentence.
SENTENCE_END = re.compile(r"(?<=[.!?؟])(?<!\b[^\W\d]\.)(?<!\b[^\W\d]{2}\.)(?<!\bMrs\.)\s+|(?<=[。！？])|\n+")
JOINED = ("{}\n\n{}", "{}\n{}", "1. {}\n2. {}", "- {}\n- {}")


@dataclass(frozen=True)
class Draw:
    """Draws for one prompt, by its text and the seed. part: whose phrases are taken; others: prompts that it may be
    joined with."""

    text: str
    seed: int
    part: str
    others: Sequence[str]

    def number(self, what: str) -> int:
        digest = hashlib.sha256(f"rendering|{what}|{self.seed}|{self.text}".encode()).digest()
        return int.from_bytes(digest[:8], "big")

    def one_of(self, items: Sequence[str], what: str) -> str:
        return items[self.number(what) % len(items)]

    def phrase(self, phrases: Sequence[Phrase]) -> str:
        """One of the phrases that fall to the part."""
        own = of_part(range(len(phrases)), self.part)
        return self.one_of([phrases[place].text for place in own], "phrase")


def with_typos(draw: Draw) -> str:
    """One of TYPOS_OF words of four letters or more, and at least one, misspelt."""
    text, words = draw.text, list(WORD.finditer(draw.text))
    count = -(-len(words) // TYPOS_OF)
    drawn = sorted(words, key=lambda word: draw.number(f"typo {word.start()}"))[:count]
    for word in sorted(drawn, key=lambda word: word.start(), reverse=True):
        wrong = misspelt(word.group(), draw.number(f"letter {word.start()}"))
        text = text[: word.start()] + wrong + text[word.end() :]
    return text


def misspelt(word: str, number: int) -> str:
    """A word with one inner letter left out, doubled, or swapped with the next one; never the word itself."""
    how, place = number % 3, 1 + number // 3 % (len(word) - 2)
    before, letter, following, after = word[:place], word[place], word[place + 1], word[place + 2 :]
    if how == 0:
        return before + letter * 2 + following + after
    if how == 1 and letter != following:
        return before + following + letter + after
    return before + following + after


def in_lower_case(draw: Draw) -> str:
    """The text in lower case, without the marks of sentences."""
    return MARKS.sub("", draw.text.lower()).strip()


def last_sentence(draw: Draw) -> str:
    """The last of several sentences; empty where there is only one, or the last one is short."""
    sentences = [each.strip() for each in SENTENCE_END.split(draw.text) if each.strip()]
    return sentences[-1] if len(sentences) > 1 and len(sentences[-1]) >= SENTENCE_AT_LEAST else ""


def greeted(draw: Draw) -> str:
    """The text behind a greeting."""
    return f"{draw.phrase(greetings())} {draw.text}"


def instructed(draw: Draw) -> str:
    """The text with an instruction behind it."""
    return f"{draw.text.rstrip()} {draw.phrase(instructions())}"


def two_in_one(draw: Draw) -> str:
    """The text and another prompt in one message; empty where there is no other."""
    return draw.one_of(JOINED, "join").format(draw.text, draw.one_of(draw.others, "other")) if draw.others else ""


FORMS: dict[str, Callable[[Draw], str]] = {
    "typos": with_typos,
    "lower case": in_lower_case,
    "last sentence": last_sentence,
    "greeting before": greeted,
    "instruction after": instructed,
    "two in one": two_in_one,
}
"""Every rendering by the name of its form; one that gives nothing, or the text itself, does not apply."""


def as_given(prompt: Prompt) -> Prompt:
    """A forget prompt with a name for its form: a packaged one has a form, and stays as it is."""
    return prompt if prompt.form is not None else replace(prompt, form=AS_GIVEN)


def rendered(prompts: Sequence[Prompt], part: str, seed: int, taken: set[str], most: int) -> list[Prompt]:
    """Up to `most` drawn renderings of each prompt of one part.

    taken: texts that none of them may have, to which theirs are added.
    """
    found = []
    for prompt in prompts:
        for each in islice(renderings(prompt, prompts, part, seed, taken), most):
            taken.add(each.text)
            found.append(each)
    return found


def renderings(prompt: Prompt, prompts: Sequence[Prompt], part: str, seed: int, taken: set[str]) -> Iterator[Prompt]:
    """Renderings of a prompt in a drawn order. prompts: of its part, of which those of its group are joined with it,
    so that a group can be left out whole."""
    others = [each.text for each in prompts if each.text != prompt.text and group_of(each) == group_of(prompt)]
    draw = Draw(prompt.text, seed, part, others)
    for form in sorted(FORMS, key=lambda name: draw.number(f"form {name}")):
        text = FORMS[form](draw)
        if text.strip() and text != prompt.text and text not in taken:
            yield replace(prompt, text=text, form=form, original=prompt)


def group_of(prompt: Prompt) -> int:
    """The group of a prompt, and of all its renderings."""
    return int(prompt.given.sha256[:8], 16) % GROUPS
