"""What `unskill chat` is asked for, checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.common.errors import BadInput
from exporter.recipes.settings import check_running

# A blocked position's other logits are lower by 10,000: a hotter draw could reach them.
HOTTEST = 100.0


@dataclass(frozen=True)
class ChatSettings:
    """Settings of `unskill chat`; the names are those of the flags.

    prompts: none are read from stdin; base: None with `compare` is the checkpoint's own weights without interventions;
    prompt_template: None is the export's; temperature: 0 is greedy.
    """

    checkpoint: str
    prompts: tuple[str, ...] = ()
    conversation: bool = False
    system: str | None = None
    compare: bool = False
    base: str | None = None
    prompt_template: str | None = None
    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    dtype: str = "auto"
    device: str = "cpu"
    as_json: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        """Raises BadInput for values that no chat can have."""
        check_running(None, self.dtype, seed=self.seed)
        if self.max_new_tokens < 1:
            raise BadInput(f"--max-new-tokens: {self.max_new_tokens} is not 1 or more")
        if not 0 <= self.temperature <= HOTTEST:
            raise BadInput(f"--temperature: {self.temperature} is not between 0 (greedy) and {HOTTEST:g}")
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
