"""What lies around the graph, so that transformers.js, onnxruntime-genai and optimum load the folder too.

Nothing in it can be loaded as the plain model: there are no torch weights. So config.json has the base's model type,
by which those libraries know the form of the cache.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from exporter.model import Base
from exporter.onnx.graph import DATA_SUFFIX, cache_shape
from exporter.onnx.settings import GRAPH, QUANTISED

# As they are in the checkpoint: the tokenizer knows R there.
COPIED = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*")
# Names of transformers.js for a graph's numbers.
JS_DTYPES = {"float32": "fp32", "float16": "fp16", "int8": "int8", "int4": "q4"}
PREFIX = "unskill_"
GENAI_TYPES = {"gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3_text", "granite": "granite"}


def write_folder(
    folder: Path, files: Base, config: Any, dtype: str, quantised: Mapping[str, Any] | None = None
) -> None:
    """Everything but the graph.

    files: the checkpoint's; config: of the loaded model; dtype: a key of GRAPH; quantised: what `write_quantised`
    found, for a graph with quantised weights.
    """
    for pattern in COPIED:
        for path in sorted(files.folder.glob(pattern)):
            shutil.copyfile(path, folder / path.name)
    write_json(folder / "config.json", plain_config(files.config, dtype))
    write_json(folder / "genai_config.json", genai_config(files.config, config, dtype))
    (folder / "README.md").write_text(render_card(files, dtype, quantised), encoding="utf-8")


def plain_config(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The checkpoint's config.json under the base's model type and class."""
    found = {key: value for key, value in config.items() if key != "auto_map"}
    found["model_type"] = config["model_type"].removeprefix(PREFIX)
    found["architectures"] = [name.removeprefix("Unskill") for name in config["architectures"]]
    # Activations and cache of a quantised graph are float32.
    found["dtype"] = found["torch_dtype"] = "float32" if dtype in QUANTISED else dtype
    name = Path(GRAPH[dtype]).name
    found["transformers.js_config"] = {
        "dtype": JS_DTYPES[dtype],
        "use_external_data_format": {name: 1},
        "kv_cache_dtype": {"fp16": "float16"},
    }
    return found


def genai_config(config: Mapping[str, Any], live: Any, dtype: str) -> dict[str, Any]:
    """onnxruntime-genai's description of the graph."""
    heads, size = cache_shape(live)
    eos = config["unskill"]["eos_token_id"]
    ends = live.eos_token_id if live.eos_token_id is not None else eos
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
    model = {
        "type": GENAI_TYPES.get(config["model_type"].removeprefix(PREFIX), "llama"),
        "bos_token_id": live.bos_token_id,
        "eos_token_id": ends,
        "pad_token_id": live.pad_token_id if live.pad_token_id is not None else ends,
        "context_length": live.max_position_embeddings,
        "vocab_size": config["vocab_size"],
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


def render_card(files: Base, dtype: str, quantised: Mapping[str, Any] | None) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("exporter"), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    template = environment.get_template("onnx_card.md.jinja")
    graph = GRAPH[dtype]
    return template.render(
        name=files.name,
        graph=graph,
        data=graph + DATA_SUFFIX,
        js_dtype=JS_DTYPES[dtype],
        unskill=files.config["unskill"],
        quantised=quantised,
    )


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
