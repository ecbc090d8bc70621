"""What `unskill chat` is asked for, checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.common.errors import BadInput
from exporter.recipes.declared import check, setting
from exporter.recipes.settings import DEVICE, DTYPE, SEED

# A blocked position's other logits are lower by 10,000: a hotter draw could reach them.
HOTTEST = 100


@dataclass(frozen=True)
class ChatSettings:
    """Settings of `unskill chat`; the names are those of the flags.

    prompts: none are read from stdin; base: None with `compare` is the checkpoint's own weights without interventions;
    prompt_template: None is the export's; temperature: 0 is greedy.
    """

    checkpoint: str
    prompts: tuple[str, ...] = setting((), flag="--prompt", help="Answer this and leave. Repeatable.")
    conversation: bool = setting(False, help="Each --prompt, or line on stdin, follows on those before it.")
    system: str | None = setting(None, help="System prompt.")
    compare: bool = setting(
        False, help="Answer with the base model too: the same weights without interventions, not loaded again."
    )
    base: str | None = setting(None, metavar="MODEL", help="Compare with this model instead.")
    prompt_template: str | None = None
    max_new_tokens: int = setting(256, minimum=1, help="Greatest length of an answer.")
    temperature: float = setting(0.0, minimum=0, maximum=HOTTEST, help="Of sampling; 0 is greedy.")
    seed: int = setting(**SEED)
    dtype: str = setting(**DTYPE)
    device: str = setting(**DEVICE)
    as_json: bool = setting(False, flag="--json", help="Print one JSON object on stdout; needs prompts.")
    quiet: bool = setting(False, help="Answers alone: no reasons and messages.")

    def __post_init__(self) -> None:
        """Raises BadInput for values that no chat can have."""
        check(self)
        for prompt in self.prompts:
            check_text(prompt, "--prompt")
        if self.system is not None:
            check_text(self.system, "--system")


def check_text(text: str, where: str) -> None:
    """Raises BadInput where there is nothing in a text, or what no tokenizer takes."""
    if not text.strip():
        raise BadInput(f"{where}: the text is empty")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise BadInput(f"{where}: is not UTF-8 text")
