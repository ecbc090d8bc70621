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
from tqdm import tqdm
from transformers import DynamicCache

from exporter.common.errors import RunFailed
from exporter.models.batches import ANSWER_TOKENS, PROBE_TOKENS, Batch, T, batched, run_batches
from exporter.models.hooks import LastLayerReached, final_state_hook, key_hooks
from exporter.models.loading import LoadedModel
from exporter.models.prefixes import PrefixCache, shared_prefixes
from exporter.models.tokens import padded, positions_of
from exporter.prompts.formats import Query


class KeyScores(Protocol):
    """Scores of key vectors, whichever method fitted them."""

    def scores(self, vectors: Tensor) -> Tensor:
        """(..., layers, d_ff) -> (..., layers) float64."""

    def scorer(self, device: torch.device) -> Callable[[int, Tensor], Tensor]:
        """score(layer, keys (n, d_ff)) -> (n,) float64, on the device."""


class KeyProber(ABC):
    """Key vectors of queries, on any engine, in batches of similar length.

    batch_size: None for as many rows as PROBE_TOKENS allow; quiet: no progress bars; pad_id: of masked positions;
    key_size: length of a key vector, d_ff.
    """

    batch_size: int | None
    quiet: bool
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
    ) -> Iterator[T]:
        """The result of run(rows) for each batch (see `batched`), with a progress bar. shared: see `shared_prefixes`,
        of which a batch has rows of one group alone; by default none."""
        rows = []
        for length, group in [(0, list(range(len(queries))))] if shared is None else shared:
            rest = {row: len(queries[row].ids) - length for row in group}
            rows += batched(group, rest.__getitem__, tokens, self.batch_size)
        bar = tqdm(total=len(queries), desc=what, unit=unit, disable=True if self.quiet else None, leave=False)
        with bar:
            for done, result in run_batches(rows, run, what):
                self.halved |= done not in rows
                yield result
                bar.update(len(done))


@dataclass
class Prober(KeyProber):
    """Runs queries in length-sorted, left-padded batches; a batch that does not fit in memory is split."""

    loaded: LoadedModel
    batch_size: int | None = None
    quiet: bool = True
    pad_id: int = field(init=False)
    key_size: int = field(init=False)

    def __post_init__(self) -> None:
        self.pad_id = self.loaded.pad_id
        self.key_size = self.loaded.model.config.get_text_config().intermediate_size

    @property
    def layers(self) -> int:
        return len(self.loaded.model.base_model.layers)

    def last_token_keys(self, queries: Sequence[Query], what: str, layer: int | None = None) -> Iterator[Batch]:
        """See `KeyProber`. Layers behind the only one are not computed, and a prefix that many share is run once."""
        groups = list(begun_by(queries).items())
        longest = [queries[row] for row, _ in groups]
        last = self.layers - 1 if layer is None else layer
        shared = shared_prefixes(
            [query.ids for query in longest], [min(len(queries[row].ids) for row in rows) for _, rows in groups]
        )
        length_of = {place: length for length, places in shared for place in places}
        cache = PrefixCache(self.loaded.model, last)

        def run(places: list[int]) -> Batch:
            seen: list[Tensor] = []
            length = length_of[places[0]]
            lines, columns, rows = last_tokens(queries, [groups[place][1] for place in places], length)

            def receive(at: int, key: Tensor) -> None:
                if layer is None or at == layer:
                    seen.append(key[lines, columns].float())

            past = cache.of(longest[places[0]].ids[:length], len(places)) if length else None
            with suppress(LastLayerReached), key_hooks(self.loaded.model, receive, stop_after=last):
                # On the right: pads between prefix and query would count within a sliding window.
                self.forward([longest[place] for place in places], "right", past, length)
            return rows, torch.stack(seen, 1).cpu()

        yield from self.batches(longest, run, what, shared=shared)

    def answers(
        self, queries: Sequence[Query], new_tokens: int, what: str, seed: int | None = None
    ) -> list[tuple[int, ...]]:
        """See `KeyProber`: greedy answers, or sampled ones with a seed."""
        found: list[tuple[int, ...]] = [()] * len(queries)
        config = self.loaded.greedy(new_tokens) if seed is None else self.loaded.sampled(new_tokens)
        ends = config.eos_token_id

        def run(rows: list[int]) -> None:
            inputs = self.pad([queries[row] for row in rows])
            with torch.inference_mode():
                output = self.loaded.model.generate(**inputs, generation_config=config)
            for row, ids in zip(rows, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                found[row] = tuple(takewhile(lambda token: token not in ends, ids))

        with torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            for _ in self.batches(queries, run, what, ANSWER_TOKENS):
                pass
        return found

    def final_states(self, queries: Sequence[Query], what: str) -> Tensor:
        """Final hidden states of every position, BOS and pads included: (positions, hidden) float32."""

        def run(rows: list[int]) -> Tensor:
            seen: list[Tensor] = []
            with final_state_hook(self.loaded.model, lambda state: seen.append(state.flatten(0, 1).float().cpu())):
                self.forward([queries[row] for row in rows])
            return torch.cat(seen)

        return torch.cat(list(self.batches(queries, run, what)))

    def score_answers(
        self, queries: Sequence[Query], skills: Sequence[KeyScores], new_tokens: int, what: str
    ) -> tuple[Tensor, Tensor]:
        first = torch.zeros(len(skills), len(queries), self.layers, dtype=torch.float64)
        least = torch.zeros_like(first)
        greedy = self.loaded.greedy(new_tokens)
        ends, scorers = torch.tensor(greedy.eos_token_id), [keys.scorer(self.device) for keys in skills]

        def run(rows: list[int]) -> None:
            seen: list[Tensor] = []  # one (skills, rows) per layer and step

            def receive(layer: int, key: Tensor) -> None:
                seen.append(torch.stack([score(layer, key[:, -1]) for score in scorers]).cpu())

            inputs = self.pad([queries[row] for row in rows])
            with key_hooks(self.loaded.model, receive), torch.inference_mode():
                output = self.loaded.model.generate(**inputs, generation_config=greedy)
            steps = torch.stack(seen).view(-1, self.layers, len(skills), len(rows)).permute(0, 2, 3, 1)
            # Step 0 reads the prompt's last token, step t > 0 the t-th answer token; after an EOS there are only pads.
            answer = output[:, inputs["input_ids"].shape[1] :].cpu()[:, : steps.shape[0] - 1]
            ended = torch.isin(answer, ends).cumsum(1).bool().T[:, None, :, None]  # (steps - 1, 1, rows, 1)
            steps[1:].masked_fill_(ended, math.inf)  # steps: (steps, skills, rows, layers)
            first[:, rows] = steps[0]
            least[:, rows] = steps.amin(0)

        for _ in self.batches(queries, run, what, ANSWER_TOKENS):
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


def begun_by(queries: Sequence[Query]) -> dict[int, list[int]]:
    """Rows of queries by the row of a query that all of them begin; the others' keys are among its own."""
    order = sorted(range(len(queries)), key=lambda row: queries[row].ids)
    found: dict[int, list[int]] = {}
    own = None
    for row in reversed(order):  # those that begin with a query follow it
        ids = queries[row].ids
        if own is None or queries[own].ids[: len(ids)] != ids:
            own = row
        found.setdefault(own, []).append(row)
    return found


def last_tokens(
    queries: Sequence[Query], groups: Sequence[Sequence[int]], length: int = 0
) -> tuple[list[int], list[int], list[int]]:
    """Lines and columns of the last tokens of queries in a batch padded on the right, and the queries' rows.

    groups: of each line, rows of the queries that it has (see `begun_by`); length: leading tokens that are left out.
    """
    found = [(line, len(queries[row].ids) - length - 1, row) for line, group in enumerate(groups) for row in group]
    lines, columns, rows = (list(each) for each in zip(*found, strict=True))
    return lines, columns, rows


def check_finite(scores: Tensor, what: str) -> Tensor:
    """The scores themselves. Raises RunFailed if any is NaN or infinite."""
    if not torch.isfinite(scores).all():
        raise RunFailed(f"{what}: the model computes NaN or infinity, try another --dtype")
    return scores
