"""Probing a graph through ONNX Runtime: key vectors and pre-activations as the file that ships computes them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from exporter.common.errors import RunFailed
from exporter.common.progress import Progress
from exporter.methods.moments import Gaussian
from exporter.methods.neurons.statistics import NeuronMoments
from exporter.methods.neurons.texts import counted_tokens
from exporter.models.batches import ANSWER_TOKENS, Batch
from exporter.models.prefixes import begun_by, last_tokens
from exporter.models.prober import KeyProber, KeyScores, check_finite
from exporter.onnx.check.runners import Array, Session
from exporter.onnx.surgery import patched
from exporter.prompts.formats import Query


class Step(NamedTuple):
    """One step of greedy answers: the keys (rows, layers, d_ff) of the position that was read, which answers had ended
    before it (rows,), and the tokens that follow it (rows,)."""

    keys: Tensor
    ended: Tensor
    tokens: Tensor


@dataclass
class GraphProber(KeyProber):
    """The graph at `path` with other constants, whose layers are the tensors in `taps`, in their order.

    taps: names of float32 tensors (batch, positions, key_size); eos: ids that end an answer.
    """

    path: Path
    taps: Sequence[str]
    constants: Mapping[str, Array]
    pad_id: int
    eos: Sequence[int]
    key_size: int
    progress: Progress
    batch_size: int | None = None

    @property
    def layers(self) -> int:
        return len(self.taps)

    @cached_property
    def _tap_session(self) -> Session:
        """For most of probing: the nodes that compute the taps, and no others."""
        return Session(self.path, changed=patched(self.path, self.constants, self.taps, alone=True))

    @cached_property
    def _whole_session(self) -> Session:
        """The whole graph, which writes answers too."""
        return Session(self.path, changed=patched(self.path, self.constants, self.taps))

    def tapped(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The taps: (batch, positions, d) float32 each."""
        found = self._tap_session.outputs(inputs["input_ids"].numpy(), inputs["attention_mask"].numpy())
        return [torch.from_numpy(each) for each in found]

    def last_token_keys(self, queries: Sequence[Query], what: str, layer: int | None = None) -> Iterator[Batch]:
        groups = list(begun_by(queries).items())
        longest = [queries[row] for row, _ in groups]
        chosen = slice(None) if layer is None else slice(layer, layer + 1)

        def run(places: list[int]) -> Batch:
            lines, columns, rows = last_tokens(queries, [groups[place][1] for place in places])
            seen = self.tapped(self.pad([longest[place] for place in places], "right"))[chosen]
            return rows, torch.stack([each[lines, columns] for each in seen], 1)

        yield from self.batches(longest, run, what)

    def answers(self, queries: Sequence[Query], new_tokens: int, what: str) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = [()] * len(queries)

        def run(rows: list[int]) -> None:
            steps = [step.tokens for step in self._answer([queries[row] for row in rows], new_tokens)]
            for row, ids in zip(rows, torch.stack(steps, 1).tolist(), strict=True):
                found[row] = tuple(takewhile(lambda token: token not in self.eos, ids))

        for _ in self.batches(queries, run, what, ANSWER_TOKENS, new_tokens=new_tokens):
            pass
        return found

    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        ids, mask = inputs["input_ids"].numpy(), inputs["attention_mask"].numpy()
        return torch.from_numpy(self._whole_session.forward(ids, mask)[0])

    def score_answers(
        self, queries: Sequence[Query], skills: Sequence[KeyScores], new_tokens: int, what: str
    ) -> tuple[Tensor, Tensor]:
        first = torch.zeros(len(skills), len(queries), self.layers, dtype=torch.float64)
        least = torch.full_like(first, math.inf)

        def run(rows: list[int]) -> None:
            for place, step in enumerate(self._answer([queries[row] for row in rows], new_tokens)):
                scores = torch.stack([each.scores(step.keys) for each in skills])
                scores.masked_fill_(step.ended[None, :, None], math.inf)
                if place == 0:
                    first[:, rows] = scores
                least[:, rows] = torch.minimum(least[:, rows], scores)

        for _ in self.batches(queries, run, what, ANSWER_TOKENS, new_tokens=new_tokens):
            pass
        return check_finite(first, what), least

    def _answer(self, queries: Sequence[Query], new_tokens: int) -> Iterator[Step]:
        """The steps that read the last prompt token, then each token of the greedy answers except the last, until all
        have ended."""
        inputs = self.pad(queries)
        ids, mask = inputs["input_ids"].numpy(), inputs["attention_mask"].numpy()
        ended, past = np.zeros(len(ids), bool), None
        for _ in range(max(1, new_tokens)):
            logits, *rest = self._whole_session.outputs(ids, mask, past)
            past, taps = rest[: -self.layers], rest[-self.layers :]
            keys = torch.stack([torch.from_numpy(each[:, -1]) for each in taps], 1)
            ids = logits[:, -1:].argmax(-1).astype(np.int64)
            yield Step(keys, torch.from_numpy(ended), torch.from_numpy(ids[:, 0]))
            ended = ended | np.isin(ids[:, 0], self.eos)
            if ended.all():
                return
            mask = np.concatenate([mask, np.ones((len(mask), 1), np.int64)], 1)

    def neurons(self, texts: Sequence[Query], bos_id: int | None, what: str) -> Gaussian:
        """Mean and floored deviation of all neurons of the tapped layers over the texts' tokens: (layers, d_ff).

        Tokens and floor are those of `exporter.methods.neurons.texts.probe_texts`. Raises RunFailed where the graph
        computes NaN or infinity.
        """
        moments = NeuronMoments(self.layers)

        def run(rows: list[int]) -> None:
            inputs = self.pad([texts[row] for row in rows])
            mask = counted_tokens(inputs, bos_id)
            for layer, values in enumerate(self.tapped(inputs)):
                moments.update(layer, values, mask)

        for _ in self.batches(texts, run, what, unit="text"):
            pass
        try:
            return moments.freeze()
        except ValueError as error:
            raise RunFailed(f"{what}: {error}") from error
