"""Whole texts, prompt and answer, for the methods that look at every token: which, how long, and in which part."""

from __future__ import annotations

from collections.abc import Sequence
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
"""How many tokens of a text are read, from its beginning."""

TextParts = dict[str, tuple[Prompt, ...]]
"""Disjoint parts of one side's texts: "fit" for the statistics, "choose" for score and beta, and "report"."""


def forget_texts(parts: ForgetParts[Prompt], calibrated: bool) -> TextParts:
    """Parts of the forget texts. `calibrated`: alpha of hypercubes is calibrated on prompts that nothing else may have
    seen; discriminants have no such part."""
    spare = () if calibrated else parts.calibrate
    return {"fit": parts.fit, "choose": parts.choose + spare, "report": parts.report}


def retain_texts(parts: RetainParts[Prompt], calibrated: bool) -> TextParts:
    """Parts of the retain texts: six in ten of the choose half are for the statistics, the others for score and beta.

    Without hypercubes no false blocks are reported on the report half, and four fifths of it are for score and beta
    too: the more texts are judged by, the closer to the budget the retain loss can come.
    """
    fit = tuple(item for place, item in enumerate(parts.choose) if place % 10 < 6)
    choose = tuple(item for place, item in enumerate(parts.choose) if place % 10 >= 6)
    report = parts.report
    if not calibrated:
        choose += tuple(item for place, item in enumerate(report) if place % 5)
        report = report[::5]
    return {"fit": fit, "choose": choose, "report": report}


def as_texts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], flag: str, max_length: int | None
) -> list[Query]:
    """Prompt, line break and answer (where the source has one) as token ids; texts of one token are left out.

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
    """The first token of each text's answer; the text's length where there is no answer among its tokens."""
    starts = []
    for query in texts:
        prompt, answer, start = query.prompt.text, query.prompt.answer, len(query.ids)
        if answer is not None:
            offsets = tokenizer(f"{prompt}\n{answer}", return_offsets_mapping=True, verbose=False)["offset_mapping"]
            places = (place for place, (_, end) in enumerate(offsets[:start]) if end > len(prompt) + 1)
            start = next(places, start)
        starts.append(start)
    return starts
