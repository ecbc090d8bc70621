"""`unskill export`, from prompts to a checkpoint: the way of the data, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from exporter.errors import BadInput, NothingSeparates
from exporter.formats import Formatter, Query
from exporter.model import Base, context_length, find_base, load, read_json
from exporter.packaged import everyday_prompts
from exporter.refusal_token import plan_refusal
from exporter.settings import ExportSettings
from exporter.sources import Prompt, Source, fingerprint, load_prompts
from exporter.splits import CALIBRATE_AT_LEAST, check_disjoint, deduplicate, split_forget, split_retain
from exporter.staging import Staging, check_target, repair

Remark = Callable[[str], None]

MINIMUM_FORGET, MINIMUM_FORGET_GIVEN = 60, 20
# What a checkpoint holds beside the weights: tokenizer, statistics, the extra shard.
EXTRA_BYTES = 64 * 2**20
# Final states looked at for the closed base-model class, on each of its two sides.
STATES_POSITIONS = 3000


@dataclass(frozen=True)
class SourceRecord:
    """One --forget or --retain source as `reproduce/` and the summary name it: no path, no text."""

    flag: str
    label: str
    options: dict[str, str | int]
    fingerprint: str
    prompts: int


def collect(settings: ExportSettings) -> tuple[list[Prompt], list[Prompt], list[SourceRecord]]:
    """Forget prompts, retain and everyday prompts, without repetitions, and where they come from."""
    records: list[SourceRecord] = []
    forget = read("--forget", settings.forget, records)
    retain = read("--retain", settings.retain, records)
    if not forget:
        raise BadInput("--forget: name at least one source of example prompts of the skill")
    if retain:
        check_disjoint(forget, retain)
    if settings.everyday:
        retain = retain + everyday_prompts(settings.everyday_without)
    forget = deduplicate(forget)
    known = {prompt.text for prompt in forget}
    return forget, [prompt for prompt in deduplicate(retain) if prompt.text not in known], records


def read(flag: str, specs: Sequence[str], records: list[SourceRecord]) -> list[Prompt]:
    prompts: list[Prompt] = []
    for spec in specs:
        source = Source.parse(spec, flag)
        loaded = load_prompts(source, flag)
        # Two folders may hold files of one name, and paths are told nowhere.
        same = sum(record.flag == flag and record.label.split(" #")[0] == source.label for record in records)
        label = f"{source.label} #{same + 1}" if same else source.label
        options = {name: value for name, value in asdict(source).items() if value is not None and name != "location"}
        records.append(SourceRecord(flag, label, options, fingerprint(source, flag), len(loaded)))
        prompts += [replace(prompt, source=label) for prompt in loaded]
    return prompts


def export(settings: ExportSettings, remark: Remark) -> dict[str, Any]:
    """Run the export and return its summary, a JSON object (see `exporter.summary`).

    Raises BadInput for wrong usage or input, RunFailed where the run cannot go on, NothingSeparates where no layer
    tells the skill from the rest; that writes nothing unless settings.force.
    """
    forget, retain, records = collect(settings)
    minimum = MINIMUM_FORGET_GIVEN if settings.given else MINIMUM_FORGET
    calibrate_at_least = CALIBRATE_AT_LEAST if settings.alpha is None else 0
    # What can be wrong without the model is found before torch is imported: errors should come at once.
    split_forget(forget, settings.seed, minimum=minimum)
    base = find_base(settings.model)
    check_apart(settings.out, base)
    size = sum((base.folder / shard).stat().st_size for shard in base.shards)
    for text in repair(settings.out):
        remark(text)
    check_target(settings.out, settings.overwrite, size + EXTRA_BYTES)
    token = plan_refusal(
        read_json(base.folder / "tokenizer.json", base.name), base.config["vocab_size"], settings.refusal
    )

    from exporter.checkpoint import write_checkpoint
    from exporter.evidence import decide, gather, measure_limits
    from exporter.probe import Prober
    from exporter.refusal_states import eos_ids, find_refusal_states
    from exporter.summary import summarise

    loaded = load(base, settings.dtype, settings.device)
    ends = eos_ids(loaded.model, base.name)
    prober = Prober(loaded, settings.batch_size, settings.quiet)
    settings.layer_number(prober.layers)
    formatter = Formatter(
        loaded.tokenizer,
        template=settings.prompt_template,
        formats=settings.formats,
        system_prompts=settings.system_prompts,
        seed=settings.seed,
        max_length=context_length(base.config),
        skip_long=settings.skip_long,
    )
    forget_parts = split_forget(
        formatter.format(forget, "--forget"), settings.seed, minimum=minimum, calibrate_at_least=calibrate_at_least
    )
    retain_parts = split_retain(formatter.format(retain, "--retain"), settings.seed)
    for text in formatter.remarks:
        remark(text)
    if formatter.skipped:
        remark(f"{formatter.skipped} prompts are longer than the model's context and were left out (--skip-long).")

    evidence = gather(prober, formatter, forget_parts, retain_parts)
    decision = decide(evidence, settings)
    limits = measure_limits(prober, formatter, evidence, decision, settings.refusal)
    states = find_refusal_states(
        loaded.model,
        prober.final_states(spread(forget_parts.choose, retain_parts.choose), "refusal states: find"),
        prober.final_states(spread(forget_parts.report, retain_parts.report), "refusal states: check"),
        token.id,
        ends,
    )
    summary = summarise(settings, loaded, records, formatter, evidence, decision, limits, states)
    if not decision.separates and not settings.force:
        raise NothingSeparates(
            f"no layer keeps false blocks within --max-false-block {settings.max_false_block}; nothing was written "
            "(see the table; --everyday-without leaves out kinds that belong to the skill, --force writes anyway)",
            summary,
        )
    with Staging(settings.out, overwrite=settings.overwrite) as staging:
        write_checkpoint(staging.path, loaded, settings, token, states, evidence, decision, summary)
        staging.commit()
    return summary


def check_apart(out: Path, base: Base) -> None:
    """Raise BadInput where OUT and the base's folder hold one another: replacing OUT would destroy the base."""
    ours, theirs = out.resolve(), base.folder.resolve()
    if ours == theirs or ours in theirs.parents or theirs in ours.parents:
        raise BadInput(f"{out}: OUT and MODEL must be folders apart from each other")


def spread(forget: Sequence[Query], retain: Sequence[Query]) -> list[Query]:
    """Queries of both sides in turn, enough for the final states."""
    chosen: list[Query] = []
    positions = 0
    for query in chain.from_iterable(zip_longest(forget, retain)):
        if query is not None and positions < STATES_POSITIONS:
            chosen.append(query)
            positions += len(query.ids)
    return chosen
