"""What `unskill verify` makes of a checkpoint's code: whose is run, and how it differs from code written again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from custom_modeling.loading import code_sha256, record_sha256
from tests.corruptions import remake_hashes
from tests.damage import code_of, config, edit_code, mlx_of, put, record, set_, text_edit
from tests.exporter.verification.checking import checks, results


def test_no_code_is_run_that_was_not_exported(copied: Path, tmp_path: Path) -> None:
    traces = tmp_path / "it ran"
    code = code_of(copied)
    put(code, code.read_bytes() + f"\nopen({str(traces)!r}, 'w')\n".encode())
    remake_hashes(copied)
    found = checks(copied)
    assert found["code"]["ok"] is False and not traces.exists()
    assert found["refused"]["ok"] is None and "not run" in found["refused"]["detail"]


def test_code_of_another_version_is_neither_run_nor_passed_unless_trusted(copied: Path, tmp_path: Path) -> None:
    traces = tmp_path / "it ran"
    code = code_of(copied)
    put(code, code.read_bytes() + f"\nopen({str(traces)!r}, 'w')\n".encode())
    record(set_(version="0.0.9", code_sha256=code_sha256(code)), remade=True)(copied)
    remake_hashes(copied)
    for model in (False, True):
        found = checks(copied, model=model)
        assert [name for name, check in found.items() if check["ok"] is False] == ["code written again"]
        assert (
            "0.0.9" in found["code written again"]["detail"]
            and "--trust-code" in found["code written again"]["detail"]
        )
    assert found["refused"]["ok"] is None and not traces.exists()
    found = checks(copied, trust_code=True)
    assert found["code written again"]["ok"] is None and found["loading"]["ok"] and traces.exists()


def test_code_of_another_year(copied: Path) -> None:
    text_edit(code_of(copied), "# Copyright 20", "# Copyright 19")
    record(set_(code_sha256=code_sha256(code_of(copied))), remade=True)(copied)
    assert results(copied, model=False)["code written again"]


def test_an_older_checkpoint_without_a_file_for_mlx(copied: Path) -> None:
    mlx_of(copied).unlink()

    def older(content: dict[str, Any]) -> None:
        for each in (content, content["unskill"]["config"]):
            del each["model_file"]
        del content["unskill"]["mlx_sha256"]
        content["unskill"]["record_sha256"] = record_sha256(content["unskill"])

    config(older)(copied)
    remake_hashes(copied)
    assert all(ok is not False for ok in results(copied).values())


def test_code_differs_in_a_line(copied: Path) -> None:
    edit_code(copied, remade=True)
    detail = checks(copied, model=False)["code written again"]["detail"]
    assert "-    logits.masked_fill_((hit | after_refusal)" in detail
    assert "+    logits.masked_fill_((after_refusal)" in detail and len(detail.splitlines()) < 12
