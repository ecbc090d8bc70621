"""Judging written answers by the field's metrics: GSM8K exact match, SQuAD exact match and F1, code in an answer."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")
_FENCE = re.compile(r"```[ \t]*(?:python|py|Python)?[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)


def last_number(answer: str) -> str | None:
    """The last number of an answer without currency signs, separators and trailing zeros; None without a number.

    The "flexible" match of lm-evaluation-harness: GSM8K's reference answers end in "#### 18", a chat model's do not.
    """
    found = _NUMBER.findall(answer)
    if not found:
        return None
    digits = found[-1].replace("$", "").replace(",", "")
    whole, _, part = digits.removeprefix("-").partition(".")
    number = (whole.lstrip("0") or "0") + f".{part}".rstrip("0").rstrip(".")
    return f"-{number}" if digits.startswith("-") and number != "0" else number


def normalised(answer: str) -> str:
    """As SQuAD compares answers: lower case, no punctuation, no English articles, single spaces.

    Punctuation is that of Unicode, as in MLQA, so that it works for other scripts too.
    """
    letters = (each for each in answer.lower() if each not in string.punctuation)
    kept = "".join(each for each in letters if not unicodedata.category(each).startswith("P"))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def exact_match(answer: str, references: Sequence[str]) -> bool:
    return any(normalised(answer) == normalised(reference) for reference in references)


def f1(answer: str, references: Sequence[str]) -> float:
    """Greatest F1 of the answer's words with those of a reference; words are letters where a script has no spaces."""
    return max((_f1(words(answer), words(reference)) for reference in references), default=0.0)


def words(text: str) -> list[str]:
    # Chinese and Japanese are written without spaces: MLQA counts their characters.
    return re.findall(r"[぀-ヿ㐀-鿿豈-﫿]|[^\s぀-ヿ㐀-鿿豈-﫿]+", normalised(text))


def _f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    shared = sum((Counter(answer) & Counter(reference)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(answer), shared / len(reference)
    return 2 * precision * recall / (precision + recall)


def code_of(answer: str) -> str:
    """The Python code of a chat model's answer: its first fenced block, or all of it where there is none."""
    found = _FENCE.search(answer)
    return found.group(1) if found else answer
