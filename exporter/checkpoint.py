"""The checkpoint folder: base weights with R's row, the interventions, tokenizer, modeling code, card and reproduce/.

Nothing is loaded and saved again: shards are copied as bytes, JSON files as JSON, so what is not named here is as it
was in the base.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from custom_modeling.runtime import UNSKILL_FORMAT, tensor_sha256
from exporter import __version__
from exporter.base_json import checkpoint_config, checkpoint_generation_config
from exporter.card import render_card
from exporter.errors import RunFailed
from exporter.evidence import Decision, Evidence
from exporter.formats import Query
from exporter.model import LoadedModel, read_json
from exporter.modeling_source import class_names, module_name, render_modeling
from exporter.refusal_states import RefusalStates
from exporter.refusal_token import RefusalToken, check_tokenizer, write_tokenizer
from exporter.settings import ExportSettings
from exporter.shards import RowPatch, copy_shard, encode_row, merged_index, read_header, write_tensors

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Files of the base that go along as they are: its licence binds the checkpoint too.
LICENCES = ("LICENSE*", "NOTICE*", "USE_POLICY*")


def write_checkpoint(
    folder: Path,
    loaded: LoadedModel,
    settings: ExportSettings,
    token: RefusalToken,
    states: RefusalStates,
    evidence: Evidence,
    decision: Decision,
    summary: dict[str, Any],
) -> None:
    """Write the whole checkpoint into an empty folder. Raises RunFailed where the disk is full or a check fails."""
    base, family = loaded.base, loaded.family
    buffers = intervention_buffers(evidence, decision, states)
    hashes = write_weights(folder, loaded, settings, token, states, buffers)

    config = checkpoint_config(
        base.config,
        model_type=f"unskill_{family.model_type}",
        class_names=class_names(family),
        module=module_name(family),
        vocab_size=base.config["vocab_size"] + token.added_row,
        unskill={
            "format": UNSKILL_FORMAT,
            "version": __version__,
            "seed": settings.seed,
            "refusal": token.text,
            "refusal_token_id": token.id,
            "eos_token_id": states.eos_id,
            "added_row": token.added_row,
            "base_model": "closed" if states.closed else "raises",
            "dtype": summary["dtype"],
            "layers": {str(decision.layer): len(evidence.keys.gaussians)},
            "skills": [
                {
                    "method": settings.method,
                    "layer": decision.layer,
                    "alpha": asdict(decision.alpha),
                    "separates": decision.separates,
                    "formats": summary["formats"],
                    "prompt_template": settings.prompt_template,
                    "blocked": summary["blocked"],
                    "false_blocks_over_answers": summary["false_blocks_over_answers"],
                }
            ],
            "sha256": {name: tensor_sha256(tensor) for name, tensor in buffers.items()},
        },
    )
    write_json(folder / "config.json", config)
    generation = base.folder / "generation_config.json"
    if generation.is_file():
        copied = checkpoint_generation_config(read_json(generation, base.name))
        if copied is not None:
            write_json(folder / generation.name, copied)
    write_tokenizer(base.folder, folder, token, loaded.tokenizer)
    check_tokenizer(loaded.tokenizer, folder, token)
    (folder / f"{module_name(family)}.py").write_text(render_modeling(family), encoding="utf-8")
    for pattern in LICENCES:
        for path in sorted(base.folder.glob(pattern)):
            shutil.copyfile(path, folder / path.name)
    (folder / "README.md").write_text(render_card(base, settings, summary), encoding="utf-8")
    write_reproduce(folder, settings, evidence, summary, hashes)


def intervention_buffers(evidence: Evidence, decision: Decision, states: RefusalStates) -> dict[str, Tensor]:
    """The buffers by their names inside the base model: bounds (c, 2, d_ff) and, if closed, states (2, hidden)."""
    bounds = evidence.keys.bounds(decision.layer, decision.alpha.value)
    buffers = {f"layers.{decision.layer}.mlp.unskill_ksd_bounds": bounds}
    if states.closed:
        buffers["unskill_refusal.unskill_states"] = states.states
    for name, tensor in buffers.items():
        if not torch.isfinite(tensor).all():
            raise RunFailed(f"{name} holds NaN or infinity; try another --dtype")
    return buffers


def write_weights(
    folder: Path,
    loaded: LoadedModel,
    settings: ExportSettings,
    token: RefusalToken,
    states: RefusalStates,
    buffers: dict[str, Tensor],
) -> dict[str, str]:
    """Base shards with R's row, one more shard with the interventions, and the index. Returns sha256 by file name."""
    base = loaded.base
    total = len(base.shards) + 1
    targets: list[Path] = []
    hashes: dict[str, str] = {}
    patched: set[str] = set()
    for number, shard in enumerate(base.shards, start=1):
        source, target = base.folder / shard, folder / f"model-{number:05d}-of-{total:05d}.safetensors"
        header = read_header(source)
        patches = [
            RowPatch(name, token.id, encode_row(states.head_row, header.tensors[name].dtype))
            for name in (EMBEDDING, HEAD)
            if name in header.tensors
        ]
        patched.update(patch.tensor for patch in patches)
        fingerprint = copy_shard(source, target, patches, link=settings.link, fingerprint=settings.fingerprints)
        if fingerprint is not None:
            hashes[target.name] = fingerprint
        targets.append(target)
    tied = loaded.model.config.get_text_config().tie_word_embeddings
    if not (EMBEDDING in patched or (tied and HEAD in patched)) or not (tied or HEAD in patched):
        raise RunFailed(f"MODEL {base.name}: its weights do not hold {EMBEDDING} and {HEAD} under these names")
    extra = folder / f"model-{total:05d}-of-{total:05d}.safetensors"
    write_tensors(extra, {f"model.{name}": tensor.contiguous() for name, tensor in buffers.items()})
    write_json(folder / "model.safetensors.index.json", merged_index([*targets, extra]))
    return hashes


def write_reproduce(
    folder: Path, settings: ExportSettings, evidence: Evidence, summary: dict[str, Any], hashes: dict[str, str]
) -> None:
    """`reproduce/`: what it takes to make this checkpoint again and to check it. No path and no prompt text."""
    target = folder / "reproduce"
    target.mkdir()
    packages = ("torch", "transformers", "tokenizers", "safetensors", "huggingface-hub", "datasets", "numpy", "scipy")
    recipe = asdict(settings)
    for name in ("model", "out", "forget", "retain", "overwrite", "quiet", "link", "fingerprints"):
        del recipe[name]
    recipe["system_prompts"] = [text_sha256(text) for text in settings.system_prompts]
    recipe |= {"model": summary["model"], "revision": summary["revision"], "sources": summary["sources"]}
    write_json(target / "recipe.json", recipe)
    write_json(
        target / "versions.json",
        {"unskill": __version__, "python": platform.python_version(), **{name: version(name) for name in packages}},
    )
    write_json(target / "summary.json", summary)
    forget, retain = evidence.forget_parts, evidence.retain_parts
    write_json(
        target / "prompts.json",
        {
            "forget.fit": records(evidence.fitted),
            "forget.choose": records(forget.choose),
            "forget.calibrate": records(forget.calibrate),
            "forget.report": records(forget.report),
            "forget.choose.unseen": records(evidence.choose_unseen.queries),
            "forget.report.unseen": records(evidence.report_unseen.queries),
            "retain.choose": records(retain.choose),
            "retain.choose.others": records(evidence.retain_others.queries),
            "retain.report": records(retain.report),
        },
    )
    write_tensors(target / "statistics.safetensors", {n: t.contiguous() for n, t in evidence.tensors().items()})
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in hashes and path.suffix != ".safetensors":
            hashes[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    write_json(target / "hashes.json", dict(sorted(hashes.items())))


def records(queries: Sequence[Query]) -> list[dict[str, Any]]:
    """Prompts by source, row and sha256, in the order of the score rows of `statistics.safetensors`."""
    return [
        {
            "source": query.prompt.source,
            "row": query.prompt.row,
            "sha256": query.prompt.sha256,
            "format": query.format,
            "variant": query.variant,
            "tokens": len(query.ids),
        }
        for query in queries
    ]


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
