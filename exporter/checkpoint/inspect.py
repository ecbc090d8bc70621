"""What a checkpoint or an ONNX folder says about itself: config.json, `reproduce/` and sizes of files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import errors

from exporter.checkpoint.layout import BASE_RECORD, HASHES, MARKER, REPRODUCE, SUMMARY, VERSIONS
from exporter.checkpoint.sentences import rate_rows, warning_lines
from exporter.checkpoint.summary import MeasuredRates, Summary
from exporter.common.errors import BadInput
from exporter.common.files import read_json, sibling
from exporter.common.hub import silent_library
from exporter.models.files import INDEX, PREFIX, check_checkpoint, find_checkpoint, size_in

# All that is read, by name, so that neither weights nor a tokenizer of 30 MB is downloaded.
SMALL = ("config.json", INDEX, MARKER, SUMMARY, VERSIONS, HASHES, BASE_RECORD)


@contextmanager
def written_by_unskill(name: str) -> Iterator[None]:
    """Turn the errors of reading JSON that is not an export's into BadInput."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise BadInput(
            f"CHECKPOINT {name}: config.json or a file of reproduce/ is not as unskill writes it ({error!r})"
        ) from error


def inspect(checkpoint: str) -> dict[str, Any]:
    """One JSON object with everything that is known of the checkpoint without loading it.

    "kind" is "checkpoint" or "onnx". What `reproduce/` alone says is null where there is none ("reproduce": false), as
    in a checkpoint that was loaded and saved anew. "forced": some skill did not keep the limits asked for. Rates are
    rows of what, source, format, hits, total, rate, and low and high of the exact 95 % interval. "sizes" are bytes;
    "missing": files that the checkpoint names and does not have.

    Raises BadInput where CHECKPOINT was not written by unskill, or one of the files that are read is damaged.
    """
    folder, name, revision, config = find_checkpoint(checkpoint, SMALL)
    sizes = local_sizes(folder) if revision is None else hub_sizes(checkpoint, revision)
    stored = {
        path: read_json(folder / path, name, "CHECKPOINT")
        for path in (MARKER, INDEX, SUMMARY, VERSIONS, HASHES)
        if (folder / path).is_file()
    }
    with written_by_unskill(name):
        unskill, graph = config["unskill"], stored.get(MARKER)
        summary = Summary.from_json(stored[SUMMARY]) if SUMMARY in stored else None
        files_of: dict[str, str] = stored[INDEX]["weight_map"] if INDEX in stored else {}
        skills = [_skill(record, summary) for record in unskill["skills"]]
        changed = sum(each.get("adjusted", 0) + each.get("pruned", 0) for each in unskill["layers"].values())
        neurons = size_in(config, "num_hidden_layers") * size_in(config, "intermediate_size")
        return {
            "checkpoint": name,
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
            "sizes": None if sizes is None else _sizes(sizes, files_of),
            # Files that index or hashes.json name.
            "missing": [] if sizes is None else sorted({*files_of.values(), *stored.get(HASHES, {})} - sizes.keys()),
            "reproduce": summary is not None,
            "base_kept": (folder / BASE_RECORD).is_file(),
            "graph": graph,
            "onnx": _onnx_beside(folder, unskill) if revision is None and graph is None else None,
        }


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


def _skill(record: Mapping[str, Any], summary: Summary | None) -> dict[str, Any]:
    """One skill: config.json's record, completed from the summary where there is one.

    Of what both have, the record's counts: that of a quantized graph was fitted anew.
    """
    known = next((each for each in summary.skills if each.name == record["name"]), None) if summary else None
    neurons, key_space = None, None
    if "score" in record:
        more = known.neurons.model_dump() if known and known.neurons else {}
        # "borne" is the name of it in config.json, format 1.
        neurons = {"score": record["score"], "beta": record["beta"], "within_budget": record["borne"]}
        neurons |= {name: more.get(name) for name in ("neurons", "layers", "texts", "max_retain_loss")}
    if "alpha" in record:
        stored = known.key_space if known else None
        rates = stored.model_dump(include=set(MeasuredRates.model_fields)) if stored else {}
        rates |= {key: record[key] for key in MeasuredRates.model_fields if key in record}
        key_space = {
            "layer": record["layer"],
            "alpha": record["alpha"],
            "separates": record["separates"],
            "fault": stored.fault if stored else None,
            "region": record.get("region", "hypercube"),
            "discriminant": stored.discriminant.model_dump() if stored and stored.discriminant else None,
            "formats": record["formats"],
            "rates": rate_rows(MeasuredRates.model_validate(rates)),
        }
    return {
        "name": record["name"],
        "method": record["method"],
        "works": record.get("borne", True) and record.get("separates", True),
        "neurons": neurons,
        "key_space": key_space,
        "sources": [source.model_dump() for source in known.sources] if known else None,
    }


def _sizes(sizes: Mapping[str, int], files_of: Mapping[str, str]) -> dict[str, int | None]:
    """Bytes: of all files, of weights, of files that hold interventions alone, and of `reproduce/`.

    files_of: the file of each tensor."""
    base = {file for tensor, file in files_of.items() if ".unskill_" not in tensor}
    own = set(files_of.values()) - base
    top = {name: size for name, size in sizes.items() if not name.startswith(f"{REPRODUCE}/")}
    weights = sum(size for name, size in top.items() if name.endswith((".safetensors", ".onnx", ".onnx_data")))
    return {
        "total": sum(sizes.values()),
        "files": len(sizes),
        "weights": weights,
        "interventions": sum(sizes.get(name, 0) for name in own) if own else None,
        "reproduce": sum(sizes.values()) - sum(top.values()),
    }


def _onnx_beside(folder: Path, unskill: Mapping[str, Any]) -> dict[str, Any] | None:
    """The ONNX folder in the place where `unskill onnx` writes it by default: its name, its numbers, whether its
    interventions are the checkpoint's ("same"; null where they were fitted anew, on quantized weights), and why that
    folder cannot be read ("fault"), which is no error of this checkpoint."""
    beside = sibling(folder.resolve(), "-onnx")
    if not os.path.isfile(beside / MARKER):  # unlike Path.is_file also of a name too long for a file
        return None
    found: dict[str, Any] = {"name": beside.name, "numbers": None, "same": None, "fault": None}
    try:
        marker, config = (read_json(beside / name, beside.name, "ONNX folder") for name in (MARKER, "config.json"))
        check_checkpoint(config, beside.name)
    except BadInput as error:
        return found | {"fault": str(error)}
    quantized = marker.get("quantize")
    same = None if quantized else config["unskill"].get("sha256") == unskill["sha256"]
    return found | {"numbers": quantized or marker.get("dtype"), "same": same}
