"""The summary of an export, `reproduce/summary.json`: everything that was measured, without paths or prompt texts.

Rates are of the report parts, with 95 % intervals, unless a field's name begins with `choose_`: exact ones
(Clopper-Pearson), of regions along discriminants or by bootstrap over what surrounds the prompts, if that is wider.
Read without torch; keys that a later version adds are ignored.
"""

from __future__ import annotations

import re
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class Part(BaseModel):
    """A part of the summary, or of another of a checkpoint's files: one object of the JSON."""

    model_config = ConfigDict(frozen=True, validate_by_name=True)

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """The object as it was written. Raises ValueError, in one line, where it is something else."""
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


class StoredRate(Part):
    """Share of prompts with a hit. `rate`: None where nothing was counted; `low`, `high`: of the interval."""

    hits: int
    total: int
    low: float
    high: float
    rate: float | None


SourceRates = dict[str, dict[str, StoredRate]]
"""Rates by source and, of each source, by format; "all" formats together among them."""


class SourceSummary(Part):
    """A --forget, --retain, --skill or --describe source. `fingerprint`: sha256 of a file or commit of a Hub dataset;
    `prompts`: how many.

    `number`: of several sources of one name, which it is; from the second on its label ends with it, as in "a.csv #2".
    Version 0.1.0 did not record it.
    """

    flag: str
    label: str
    options: dict[str, str | int]
    fingerprint: str
    prompts: int
    number: int | None = None

    @property
    def name(self) -> str:
        """Of the file or dataset: the label without the number."""
        if self.number is None:
            return re.sub(r" #\d+$", "", self.label)
        return self.label.removesuffix(f" #{self.number}") if self.number > 1 else self.label


class TrialSummary(Part):
    """One trial of neurons; see `exporter.methods.neurons.trade_off.Trial`."""

    score: str
    beta: float
    forget_rise: float
    retain_rise: float
    everyday_rise: float | None
    upper: float


class TextEffectSummary(Part):
    """What changed neurons do to texts; see `exporter.methods.neurons.choice.TextEffect`."""

    texts: int
    tokens: int
    base_loss: float
    rise: float
    upper: float
    perplexity_ratio: float


class NeuronSummary(Part):
    """What Neuron Adjust or Selective Pruning found for one skill.

    `tokens`: probed, by side; `neurons`: number changed, `layers`: by layer; `texts`: by side ("forget", "retain" and,
    where there are any, "everyday"), with the neurons of all skills changed, against the base; `within_budget`:
    whether the rise of the retain loss is, "borne" in format 1.
    """

    score: str
    beta: float
    within_budget: bool = Field(validation_alias="borne", serialization_alias="borne")
    max_retain_loss: float
    tokens: dict[str, int]
    neurons: int
    layers: dict[str, int]
    trials: tuple[TrialSummary, ...]
    texts: dict[str, TextEffectSummary]


class AlphaSummary(Part):
    """See `exporter.methods.key_space.calibration.Alpha`."""

    value: float
    calibrated_on: int
    promise: float | None
    confidence: float | None


class FrameSummary(Part):
    """A frame of forget prompts; see `exporter.methods.key_space.framing.FrameCheck`."""

    sources: tuple[str, ...]
    start_characters: int
    end_characters: int
    forget_having: int
    forget: int
    retain_having: int
    retain: int
    framed: StoredRate
    bare: StoredRate


class LayerSummary(Part):
    """One layer of the table by which the layer was chosen; see `exporter.methods.key_space.evidence.LayerRow`."""

    layer: int
    choose_alpha: float
    choose_false_blocks_over_answers: int
    choose_harmless: int
    choose_unseen_alpha: float
    choose_unseen_false_blocks: int
    margin: float
    alpha: float
    blocked: StoredRate
    everyday: StoredRate
    retain: StoredRate
    over_answers: StoredRate


class MeasuredRates(Part):
    """What was counted of one skill's hypercubes.

    `blocked_in_unseen_formats`: by hypercubes that were fitted without the system prompt or exchange of the prompt in
    question; `false_blocks`: at the prompt's last token; `false_blocks_over_answers`: at any position from there on
    through the greedy answer of the model without hypercubes; where there are several skills, the others' prompts are
    among them as "skill NAME". `limits`: still blocked, by known limit.
    """

    blocked: SourceRates = {}
    blocked_in_unseen_formats: SourceRates = {}
    false_blocks: SourceRates = {}
    false_blocks_over_answers: SourceRates = {}
    limits: dict[str, StoredRate] = {}


class PromiseSummary(Part):
    """See `exporter.methods.key_space.budget.Promise`."""

    hits: int
    total: int
    bound: float


class LayerTrialSummary(Part):
    """See `exporter.methods.key_space.region_fit.LayerTrial`; `blocked`: by the form left out, `mean`: over forms."""

    layer: int
    shrinkage: float
    blocked: dict[str, float]
    mean: float
    area: float
    margin: float


class DiscriminantSummary(Part):
    """What regions along discriminants have beyond hypercubes.

    `left_out`: the chosen layer's trial, `trials`: every layer's; promises, with 90 % confidence each: forget prompts
    blocked, at least; harmless prompts, near misses, and messages after a refusal blocked, in any kind of turn, at
    most, by what the fit part's prompts score along directions that had not seen them (their answers: along the final
    ones; where neurons are changed, these were chosen on some of the prompts). Of the report part:
    `forms`, `near_miss_forms`, by form and kind of turn; `answers` with a position inside, of `answer_tokens`;
    `words`: plain forget prompts that their words alone would block within the same budgets; `interior`: positions
    inside harmless prompts that are blocked; `phrases`: how many texts there are around prompts, by kind of turn.
    """

    places: tuple[str, ...]
    left_out: LayerTrialSummary
    trials: tuple[LayerTrialSummary, ...]
    blocked: PromiseSummary
    false_blocks: PromiseSummary
    near_misses: PromiseSummary
    after_refusals: PromiseSummary
    forms: SourceRates
    near_miss_forms: SourceRates
    answers: StoredRate
    answer_tokens: int
    words: StoredRate
    interior: StoredRate
    phrases: dict[str, int]


class KeySpaceSummary(MeasuredRates):
    """What Key Space Detection found for one skill. `hypercubes`: their formats, or the places of regions along
    discriminants, for which alpha is the threshold; `fault`: why it does not separate."""

    hypercubes: tuple[str, ...]
    layer: int
    alpha: AlphaSummary
    separates: bool
    fault: str | None
    max_false_block: float
    target_block_rate: float
    everyday_kinds_over_answers: dict[str, StoredRate]
    frames: tuple[FrameSummary, ...]
    layers: tuple[LayerSummary, ...]
    discriminant: DiscriminantSummary | None = Field(default=None, exclude_if=lambda found: found is None)

    @property
    def region(self) -> str:
        """As in `--region`."""
        return "hypercube" if self.discriminant is None else "discriminant"


class SkillSummary(Part):
    """One skill. `works`: within the limits that were asked for; `parts`: numbers of prompts by side and part."""

    name: str
    method: str
    works: bool
    sources: tuple[SourceSummary, ...]
    parts: dict[str, dict[str, int]]
    neurons: NeuronSummary | None
    key_space: KeySpaceSummary | None

    @property
    def flags(self) -> frozenset[str]:
        """Of its sources."""
        return frozenset(source.flag for source in self.sources)


class BaseModelClass(Part):
    """The base-model class: whether it refuses too, and (further keys) what was measured of its refusal states.

    second: whether a masked refusal is followed by EOS, and a masked EOS by the refusal; None for older checkpoints.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float]

    closed: bool
    second: bool | None = Field(default=None, exclude_if=lambda found: found is None)


class SharedLayer(Part):
    """Neurons of one layer that two skills both change, the smaller of both numbers there, and the share of it."""

    shared: int
    smaller: int
    share: float


class SharedSummary(SharedLayer):
    """The same of all layers, and by layer. `by_chance`: of random sets of these sizes."""

    skills: tuple[str, str]
    by_chance: float
    layers: dict[str, SharedLayer]


class ExportWarning(Part):
    """One warning. `skill`: None where it is about several; `message`: one sentence, without any text of a prompt."""

    code: str
    skill: str | None
    message: str
    figures: dict[str, Any] = {}


class Summary(Part):
    """Everything measured. `unskill`: version that wrote it; `base_model_class`: None where nothing is refused;
    `blocked_by_any`: harmless prompts of the report parts, which no skill claims, that any skill blocks at their last
    token, None unless several skills block."""

    unskill: str
    model: str
    revision: str | None
    dtype: str
    seed: int
    draws: str
    compat: str | None
    formats: tuple[str, ...]
    neurons_changed: int
    base_model_class: BaseModelClass | None
    skills: tuple[SkillSummary, ...]
    blocked_by_any: StoredRate | None = Field(default=None, exclude_if=lambda found: found is None)
    # Early checkpoints have neither.
    shared_neurons: tuple[SharedSummary, ...] = ()
    warnings: tuple[ExportWarning, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The JSON object that `from_json` reads."""
        return self.model_dump(mode="json", by_alias=True)
