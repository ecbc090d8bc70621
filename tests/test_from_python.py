"""What docs/python.md and examples/notebook.ipynb show is run as it stands there, on a tiny model and few prompts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

from tests.tiny import FORGET, RETAIN, tiny_model, write_prompts

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_notebook(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell in its order, in a kernel, with questions that a tiny model tells apart."""
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(folder / name))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    first, *others = (number for number, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    export, *_ = (number for number in others if "unskill.export(" in notebook.cells[number].source)
    for number, stand_ins in {first: {MODEL: "tiny"}, export: {SKILLS: FEW}}.items():
        notebook.cells[number].source = replaced(notebook.cells[number].source, stand_ins)
    questions = new_code_cell(f"questions = {[FORGET[0], RETAIN[0]]!r}")
    notebook.cells.insert(first + 1, questions)
    NotebookClient(notebook, timeout=90, resources={"metadata": {"path": str(folder)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    results = [output["data"] for output in shown if output["output_type"] == "execute_result"]
    text = "".join(output["text"] for output in shown if output.get("name") == "stdout")
    chart, explained = (data["text/html"] for data in results)
    assert '"source": "forget.jsonl", "kind": "all"' in chart and "vega" in chart
    assert re.findall(r"<td>(True|False)</td>", explained) == ["True", "False"]
    assert text.endswith(f"{FORGET[0]}\n  Your query is not valid\n\n{RETAIN[0]}\n  unchanged\n\n")


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_the_links_of_the_notebook_lead_somewhere() -> None:
    text = "".join(cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "markdown")
    linked = re.findall(r"\]\(([^)]+)\)", text)
    assert linked and [name for name in linked if not (NOTEBOOK.parent / name).is_file()] == []
