"""What a checkpoint, or an ONNX folder of one, says of itself: config.json, `reproduce/` and sizes of files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import errors

from exporter.checkpoint.base.record import FOLDER as BASE_FOLDER
from exporter.checkpoint.base.record import NAME as BASE_RECORD
from exporter.checkpoint.layout import MARKER
from exporter.checkpoint.sentences import rate_rows, warning_lines
from exporter.checkpoint.summary import MeasuredRates, Summary
from exporter.common.errors import BadInput
from exporter.common.files import read_json, sibling
from exporter.common.hub import download, silent_library
from exporter.models.files import INDEX, PREFIX, check_checkpoint, size_in

SUMMARY, VERSIONS, HASHES = (f"reproduce/{name}.json" for name in ("summary", "versions", "hashes"))
# All that is read, by name: a Hub model is not downloaded for a look at it, its tokenizer of 30 MB neither.
SMALL = ("config.json", INDEX, MARKER, SUMMARY, VERSIONS, HASHES, f"{BASE_FOLDER}/{BASE_RECORD}")


@dataclass(frozen=True)
class Found:
    """A checkpoint's small files. `sizes`: bytes of every file by its path inside; None where the Hub did not say."""

    name: str
    folder: Path
    sizes: Mapping[str, int] | None
    local: bool


@contextmanager
def written_by_unskill(name: str) -> Iterator[None]:
    """Turn what goes wrong where other JSON than an export's is read into BadInput."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise BadInput(
            f"CHECKPOINT {name}: config.json or a file of reproduce/ is not as unskill writes it ({error!r})"
        ) from error


def inspect(checkpoint: str) -> dict[str, Any]:
    """One JSON object with everything that is known of the checkpoint without loading it.

    "kind" is "checkpoint" or "onnx". What is told by `reproduce/` alone is null where there is none ("reproduce":
    false), as in a checkpoint that was loaded and saved anew. "forced": some skill did not keep the limits that were
    asked for. Rates are rows of what, source, format, hits, total, rate, and low and high of the exact 95 % interval.
    "sizes" are bytes; "missing": files that the checkpoint names and does not have.

    Raises BadInput where CHECKPOINT was not written by unskill, or one of the files that are read is damaged.
    """
    folder, name, revision = Path(checkpoint), Path(checkpoint).resolve().name, None
    if not os.path.isdir(folder):
        folder, revision = download(checkpoint, "CHECKPOINT", SMALL)
        name = checkpoint
    config = read_json(folder / "config.json", name, "CHECKPOINT")
    check_checkpoint(config, name)
    sizes = local_sizes(folder) if revision is None else hub_sizes(checkpoint, revision)
    found = Found(name, folder, sizes, revision is None)
    stored = {
        path: read_json(found.folder / path, found.name, "CHECKPOINT")
        for path in (MARKER, INDEX, SUMMARY, VERSIONS, HASHES)
        if (found.folder / path).is_file()
    }
    with written_by_unskill(name):
        return _describe(found, config, stored)


def local_sizes(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def hub_sizes(checkpoint: str, revision: str) -> dict[str, int] | None:
    """Sizes of a Hub model's files; None offline, where only what was downloaded before is known."""
    from huggingface_hub import HfApi  # a third of a second, which a folder need not wait for

    try:
        with silent_library():
            siblings = HfApi().model_info(checkpoint, revision=revision, files_metadata=True).siblings or []
    except (errors.HTTPError, OSError, ValueError):  # type: ignore[attr-defined]
        return None
    return {each.rfilename: each.size or 0 for each in siblings}


def _describe(found: Found, config: Mapping[str, Any], stored: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    unskill = config["unskill"]
    summary = Summary.from_json(stored[SUMMARY]) if SUMMARY in stored else None
    graph = stored.get(MARKER)
    skills = [_skill(record, summary) for record in unskill["skills"]]
    changed = sum(each.get("adjusted", 0) + each.get("pruned", 0) for each in unskill["layers"].values())
    neurons = size_in(config, "num_hidden_layers") * size_in(config, "intermediate_size")
    return {
        "checkpoint": found.name,
        "kind": "checkpoint" if graph is None else "onnx",
        "unskill": unskill.get("version"),
        "format": unskill["format"],
        "base": {
            "name": summary.model if summary else None,
            "revision": summary.revision if summary else None,
            "family": config["model_type"].removeprefix(PREFIX),
        },
        "dtype": unskill["dtype"],
        "seed": unskill["seed"],
        "draws": unskill.get("draws"),
        "compat": unskill.get("compat"),
        "forced": not all(skill["works"] for skill in skills),
        "refusal": {
            "text": unskill["refusal"],
            "token_id": unskill["refusal_token_id"],
            "eos_token_id": unskill["eos_token_id"],
            "added_row": unskill.get("added_row"),
            "base_model": unskill.get("base_model"),
        }
        if unskill["refusal"] is not None
        else None,
        "layers": unskill["layers"],
        "neurons": {"changed": changed, "of": neurons, "share": changed / neurons},
        "skills": skills,
        "warnings": warning_lines(summary) if summary else None,
        "versions": stored.get(VERSIONS),
        "sizes": _sizes(found, stored),
        "missing": _missing(found, stored),
        "reproduce": summary is not None,
        "base_kept": (found.folder / BASE_FOLDER / BASE_RECORD).is_file(),
        "graph": graph,
        "onnx": _onnx_beside(found, unskill) if found.local and graph is None else None,
    }


def _skill(record: Mapping[str, Any], summary: Summary | None) -> dict[str, Any]:
    """One skill: config.json's record, completed from the summary where there is one.

    What is in both is the record's: that of a quantized graph has been fitted anew.
    """
    known = summary.skills if summary else ()
    told = next((each for each in known if each.name == record["name"]), None)
    neurons, key_space = None, None
    if "score" in record:
        more = told.neurons.model_dump() if told and told.neurons else {}
        neurons = {"score": record["score"], "beta": record["beta"], "borne": record["borne"]}
        neurons |= {name: more.get(name) for name in ("neurons", "layers", "texts", "max_retain_loss")}
    if "alpha" in record:
        stored = told.key_space if told else None
        rates = stored.model_dump(include=set(MeasuredRates.model_fields)) if stored else {}
        rates |= {key: record[key] for key in MeasuredRates.model_fields if key in record}
        key_space = {
            "layer": record["layer"],
            "alpha": record["alpha"],
            "separates": record["separates"],
            "fault": stored.fault if stored else None,
            "formats": record["formats"],
            "rates": rate_rows(MeasuredRates.model_validate(rates)),
        }
    return {
        "name": record["name"],
        "method": record["method"],
        "works": record.get("borne", True) and record.get("separates", True),
        "neurons": neurons,
        "key_space": key_space,
        "sources": [source.model_dump() for source in told.sources] if told else None,
    }


def _sizes(found: Found, stored: Mapping[str, Mapping[str, Any]]) -> dict[str, int | None] | None:
    """Bytes: of all files, of weights, of files that hold interventions alone, and of `reproduce/`."""
    if found.sizes is None:
        return None
    tensors: dict[str, list[str]] = {}
    for tensor, file in stored.get(INDEX, {"weight_map": {}})["weight_map"].items():
        tensors.setdefault(file, []).append(tensor)
    own = [file for file, names in tensors.items() if all(".unskill_" in name for name in names)]
    top = {name: size for name, size in found.sizes.items() if not name.startswith("reproduce/")}
    weights = sum(size for name, size in top.items() if name.endswith((".safetensors", ".onnx", ".onnx_data")))
    return {
        "total": sum(found.sizes.values()),
        "files": len(found.sizes),
        "weights": weights,
        "interventions": sum(found.sizes.get(name, 0) for name in own) if own else None,
        "reproduce": sum(found.sizes.values()) - sum(top.values()),
    }


def _missing(found: Found, stored: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Files that index or hashes.json name and that are not there."""
    if found.sizes is None:
        return []
    named = {*stored.get(INDEX, {"weight_map": {}})["weight_map"].values(), *stored.get(HASHES, {})}
    return sorted(named - found.sizes.keys())


def _onnx_beside(found: Found, unskill: Mapping[str, Any]) -> dict[str, Any] | None:
    """The ONNX folder in the place where `unskill onnx` writes it by default: its name, its numbers, whether its
    interventions are the checkpoint's ("same"; null where they were fitted anew, on quantized weights), and why that
    can't be told ("fault"), which is a matter of that folder and no reason to tell nothing of this one."""
    beside = sibling(found.folder.resolve(), "-onnx")
    if not os.path.isfile(beside / MARKER):  # unlike Path.is_file also of a name too long for a file
        return None
    told: dict[str, Any] = {"name": beside.name, "numbers": None, "same": None, "fault": None}
    try:
        marker, config = (read_json(beside / name, beside.name, "ONNX folder") for name in (MARKER, "config.json"))
        check_checkpoint(config, beside.name)
    except BadInput as error:
        return told | {"fault": str(error)}
    quantized = marker.get("quantize")
    same = None if quantized else config["unskill"].get("sha256") == unskill["sha256"]
    return told | {"numbers": quantized or marker.get("dtype"), "same": same}
