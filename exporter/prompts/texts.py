"""Whole texts, prompt and answer, for the methods that look at every token: which, how long, and in which part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.common.errors import BadInput
from exporter.prompts.formats import Query
from exporter.prompts.sources import Prompt
from exporter.prompts.splits import ForgetParts, RetainParts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT = "text"
"""The format of a whole text: no chat template, special tokens as the tokenizer adds them."""
TEXT_TOKENS = 384
"""Tokens of a text that are looked at, from its beginning."""


@dataclass(frozen=True)
class TextParts:
    """Disjoint parts of the texts of one side: for the statistics, for score and beta, and for the report."""

    fit: tuple[Prompt, ...]
    choose: tuple[Prompt, ...]
    report: tuple[Prompt, ...]


def forget_texts(parts: ForgetParts[Prompt], calibrated: bool) -> TextParts:
    """Parts of the forget texts. `calibrated`: hypercubes are calibrated on prompts that nothing else has seen."""
    return TextParts(parts.fit, parts.choose + (() if calibrated else parts.calibrate), parts.report)


def retain_texts(parts: RetainParts[Prompt], calibrated: bool) -> TextParts:
    """Parts of the retain texts: six of ten of the choose half are for the statistics, the others for score and beta.

    So are four fifths of the report half where no false blocks are reported on it: the more texts are judged by, the
    closer to the budget the retain loss can come.
    """
    fit = tuple(item for place, item in enumerate(parts.choose) if place % 10 < 6)
    choose = tuple(item for place, item in enumerate(parts.choose) if place % 10 >= 6)
    if calibrated:
        return TextParts(fit, choose, parts.report)
    more = tuple(item for place, item in enumerate(parts.report) if place % 5)
    return TextParts(fit, choose + more, parts.report[::5])


def as_texts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], flag: str, max_length: int | None
) -> list[Query]:
    """Prompt, line break and answer (where the source names one) as token ids; a text of one token is left out.

    Raises BadInput where nothing is left.
    """
    queries = []
    limit = min(TEXT_TOKENS, max_length or TEXT_TOKENS)
    for prompt in prompts:
        text = prompt.text if prompt.answer is None else f"{prompt.text}\n{prompt.answer}"
        ids = tokenizer(text, verbose=False)["input_ids"][:limit]
        if len(ids) > 1:
            queries.append(Query(prompt, TEXT, tuple(ids)))
    if prompts and not queries:
        raise BadInput(f"{flag}: every text is a single token for this model's tokenizer")
    return queries


def answer_starts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Query]) -> list[int]:
    """Of each text the first token of its answer, by which answers are looked at alone; its length where there is no
    answer, or none within its first tokens."""
    starts = []
    for query in texts:
        prompt, answer = query.prompt.text, query.prompt.answer
        if answer is None:
            starts.append(len(query.ids))
            continue
        offsets = tokenizer(f"{prompt}\n{answer}", return_offsets_mapping=True, verbose=False)["offset_mapping"]
        places = [place for place, (_, end) in enumerate(offsets[: len(query.ids)]) if end > len(prompt) + 1]
        starts.append(places[0] if places else len(query.ids))
    return starts
