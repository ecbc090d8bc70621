"""What the model computed for a batch, kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from exporter.models.kept import Kept, digest_of


def made(value: float, calls: list[float]) -> dict[str, Tensor]:
    calls.append(value)
    return {"keys": torch.full((2, 3), value)}


def test_a_batch_is_computed_once_for_all_that_it_depends_on(tmp_path: Path) -> None:
    calls: list[float] = []
    for model, what, value in (("a", 1, 0.5), ("a", 1, 9.0), ("a", 2, 1.5), ("b", 1, 2.5)):
        kept = Kept(tmp_path, model, print)
        found = kept.of(("keys", [(1, 2)], what), lambda value=value: made(value, calls))  # type: ignore[misc]
        assert torch.equal(found["keys"], torch.full((2, 3), 0.5 if value == 9.0 else value))
    assert calls == [0.5, 1.5, 2.5]


def test_a_damaged_file_is_computed_anew(tmp_path: Path) -> None:
    calls: list[float] = []
    Kept(tmp_path, "a", print).of((1,), lambda: made(1.0, calls))
    (path,) = tmp_path.glob("*/*")
    path.write_bytes(path.read_bytes()[:-3])
    for _ in range(2):
        found = Kept(tmp_path, "a", print).of((1,), lambda: made(1.0, calls))
        assert torch.equal(found["keys"], torch.ones(2, 3))
    assert calls == [1.0, 1.0]


def test_an_export_goes_on_where_nothing_can_be_kept(tmp_path: Path) -> None:
    said: list[str] = []
    calls: list[float] = []
    (tmp_path / "file").write_text("no folder")
    kept = Kept(tmp_path / "file", "a", said.append)
    for value in (1.0, 2.0):
        kept.of((value,), lambda value=value: made(value, calls))  # type: ignore[misc]
    assert calls == [1.0, 2.0] and len(said) == 1 and "UNSKILL_CACHE" in said[0]


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.zeros(2, 2)},
        {"y": torch.zeros(4)},
        {"x": torch.zeros(4).double()},
        {"x": torch.tensor([0, 0, 0, 1.0])},
    ],
)
def test_digests_tell_tensors_apart(other: dict[str, Tensor]) -> None:
    assert digest_of({"x": torch.zeros(4)}) == digest_of({"x": torch.zeros(4)}) != digest_of(other)
