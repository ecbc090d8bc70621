"""The files around the graph, with which transformers.js, onnxruntime-genai and optimum load the folder too.

It cannot be loaded as the plain model, because there are no torch weights. So config.json has the base's model type,
from which those libraries derive the shape of the cache.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import jinja2

from custom_modeling.loading import record_sha256
from exporter.checkpoint.card.text import markdown
from exporter.checkpoint.layout import MARKER
from exporter.checkpoint.sentences import refitted_promise, refitted_rows
from exporter.checkpoint.shards import file_sha256
from exporter.common.errors import BadInput
from exporter.common.files import write_errors, write_json
from exporter.common.staging import Staging, repair
from exporter.common.text import Notify
from exporter.common.version import __version__
from exporter.models.files import PREFIX, Base, check_checkpoint, find_files, size_in
from exporter.models.headers import read_header
from exporter.models.named_ids import as_ids
from exporter.onnx.check.self_check import Row
from exporter.onnx.graph import INPUTS, cache_shape, return_freed_memory, weights_of
from exporter.onnx.settings import GRAPH, QUANTIZED, OnnxSettings

# Copied as they are: the checkpoint's tokenizer has R.
COPIED = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*")
# The names of transformers.js for a graph's dtypes.
JS_DTYPES = {"float32": "fp32", "float16": "fp16", "int8": "int8", "int4": "q4"}
# Model types that onnxruntime-genai 0.18 knows, of the supported families. It rejects all others, but derives nothing
# from these: all it needs is in the file, so the other families are written as "llama".
GENAI_TYPES = ("gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo", "qwen2", "qwen3", "smollm3")


def write_folder(
    folder: Path, files: Base, config: Any, dtype: str, quantized: Mapping[str, Any] | None = None
) -> None:
    """Write everything but the graph.

    files: the checkpoint's; config: of the loaded model; dtype: a key of GRAPH; quantized: the summary of
    `write_quantized`, for a graph with quantized weights.
    """
    for pattern in COPIED:
        for path in filter(Path.is_file, sorted(files.folder.glob(pattern))):  # a folder LICENSES fits a pattern too
            shutil.copyfile(path, folder / path.name)
    write_json(folder / "config.json", plain_config(files.config, dtype))
    write_json(folder / "genai_config.json", genai_config(files.config, config, files.generation, dtype))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("exporter.onnx", "."), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    card = environment.get_template("card.md.jinja").render(
        name=files.name,
        graph=GRAPH[dtype],
        js_dtype=JS_DTYPES[dtype],
        unskill=files.config["unskill"],
        quantized=quantized,
        markdown=markdown,
        promise=refitted_promise,
        rate_rows=refitted_rows,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def plain_config(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The checkpoint's config.json under the base's model type and class."""
    found = {key: value for key, value in config.items() if key not in ("auto_map", "model_file")}
    found["model_type"] = config["model_type"].removeprefix(PREFIX)
    found["architectures"] = [name.removeprefix("Unskill") for name in config["architectures"]]
    # Activations and cache of a quantized graph are float32.
    found["dtype"] = found["torch_dtype"] = "float32" if dtype in QUANTIZED else dtype
    found["transformers.js_config"] = {
        "dtype": JS_DTYPES[dtype],
        "use_external_data_format": {Path(GRAPH[dtype]).name: 1},
        "kv_cache_dtype": {"fp16": "float16"},
    }
    return found


def genai_config(config: Mapping[str, Any], live: Any, generation: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """onnxruntime-genai's description of the graph. config: config.json; live: of the loaded model."""
    heads, size = cache_shape(live)
    # What follows R, and the tokens of both configs: genai does not read generation_config.json, which for many chat
    # models has the token that ends a turn.
    named = [config["unskill"]["eos_token_id"], live.eos_token_id, generation.get("eos_token_id")]
    ends = list(dict.fromkeys(id_ for each in named for id_ in as_ids(each)))
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
            **dict(zip(INPUTS, INPUTS, strict=True)),
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
        # The cache grows: the graph's attention consists of standard operators, which do not write in place.
        "past_present_share_buffer": False,
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
    }
    return {"model": model, "search": search}


def open_checkpoint(settings: OnnxSettings, notify: Notify) -> Base:
    """The files of a checkpoint that can be exported to ONNX. Raises BadInput for others."""
    return_freed_memory()
    for line in repair(settings.out):
        notify(line)
    files = find_files(settings.checkpoint, "CHECKPOINT", check_checkpoint, code=True)
    if (compat := files.config["unskill"].get("compat")) is not None:
        raise BadInput(
            f"CHECKPOINT {files.name}: compat '{compat}' draws by torch's own generator, which ONNX does not have; "
            "export it without --compat"
        )
    if files.config.get("kv_lora_rank"):
        family = files.config["model_type"].removeprefix(PREFIX)
        raise BadInput(
            f"CHECKPOINT {files.name}: model_type {family} keeps keys and values of two sizes (kv_lora_rank in "
            "config.json), which the cache of our graphs does not have: not exported to ONNX"
        )
    return files


@contextmanager
def checked_folder(settings: OnnxSettings, files: Base, size: int) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The path of the graph in a new folder of at most `size` bytes, and the summary for self_check.json; the caller
    fills both.

    After that the folder is put in place. For `unskill verify` self_check.json then also has the sha256 of every file,
    and that of the checkpoint's unskill object, which covers its interventions and its code. Where the caller raises,
    nothing is written.
    """
    with Staging(settings.out, settings.overwrite) as staging, write_errors(settings.out, size):
        summary: dict[str, Any] = {"unskill": __version__, "checkpoint": files.name, "dtype": settings.dtype}
        graph = staging.path / GRAPH[settings.quantize or settings.dtype]
        graph.parent.mkdir()
        yield graph, summary
        files_there = sorted(path for path in staging.path.rglob("*") if path.is_file())
        summary["checkpoint_sha256"] = files.config["unskill"].get("record_sha256")
        summary["files"] = {path.relative_to(staging.path).as_posix(): file_sha256(path) for path in files_there}
        summary["record_sha256"] = record_sha256(summary)
        write_json(staging.path / MARKER, summary)
        staging.commit()


def results(graph: Path, rows: Sequence[Row], agrees: bool) -> dict[str, Any]:
    """What self_check.json says of a graph and its check."""
    size = graph.stat().st_size + weights_of(graph).stat().st_size
    return {"bytes": size, "agrees": agrees, "self_check": [asdict(row) for row in rows]}


def graph_size(files: Base, dtype: str) -> int:
    """Bytes of a checkpoint's weights in a graph's dtype."""
    width = 2 if dtype == "float16" else 4
    headers = (read_header(files.folder / shard).tensors for shard in files.shards)
    return width * sum(prod(info.shape) for tensors in headers for info in tensors.values())
