"""Probing: run queries through the base model and collect key vectors, scores and final states."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from exporter.common.errors import RunFailed
from exporter.common.progress import Progress
from exporter.common.text import counted
from exporter.models.batches import ANSWER_TOKENS, PROBE_TOKENS, Batch, T, batched, run_batches
from exporter.models.families import form_of
from exporter.models.hooks import LastLayerReached, final_state_hook, key_hooks
from exporter.models.kept import Kept, Tensors
from exporter.models.loading import LoadedModel
from exporter.models.prefixes import Layout, PrefixCache, last_tokens
from exporter.models.tokens import padded, positions_of
from exporter.prompts.formats import Query

ANSWER_WORK = 5
"""What a token that is generated costs, in tokens of a forward (SmolLM2 and Qwen2.5-Coder-0.5B on two cores)."""


class KeyScores(Protocol):
    """Scores of key vectors, whichever method fitted them."""

    @property
    def digest(self) -> str:
        """sha256 of everything that the scores depend on beside the keys."""

    def scores(self, vectors: Tensor) -> Tensor:
        """(..., layers, d_ff) -> (..., layers) float64."""

    def scorer(self, device: torch.device) -> Callable[[int, Tensor], Tensor]:
        """score(layer, keys (n, d_ff)) -> (n,) float64, on the device."""


class KeyProber(ABC):
    """Key vectors of queries, on any engine, in batches of similar length.

    batch_size: None for as many rows as PROBE_TOKENS allow; pad_id: of masked positions; key_size: length of a key
    vector, d_ff.
    """

    batch_size: int | None
    progress: Progress
    pad_id: int
    key_size: int
    halved: bool = False
    """Whether memory ran out and batches were split, so that sums of another run may differ in their last bits."""

    @property
    @abstractmethod
    def layers(self) -> int:
        """Number of layers."""

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @abstractmethod
    def last_token_keys(self, queries: Sequence[Query], what: str, layer: int | None = None) -> Iterator[Batch]:
        """Batches of the last tokens' key vectors, (n, layers, d_ff) float32, on the CPU.

        layer: the only one whose keys are wanted, (n, 1, d_ff). A query that begins another one is read from the
        other's forward.
        """

    @abstractmethod
    def answers(self, queries: Sequence[Query], new_tokens: int, what: str) -> list[tuple[int, ...]]:
        """The model's own greedy answers, of at least one token, as token ids without the end token."""

    @abstractmethod
    def score_answers(
        self, queries: Sequence[Query], skills: Sequence[KeyScores], new_tokens: int, what: str
    ) -> tuple[Tensor, Tensor]:
        """Scores, by every skill, of the model's own greedy answers, at every position from the last prompt token on.

        Returns two (skills, n, layers) float64: the score of the prompt's last token, and the minimum over positions.
        """

    @abstractmethod
    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        """Logits (rows, positions, vocabulary) for the inputs of `pad`."""

    def pad(self, queries: Sequence[Query], side: str = "left") -> dict[str, Tensor]:
        return padded([query.ids for query in queries], self.pad_id, side, self.device)

    def batches(
        self,
        queries: Sequence[Query],
        run: Callable[[list[int]], T],
        what: str,
        tokens: int = PROBE_TOKENS,
        unit: str = "prompt",
        shared: Sequence[tuple[int, list[int]]] | None = None,
        share: float = 1.0,
        new_tokens: int = 0,
    ) -> Iterator[T]:
        """The result of run(rows) for each batch (see `batched`), as a stage of the run.

        shared: see `shared_prefixes`, of which a batch has rows of one group alone; by default none. share: of the
        layers that is run; new_tokens: that are generated.
        """
        if not queries:
            return
        rows: list[list[int]] = []
        work: dict[int, float] = {}
        for length, group in [(0, list(range(len(queries))))] if shared is None else shared:
            rest = {row: len(queries[row].ids) - length for row in group}
            rows += batched(group, rest.__getitem__, tokens, self.batch_size, new_tokens)
            work |= {row: share * length_ + ANSWER_WORK * new_tokens for row, length_ in rest.items()}
        with self.progress.stage(what, sum(work.values()), counted(len(queries), unit)) as advance:
            for done, result in run_batches(rows, run, what):
                self.halved |= done not in rows
                yield result
                advance(sum(work[row] for row in done))


@dataclass
class Prober(KeyProber):
    """Runs queries in length-sorted, left-padded batches; a batch that does not fit in memory is split.

    kept: where results of batches are kept; None where they are not.
    """

    loaded: LoadedModel
    batch_size: int | None = None
    progress: Progress = field(default_factory=Progress)
    kept: Kept | None = None
    pad_id: int = field(init=False)
    key_size: int = field(init=False)

    def __post_init__(self) -> None:
        self.pad_id = self.loaded.pad_id
        self.key_size = getattr(self.loaded.model.config.get_text_config(), form_of(self.loaded.model).key)

    @property
    def layers(self) -> int:
        return len(self.loaded.model.base_model.layers)

    def result(self, what: str, depends: Sequence[object], compute: Callable[[], Tensors]) -> Tensors:
        """The result for a batch, computed or from where it is kept. depends: all that it depends on beside the
        model."""
        return compute() if self.kept is None else self.kept.of((what, *depends), compute)

    def last_token_keys(self, queries: Sequence[Query], what: str, layer: int | None = None) -> Iterator[Batch]:
        """See `KeyProber`. Layers behind the only one are not computed, and a prefix that many share is run once."""
        laid = Layout.of(queries)
        last = self.layers - 1 if layer is None else layer
        cache = PrefixCache(self.loaded.model, last)

        def run(places: list[int]) -> Batch:
            length, ids = laid.length_of[places[0]], [laid.longest[place].ids for place in places]
            lines, columns, rows = last_tokens(queries, [laid.groups[place] for place in places], length)

            def compute() -> Tensors:
                seen: list[Tensor] = []

                def receive(at: int, key: Tensor) -> None:
                    if layer is None or at == layer:
                        seen.append(key[lines, columns].float())

                past = cache.of(ids[0][:length], len(places)) if length else None
                with suppress(LastLayerReached), key_hooks(self.loaded.model, receive, stop_after=last):
                    # On the right: pads between prefix and query would count within a sliding window.
                    self.forward([laid.longest[place] for place in places], "right", past, length)
                return {"keys": torch.stack(seen, 1).cpu()}

            return rows, self.result("keys", (layer, length, ids, lines, columns), compute)["keys"]

        yield from self.batches(laid.longest, run, what, shared=laid.shared, share=(last + 1) / self.layers)

    def work(self, queries: Sequence[Query], layers: float) -> float:
        """What `last_token_keys` of such a share of the layers takes, in tokens of a forward."""
        laid = Layout.of(queries)
        return layers * sum(len(query.ids) - laid.length_of[place] for place, query in enumerate(laid.longest))

    def answers(
        self, queries: Sequence[Query], new_tokens: int, what: str, seed: int | None = None
    ) -> list[tuple[int, ...]]:
        """See `KeyProber`: greedy answers, or sampled ones with a seed."""
        found: list[tuple[int, ...]] = [()] * len(queries)
        config = self.loaded.greedy(new_tokens) if seed is None else self.loaded.sampled(new_tokens)
        ends = config.eos_token_id

        def run(rows: list[int]) -> None:
            asked = [queries[row] for row in rows]

            def compute() -> Tensors:
                inputs = self.pad(asked)
                with torch.inference_mode():
                    output = self.loaded.model.generate(**inputs, generation_config=config)
                return {"answers": output[:, inputs["input_ids"].shape[1] :].cpu().contiguous()}

            # Sampled ones depend on all that was drawn before.
            depends = "answers", ([query.ids for query in asked], new_tokens, ends, self.pad_id)
            written = (compute() if seed is not None else self.result(*depends, compute))["answers"]
            for row, ids in zip(rows, written.tolist(), strict=True):
                found[row] = tuple(takewhile(lambda token: token not in ends, ids))

        with torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            for _ in self.batches(queries, run, what, ANSWER_TOKENS, new_tokens=new_tokens):
                pass
        return found

    def final_states(self, queries: Sequence[Query], what: str) -> Tensor:
        """Final hidden states of every position, BOS and pads included: (positions, hidden) float32."""

        def run(rows: list[int]) -> Tensor:
            asked = [queries[row] for row in rows]

            def compute() -> Tensors:
                seen: list[Tensor] = []
                with final_state_hook(self.loaded.model, lambda state: seen.append(state.flatten(0, 1).float().cpu())):
                    self.forward(asked)
                return {"states": torch.cat(seen)}

            return self.result("states", ([query.ids for query in asked], self.pad_id), compute)["states"]

        return torch.cat(list(self.batches(queries, run, what)))

    def score_answers(
        self, queries: Sequence[Query], skills: Sequence[KeyScores], new_tokens: int, what: str
    ) -> tuple[Tensor, Tensor]:
        first = torch.zeros(len(skills), len(queries), self.layers, dtype=torch.float64)
        least = torch.zeros_like(first)
        greedy = self.loaded.greedy(new_tokens)
        ends, scorers = torch.tensor(greedy.eos_token_id), [keys.scorer(self.device) for keys in skills]

        def run(rows: list[int]) -> None:
            asked = [queries[row] for row in rows]

            def compute() -> Tensors:
                seen: list[Tensor] = []  # one (skills, rows) per layer and step

                def receive(layer: int, key: Tensor) -> None:
                    seen.append(torch.stack([score(layer, key[:, -1]) for score in scorers]).cpu())

                inputs = self.pad(asked)
                with key_hooks(self.loaded.model, receive), torch.inference_mode():
                    output = self.loaded.model.generate(**inputs, generation_config=greedy)
                steps = torch.stack(seen).view(-1, self.layers, len(skills), len(rows)).permute(0, 2, 3, 1)
                # Step 0 reads the prompt's last token, step t > 0 the t-th answer token; after an EOS there are only
                # pads.
                answer = output[:, inputs["input_ids"].shape[1] :].cpu()[:, : steps.shape[0] - 1]
                ended = torch.isin(answer, ends).cumsum(1).bool().T[:, None, :, None]  # (steps - 1, 1, rows, 1)
                steps[1:].masked_fill_(ended, math.inf)  # steps: (steps, skills, rows, layers)
                return {"first": steps[0], "least": steps.amin(0)}

            depends = [query.ids for query in asked], new_tokens, greedy.eos_token_id, self.pad_id
            scores = self.result("answer scores", (*depends, [keys.digest for keys in skills]), compute)
            first[:, rows], least[:, rows] = scores["first"], scores["least"]

        for _ in self.batches(queries, run, what, ANSWER_TOKENS, new_tokens=new_tokens):
            pass
        return check_finite(first, what), least

    @property
    def device(self) -> torch.device:
        return self.loaded.device

    def forward(
        self, queries: Sequence[Query], side: str = "left", past: DynamicCache | None = None, length: int = 0
    ) -> None:
        """One forward of the base model without its head. side: of the pads; past: the cache of the first `length` ids
        of every query."""
        inputs = padded([query.ids[length:] for query in queries], self.pad_id, side, self.device)
        positions = positions_of(inputs) + length
        mask = inputs["attention_mask"]
        inputs["attention_mask"] = torch.cat([mask.new_ones(len(mask), length), mask], 1)
        with torch.inference_mode():
            self.loaded.model.base_model(
                **inputs, position_ids=positions, past_key_values=past, use_cache=past is not None
            )

    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        with torch.inference_mode():
            found: Tensor = self.loaded.model(**inputs, position_ids=positions_of(inputs), use_cache=False).logits
        return found


def check_finite(scores: Tensor, what: str) -> Tensor:
    """The scores themselves. Raises RunFailed if any is NaN or infinite."""
    if not torch.isfinite(scores).all():
        raise RunFailed(f"{what}: the model computes NaN or infinity, try another --dtype")
    return scores
