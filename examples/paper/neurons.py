"""Neurons chosen by the same parts of the same texts as an export chooses them, for any method, score and beta."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from examples.paper.experiment import Experiment
from exporter.common.progress import Progress
from exporter.common.rates import Rate, rate
from exporter.evaluation.comparison import DROP
from exporter.evaluation.items import sample
from exporter.methods.neurons.applied import changed
from exporter.methods.neurons.choice import Selector, probe_sides
from exporter.methods.neurons.scores import ATTRIBUTION, OFFICIAL, RATIO
from exporter.methods.neurons.texts import losses_from
from exporter.methods.neurons.trade_off import TextLosses
from exporter.models.loading import LoadedModel
from exporter.models.prober import Prober
from exporter.models.tokens import context_of
from exporter.pipeline.prepared import prepare
from exporter.prompts.formats import Query
from exporter.prompts.skills import SkillTexts, collect
from exporter.prompts.texts import answer_starts, as_texts
from exporter.recipes.settings import ExportSettings, SkillSettings

Method = Literal["na", "official", "sp"]
NAMES = {"na": "Neuron Adjust", "official": "the authors' code", "sp": "Selective Pruning"}
SCORES = {"na": ATTRIBUTION, "official": OFFICIAL, "sp": RATIO}


class NeuronSettings(Experiment):
    """forget, retain: sources of whole texts that neurons are chosen by; everyday: the packaged prompts among those to
    retain."""

    forget: tuple[str, ...]
    retain: tuple[str, ...]
    everyday: bool = True

    def flags(self) -> list[str]:
        """The flags by which `unskill export` reads the same texts."""
        found = [f"--forget={self.place(spec)}" for spec in self.forget]
        found += [f"--retain={self.place(spec)}" for spec in self.retain]
        found += ["--everyday" if self.everyday else "--no-everyday", "--seed", str(self.seed)]
        return [*found, "--dtype", self.dtype, "--device", self.device]


class Neurons:
    """What an export of the skill would change. `texts`: in their parts; "report" is looked at by nothing here."""

    texts: SkillTexts

    def __init__(self, settings: NeuronSettings, loaded: LoadedModel) -> None:
        self._loaded, self._seed = loaded, settings.seed
        self.prober = Prober(loaded, settings.batch_size, progress=Progress(quiet=False))
        forget, retain = (tuple(map(settings.place, specs)) for specs in (settings.forget, settings.retain))
        skills = {
            method: SkillSettings(forget, retain, method=method, beta=1.0, everyday=settings.everyday)
            for method in ("na", "sp")
        }
        export = ExportSettings(settings.model, settings.out, (skills["na"],), seed=settings.seed, quiet=False)
        _, (plan,) = prepare([collect(skills["na"])], loaded, export, lambda text: None)
        assert plan.texts is not None
        self.texts = plan.texts
        probed = [side.freeze() for side in probe_sides(self.prober, plan.texts, "neurons")]
        self._selectors = {
            method: Selector(self.prober, skill, plan.texts, *probed) for method, skill in skills.items()
        }

    @contextmanager
    def changed(self, method: Method, score: str, beta: float) -> Iterator[tuple[Prober, int]]:
        """While this lasts the top beta per cent by a score are changed: the prober to measure with, their number."""
        changes = self._selectors["sp" if method == "sp" else "na"].pick(score, beta)
        compat = "official" if method == "official" else None
        with changed(self._loaded, changes, self._seed, compat=compat):
            # The authors' code draws one number for a whole call, so it takes one row at a time.
            yield replace(self.prober, batch_size=1) if compat else self.prober, changes.count()


@dataclass(frozen=True)
class Texts:
    """Whole texts, and of each the first token of its answer."""

    queries: list[Query]
    starts: list[int]


@dataclass(frozen=True)
class Losses:
    """Of whole texts, and of their answers alone."""

    whole: TextLosses
    answers: TextLosses


def test_texts(settings: Experiment, loaded: LoadedModel, spec: str, key: str, limit: int) -> Texts:
    """At most `limit` texts of a source, drawn by the seed. key: of the recipe, for errors."""
    prompts = sample(settings.prompts(spec, key), limit, settings.seed)
    queries = as_texts(loaded.tokenizer, prompts, key, context_of(loaded.model))
    return Texts(queries, answer_starts(loaded.tokenizer, queries))


def losses(prober: Prober, texts: Texts, what: str) -> Losses:
    return Losses(*losses_from(prober, texts.queries, what, [[1] * len(texts.queries), texts.starts]))


def dropped(base: TextLosses, changed: TextLosses) -> Rate:
    """Texts whose answer's mean token loss has risen by DROP or more, of those that have an answer."""
    has = base.tokens > 0
    rises = (changed.total - base.total)[has] / base.tokens[has]
    return rate(int((rises >= DROP).sum()), int(has.sum()))
