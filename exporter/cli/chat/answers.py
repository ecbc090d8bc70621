"""One answer of one model, handed out piece by piece while it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from exporter.cli.chat.why import Detector, Moved, Verdict, watched
from exporter.common.errors import RunFailed
from exporter.models.batches import out_of_memory
from exporter.models.loading import LoadedModel
from exporter.models.tokens import eos_ids

Write = Callable[[str], None]
STOP, LENGTH, INTERRUPTED = "stop", "length", "interrupted"


@dataclass(frozen=True)
class Sampling:
    """temperature: 0 is greedy."""

    max_new_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class Answer:
    """ended: STOP (by EOS or the refusal), LENGTH or INTERRUPTED; tokens: without that EOS or refusal.

    verdicts, moved: of a checkpoint; empty and None for a base model.
    """

    text: str
    tokens: int
    ended: str
    verdicts: Sequence[Verdict] = ()
    moved: Moved | None = None

    @property
    def blocked_after(self) -> int | None:
        """How many tokens stood before the refusal; None where nothing was blocked."""
        return next((each.blocked_after for each in self.verdicts if each.blocked_after is not None), None)


class Pieces(BaseStreamer):
    """Hands out text as soon as it is settled.

    Not transformers' TextStreamer: that decodes each line on its own, and tokenizers of the sentencepiece kind drop
    the first space of what they decode, so that indented lines lose one.
    """

    def __init__(self, tokenizer: Any, write: Write) -> None:
        self.tokenizer, self.write = tokenizer, write
        self.ids: list[int] = []
        self.text = ""
        self._prompt = True

    def put(self, value: torch.Tensor) -> None:
        if self._prompt:
            self._prompt = False
            return
        self.ids += value.tolist()
        text = self.decode()
        # The bytes of one character may come in several tokens.
        self.hand_out(text[: len(text.rstrip("\ufffd"))])

    def end(self) -> None:
        self.hand_out(self.decode())

    def decode(self) -> str:
        return str(self.tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def hand_out(self, text: str) -> None:
        if text.startswith(self.text) and text != self.text:
            new, self.text = text[len(self.text) :], text
            self.write(new)


def answer(
    loaded: LoadedModel,
    ids: Sequence[int],
    sampling: Sampling,
    write: Write,
    *,
    detectors: Sequence[Detector] | None = None,
    suppressed: int | None = None,
    stoppable: bool = False,
) -> Answer:
    """The model's answer to a prompt of these token ids.

    detectors: the checkpoint's, to be watched; None of a base model. suppressed: a token that is never written.
    stoppable: Ctrl-C ends the answer, and what there is of it is returned; else it raises KeyboardInterrupt.

    Raises RunFailed where memory does not suffice.
    """
    ends = eos_ids(loaded.model, loaded.name)
    if loaded.refusal_id is not None:
        ends = [*ends, loaded.refusal_id]  # only EOS may follow it
    # What is not set here is the model's own, and transformers warns of sampling options in greedy answers.
    draws: dict[str, Any] = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
    if sampling.temperature > 0:
        draws = {"do_sample": True, "temperature": sampling.temperature}
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=ends,
        pad_token_id=loaded.pad_id,
        suppress_tokens=None if suppressed is None else [suppressed],
        num_beams=1,  # which alone can be handed out while they are written
        min_length=0,  # the refusal may be the first token, and is among those that end an answer
        min_new_tokens=0,
        **draws,
    )
    inputs = loaded.pad([ids], "left")
    pieces = Pieces(loaded.tokenizer, write)
    torch.manual_seed(sampling.seed)
    interrupted, seen = False, None
    watching = nullcontext() if detectors is None else watched(loaded, detectors)
    try:
        with torch.inference_mode(), watching as seen:
            loaded.model.generate(**inputs, generation_config=config, streamer=pieces)
    except KeyboardInterrupt:
        if not stoppable:
            raise
        interrupted = True
        pieces.end()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise RunFailed(f"{loaded.name}: out of memory after a prompt of {len(ids)} tokens") from error
    ended = bool(pieces.ids) and pieces.ids[-1] in ends
    return Answer(
        pieces.decode(),
        len(pieces.ids) - ended,
        STOP if ended else INTERRUPTED if interrupted else LENGTH,
        () if seen is None else seen.verdicts(),
        None if seen is None else seen.neurons(),
    )
