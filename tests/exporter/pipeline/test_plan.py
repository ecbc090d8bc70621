"""What is found before the model is loaded, and so without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.common.errors import BadInput
from exporter.pipeline.plan import plan
from tests.tiny import FORGET, RETAIN, one_skill, tiny_model, write_prompts

SCRIPT = """
import json, sys
from pathlib import Path
from exporter.pipeline.plan import plan
from exporter.recipes.recipe import merged_settings

base, out, forget, retain = sys.argv[1:]
given = {"model": base, "out": Path(out), "forget": (forget,), "retain": (retain,), "everyday": False}
said = []
found = plan(merged_settings({}, given), said.append)
heavy = sorted({"torch", "transformers", "scipy"} & sys.modules.keys())
print(json.dumps([found.base.name, found.token.text, [each.code for each in found.warnings], said, heavy]))
"""

NEURONS = ("na", "na+ksd", "sp")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "base", chat=False)


def test_an_export_is_planned_without_torch(base: Path, tmp_path: Path) -> None:
    forget = write_prompts(tmp_path / "f.jsonl", FORGET)
    retain = write_prompts(tmp_path / "r.jsonl", [*RETAIN, FORGET[0].upper()])
    arguments = [str(each) for each in (base, tmp_path / "out", forget, retain)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert done.returncode == 0, done.stderr
    name, refusal, warnings, said, heavy = json.loads(done.stdout)
    assert (name, refusal, heavy) == ("base", "Your query is not valid", [])
    assert said[:2] == [
        "--forget f.jsonl: 100 prompts from column prompt",
        "--retain r.jsonl: 101 prompts from column prompt",
    ]
    assert warnings == ["overlap"] and said[2].startswith("warning: 1 of the ")
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_is_found_there(base: Path, tmp_path: Path) -> None:
    sources = write_prompts(tmp_path / "f.jsonl", FORGET), write_prompts(tmp_path / "r.jsonl", RETAIN)
    experts = str(tiny_model(tmp_path / "experts", "olmoe"))
    for change, message in (
        ({"statistics": tmp_path / "none", "method": "na"}, "--statistics: no such file"),
        ({"out": base / "out"}, "must be separate folders"),
        ({"refusal": " no"}, "--refusal must not be empty"),
        ({"model": str(tmp_path / "absent")}, "absent"),
        *(({"model": experts, "method": each}, "is a mixture of experts, .* use --method ksd$") for each in NEURONS),
    ):
        asked = {"model": str(base), "out": tmp_path / "out", **change}
        settings = one_skill(asked.pop("model"), asked.pop("out"), *sources, everyday=False, **asked)
        with pytest.raises(BadInput, match=message):
            plan(settings, lambda text: None)


COMMAND = """
import sys
from exporter.cli.main import main

try:
    main()
finally:
    print(sorted({"torch", "transformers", "scipy"} & sys.modules.keys()))
"""


def test_a_base_that_its_files_rule_out_is_refused_without_torch(base: Path, tmp_path: Path) -> None:
    (base / "adapter_config.json").write_text("{}")
    sources = write_prompts(tmp_path / "f.jsonl", FORGET), write_prompts(tmp_path / "r.jsonl", RETAIN)
    arguments = ["export", str(base), str(tmp_path / "out"), "--forget", str(sources[0]), "--retain", str(sources[1])]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert (done.returncode, done.stdout.strip()) == (2, "[]")
    assert "adapter beside its weights" in done.stderr.splitlines()[-1]
