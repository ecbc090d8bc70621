"""Wrong input ends in one clear line and its exit code; most of it has its row in `tests/odd_inputs`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from exporter.cli.main import main
from exporter.common.errors import BadInput
from exporter.models.loading import check_device
from tests.tiny import FORGET, RETAIN, edit_json, tiny_model, write_prompts


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return {
        "forget": write_prompts(tmp_path / "forget.jsonl", FORGET),
        "retain": write_prompts(tmp_path / "retain.jsonl", RETAIN),
        "out": tmp_path / "out",
    }


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["unskill", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def fails(capsys, monkeypatch, files, base, code: int, *expected: str, arguments: tuple[object, ...] = ()) -> None:
    standard = ("--forget", files["forget"], "--retain", files["retain"], "--no-everyday", "--quiet")
    status, _, err = run(capsys, monkeypatch, "export", base, files["out"], *standard, *arguments)
    line = err.strip().splitlines()[-1]
    assert status == code, err
    assert line.startswith("unskill: error: ")
    assert "Traceback" not in err
    for text in expected:
        assert text in line
    assert not files["out"].exists()
    assert not list(files["out"].parent.glob(".out.unskill-*"))


@pytest.mark.parametrize("device", ["cuda:99", "nowhere", "meta", "", "xla", "hpu", "x" * 5000])
def test_a_device_that_is_not_there_is_answered_with_those_that_are(device: str) -> None:
    with pytest.raises(BadInput, match=r"^--device: torch has no .*; it has cpu") as error:
        check_device(device)
    assert len(str(error.value)) < 120 and "\n" not in str(error.value)


def test_the_command_alone_prints_its_help(capsys, monkeypatch) -> None:
    status, out, err = run(capsys, monkeypatch)
    assert (status, err) == (0, "") and "Usage: " in out and "export" in out
    assert run(capsys, monkeypatch, "--help") == (0, out, "")


def test_overwrite_does_not_take_a_model_for_a_checkpoint(capsys, monkeypatch, files, base) -> None:
    other = Path(shutil.copytree(base, files["out"]))
    before = sorted(path.name for path in other.iterdir())
    arguments = ("--forget", files["forget"], "--retain", files["retain"], "--no-everyday", "--overwrite")
    status, _, err = run(capsys, monkeypatch, "export", base, other, *arguments)
    assert status == 2 and "not a checkpoint that unskill wrote" in err
    assert sorted(path.name for path in other.iterdir()) == before


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("model.safetensors.index.json", "{}", "weight_map"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../x.safetensors"}}', "weight_map"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 1}}', "weight_map"),
        ("config.json", "[" * 100000, "not JSON"),
    ],
)
def test_damaged_small_files_of_a_model(capsys, monkeypatch, files, base, tmp_path, file, content, said) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    (copy / "model.safetensors").unlink()
    (copy / file).write_text(content)
    fails(capsys, monkeypatch, files, copy, 2, said)


@pytest.mark.parametrize("command", ["inspect", "restore", "verify", "chat", "export", "report", "evaluate"])
def test_name_too_long_for_a_file(capsys, monkeypatch, tmp_path, command) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    more = {"restore": ("back",), "export": ("out", "--forget", "x"), "evaluate": ("--forget", "x")}
    status, _, err = run(capsys, monkeypatch, command, "x" * 300, *more.get(command, ()))
    assert status == 2 and "Traceback" not in err and err.splitlines()[-1].startswith("unskill: error: ")


def test_names_out_of_files_do_not_command_the_terminal(capsys, monkeypatch, files, base, tmp_path) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    header = json.dumps({"a\x1b[2J\n": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}).encode()
    (copy / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    status, _, err = run(capsys, monkeypatch, "export", copy, files["out"], "--forget", files["forget"], "--quiet")
    assert status == 2 and "\x1b" not in err and len(err.strip().splitlines()) == 1


def broken(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "broken"))


def test_nan_in_weights(capsys, monkeypatch, files, base, tmp_path) -> None:
    model = broken(base, tmp_path)
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    fails(capsys, monkeypatch, files, model, 2, "model.layers.1.mlp.up_proj.weight", "NaN")


def test_nothing_separates_prints_the_table_and_writes_nothing(capsys, monkeypatch, files, base) -> None:
    # Prompts of one kind on both sides: no layer can tell them apart.
    write_prompts(files["forget"], [prompt for row, prompt in enumerate(FORGET) if row % 10 < 7])
    write_prompts(files["retain"], [prompt for row, prompt in enumerate(FORGET) if row % 10 >= 7])
    standard = ("--forget", files["forget"], "--retain", files["retain"], "--no-everyday", "--quiet", "--json")
    template = ("--prompt-template", "{prompt}", "--region", "hypercube")
    status, out, err = run(capsys, monkeypatch, "export", base, files["out"], *standard, *template)
    assert status == 1
    assert "--max-false-block" in err and "--force" in err
    assert len(json.loads(out)["skills"][0]["key_space"]["layers"]) == 3
    assert not files["out"].exists()
    status, out, _ = run(capsys, monkeypatch, "export", base, files["out"], *standard, *template, "--force")
    assert status == 0
    assert json.loads(out)["skills"][0]["works"] is False
    assert "must still be answered suffers" in (files["out"] / "README.md").read_text()
    assert json.loads((files["out"] / "config.json").read_text())["unskill"]["skills"][0]["separates"] is False


@pytest.mark.parametrize("arguments", [("export", "--help"), ("--version",)])
def test_reader_that_has_seen_enough(arguments: tuple[str, ...]) -> None:
    """As behind `| head`: no traceback."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        done = subprocess.run([sys.executable, "-m", "exporter", *arguments], stdout=pipe, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("arguments", [("skills",), ("skills", "--json"), ("--version",), ("export", "--help")])
@pytest.mark.parametrize("redirected", [">&-", ">/dev/full"])
def test_output_that_cannot_be_written(arguments: tuple[str, ...], redirected: str) -> None:
    script = f'exec "{sys.executable}" -m exporter {" ".join(arguments)} {redirected}'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("unskill: error: stdout ")
    assert len(done.stderr.splitlines()) == 1


def test_messages_that_cannot_be_written() -> None:
    script = f'exec "{sys.executable}" -m exporter inspect nowhere/at/all 2>&-'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("config.json", {"vocab_size": float("nan")}, "vocab_size is nan, not a whole number above 0"),
        ("config.json", {"vocab_size": "400"}, "vocab_size is '400', not a whole number"),
        ("config.json", {"num_hidden_layers": 0}, "num_hidden_layers is 0, not a whole number above 0"),
        ("config.json", {"model_type": ["llama"]}, "model_type ['llama'] (unsupported family)"),
        ("config.json", {"rope_theta": float("inf")}, "rope_theta is inf"),
        ("tokenizer.json", {"model": None}, "tokenizer.json is not as the library tokenizers writes it"),
        ("tokenizer.json", {"added_tokens": [1]}, "tokenizer.json is not as the library tokenizers writes it"),
    ],
)
def test_other_types_than_expected(capsys, monkeypatch, files, base, tmp_path, name, values, said) -> None:
    model = broken(base, tmp_path)
    edit_json(model / name, lambda content: {**content, **values})
    fails(capsys, monkeypatch, files, model, 2, said)


def test_a_number_of_5000_digits(capsys, monkeypatch, files, base, tmp_path) -> None:
    model, number = broken(base, tmp_path), "9" * 5000
    (model / "config.json").write_text(f'{{"model_type": "llama", "vocab_size": {number}}}')
    fails(capsys, monkeypatch, files, model, 2, "config.json is not JSON (Exceeds the limit")
    for content, said in ((f"seed = {number}", "is not TOML (Exceeds the limit"), ("a=" + "[" * 20000, "too deeply")):
        (tmp_path / "recipe.toml").write_text(content)
        fails(capsys, monkeypatch, files, base, 2, said, arguments=("--recipe", tmp_path / "recipe.toml"))


def test_a_layer_that_is_not_there_is_refused_before_torch_is_imported(files, base) -> None:
    code = "import sys; sys.argv[0] = 'unskill'\nimport exporter.cli.main as m\n"
    code += "try: m.main()\nfinally: print('torch' in sys.modules)"
    arguments = (
        "export",
        base,
        files["out"],
        "--forget",
        files["forget"],
        "--retain",
        files["retain"],
        "--layer",
        "40",
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert "--layer: 40 is out of range, the model has layers 0 to 2" in done.stderr


def test_an_empty_name(capsys, monkeypatch, files, base) -> None:
    status, _, err = run(capsys, monkeypatch, "export", base, "", "--forget", files["forget"])
    assert status == 2 and "OUT" in err and "the name is empty" in err
