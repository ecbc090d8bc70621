"""Settings of `unskill chat`, checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.common.errors import BadInput
from exporter.prompts.switches import State
from exporter.recipes.declared import check, setting
from exporter.recipes.settings import ARGUMENTS, DEVICE, DTYPE, RECORDED_TEMPLATE, SEED

# At a blocked position all other logits are 10,000 lower: a higher temperature could still draw one of them.
HIGHEST_TEMPERATURE = 100


@dataclass(frozen=True)
class ChatSettings:
    """Settings of `unskill chat`; fields are named as the flags.

    prompts: () reads them from the terminal or stdin; base: None with `compare` is the checkpoint's own weights
    without interventions.
    """

    checkpoint: str
    prompts: tuple[str, ...] = setting((), flag="--prompt", help="Answer this prompt and exit. Repeatable.")
    conversation: bool = setting(False, help="Each --prompt, or line on stdin, continues the conversation.")
    system: str | None = setting(None, help="System prompt.")
    compare: bool = setting(
        False, help="Also answer with the base model: the same weights without interventions, not loaded twice."
    )
    base: str | None = setting(None, metavar="MODEL", help="Compare with this model instead.")
    prompt_template: str | None = setting(**RECORDED_TEMPLATE)
    template_args: tuple[str, ...] = setting(**ARGUMENTS | {"default": ()})
    max_new_tokens: int = setting(256, minimum=1, help="Maximum length of an answer.")
    temperature: float = setting(
        0.0, minimum=0, maximum=HIGHEST_TEMPERATURE, help="Sampling temperature; 0 is greedy."
    )
    seed: int = setting(**SEED)
    dtype: str = setting(**DTYPE)
    device: str = setting(**DEVICE)
    as_json: bool = setting(False, flag="--json", help="Print one JSON object on stdout; needs prompts.")
    quiet: bool = setting(False, help="Print answers only, without reasons and messages.")

    def __post_init__(self) -> None:
        """Raises BadInput for invalid values."""
        check(self)
        if len(self.template_args) > 1:
            raise BadInput("--template-args: a chat is in one state; give one JSON object with all arguments")
        for text in self.template_args:
            State.given(text)
        for prompt in self.prompts:
            check_text(prompt, "--prompt")
        if self.system is not None:
            check_text(self.system, "--system")

    @property
    def state(self) -> State | None:
        """Of the chat template, that prompts are in."""
        return State.given(self.template_args[0]) if self.template_args else None


def check_text(text: str, where: str) -> None:
    """Raises BadInput for an empty text, or one with lone surrogates, which no tokenizer takes."""
    if not text.strip():
        raise BadInput(f"{where}: the text is empty")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise BadInput(f"{where}: is not UTF-8 text")
