"""What takes the models and the prompts: answers before and after, and whether the pre-activations of adjusted neurons
are Gaussian."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.special import ndtri

from custom_modeling.buffers import NA_INDEX
from exporter.checkpoint.card.figure import Figure, Row, figure_id
from exporter.checkpoint.given_prompts import Given
from exporter.checkpoint.reading import Stored, StoredSkill
from exporter.common.errors import BadInput
from exporter.common.progress import Progress
from exporter.evaluation.generation import Generation
from exporter.evaluation.items import Item
from exporter.evaluation.records import Result
from exporter.methods.neurons.texts import counted_tokens
from exporter.models.files import find_base
from exporter.models.hooks import pre_activation_hooks
from exporter.models.loading import LoadedModel, load, load_checkpoint
from exporter.models.prober import Prober
from exporter.models.tokens import context_of
from exporter.prompts.formats import Query
from exporter.prompts.packaged import EVERYDAY
from exporter.prompts.texts import as_texts

ANSWERED = 3
"""Prompts of each kind that are answered: of the forget set, the retain set and the everyday prompts."""
TEXTS = 60
"""Texts of each side on which pre-activations are measured."""
BINS = 64
"""Bins, equally likely under a Gaussian, at whose edges distributions are compared."""


class Answers(Generation):
    """The beginning of an answer, greedily; there is nothing to judge."""

    kind = "answers"
    new_tokens: ClassVar[int] = 64

    def prompt(self, item: Item) -> str:
        return str(item.fields["prompt"])

    def judge(self, item: Item, answer: str) -> Result:
        return {}


def add_models(
    numbers: dict[str, Any], stored: Stored, given: Given, checkpoint: str, base: str, device: str, quiet: bool
) -> None:
    """Answer prompts of the report parts with the checkpoint and its base, and look at adjusted neurons.

    Raises BadInput where the base is not what the checkpoint was made of, or one of them does not load.
    """
    dtype = stored.summary.dtype
    found = find_base(base)
    edited = load_checkpoint(checkpoint, dtype, device)
    formatter = edited.formatter(formats="plain")
    tasks = [Answers(skill.name, items := questions(skill, given), formatter, len(items)) for skill in stored.skills]
    after = [answers(task, edited) for task in tasks]
    places, sample = adjusted_places(edited), some_weights(edited.model)
    del edited  # its memory, before the base takes as much
    loaded = load(found, dtype, device)
    if not torch.equal(sample, some_weights(loaded.model)):
        raise BadInput(f"--base {found.name}: is not the model that {stored.name} was made of: other weights")
    skills = zip(stored.skills, tasks, numbers["skills"], after, strict=True)
    for number, (skill, task, entry, later) in enumerate(skills, start=1):
        before = answers(task, loaded)
        entry["answers"] = [
            {"source": item.source, "row": item.row, "prompt": task.prompt(item)}
            | {"before": old["answer"], "after": new["answer"], "refused": new["refused"]}
            for item, old, new in zip(task.items, before, later, strict=True)
        ]
        figure = neuron_gaussian(skill, number, loaded, given, places, Prober(loaded, None, Progress(quiet)))
        if figure is not None:
            entry["figures"].append(figure.as_json())


def questions(skill: StoredSkill, given: Given) -> list[Item]:
    """Prompts of the report part: the first of the forget set, of the retain set and of the everyday prompts."""
    retain = skill.prompts["retain.report"]
    everyday = [record for record in retain if record["source"] == EVERYDAY]
    own = [record for record in retain if record["source"] != EVERYDAY and not record["source"].startswith("skill ")]
    kinds = (skill.prompts["forget.report"], own, everyday)
    chosen = [prompt for records in kinds for prompt in given.known(records)[:ANSWERED]]
    return [Item(prompt.source, prompt.row, {"prompt": prompt.text}) for prompt in chosen]


def answers(task: Answers, loaded: LoadedModel) -> list[Result]:
    """One prompt at a time, so that no answer depends on a batch."""
    batches = ([row] for row in range(len(task.items)))
    return [result for _, results in task.results(loaded, batches) for result in results]


def adjusted_places(loaded: LoadedModel) -> dict[int, Tensor]:
    """Indices of the adjusted neurons, of each layer that has any."""
    core: Any = loaded.model.base_model
    found = {layer: module.mlp._buffers.get(NA_INDEX) for layer, module in enumerate(core.layers)}
    return {layer: index.cpu() for layer, index in found.items() if index is not None and len(index)}


def some_weights(model: Any) -> Tensor:
    """Some of the weights, which no intervention changes."""
    first = next(model.base_model.layers[-1].mlp.parameters())
    return torch.as_tensor(first[:4]).detach().float().cpu().clone()


def neuron_gaussian(
    skill: StoredSkill, number: int, loaded: LoadedModel, given: Given, places: Mapping[int, Tensor], prober: Prober
) -> Figure | None:
    """How far the adjusted neurons' pre-activations are from the Gaussians between which they are moved."""
    if skill.summary.method not in ("na", "na+ksd"):
        return None
    rows: list[Row] = []
    counts = []
    for side in ("forget", "retain"):
        prompts = given.known(skill.prompts[f"texts.{side}.fit"])[:TEXTS]
        texts = as_texts(loaded.tokenizer, prompts, f"--{side}", context_of(loaded.model))
        if not texts:
            continue
        statistics = [torch.from_numpy(skill.tensors[f"na.{side}.{what}"]) for what in ("mean", "deviation")]
        distances, tokens = gaussian_distances(prober, texts, places, *statistics)
        counts.append(f"{len(texts)} {side} texts ({tokens} tokens)")
        for layer, each in distances.items():
            middle, high = torch.quantile(each, torch.tensor([0.5, 0.9], dtype=each.dtype)).tolist()
            about = {"series": f"{side} texts", "layer": layer, "neurons": len(each)}
            rows.append(about | {"distance": middle, "high": high})
    if not rows:
        return None
    caption = (
        "Neuron Adjust moves a pre-activation by the Gaussians of forget and retain texts. Greatest distance between "
        "its distribution and the fitted Gaussian (Kolmogorov-Smirnov, 0 to 1), on the base model; median of the "
        f"layer's adjusted neurons. Fit part: {' and '.join(counts)}."
    )
    title = "Are pre-activations Gaussian? Distance by layer"
    return Figure(figure_id(number, "pre-activations"), "neuron_gaussian", title, caption, rows)


def gaussian_distances(
    prober: Prober, texts: Sequence[Query], places: Mapping[int, Tensor], mean: Tensor, deviation: Tensor
) -> tuple[dict[int, Tensor], int]:
    """Distance of each neuron's distribution from its Gaussian, by layer (neurons,), and the number of tokens.

    places: neurons by layer; mean, deviation: (layers, d_ff) of the Gaussians.
    """
    shares = torch.arange(1, BINS, dtype=torch.float64) / BINS
    edges = ndtri(shares)
    below = {layer: torch.zeros(len(edges), len(index), dtype=torch.int64) for layer, index in places.items()}
    tokens = 0

    def run(rows: list[int]) -> tuple[int, dict[int, Tensor]]:
        queries = [texts[row] for row in rows]
        mask = counted_tokens(prober.pad(queries), prober.loaded.tokenizer.bos_token_id).bool()
        seen: dict[int, Tensor] = {}

        def receive(layer: int, values: Tensor) -> None:
            if layer in places:
                index = places[layer]
                chosen = values[mask][:, index.to(values.device)].double().cpu()
                standard = ((chosen - mean[layer, index]) / deviation[layer, index]).sort(0).values
                seen[layer] = torch.searchsorted(standard.T.contiguous(), edges.repeat(len(index), 1), right=True).T

        with pre_activation_hooks(prober.loaded.model, receive):
            prober.forward(queries)
        return int(mask.sum()), seen

    for count, seen in prober.batches(texts, run, "pre-activations", unit="text"):
        tokens += count
        for layer, each in seen.items():
            below[layer] += each
    return {layer: (each / tokens - shares[:, None]).abs().amax(0) for layer, each in below.items()}, tokens
