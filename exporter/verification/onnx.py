"""An ONNX folder: its files unaltered, made of this checkpoint, and computing what the checkpoint computes."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from custom_modeling.loading import record_sha256
from exporter.checkpoint.layout import MARKER
from exporter.common.errors import RunFailed
from exporter.common.extras import missing
from exporter.common.files import read_json
from exporter.common.text import counted
from exporter.onnx.settings import GRAPH
from exporter.verification.checks import NotMade, Wrong, needed, none_of
from exporter.verification.files import altered, is_harmless, unaltered
from exporter.verification.in_memory import InMemory
from exporter.verification.on_disk import OnDisk, all_files, all_sha256


def read_marker(folder: Path) -> dict[str, Any]:
    """self_check.json. Raises Wrong where it is not as it was written."""
    found = read_json(folder / MARKER, folder.name, "ONNX folder")
    if found.get("record_sha256") != record_sha256(found):
        raise Wrong(f"{MARKER} was edited, or written by an unskill that did not record sha256: write the folder anew")
    return found


def known_marker(folder: Path) -> dict[str, Any]:
    """The same for checks that need it. Raises NotMade where it cannot be used."""
    with needed(f"{MARKER} cannot be used"):
        return read_marker(folder)


def check_folder(folder: Path) -> str:
    """Every file of self_check.json there and unaltered, and no other that something would load."""
    hashes = read_marker(folder)["files"]
    files = all_files(folder)
    others = [name for name in files if name not in (*hashes, MARKER) and not is_harmless(name, files[name])]
    problems = [f"{name} is not among the folder's files" for name in others]
    none_of([*altered(folder, all_sha256(files), hashes), *problems])
    return unaltered(folder, hashes)


def check_origin(view: OnDisk, folder: Path) -> str:
    """Made of this checkpoint: of the same interventions and code."""
    if known_marker(folder)["checkpoint_sha256"] != view.record["record_sha256"]:
        raise Wrong(f"{folder.name} was made of another checkpoint (checkpoint_sha256 in {MARKER})")
    return "made of this checkpoint"


def check_stored(folder: Path) -> str:
    """What the self-check found when the folder was written."""
    require_packages()
    from exporter.onnx.check.quantized import quantized_agree
    from exporter.onnx.check.self_check import Row, agree

    marker = known_marker(folder)
    rows = [Row(**row) for row in marker["self_check"]]
    agrees = quantized_agree(rows) if marker.get("quantize") else agree(rows, marker["dtype"])
    if not rows or not agrees or not marker["agrees"]:
        raise Wrong(f"{MARKER}: graph and checkpoint did not agree when the folder was written")
    return f"agreed in {counted(len(rows), 'case')} when it was written"


def check_again(live: InMemory, folder: Path) -> str:
    """The self-check once more, of the graph's bodies."""
    require_packages()
    from exporter.onnx.check.quantized import check_quantized
    from exporter.onnx.check.self_check import Expected, self_check

    marker = known_marker(folder)
    graph = folder / GRAPH[marker.get("quantize") or marker["dtype"]]
    sequences = [query.ids for query in live.some]
    try:
        if marker.get("quantize"):
            ids = live.record["refusal_token_id"], live.record["eos_token_id"]
            refusal = None if live.record["refusal"] is None else ids
            rows, agrees = check_quantized(graph, None, sequences, live.loaded.pad_id, refusal, [])
        else:
            # The comparison is with torch on the CPU.
            same = live.record["dtype"] == marker["dtype"] and live.loaded.model.device.type == "cpu"
            model = live.loaded.model if same else InMemory.load(live.view, marker["dtype"]).loaded.model
            with TemporaryFile() as file:  # not in the folder, which verify leaves as it is
                rows, agrees = self_check(Expected(model, sequences, live.loaded.pad_id, file), graph, None)
    except RunFailed as error:
        raise Wrong(str(error)) from error
    except OSError as error:
        raise NotMade(f"files for the check cannot be written ({error.strerror})") from error
    if not agrees:
        raise Wrong(f"{graph.name} computes something else than the checkpoint")
    worst = max(row.difference for row in rows)
    against = "itself, in other batches" if marker.get("quantize") else "torch"
    return f"agrees with {against} in {counted(len(rows), 'case')} (greatest difference {worst:.1e})"


def require_packages() -> None:
    """Raises NotMade where the packages of the extra are not there."""
    if lacking := missing("onnx"):
        raise NotMade(lacking)
