"""The checkpoint folder: base weights with R's row, the interventions, tokenizer, modeling code, card and reproduce/.

Nothing is loaded and saved again: shards are copied as bytes and JSON files as JSON, so all else is as in the base.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from custom_modeling.buffers import (
    KSD_BOUNDS,
    KSD_DIRECTIONS,
    KSD_LIMITS,
    NA_INDEX,
    REFUSAL_STATES,
    SP_INDEX,
    in_mlp,
    layer_of,
)
from custom_modeling.loading import UNSKILL_FORMAT, code_sha256, record_sha256, tensor_sha256
from exporter.checkpoint.base.keeping import CopiedShard, keep_base
from exporter.checkpoint.base.local_paths import of_base
from exporter.checkpoint.card.figure import Figure
from exporter.checkpoint.card.render import render_card
from exporter.checkpoint.code import class_names, mlx_name, module_name, render_mlx, render_modeling
from exporter.checkpoint.config import checkpoint_config, checkpoint_generation
from exporter.checkpoint.findings import Findings, Plan
from exporter.checkpoint.reproduce import write_reproduce
from exporter.checkpoint.shards import RowPatch, copy_shard, merged_index, shard_names
from exporter.checkpoint.summary import SkillSummary, Summary
from exporter.checkpoint.tensors import encode_row, write_tensors
from exporter.common.errors import RunFailed
from exporter.common.files import read_json, write_json
from exporter.common.version import __version__
from exporter.methods.key_space.regions import joined
from exporter.methods.neurons.applied import neuron_buffers
from exporter.methods.neurons.scores import NeuronChanges
from exporter.methods.outcome import SkillOutcome
from exporter.methods.refusal.head import RefusalStates
from exporter.methods.refusal.token import RefusalToken, write_checked
from exporter.models.families import EMBEDDING, HEAD, MLX_FAMILIES
from exporter.models.files import LICENCES, Base, size_in
from exporter.models.headers import read_header
from exporter.models.loading import LoadedModel
from exporter.models.named_ids import GENERATION
from exporter.recipes.settings import ExportSettings


def write_checkpoint(
    folder: Path, plan: Plan, findings: Findings, summary: Summary, draw: Callable[[Path], list[Figure]] | None
) -> None:
    """Write the whole checkpoint into an empty folder. Raises RunFailed where the disk is full or a check fails.

    draw: writes the card's charts into the folder and returns them.
    """
    settings, token = plan.settings, plan.token
    loaded, outcomes, changes, states = findings.loaded, findings.outcomes, findings.changes, findings.states
    base, family = plan.base, loaded.family
    buffers = intervention_buffers(settings, outcomes, changes, states)
    shards = write_weights(folder, loaded, settings, token, states, buffers)
    code = folder / f"{module_name(family)}.py"
    code.write_text(render_modeling(family), encoding="utf-8")
    mlx = mlx_name(family.model_type) if family.model_type in MLX_FAMILIES else None
    if mlx is not None:
        (folder / mlx).write_text(render_mlx(family.model_type), encoding="utf-8")

    record = {
        "format": UNSKILL_FORMAT,
        "version": __version__,
        "seed": settings.seed,
        "draws": settings.draws,
        "compat": settings.compat,
        "refusal": token.text if token else None,
        "refusal_token_id": token.id if token else None,
        "eos_token_id": states.eos_id if states else None,
        "added_row": token.added_row if token else False,
        # Without hypercubes there is nothing that only a head could refuse.
        "base_model": "closed" if states is None or states.closed else "raises",
        "dtype": summary.dtype,
        "layers": layer_settings(buffers),
        "skills": [skill_record(skill, settings.prompt_template) for skill in summary.skills],
        "unused_weights": unused_weights(loaded),
        "sha256": {name: tensor_sha256(tensor) for name, tensor in buffers.items()},
        "code_sha256": code_sha256(code),
        **({} if mlx is None else {"mlx_sha256": code_sha256(folder / mlx)}),
    }
    config = checkpoint_config(
        kept_json(base, "config.json"),
        model_type=f"unskill_{family.model_type}",
        class_names=class_names(family),
        module=module_name(family),
        vocab_size=size_in(base.config, "vocab_size") + (token.added_row if token else 0),
        mlx=mlx,
    )
    record["config"] = config
    write_json(folder / "config.json", config | {"unskill": record | {"record_sha256": record_sha256(record)}})
    if (base.folder / GENERATION).is_file():
        write_json(folder / GENERATION, checkpoint_generation(kept_json(base, GENERATION), record["eos_token_id"]))
    write_checked(base.folder, folder, token, loaded.tokenizer)
    for pattern in LICENCES:
        for path in sorted(each for each in base.folder.glob(pattern) if each.is_file()):
            shutil.copyfile(path, folder / path.name)
    figures = draw(folder) if draw else []
    (folder / "README.md").write_text(render_card(base, settings, summary, code, figures, mlx), encoding="utf-8")
    keep_base(folder, base, shards, settings.fingerprints)
    hashes = {shard.target: shard.sha256 for shard in shards if shard.sha256 is not None}
    write_reproduce(folder, plan, findings, summary, hashes)


def kept_json(base: Base, name: str) -> dict[str, Any]:
    """A JSON file of the base without local paths, as `keep_base` keeps it. Raises BadInput where it is not JSON."""
    path = base.folder / name
    read_json(path, base.name, "MODEL")
    content: dict[str, Any] = json.loads(of_base(base.folder, base.revision, name, path.read_bytes())[0])
    return content


def skill_record(skill: SkillSummary, prompt_template: str) -> dict[str, Any]:
    """One skill in config.json."""
    record: dict[str, Any] = {"name": skill.name, "method": skill.method}
    if (neurons := skill.neurons) is not None:
        record |= {"score": neurons.score, "beta": neurons.beta, "borne": neurons.within_budget}
    if (cubes := skill.key_space) is not None:
        record |= {
            "layer": cubes.layer,
            "alpha": cubes.alpha.model_dump(),
            "separates": cubes.separates,
            "region": cubes.region,
            "formats": list(cubes.hypercubes),
            "prompt_template": prompt_template,
            **cubes.model_dump(include={"blocked", "false_blocks_over_answers"}),
        }
    return record


COUNTS = {
    KSD_BOUNDS: "cubes",
    KSD_LIMITS: "regions",
    KSD_DIRECTIONS: "directions",
    NA_INDEX: "adjusted",
    SP_INDEX: "pruned",
}
"""What the length of a buffer is in config.json, see `custom_modeling.buffers.mlp_forms`."""


def layer_settings(buffers: Mapping[str, Tensor]) -> dict[str, dict[str, int]]:
    """Numbers of regions, adjusted and pruned neurons of each MLP with interventions, by layer in ascending order."""
    layers: dict[int, dict[str, int]] = {}
    for name, tensor in buffers.items():
        kind = COUNTS.get(name.rpartition(".")[2])
        if kind is not None:
            layers.setdefault(layer_of(name), {})[kind] = len(tensor)
    return {str(layer): layers[layer] for layer in sorted(layers)}


def intervention_buffers(
    settings: ExportSettings,
    outcomes: Sequence[SkillOutcome],
    changes: NeuronChanges,
    states: RefusalStates | None,
) -> dict[str, Tensor]:
    """The buffers by their names inside the base model: those of neurons (see `neuron_buffers`), of all regions in a
    layer (see `joined`) and, if the base-model class is closed, states (2, hidden)."""
    buffers = neuron_buffers(changes, settings.seed, settings.compat)
    regions: dict[int, list[dict[str, Tensor]]] = {}
    for outcome in outcomes:
        if (found := outcome.detection) is not None:
            regions.setdefault(found.regions.layer, []).append(found.regions.buffers(found.threshold))
        if outcome.evidence is not None and outcome.decision is not None:
            layer, alpha = outcome.decision.layer, outcome.decision.alpha.value
            regions.setdefault(layer, []).append({KSD_BOUNDS: outcome.evidence.keys.bounds(layer, alpha)})
    for layer, parts in regions.items():
        buffers |= {in_mlp(layer, name): tensor for name, tensor in joined(parts).items()}
    if states is not None and states.closed:
        buffers[REFUSAL_STATES] = states.states
    for name, tensor in buffers.items():
        if tensor.isnan().any() or (tensor.isinf().any() and not name.endswith((KSD_BOUNDS, KSD_LIMITS))):
            raise RunFailed(f"{name} holds NaN or infinity; try another --dtype")
    return buffers


def unused_weights(loaded: LoadedModel) -> list[str]:
    """Tensors of the base that its own class does not load; they are copied all the same."""
    return sorted(loaded.files.tensors.keys() - loaded.model.state_dict().keys())


def write_weights(
    folder: Path,
    loaded: LoadedModel,
    settings: ExportSettings,
    token: RefusalToken | None,
    states: RefusalStates | None,
    buffers: dict[str, Tensor],
) -> list[CopiedShard]:
    """Write the base's shards with R's row, one more with the interventions, and the index. Returns the base's."""
    base = loaded.files
    names = shard_names(len(base.shards) + 1)
    shards: list[CopiedShard] = []
    for shard, name in zip(base.shards, names, strict=False):
        source, target = base.folder / shard, folder / name
        patches = []
        if token is not None and states is not None:
            header = read_header(source)
            patches = [
                RowPatch(name, token.id, encode_row(states.head_row, header.tensors[name].dtype))
                for name in (EMBEDDING, HEAD)
                if name in header.tensors
            ]
        fingerprint = copy_shard(source, target, patches, link=settings.link, fingerprint=settings.fingerprints)
        shards.append(CopiedShard(shard, target.name, tuple(patches), fingerprint))
    extra = folder / names[-1]
    write_tensors(extra, {f"model.{name}": tensor.contiguous() for name, tensor in buffers.items()})
    index = merged_index([*(folder / shard.target for shard in shards), extra])
    write_json(folder / "model.safetensors.index.json", index)
    return shards
