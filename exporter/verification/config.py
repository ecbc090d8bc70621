"""config.json and generation_config.json: what they say of the checkpoint, and whether it belongs together."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from custom_modeling.loading import record_sha256
from exporter.checkpoint.code import mlx_name
from exporter.checkpoint.config import checkpoint_config, checkpoint_generation
from exporter.checkpoint.layout import BASE_FOLDER
from exporter.models.families import EMBEDDING, FAMILIES, HEAD
from exporter.models.files import PREFIX, size_in
from exporter.models.named_ids import EOS, GENERATION, as_ids
from exporter.verification.checks import Wrong, none_of
from exporter.verification.on_disk import OnDisk

CLASSES = {"config": "AutoConfig", "model": "AutoModel", "causal_lm": "AutoModelForCausalLM"}
"""Keys of auto_map by the names of their classes in `checkpoint_config`."""


def check_config(view: OnDisk) -> str:
    """config.json: its unskill object as it was written, and the rest consistent with it and with the files."""
    config = view.read_config()
    record = config["unskill"]
    if record.get("record_sha256") != record_sha256(record):
        raise Wrong("config.json: the unskill object was edited (record_sha256)")
    none_of([*names(view, config), *edited(config, record), *numbers(view, config, record), *ends(view, record)])
    blocking = any(map(blocks, record["layers"].values()))
    what = f"refuses with token {record['refusal_token_id']}" if blocking else "refuses nothing"
    return f"format {record['format']}, {config['model_type']}, {what}"


def names(view: OnDisk, config: dict[str, Any]) -> Iterator[str]:
    """Problems with the classes that transformers is to load."""
    model_type = str(config.get("model_type"))
    if model_type not in {PREFIX + base for base in FAMILIES}:
        yield f"config.json: unskill does not write model_type {model_type}"
        return
    module, auto_map = f"modeling_{model_type}", config.get("auto_map", {})
    if set(auto_map) != set(CLASSES.values()):
        yield f"config.json: auto_map has {', '.join(auto_map) or 'nothing'}"
    path = view.folder / f"{module}.py"
    if not path.is_file():
        yield f"{path.name} is missing"
        return
    mlx = mlx_of(config)
    if config.get("model_file") != mlx:
        yield f"config.json: model_file is {config.get('model_file')}, where the export wrote {mlx}"
    if mlx is not None and not (view.folder / mlx).is_file():
        yield f"{mlx} is missing"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    places = {f"{module}.{node.name}" for node in tree.body if isinstance(node, ast.ClassDef)}
    for key in CLASSES.values():
        if auto_map.get(key) not in places:
            yield f"config.json: auto_map.{key} is {auto_map.get(key)}, which is not a class of {module}.py"
    causal_lm = class_name(auto_map.get("AutoModelForCausalLM"))
    if config.get("architectures") != [causal_lm]:
        yield f"config.json: architectures is {config.get('architectures')}, auto_map names {causal_lm}"
    if config.get("tokenizer_class") != "PreTrainedTokenizerFast":
        yield f"config.json: tokenizer_class is {config.get('tokenizer_class')} instead of PreTrainedTokenizerFast"
    if config.get("quantization_config") is not None:
        yield "config.json: quantization_config makes other activations than those that were fitted on"


def mlx_of(config: Mapping[str, Any]) -> str | None:
    """Name of the checkpoint's file for MLX, None where its export wrote none."""
    return mlx_name(config["model_type"].removeprefix(PREFIX)) if "mlx_sha256" in config["unskill"] else None


def edited(config: dict[str, Any], record: dict[str, Any]) -> Iterator[str]:
    """Keys that are not as the export recorded them; exports of version 0.1 did not."""
    exported = record.get("config", config)
    for key in sorted((config.keys() | exported.keys()) - {"unskill"}):
        if config.get(key) != exported.get(key):
            yield f"config.json: {key} is not as it was exported (unskill.config)"


def numbers(view: OnDisk, config: dict[str, Any], record: dict[str, Any]) -> Iterator[str]:
    """Problems with ids, sizes and layers."""
    rows = size_in(config, "vocab_size")
    tensors = {name: info for header in view.headers.values() for name, info in header.tensors.items()}
    for name in (EMBEDDING, HEAD):
        if name in tensors and tensors[name].shape[0] != rows:
            yield f"config.json: vocab_size is {rows}, {name} has {tensors[name].shape[0]} rows"
    blocking = any(map(blocks, record["layers"].values()))
    if any((record[key] is not None) is not blocking for key in ("refusal", "refusal_token_id", "eos_token_id")):
        yield "config.json: regions, refusal, refusal_token_id and eos_token_id must all be there, or none of them"
    for key in ("refusal_token_id", "eos_token_id"):
        if record[key] is not None and not 0 <= record[key] < rows:
            yield f"config.json: unskill.{key} {record[key]} is not one of {rows} rows"
    if record["added_row"] and record["refusal_token_id"] != rows - 1:
        yield f"config.json: unskill.refusal_token_id is {record['refusal_token_id']}, the added row is {rows - 1}"
    layers = size_in(config, "num_hidden_layers")
    if outside := [layer for layer in record["layers"] if not 0 <= int(layer) < layers]:
        yield f"config.json: unskill.layers names layer {outside[0]} of {layers}"
    for skill in record["skills"]:
        if "layer" in skill and not blocks(record["layers"].get(str(skill["layer"]), {})):
            yield f"config.json: skill {skill['name']} refuses at layer {skill['layer']}, which has no region"


def blocks(counts: Mapping[str, int]) -> bool:
    """Whether a layer with these numbers of buffers can refuse."""
    return bool(counts.get("cubes") or counts.get("regions"))


def ends(view: OnDisk, record: dict[str, Any]) -> Iterator[str]:
    """Problems with what ends an answer."""
    where = GENERATION if (view.folder / GENERATION).is_file() else "config.json"
    # Where there is a generation_config.json, transformers does not look into config.json.
    found, end = view.read(where).get(EOS), record["eos_token_id"]
    if end is not None and end not in as_ids(found):
        yield f"{where}: eos_token_id {found} lacks {end}, which ends a refusal"


def check_base_config(view: OnDisk) -> str:
    """Both files against those of the base: everything but what the export adds is the base's."""
    config = view.config
    base = view.read_base("config.json")
    model_type = f"{PREFIX}{base.get('model_type')}"
    expected = checkpoint_config(
        base,
        model_type=model_type,
        class_names={name: class_name(config["auto_map"][key]) for name, key in CLASSES.items()},
        module=f"modeling_{model_type}",
        vocab_size=size_in(base, "vocab_size") + view.record["added_row"],
        mlx=mlx_of(config),
    )
    none_of(differences("config.json", expected, {key: config[key] for key in config if key != "unskill"}))
    there = (view.folder / BASE_FOLDER / GENERATION).is_file()
    if there != (view.folder / GENERATION).is_file():
        raise Wrong(f"{GENERATION} is missing" if there else f"there is a {GENERATION}, and the base has none")
    if there:
        own = checkpoint_generation(view.read_base(GENERATION), view.record["eos_token_id"])
        none_of(differences(GENERATION, own, view.read(GENERATION)))
    return "as the base's, with what the export adds"


def class_name(place: Any) -> str:
    """The class of an entry of auto_map, such as "module.Class"."""
    return str(place).rpartition(".")[2]


def differences(where: str, expected: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    for key in sorted(expected.keys() | found.keys()):
        if key not in found:
            yield f"{where} lacks the base's {key}"
        elif key not in expected:
            yield f"{where} has {key}, which the base does not have"
        elif expected[key] != found[key]:
            yield f"{where}: {key} is not the base's"
