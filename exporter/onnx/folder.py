"""What lies around the graph, so that transformers.js, onnxruntime-genai and optimum load the folder too.

Nothing in it can be loaded as the plain model: there are no torch weights. So config.json has the base's model type,
by which those libraries know the form of the cache.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import jinja2

from custom_modeling.loading import record_sha256
from exporter.checkpoint.layout import MARKER
from exporter.checkpoint.shards import file_sha256, read_header
from exporter.common.errors import BadInput
from exporter.common.files import write_errors, write_json
from exporter.common.staging import Staging, repair
from exporter.common.text import Notify
from exporter.common.version import __version__
from exporter.models.files import Base, check_checkpoint, find_files, size_in
from exporter.onnx.check.self_check import Row
from exporter.onnx.graph import DATA_SUFFIX, cache_shape, return_freed_memory, weights_of
from exporter.onnx.settings import GRAPH, QUANTIZED, OnnxSettings

# As they are in the checkpoint: the tokenizer knows R there.
COPIED = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*")
# Names of transformers.js for a graph's numbers.
JS_DTYPES = {"float32": "fp32", "float16": "fp16", "int8": "int8", "int4": "q4"}
PREFIX = "unskill_"
# Model types that onnxruntime-genai 0.18 knows, of the families that have a graph. It rejects all others, and reads
# nothing out of the type for these: what it needs is in the file, so that "llama" does for the rest.
GENAI_TYPES = ("gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo", "qwen2", "qwen3", "smollm3")


def write_folder(
    folder: Path, files: Base, config: Any, dtype: str, quantized: Mapping[str, Any] | None = None
) -> None:
    """Everything but the graph.

    files: the checkpoint's; config: of the loaded model; dtype: a key of GRAPH; quantized: what `write_quantized`
    found, for a graph with quantized weights.
    """
    for pattern in COPIED:
        for path in filter(Path.is_file, sorted(files.folder.glob(pattern))):  # a folder LICENSES too fits a pattern
            shutil.copyfile(path, folder / path.name)
    write_json(folder / "config.json", plain_config(files.config, dtype))
    path = files.folder / "generation_config.json"
    generation = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(folder / "genai_config.json", genai_config(files.config, config, generation, dtype))
    (folder / "README.md").write_text(render_card(files, dtype, quantized), encoding="utf-8")


def plain_config(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The checkpoint's config.json under the base's model type and class."""
    found = {key: value for key, value in config.items() if key != "auto_map"}
    found["model_type"] = config["model_type"].removeprefix(PREFIX)
    found["architectures"] = [name.removeprefix("Unskill") for name in config["architectures"]]
    # Activations and cache of a quantized graph are float32.
    found["dtype"] = found["torch_dtype"] = "float32" if dtype in QUANTIZED else dtype
    name = Path(GRAPH[dtype]).name
    found["transformers.js_config"] = {
        "dtype": JS_DTYPES[dtype],
        "use_external_data_format": {name: 1},
        "kv_cache_dtype": {"fp16": "float16"},
    }
    return found


def end_tokens(config: Mapping[str, Any], live: Any, generation: Mapping[str, Any]) -> list[int]:
    """Every token that ends an answer: what comes after R, those of the config, those of generation_config.json.

    onnxruntime-genai does not read the last, where many chat models have the token that ends a turn.
    """
    named = [config["unskill"]["eos_token_id"], live.eos_token_id, generation.get("eos_token_id")]
    found = [each if isinstance(each, list) else [each] for each in named if each is not None]
    return list(dict.fromkeys(id_ for each in found for id_ in each))


def genai_config(config: Mapping[str, Any], live: Any, generation: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """onnxruntime-genai's description of the graph. config: config.json; live: of the loaded model."""
    heads, size = cache_shape(live)
    ends = end_tokens(config, live, generation)
    family = config["model_type"].removeprefix(PREFIX)
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": GRAPH[dtype],
        "head_size": size,
        "hidden_size": live.hidden_size,
        "num_attention_heads": live.num_attention_heads,
        "num_hidden_layers": live.num_hidden_layers,
        "num_key_value_heads": heads,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    pad = live.pad_token_id if live.pad_token_id is not None else next(iter(ends), None)
    ids = {"bos_token_id": live.bos_token_id, "eos_token_id": ends or None, "pad_token_id": pad}
    model = {
        "type": family if family in GENAI_TYPES else "llama",
        **{name: value for name, value in ids.items() if value is not None},  # null is an error there
        "context_length": live.max_position_embeddings,
        "vocab_size": size_in(config, "vocab_size"),
        "decoder": decoder,
    }
    search = {
        "do_sample": False,
        "max_length": live.max_position_embeddings,
        "min_length": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        # The cache grows: the graph's attention is made of standard operators, which do not write in place.
        "past_present_share_buffer": False,
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
    }
    return {"model": model, "search": search}


def open_checkpoint(settings: OnnxSettings, notify: Notify) -> Base:
    """The files of a checkpoint that has a graph. Raises BadInput for others."""
    return_freed_memory()
    for line in repair(settings.out):
        notify(line)
    files = find_files(settings.checkpoint, "CHECKPOINT", check_checkpoint, code=True)
    if (compat := files.config["unskill"].get("compat")) is not None:
        raise BadInput(
            f"CHECKPOINT {files.name}: compat '{compat}' draws by torch's own generator, which ONNX does not have; "
            "export it without --compat"
        )
    return files


@contextmanager
def checked_folder(settings: OnnxSettings, files: Base, size: int) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Where the graph goes in a folder of `size` bytes at most, and what self_check.json has: the caller adds to both.

    The folder is there once the caller is through, and signed: self_check.json then has what `unskill verify` knows it
    by, the sha256 of every file in it, and that of the checkpoint's unskill object, which covers its interventions and
    its code. Where the caller raises, nothing is written.
    """
    with Staging(settings.out, settings.overwrite) as staging, write_errors(settings.out, size):
        summary: dict[str, Any] = {"unskill": __version__, "checkpoint": files.name, "dtype": settings.dtype}
        graph = staging.path / GRAPH[settings.numbers]
        graph.parent.mkdir()
        yield graph, summary
        files_there = sorted(path for path in staging.path.rglob("*") if path.is_file())
        summary["checkpoint_sha256"] = files.config["unskill"].get("record_sha256")
        summary["files"] = {path.relative_to(staging.path).as_posix(): file_sha256(path) for path in files_there}
        summary["record_sha256"] = record_sha256(summary)
        write_json(staging.path / MARKER, summary)
        staging.commit()


def results(graph: Path, rows: Sequence[Row], agrees: bool) -> dict[str, Any]:
    """What self_check.json has of a graph and its check."""
    size = graph.stat().st_size + weights_of(graph).stat().st_size
    return {"bytes": size, "agrees": agrees, "self_check": [asdict(row) for row in rows]}


def render_card(files: Base, dtype: str, quantized: Mapping[str, Any] | None) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("exporter.onnx", "."), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    template = environment.get_template("card.md.jinja")
    graph = GRAPH[dtype]
    return template.render(
        name=files.name,
        graph=graph,
        data=graph + DATA_SUFFIX,
        js_dtype=JS_DTYPES[dtype],
        unskill=files.config["unskill"],
        quantized=quantized,
    )


def graph_size(files: Base, dtype: str) -> int:
    """Bytes of a checkpoint's weights as numbers of a graph's dtype."""
    width = 2 if dtype == "float16" else 4
    return sum(
        width * prod(info.shape)
        for shard in files.shards
        for info in read_header(files.folder / shard).tensors.values()
    )
