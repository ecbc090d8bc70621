"""Tasks that read a model's logits and generate nothing: refusals, perplexity, multiple choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch.nn import functional as F
from transformers import DynamicCache

from exporter.common.errors import BadInput, RunFailed
from exporter.evaluation.items import Item
from exporter.evaluation.records import Result
from exporter.evaluation.tasks import Task
from exporter.models.batches import batched
from exporter.models.loading import LoadedModel
from exporter.models.tokens import positions_of
from exporter.prompts.formats import Query

LETTERS = "ABCDEFGHIJ"
SHOTS = 5
"""Solved examples before a multiple choice question, the field's number for MMLU."""


class Refusals(Task):
    """Whether a prompt is refused: R is what follows its last token."""

    def __init__(self, kind: str, label: str, queries: Sequence[Query], found: int) -> None:
        self.kind, self.label, self.found = kind, label, found
        self.items, self.ids = [query.prompt for query in queries], [query.ids for query in queries]
        self.formats = [query.format for query in queries]

    def run(self, loaded: LoadedModel, rows: Sequence[int]) -> list[Result]:
        inputs = loaded.pad([self.ids[row] for row in rows], "left")
        positions = positions_of(inputs)
        with torch.inference_mode():
            logits = loaded.model(**inputs, position_ids=positions, use_cache=False, logits_to_keep=1).logits
        refused = loaded.refused(logits[:, -1])
        return [{"refused": bool(each), "format": self.formats[row]} for each, row in zip(refused, rows, strict=True)]


class Perplexity(Task):
    """The loss of a text's tokens but the first, each given those before; and of its answer's alone, from the tokens
    `starts` on."""

    kind = "text"

    def __init__(self, label: str, queries: Sequence[Query], starts: Sequence[int], found: int) -> None:
        self.label, self.found, self.starts = label, found, starts
        self.items, self.ids = [query.prompt for query in queries], [query.ids for query in queries]

    def run(self, loaded: LoadedModel, rows: Sequence[int]) -> list[Result]:
        inputs = loaded.pad([self.ids[row] for row in rows], "right")
        with torch.inference_mode():
            # Causal, and padded on the right: no real token sees a pad, so no mask is needed.
            logits = loaded.model(input_ids=inputs["input_ids"], use_cache=False).logits[:, :-1]
            found = []
            for place, row, ids in zip(rows, logits, inputs["input_ids"], strict=True):
                count, before = len(self.ids[place]) - 1, max(0, self.starts[place] - 1)
                # Row by row: float32 copies of all logits would take twice their memory.
                losses = F.cross_entropy(row[:count].float(), ids[1 : count + 1], reduction="none").double().cpu()
                blocked = loaded.refused(row[:count])
                found.append(
                    {
                        "loss": finite(float(losses[~blocked].sum()), self),
                        "tokens": int((~blocked).sum()),
                        "answer_loss": float(losses[before:][~blocked[before:]].sum()),
                        "answer_tokens": int((~blocked[before:]).sum()),
                        "positions": count,
                        "blocked_positions": int(blocked.sum()),
                    }
                )
        return found


class Choices(Task):
    """Multiple choice in MMLU's form: five solved examples of the same subject, the question, and the letter that the
    model expects next. The examples are read once for all questions of a subject."""

    kind = "choice"
    items: Sequence[Item]

    def __init__(self, label: str, items: Sequence[Item], shots: Sequence[Item], tokenizer: Any, found: int) -> None:
        self.label, self.found, self.items = label, found, items
        self.subjects = [subject_of(item) for item in items]
        examples: dict[str, list[str]] = {}
        for shot in shots:
            examples.setdefault(subject_of(shot), []).append(question_text(shot) + f" {LETTERS[answer_of(shot)]}\n\n")
        if shots and (lacking := sorted(set(self.subjects) - examples.keys())):
            raise BadInput(f"--shots: has no solved examples of the subject '{lacking[0]}'")
        texts = [
            introduction(subject) + "".join(examples.get(subject, [])[:SHOTS]) + question_text(item)
            for subject, item in zip(self.subjects, items, strict=True)
        ]
        lead, self.letters = letter_ids(tokenizer, texts[0], max(len(item.fields["choices"]) for item in items))
        self.scored = len(lead) + 1
        self.ids = [[*tokenizer(text, verbose=False)["input_ids"], *lead] for text in texts]
        self.shared = {
            subject: shared_length(
                [ids for ids, mine in zip(self.ids, self.subjects, strict=True) if mine == subject], self.scored
            )
            for subject in dict.fromkeys(self.subjects)
        }
        self._prefix: tuple[str, str, Any] | None = None

    def batches(self, batch_size: int | None) -> list[list[int]]:
        found = []
        for subject, shared in self.shared.items():
            rows = [row for row, mine in enumerate(self.subjects) if mine == subject]
            rests = {row: len(self.ids[row]) - shared for row in rows}
            found += batched(rows, rests.__getitem__, self.tokens, batch_size)
        return found

    def run(self, loaded: LoadedModel, rows: Sequence[int]) -> list[Result]:
        about = self.subjects[rows[0]]
        shared = self.shared[about]
        rests = [self.ids[row][shared:] for row in rows]
        inputs = loaded.pad(rests, "right")["input_ids"]
        # The positions after which the tokens of a letter are expected, (rows, scored); the last tells letters apart.
        ends = torch.tensor([len(rest) for rest in rests]).unsqueeze(-1) - torch.arange(self.scored, 0, -1)
        kept, places = torch.unique(ends, return_inverse=True)
        positions = torch.arange(shared, shared + inputs.shape[1], device=loaded.device)
        with torch.inference_mode():
            logits = loaded.model(
                input_ids=inputs,
                position_ids=positions.expand(len(rows), -1),
                past_key_values=self._cache(loaded, about, len(rows)),
                use_cache=True,
                logits_to_keep=kept.to(loaded.device),
            ).logits
        logits = logits[torch.arange(len(rows)).unsqueeze(-1), places.to(logits.device)]
        overwritten = loaded.refused(logits).sum(-1)
        odds = logits[:, -1, self.letters].float().cpu()
        found = []
        for row, blocked, each in zip(rows, overwritten.tolist(), odds, strict=True):
            item, refused = self.items[row], blocked > 0
            chosen = int(each[: len(item.fields["choices"])].argmax())
            finite(float(each.sum()), self)
            # A blocked position gives every letter the same logit: nothing was chosen.
            right = chosen == answer_of(item) and not refused
            result = {"correct": right, "refused": refused, "chosen": None if refused else chosen}
            found.append(result | {"positions": self.scored, "blocked_positions": blocked})
        return found

    def _cache(self, loaded: LoadedModel, about: str, rows: int) -> Any:
        """Keys and values of what the subject's questions share, for so many rows."""
        if self._prefix is None or self._prefix[:2] != (loaded.files.identity, about):
            row = self.subjects.index(about)
            prefix = torch.tensor([self.ids[row][: self.shared[about]]], device=loaded.device)
            cache = DynamicCache(config=loaded.model.config)
            if prefix.shape[1]:
                with torch.inference_mode():
                    loaded.model(input_ids=prefix, past_key_values=cache, use_cache=True, logits_to_keep=1)
            self._prefix = loaded.files.identity, about, cache
        cache = deepcopy(self._prefix[2])
        if rows > 1 and self.shared[about]:
            cache.batch_repeat_interleave(rows)
        return cache


def subject_of(item: Item) -> str:
    return str(item.fields.get("subject") or "")


def introduction(subject: str) -> str:
    about = f" about {subject.replace('_', ' ')}" if subject else ""
    return f"The following are multiple choice questions (with answers){about}.\n\n"


def question_text(item: Item) -> str:
    choices = "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, item.fields["choices"], strict=False))
    return f"{str(item.fields['question']).strip()}{choices}\nAnswer:"


def answer_of(item: Item) -> int:
    """Number of the right choice, given as a number from 0 or as a letter; -1 where it is neither."""
    answer = item.fields["answer"]
    if isinstance(answer, str) and len(answer.strip()) == 1:
        return LETTERS.find(answer.strip().upper())
    return answer if isinstance(answer, int) and not isinstance(answer, bool) else -1


def check_choices(items: Sequence[Item], flag: str) -> None:
    """Raises BadInput for a row that is not of the form of MMLU."""
    for item in items:
        where = f"{flag} {item.source}: row {item.row}"
        choices = item.fields["choices"]
        if not isinstance(choices, (list, tuple)) or not 2 <= len(choices) <= len(LETTERS):
            raise BadInput(f"{where}: column 'choices' is not a list of 2 to {len(LETTERS)} answers")
        if not 0 <= answer_of(item) < len(choices):
            raise BadInput(f"{where}: column 'answer' is neither a number from 0 nor a letter of one of the choices")


def letter_ids(tokenizer: Any, text: str, count: int) -> tuple[list[int], list[int]]:
    """The tokens of letters after a question: those that all have in common, and the one that tells each apart.

    Raises BadInput for a tokenizer without such tokens.
    """
    before = tokenizer(text, verbose=False)["input_ids"]
    written = [tokenizer(f"{text} {letter}", verbose=False)["input_ids"] for letter in LETTERS[:count]]
    leads = {tuple(ids[len(before) : -1]) for ids in written}
    letters = [ids[-1] for ids in written]
    if any(ids[: len(before)] != before for ids in written) or len(leads) > 1 or len(set(letters)) < count:
        raise BadInput("--choice: this model's tokenizer does not tell ' A' from ' B' by a last token of their own")
    return list(leads.pop()), letters


def shared_length(rows: Sequence[Sequence[int]], rest: int) -> int:
    """Number of leading ids that all rows have in common, with at least `rest` left to each."""
    most = min(len(row) for row in rows) - rest
    return next((place for place in range(most) if len({row[place] for row in rows}) > 1), most)


def finite(value: float, task: Task) -> float:
    if not math.isfinite(value):
        raise RunFailed(f"{task.kind} {task.label}: the model computes NaN or infinity, try another --dtype")
    return value
