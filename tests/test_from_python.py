"""What docs/python.md shows is run as it stands there, on a tiny model and few prompts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import FORGET, RETAIN, tiny_model, write_prompts

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
# A random model does not tell the packaged prompts apart, so that no maths would be refused; these it does.
SKILLS = 'skills=["maths"]'
FEW = (
    'forget="forget.jsonl", retain="retain.jsonl", everyday=False, force=True, formats="plain", region="hypercube", '
    "layer=1, alpha=5.0"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which code is run, with the model "tiny" and prompts; processes find unskill, and no network."""
    tiny_model(tmp_path / "tiny", max_position_embeddings=2048)
    write_prompts(tmp_path / "forget.jsonl", FORGET)
    write_prompts(tmp_path / "retain.jsonl", RETAIN)
    for name, value in {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def replaced(code: str, stand_ins: dict[str, str]) -> str:
    for text, instead in stand_ins.items():
        assert text in code
        code = code.replace(text, instead)
    return code


def test_the_page(folder: Path) -> None:
    """All of its blocks, in one process."""
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    code = "".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    assert code.count("unskill.") == text.count("unskill.")  # nothing is shown outside of them
    sums = [{"question": f"What is 2 + {number}?", "answer": f"#### {2 + number}"} for number in range(2)]
    (folder / "gsm8k.jsonl").write_text("".join(json.dumps(each) + "\n" for each in sums))
    stand_ins = {MODEL: "tiny", SKILLS: FEW, '"What is 17 times 23?"': repr(FORGET[0])}
    command = [sys.executable, "-c", replaced(code, stand_ins)]
    done = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^Refuses \d+ of 10 held-out forget prompts", done.stdout, re.MULTILINE)
    assert re.search(r"^skill [0-4]\.\d+ refused up to 5\.0 refused$", done.stdout, re.MULTILINE)
    assert re.search(r"forget\.jsonl +plain +None +[1-9]\d* +10 ", done.stdout)
    assert "\nTrue\n{'hits': 0, 'total': 2, " in done.stdout
    assert (folder / "no-maths" / "config.json").is_file()
