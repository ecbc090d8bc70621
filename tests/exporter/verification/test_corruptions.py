"""Every corruption of the table, and any byte at all: `unskill verify` fails, and loading where it can know."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter.verification.run import VerifySettings, verify
from tests.corruptions import CORRUPTIONS, Corruption, Found, closed, has_onnx, main, shortened, table, try_one
from tests.fresh_loading import FreshLoading

# Of the others there are checkpoints in test_onnx.py and test_verify.py.
HERE = [corruption for corruption in CORRUPTIONS if corruption.needs not in (has_onnx, closed)]


@pytest.mark.parametrize("corruption", HERE, ids=lambda corruption: corruption.name)
@pytest.mark.slow
def test_corruption(corruption: Corruption, whole: Path, loading: FreshLoading) -> None:
    assert corruption.needs(whole)
    found = try_one(whole, corruption, loading, model=False)
    assert (found.load is not None) is corruption.load, found.load
    assert found.verify
    assert corruption.check in found.remade if corruption.check else not found.remade


def test_all_have_names_of_their_own() -> None:
    assert len({corruption.name for corruption in CORRUPTIONS}) == len(CORRUPTIONS)


def test_the_whole_loads(whole: Path, loading: FreshLoading) -> None:
    assert loading(whole) is None


def test_what_the_model_tells(whole: Path, loading: FreshLoading) -> None:
    """Where hashes.json was made anew and no other file tells, everyday prompts do."""
    corruption = next(each for each in CORRUPTIONS if each.name == "bit flipped in a base weight")
    found = try_one(whole, corruption, loading)
    assert found.load is None and "everyday scores" in found.remade


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.slow
def test_any_byte(copied: Path, data: st.DataObject) -> None:
    files = sorted(path for path in copied.rglob("*") if path.is_file() and path.stat().st_size)
    path = data.draw(st.sampled_from(files), label="file")
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1), label="byte")
    mask = data.draw(st.integers(1, 255), label="bits")
    path.write_bytes(content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :])
    try:
        assert not verify(VerifySettings(str(copied), model=False), lambda text: None)["ok"]
    finally:
        path.write_bytes(content)


def test_table(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    target = tmp_path / "table.md"
    monkeypatch.setattr("sys.argv", ["corruptions", str(whole), "--only", "extra vocab", "--table", str(target)])
    assert main() == 0
    text = target.read_text()
    assert capsys.readouterr().out == text + "\n"
    assert "| extra vocab.json | loads: not seen | other files | other files |" in text
    assert "1 corruptions: 0 keep the checkpoint from loading, 1 are seen" in text


def test_rows_of_the_table() -> None:
    unseen = Found(None, [], []), Found("ValueError: a|b " + 30 * "long ", ["files"], ["code"])
    text = table(list(zip(CORRUPTIONS, unseen, strict=False)))
    assert (
        "| loads: not seen | not seen | not seen |" in text and "a\\|b long" in text and "... | files | code |" in text
    )
    assert len(shortened("x " * 100)) <= 100
