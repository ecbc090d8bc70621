"""Texts of the user that have a token for which the model has no row: found before any forward, by flag and row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from exporter.common.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from exporter.prompts.skills import SkillPrompts
    from exporter.recipes.settings import ExportSettings


def check_texts(
    skills: Sequence[SkillPrompts],
    settings: ExportSettings,
    tokenizer: PreTrainedTokenizerBase,
    rowless: Mapping[int, str],
) -> None:
    """Raises BadInput for the first text that has a token without a row. rowless: these tokens by id."""
    if not rowless:
        return
    for where, text in _texts(skills, settings):
        for id_ in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]:
            if id_ in rowless:
                raise BadInput(
                    f"{where} has token '{rowless[id_]}' ({id_}), for which the model has no row; take it out"
                )


def _texts(skills: Sequence[SkillPrompts], settings: ExportSettings) -> Iterator[tuple[str, str]]:
    """What the model is given to read, and where it comes from."""
    if settings.blocks:  # otherwise texts are read bare
        yield "--prompt-template", settings.prompt_template
        yield from (("--system-prompt", text) for text in settings.system_prompts)
    for each in skills:
        for flag, prompts in (("--forget", each.forget), ("--retain", each.retain)):
            for prompt in prompts:
                yield f"{flag} {prompt.source}: row {prompt.row}", f"{prompt.text}\n{prompt.answer or ''}"
