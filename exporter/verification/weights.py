"""The weight files: index and headers agree, and the tensors are those of the model that config.json describes."""

from __future__ import annotations

from collections.abc import Iterator

from custom_modeling.buffers import is_unskill
from exporter.checkpoint.shards import merged_index
from exporter.common.files import human_size
from exporter.common.text import counted
from exporter.models.files import INDEX
from exporter.models.weights import mismatches
from exporter.verification.checks import Wrong, none_of
from exporter.verification.on_disk import OnDisk


def check_index(view: OnDisk) -> str:
    """Every header whole; every tensor in one file, the one that the index names; the index's total right."""
    index = view.read(INDEX)
    files = sorted(set(index["weight_map"].values()))
    none_of(f"{INDEX} names {name}, which is not there" for name in files if not (view.folder / name).is_file())
    found = merged_index([view.folder / name for name in files])
    none_of(disagreements(index["weight_map"], found["weight_map"]))
    stated, total = (each["metadata"]["total_size"] for each in (index, found))
    if stated != total:
        raise Wrong(f"{INDEX}: total_size is {stated}, the tensors have {total} bytes")
    return f"{counted(len(found['weight_map']), 'tensor')} in {counted(len(files), 'file')} ({human_size(total)})"


def disagreements(stated: dict[str, str], found: dict[str, str]) -> Iterator[str]:
    """Where the files that the index states for tensors are not those found to have them."""
    for name in sorted(stated.keys() | found.keys()):
        if name not in stated:
            yield f"{found[name]} has {name}, which {INDEX} does not name"
        elif name not in found:
            yield f"{INDEX} names {name}, which is not in {stated[name]}"
        elif stated[name] != found[name]:
            yield f"{name} is in {found[name]}, {INDEX} says {stated[name]}"


def check_tensors(view: OnDisk) -> str:
    """Names and shapes of the base's weights, against the family's own class by this config.json."""
    found = {name: info.shape for header in view.headers.values() for name, info in header.tensors.items()}
    own = {name: shape for name, shape in found.items() if not is_unskill(name)}
    surplus = own.keys() - view.plain.state_dict().keys() - set(view.record["unused_weights"])
    none_of([*mismatches(own, view.plain), *(f"{name} is of another model" for name in sorted(surplus))])
    return f"{counted(len(own), 'tensor')} of {view.family.causal_lm.__name__}"
