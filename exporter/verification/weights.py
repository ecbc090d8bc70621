"""The weight files: index and headers agree, and the tensors are those of the model that config.json describes."""

from __future__ import annotations

from collections.abc import Iterator

from custom_modeling.buffers import is_unskill
from exporter.checkpoint.shards import Header, read_header
from exporter.common.files import human_size, read_json
from exporter.models.files import INDEX
from exporter.verification.checks import counted, none_of
from exporter.verification.view import View


def check_index(view: View) -> str:
    """Every header whole; every tensor in one file, the one that the index names; the index's total right."""
    index = read_json(view.folder / INDEX, view.name, "CHECKPOINT")
    weight_map: dict[str, str] = index["weight_map"]
    headers: dict[str, Header] = {}
    for name in sorted(set(weight_map.values())):
        if not (view.folder / name).is_file():
            none_of([f"{INDEX} names {name}, which is not there"])
        headers[name] = read_header(view.folder / name)
    none_of(disagreements(weight_map, headers))
    total = sum(info.end - info.begin for header in headers.values() for info in header.tensors.values())
    if (stated := index["metadata"]["total_size"]) != total:
        none_of([f"{INDEX}: total_size is {stated}, the tensors have {total} bytes"])
    return f"{counted(len(weight_map), 'tensor')} in {counted(len(headers), 'file')} ({human_size(total)})"


def disagreements(weight_map: dict[str, str], headers: dict[str, Header]) -> Iterator[str]:
    """What index and headers say differently."""
    places: dict[str, list[str]] = {}
    for file, header in headers.items():
        for name in header.tensors:
            places.setdefault(name, []).append(file)
    for name, files in places.items():
        if len(files) > 1:
            yield f"{name} is in two files, {files[0]} and {files[1]}"
        elif name not in weight_map:
            yield f"{files[0]} has {name}, which {INDEX} does not name"
        elif weight_map[name] != files[0]:
            yield f"{name} is in {files[0]}, {INDEX} says {weight_map[name]}"
    for name, file in weight_map.items():
        if name not in places:
            yield f"{INDEX} names {name}, which is not in {file}"


def check_tensors(view: View) -> str:
    """Names and shapes of the base's weights, against the family's own class by this config.json."""
    found = {name: info.shape for header in view.headers.values() for name, info in header.tensors.items()}
    own = {name: shape for name, shape in found.items() if not is_unskill(name)}
    expected = {name: tuple(tensor.shape) for name, tensor in view.plain.state_dict().items()}
    unused = set(view.record["unused_weights"])
    tied = {"lm_head.weight"} if view.plain.config.get_text_config().tie_word_embeddings else set()
    problems = [f"no file has {name}" for name in sorted(expected.keys() - own.keys() - tied)]
    problems += [f"{name} is of another model" for name in sorted(own.keys() - expected.keys() - unused)]
    problems += [
        f"{name} has shape {own[name]}, by config.json {expected[name]}"
        for name in sorted(own.keys() & expected.keys())
        if own[name] != expected[name]
    ]
    none_of(problems)
    return f"{counted(len(own), 'tensor')} of {view.family.causal_lm.__name__}"
