"""What of quantized graphs is written, and what is refused: nothing leaves that was not fitted anew."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import onnx
import pytest
from click.testing import CliRunner

from exporter.checkpoint.reading import read_stored
from exporter.cli.main import cli
from exporter.common.errors import BadInput, Rejected
from exporter.onnx.quantize.run import check_refittable, write_quantized
from exporter.onnx.settings import GRAPH, OnnxSettings
from tests.exporter.onnx.quantize.quantizing import TEXTS, Made
from tests.tiny import Exported, one_thread, write_prompts

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_bodies_and_kernels_agree(kind: str, made: Callable[[str], Made], library: Path, tmp_path: Path) -> None:
    summary = made("ksd").write(tmp_path / "out", kind, kernels=[library], answers=False)
    assert summary["agrees"] is True
    assert {row["side"] for row in summary["self_check"]} == {"bodies", "kernels"}
    assert all(row["refusals"] == row["positions"] > 0 for row in summary["self_check"])
    assert summary["skills"][0]["key_space"]["false_blocks_over_answers"] is None


def test_a_graph_that_was_not_fitted_anew_is_not_kept(made: Callable[[str], Made], tmp_path: Path) -> None:
    with (
        mock.patch("exporter.onnx.quantize.run.patched", lambda graph, _: onnx.load(graph, load_external_data=False)),
        pytest.raises(Rejected, match="refuses something else"),
    ):
        made("ksd").write(tmp_path / "out", answers=False)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_separate_is_not_written_without_force(made: Callable[[str], Made], tmp_path: Path) -> None:
    """A random model this small has answers inside the hypercube."""
    with pytest.raises(Rejected, match=r"harmless prompts \(--max-false-block 0\.0\)") as caught:
        made("ksd").write(tmp_path / "out", "int8", max_false_block=0.0)
    assert caught.value.exit_code == 1 and caught.value.summary["separates"] is False
    assert list(tmp_path.iterdir()) == []
    summary = made("ksd").write(tmp_path / "out", "int8", max_false_block=0.0, force=True)
    assert summary["separates"] is False
    assert json.loads((tmp_path / "out" / "config.json").read_text())["unskill"]["skills"][0]["separates"] is False
    assert "NOT SEPARATED" in (tmp_path / "out" / "README.md").read_text()


def test_other_sources_are_refused(made: Callable[[str], Made], tmp_path: Path) -> None:
    tried = made("ksd")
    (tmp_path / "other").mkdir()
    changed = write_prompts(tmp_path / "other" / "forget.jsonl", [*TEXTS["forget"][:-1], "What else?"])
    unknown = write_prompts(tmp_path / "other" / "sums.jsonl", TEXTS["forget"])
    (forget,) = tried.sources["forget"]
    refused = {
        "is not what the export read": {"forget": (f"{changed},column=prompt",)},
        "is not a source of this checkpoint; its --forget sources are forget.jsonl": {"forget": (str(unknown),)},
        "is not what the export read under": {"forget": (f"{forget},limit=100",)},
        "--retain: give retain.jsonl again": {"retain": ()},
        "give the export's sources again": {"forget": ()},
        "--system-prompt: the export had 0": {"system_prompts": ("Be brief.",)},
        "--prompt-template: is not the export's": {"prompt_template": "Q: {prompt}"},
    }
    for message, changes in refused.items():
        with pytest.raises(BadInput, match=re.escape(message)):
            tried.write(tmp_path / "out", **changes)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_prompts_in_other_parts_are_refused(made: Callable[[str], Made], tmp_path: Path) -> None:
    """Another unskill may split or draw otherwise; the records say so."""
    with (
        mock.patch("exporter.prompts.splits.CHOOSE", 0.2),
        pytest.raises(BadInput, match=r"part forget\.fit of skill is not what the export had"),
    ):
        made("ksd").write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_no_other_way_to_quantized_weights(made: Callable[[str], Made], tmp_path: Path) -> None:
    checkpoint = str(made("ksd").checkpoint)
    for name in ("int8", "int4"):
        done = CliRunner().invoke(cli, ["onnx", checkpoint, str(tmp_path / "out"), "--dtype", name])
        assert isinstance(done.exception, BadInput) and f"--quantize {name} --forget SOURCE" in str(done.exception)
        with pytest.raises(BadInput, match=f"--quantize {name}"):
            OnnxSettings(checkpoint, tmp_path / "out", dtype=name)
    with pytest.raises(BadInput, match="--quantize: 'int2' is not one of int8, int4"):
        OnnxSettings(checkpoint, tmp_path / "out", quantize="int2")
    with pytest.raises(BadInput, match="leave out float16"):
        OnnxSettings(checkpoint, tmp_path / "out", quantize="int8", dtype="float16")
    for changes in ({"retain": ("r.jsonl",)}, {"force": True}, {"answers": False}, {"max_false_block": 0.1}):
        with pytest.raises(BadInput, match="for --quantize"):
            OnnxSettings(checkpoint, tmp_path / "out", **changes)
    with pytest.raises(BadInput, match="give the export's sources again"):
        write_quantized(OnnxSettings(checkpoint, tmp_path / "out", quantize="int8"), lambda text: None)
    assert list(tmp_path.iterdir()) == []


def test_two_skills_that_adjust_neurons_are_refused_by_name(made: Callable[[str], Made], tmp_path: Path) -> None:
    stored = read_stored(str(made("ksd").checkpoint))
    (skill,) = stored.recipe["skills"]
    both = [{**skill, "name": name, "method": "na"} for name in ("sums", "code")]
    with pytest.raises(BadInput, match="sums and code adjust neurons"):
        check_refittable(replace(stored, recipe={**stored.recipe, "skills": both}), made("ksd").settings(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sp", "na"])
def test_methods_that_refuse_nothing(method: str, tiny: Callable[..., Exported], tmp_path: Path) -> None:
    """Pruned neurons depend on no activation and need no prompts; adjusted ones do."""
    exported = tiny("llama", method)
    sources = {} if method == "sp" else {side: (str(exported.prompts.with_name(f"{side}.jsonl")),) for side in TEXTS}
    settings = OnnxSettings(str(exported.checkpoint), tmp_path / "out", quantize="int8", quiet=True, **sources)
    with one_thread():
        summary = write_quantized(settings, lambda text: None)
    assert summary["agrees"] is True
    assert [each["name"] for each in summary["skills"]] == ([] if method == "sp" else ["skill"])
    if method == "na":
        texts = summary["skills"][0]["neurons"]["texts"]
        assert texts.keys() == {"skill: forget", "skill: retain"} and texts["skill: forget"]["rise"] != 0


@pytest.mark.slow
def test_as_a_user_runs_it(made: Callable[[str], Made], tmp_path: Path) -> None:
    tried = made("ksd")
    command = ["onnx", str(tried.checkpoint), str(tmp_path / "out"), "--quantize", "int4", "--max-false-block", "1"]
    command += [f"--{side}={spec}" for side, specs in tried.sources.items() for spec in specs]
    with one_thread():
        done = CliRunner().invoke(cli, command)
    assert done.exception is None and "Wrote" in done.stdout and "held-out prompts" in done.stdout
    assert (tmp_path / "out" / GRAPH["int4"]).is_file()
