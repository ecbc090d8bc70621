"""One answer of one model, streamed while it is generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from exporter.common.errors import RunFailed
from exporter.evaluation.why import Detector, Moved, Verdict, watched
from exporter.models.batches import out_of_memory
from exporter.models.loading import LoadedModel

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
    """ended: STOP (by EOS or the refusal), LENGTH or INTERRUPTED; tokens: without the final EOS or refusal.

    verdicts, moved: of a checkpoint; empty and None for a base model.
    """

    text: str
    tokens: int
    ended: str
    verdicts: Sequence[Verdict] = ()
    moved: Moved | None = None

    @property
    def blocked_after(self) -> int | None:
        """Number of tokens before the refusal; None if nothing was blocked."""
        return next((each.blocked_after for each in self.verdicts if each.blocked_after is not None), None)


class Pieces(BaseStreamer):
    """Streams text as soon as no later token can change it.

    Not transformers' TextStreamer: that decodes each line on its own, and SentencePiece tokenizers drop the first
    space of what they decode, so that indented lines lose one.
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
        self.hand_out(self.decode().rstrip("\ufffd"))  # the bytes of one character may come in several tokens

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

    detectors: the checkpoint's, to record what they do; None for a base model. suppressed: a token that is never
    generated. stoppable: on Ctrl-C the answer so far is returned; otherwise KeyboardInterrupt is raised.

    Raises RunFailed if memory runs out.
    """
    ends = loaded.eos_ids
    if loaded.refusal_id is not None:
        ends = [*ends, loaded.refusal_id]  # only EOS may follow it
    # Options left out are the model's own, and transformers warns about sampling options with greedy decoding.
    draws: dict[str, Any] = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
    if sampling.temperature > 0:
        draws = {"do_sample": True, "temperature": sampling.temperature}
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=ends,
        pad_token_id=loaded.pad_id,
        suppress_tokens=None if suppressed is None else [suppressed],
        num_beams=1,  # beams cannot be streamed
        min_length=0,  # the refusal may be the first token, and is among those that end an answer
        min_new_tokens=0,
        **draws,
    )
    pieces = Pieces(loaded.tokenizer, write)
    torch.manual_seed(sampling.seed)
    interrupted, seen = False, None
    watching = nullcontext() if detectors is None else watched(loaded, detectors)
    try:
        with torch.inference_mode(), watching as seen:
            loaded.model.generate(**loaded.pad([ids], "left"), generation_config=config, streamer=pieces)
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
