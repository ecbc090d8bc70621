"""`unskill onnx --quantize`: a quantized graph with interventions that were fitted on it, or nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx

from custom_modeling.loading import record_sha256, tensor_sha256
from exporter.checkpoint.reading import Stored, read_stored
from exporter.checkpoint.shards import file_sha256
from exporter.common.errors import BadInput, Rejected
from exporter.common.text import Notify
from exporter.models.families import form_of
from exporter.models.files import Base
from exporter.models.loading import load_files
from exporter.models.tokens import context_of
from exporter.onnx.check.quantized import check_quantized
from exporter.onnx.folder import checked_folder, graph_size, open_checkpoint, results, write_folder
from exporter.onnx.graph import release_weights, weights_of, write_graph
from exporter.onnx.library import built_libraries
from exporter.onnx.quantize.again import FLAGS, Exported, check_parts, export_again
from exporter.onnx.quantize.refit import Refit, adjusted_neurons, refit
from exporter.onnx.quantize.weights import quantize
from exporter.onnx.settings import PROMPTS, OnnxSettings, check_out
from exporter.onnx.surgery import patched
from exporter.prompts.formats import PLAIN
from exporter.prompts.packaged import everyday_prompts
from exporter.prompts.skills import SkillPlan, prepare_for


def write_quantized(settings: OnnxSettings, notify: Notify) -> dict[str, Any]:
    """Write the ONNX folder of a checkpoint with quantized weights, and fit its interventions anew on them.

    Returns the content of self_check.json: as `write_onnx`, and the quantization, the sha256 of the weights' file that
    was probed, and for each skill alpha before and after, and rates on the report parts with exact intervals.

    Raises BadInput for checkpoints that cannot be fitted anew and for other sources than the export's,
    Rejected where a skill's new regions hold more harmless prompts than allowed, or too few of the skill's (unless
    settings.force),
    RunFailed as `write_onnx`; nothing is written then.
    """
    assert settings.quantize is not None
    files = open_checkpoint(settings, notify)
    stored = read_stored(settings.checkpoint)
    check_refittable(stored, settings)
    export, skills = export_again(stored, settings, notify) if fits(stored) else (None, [])
    size = 2 * graph_size(files, "float32")
    check_out(settings, size)
    loaded = load_files(files, "float32", "cpu", code=True)
    model, fitted = loaded.model, Refit()
    plans: list[SkillPlan] = []
    if export is not None:
        formatter, plans = prepare_for(skills, loaded.tokenizer, context_of(model), export, notify)
        for own, plan in zip(stored.skills, plans, strict=True):
            check_parts(own, plan, formatter, stored.unskill.get("version", "?"))
    with checked_folder(settings, files, size) as (graph, summary):
        adjusted, live = adjusted_neurons(model), model.config
        write_weights(model, files.name, settings.quantize, graph, notify)
        weights = file_sha256(weights_of(graph))
        if export is not None:
            notify("probing the quantized graph in ONNX Runtime ...")
            known = {each.name: each.key_space for each in stored.summary.skills if each.key_space is not None}
            bos = loaded.tokenizer.bos_token_id
            size_of_key = getattr(live.get_text_config(), form_of(model).key)
            exported = Exported(export, formatter, plans, known, loaded.pad_id, bos, loaded.eos_ids, size_of_key)
            fitted = refit(graph, exported, adjusted, answers=settings.answers)
            onnx.save(patched(graph, fitted.constants), graph)
        summary |= {
            "quantize": settings.quantize,
            "head": "float32",
            "weights_sha256": weights,
            "neurons_changed": sum(
                each.get("adjusted", 0) + each.get("pruned", 0) for each in files.config["unskill"]["layers"].values()
            ),
            "separates": not fitted.faults,
            "answers": settings.answers,
            "skills": [dict(each) for each in fitted.skills],
        }
        notify("comparing the quantized graph with itself ...")
        sequences = [query.ids for plan in plans for query in plan.forget.report[:PROMPTS]][:PROMPTS]
        plain = loaded.formatter("{prompt}", formats=PLAIN, skip_long=True)
        sequences += [query.ids for query in plain.format(everyday_prompts()[:PROMPTS], "everyday")]
        record = files.config["unskill"]
        refusal = None if record["refusal"] is None else (record["refusal_token_id"], record["eos_token_id"])
        kernels = next(iter(built_libraries()), None)
        rows, agree = check_quantized(graph, kernels, sequences, loaded.pad_id, refusal, fitted.refused)
        summary |= results(graph, rows, agree)
        if not agree:
            raise Rejected("the graph refuses something else than was probed: nothing was written", summary)
        if fitted.faults and not settings.force:
            raise Rejected(f"{'; '.join(fitted.faults)}; nothing was written (--force writes anyway)", summary)
        described = as_refitted(files, settings, summary, fitted)
        write_folder(graph.parent.parent, described, live, settings.quantize, summary)
    return summary


def fits(stored: Stored) -> bool:
    """Whether an intervention reads activations: regions and adjusted neurons do, pruned ones do not."""
    return any(skill["method"] != "sp" for skill in stored.recipe["skills"])


def check_refittable(stored: Stored, settings: OnnxSettings) -> None:
    """Raises BadInput for checkpoints whose interventions cannot be fitted anew, with the reason."""
    adjusting = [skill["name"] for skill in stored.recipe["skills"] if skill["method"] in ("na", "na+ksd")]
    if len(adjusting) > 1:
        raise BadInput(
            f"--quantize: {' and '.join(adjusting)} adjust neurons of one model, and it is not recorded whose "
            "distributions a neuron has: quantize checkpoints with one such skill"
        )
    own = any(source["flag"] in FLAGS for skill in stored.recipe["skills"] for source in skill["sources"])
    if fits(stored) and own and not settings.forget:
        raise BadInput(
            "--quantize: quantized weights move the activations that the interventions look at; give the export's "
            "sources again, --forget SOURCE and --retain SOURCE, on which they are fitted anew"
        )


def write_weights(model: Any, name: str, kind: str, graph: Path, notify: Notify) -> None:
    """Trace the model in float32 and write the graph with quantized weights; the model has none afterwards."""
    start = time.monotonic()
    notify(f"tracing {name} in float32: minutes for a model of many layers ...")
    with TemporaryDirectory(dir=graph.parent, ignore_cleanup_errors=True) as between:
        traced = Path(between, "model.onnx")
        write_graph(model, traced)
        release_weights(model)  # quantizing takes as much memory again
        notify(f"traced in {time.monotonic() - start:.0f} s; quantizing weights to {kind} ...")
        count = quantize(traced, graph, kind)
        notify(f"{count} weights are {kind} now.")


def as_refitted(files: Base, settings: OnnxSettings, summary: Mapping[str, Any], fitted: Refit) -> Base:
    """The checkpoint's files with a config.json that describes the interventions as they are in the graph."""
    record = dict(files.config["unskill"])
    new = {each["name"]: each["key_space"] for each in summary["skills"] if each["key_space"]}
    keys = ("alpha", "separates", "blocked", "false_blocks_over_answers")
    record["skills"] = [
        # Without answers no source has any rates over them.
        skill | {key: {} if (found := new[skill["name"]][key]) is None else found for key in keys}
        if skill["name"] in new
        else skill
        for skill in record["skills"]
    ]
    record["sha256"] = record["sha256"] | {name: tensor_sha256(each) for name, each in fitted.buffers.items()}
    record |= {"quantize": settings.quantize, "weights_sha256": summary["weights_sha256"]}
    record["record_sha256"] = record_sha256(record)
    return replace(files, config=files.config | {"unskill": record})
