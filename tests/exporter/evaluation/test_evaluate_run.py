"""How `unskill evaluate` runs: what was interrupted goes on, its files, what it refuses and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from exporter.cli.main import cli
from exporter.common.errors import BadInput
from exporter.evaluation import run as run_module
from exporter.evaluation.run import evaluate
from exporter.evaluation.settings import EvaluateSettings
from tests.exporter.evaluation.evaluating import QUESTIONS, evaluated
from tests.tiny import Exported, one_thread


def test_what_was_interrupted_goes_on_and_gives_the_same(
    exported: Exported, sources: dict[str, tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shots = sources["choice"][0]
    whole = evaluated(exported, tmp_path / "whole", sources, shots=shots, batch_size=2)
    real, left = run_module.run_batches, iter(range(14))

    def killed(batches: Any, run: Any, what: str) -> Any:
        def until_killed(rows: list[int]) -> Any:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return run(rows)

        return real(batches, until_killed, what)

    out = tmp_path / "out"
    monkeypatch.setattr(run_module, "run_batches", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluated(exported, out, sources, shots=shots, batch_size=2)
    before = {path.name: path.read_text() for path in out.iterdir()}
    assert before and "summary.json" not in before
    calls = []
    monkeypatch.setattr(
        run_module,
        "run_batches",
        lambda batches, run, what: real(batches, lambda rows: calls.append(rows) or run(rows), what),
    )
    again = evaluated(exported, out, sources, shots=shots, batch_size=2)
    assert again == whole
    for path in (tmp_path / "whole").iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert all((out / name).read_text().startswith(content) for name, content in before.items())
    done = len(calls)
    evaluated(exported, out, sources, shots=shots, batch_size=2)
    assert len(calls) == done  # all of it was there


def test_other_settings_do_not_mix(exported: Exported, sources: dict[str, tuple[str, ...]], tmp_path: Path) -> None:
    few = {"retain": sources["retain"]}
    evaluated(exported, tmp_path / "out", few, limit=4)
    with pytest.raises(BadInput, match="--out"):
        evaluated(exported, tmp_path / "out", few, limit=5)
    summary = evaluated(exported, tmp_path / "out", few, limit=5, overwrite=True)
    assert (summary["tasks"][0]["items"], summary["tasks"][0]["of"]) == (5, 12)


def test_two_sources_of_one_name_have_files_of_their_own(
    exported: Exported, sources: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    both = {"retain": (sources["retain"][0], f"{sources['retain'][0]},limit=3")}
    summary = evaluated(exported, tmp_path / "out", both)
    assert [each["items"] for each in summary["tasks"]] == [12, 3]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"retain-retain_jsonl.edited.jsonl", "retain-retain_jsonl-2.edited.jsonl", "summary.json"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": {}}, "nothing to evaluate on"),
        ({"limit": 0}, "--limit"),
        ({"batch_size": 0}, "--batch-size"),
        ({"shots": "s.jsonl"}, "--shots"),
        ({"sources": {"code": ("c.jsonl",)}}, "--allow-code-execution"),
        ({"against": Path("nowhere")}, "--against"),
        ({"checkpoint": "BASE"}, "not one that unskill wrote"),
    ],
)
def test_bad_input(
    exported: Exported, sources: dict[str, tuple[str, ...]], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    asked = {"checkpoint": str(exported.checkpoint), "sources": {"retain": sources["retain"]}, **changes}
    if asked["checkpoint"] == "BASE":
        asked["checkpoint"] = str(exported.base)
    with pytest.raises(BadInput, match=message):
        evaluate(EvaluateSettings(out=tmp_path / "out", quiet=True, **asked), lambda text: None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": "A"}, "choices"),
        ({"answer": 3}, "answer"),
        ({"answer": "Z"}, "answer"),
        ({"answer": True}, "answer"),
    ],
)
def test_choices_of_another_form_are_named(
    exported: Exported, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps(QUESTIONS[0]) + "\n" + json.dumps(QUESTIONS[1] | change) + "\n")
    with pytest.raises(BadInput, match=rf"--choice c.jsonl: row 2.*{message}"):
        evaluated(exported, tmp_path / "out", {"choice": (str(path),)})


def test_the_command_prints_a_table_or_json(
    exported: Exported, sources: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    command = ["evaluate", str(exported.checkpoint), "--base", str(exported.base), "--prompt-template", "{prompt}"]
    command += ["--quiet", "--out", str(tmp_path / "out")]
    for kind in ("forget", "text", "choice"):
        command += [f"--{kind}", sources[kind][0]]
    with one_thread():
        table = CliRunner().invoke(cli, command)
        assert table.exit_code == 0, table.output
        done = CliRunner().invoke(cli, [*command, "--json"])
    summary = json.loads(done.stdout)
    refused = summary["tasks"][0]["edited"]["refused"]["all"]
    assert f"{refused['hits']}/{refused['total']}" in table.stdout
    assert f"{summary['tasks'][1]['edited']['perplexity']:.3f}" in table.stdout
    assert "at most 200 items per source" in table.stdout
    for number in (1, 2):
        count = summary["tasks"][number]["edited"]["overwritten"]
        assert f"{count['positions']}/{count['of']}" in table.stdout
    assert "in 1 item " in table.stdout
