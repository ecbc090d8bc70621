"""Every wrong input ends in one clear line and its exit code, before or without writing anything."""

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
from tests.damage_tokenizer import drop_token
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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--alpha", "0"), "--alpha"),
        (("--alpha", "-1"), "--alpha"),
        (("--alpha", "nan"), "--alpha"),
        (("--alpha", "wide"), "--alpha"),
        (("--layer", "3"), "--layer"),
        (("--layer", "-1"), "--layer"),
        (("--layer", "first"), "--layer"),
        (("--method", "nap"), "--method"),
        (("--method", "na", "--beta", "0"), "--beta"),
        (("--method", "na", "--beta", "101"), "--beta"),
        (("--method", "na", "--max-retain-loss", "0"), "--max-retain-loss"),
        (("--method", "na", "--score", "loudest"), "--score"),
        (("--method", "sp", "--score", "signed-mean"), "--score"),
        (("--compat", "official"), "--compat"),
        (("--method", "na", "--compat", "official", "--draws", "expected"), "--compat"),
        (("--statistics", "absent.safetensors"), "--statistics"),
        (("--method", "na", "--statistics", "."), "--statistics"),
        (("--method", "na", "--statistics", "absent.safetensors"), "absent.safetensors"),
        (("--recipe", "absent.toml"), "--recipe"),
        (("--batch-size", "0"), "--batch-size"),
        (("--device", "nowhere"), "--device"),
        (("--seed", "-1"), "--seed"),
        (("--seed", str(2**63)), "--seed"),
        (("--device", "cuda:99"), "--device"),
        (("--target-block-rate", "1.5"), "--target-block-rate"),
        (("--max-false-block", "-0.1"), "--max-false-block"),
        (("--refusal", "N"), "--refusal"),
        (("--refusal", ""), "--refusal"),
        (("--prompt-template", "Question:"), "--prompt-template"),
        (("--forget", "absent.jsonl"), "absent.jsonl"),
        (("--everyday-without", "story"), "--everyday-without"),
        (("--nonsense",), "--nonsense"),
    ],
)
def test_wrong_usage_names_its_flag(capsys, monkeypatch, files, base, arguments, expected) -> None:
    fails(capsys, monkeypatch, files, base, 2, expected, arguments=arguments)


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


def test_no_forget_source(capsys, monkeypatch, files, base) -> None:
    status, _, err = run(capsys, monkeypatch, "export", base, files["out"])
    assert status == 2 and "--forget or --skill" in err
    status, _, err = run(capsys, monkeypatch, "export", base, files["out"], "--skill", "sums")
    assert status == 2 and "--skill: no skill 'sums'; there are code, " in err


def test_without_retain_and_everyday_nothing_tells_layers_apart(capsys, monkeypatch, files, base) -> None:
    arguments = ("export", base, files["out"], "--forget", files["forget"], "--no-everyday")
    status, _, err = run(capsys, monkeypatch, *arguments)
    assert status == 2 and "--no-everyday" in err


def test_too_few_prompts(capsys, monkeypatch, files, base) -> None:
    for region, least in (("hypercube", 60), ("discriminant", 24)):
        write_prompts(files["forget"], FORGET[: least - 1])
        fails(capsys, monkeypatch, files, base, 2, "--forget", str(least), arguments=("--region", region))
    write_prompts(files["forget"], FORGET[:19])
    fails(capsys, monkeypatch, files, base, 2, "20", arguments=("--layer", "0", "--alpha", "5"))


def test_forget_is_retain(capsys, monkeypatch, files, base) -> None:
    write_prompts(files["retain"], FORGET)
    fails(capsys, monkeypatch, files, base, 2, "--retain")


def test_broken_line_has_its_number(capsys, monkeypatch, files, base) -> None:
    with files["forget"].open("a") as file:
        file.write('{"prompt": "half\n')
    fails(capsys, monkeypatch, files, base, 2, "forget.jsonl", f"line {len(FORGET) + 1}")


def test_wrong_column_lists_those_there_are(capsys, monkeypatch, files, base) -> None:
    wrong = (f"{files['forget']},column=question",)
    fails(capsys, monkeypatch, files, base, 2, "question", "prompt", arguments=("--forget", *wrong))


def test_a_prompt_longer_than_the_context_names_its_row(capsys, monkeypatch, files, base) -> None:
    write_prompts(files["forget"], [*FORGET, "very " * 400 + "long?"])
    template = ("--prompt-template", "{prompt}")
    fails(capsys, monkeypatch, files, base, 2, f"row {len(FORGET) + 1}", "--skip-long", arguments=template)


def test_out_exists(capsys, monkeypatch, files, base) -> None:
    files["out"].mkdir()
    (files["out"] / "mine.txt").write_text("kept")
    arguments = ("export", base, files["out"], "--forget", files["forget"], "--retain", files["retain"])
    status, _, err = run(capsys, monkeypatch, *arguments)
    assert status == 2 and "--overwrite" in err
    status, _, err = run(capsys, monkeypatch, *arguments, "--overwrite")
    assert status == 2 and "not a checkpoint" in err
    assert (files["out"] / "mine.txt").read_text() == "kept"


def test_out_is_the_base(capsys, monkeypatch, files, base) -> None:
    arguments = ("--forget", files["forget"], "--retain", files["retain"], "--overwrite")
    for out in (base, base.parent, base / "inside"):
        status, _, err = run(capsys, monkeypatch, "export", base, out, *arguments)
        assert status == 2 and "must be separate folders" in err
    assert (base / "model.safetensors").is_file()


def test_an_empty_name(capsys, monkeypatch, files, base) -> None:
    status, _, err = run(capsys, monkeypatch, "export", base, "", "--forget", files["forget"])
    assert status == 2 and "OUT" in err and "the name is empty" in err


def test_unwritable_parent(capsys, monkeypatch, files, base) -> None:
    files["out"] = files["out"].parent / "absent" / "out"
    fails(capsys, monkeypatch, files, base, 2, "does not exist")


def broken(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "broken"))


def test_unknown_model_folder(capsys, monkeypatch, files, tmp_path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fails(capsys, monkeypatch, files, tmp_path / "nowhere", 2, "nowhere")


def test_model_without_tokenizer(capsys, monkeypatch, files, base, tmp_path) -> None:
    model = broken(base, tmp_path)
    (model / "tokenizer.json").unlink()
    fails(capsys, monkeypatch, files, model, 2, "tokenizer.json")


def test_pickle_weights(capsys, monkeypatch, files, base, tmp_path) -> None:
    model = broken(base, tmp_path)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    fails(capsys, monkeypatch, files, model, 2, "pytorch_model.bin is not read: save the model anew")


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


def test_unsupported_tokenizer(capsys, monkeypatch, files, base, tmp_path) -> None:
    model = broken(base, tmp_path)
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["type"] = "Unigram"
    path.write_text(json.dumps(content))
    fails(capsys, monkeypatch, files, model, 2, "Unigram")


def test_token_dropped_that_others_are_made_of(capsys, monkeypatch, files, base, tmp_path) -> None:
    model = broken(base, tmp_path)
    drop_token(model, "in")
    fails(capsys, monkeypatch, files, model, 2, "does not load: Token `in` out of vocabulary")


def test_truncated_weights(capsys, monkeypatch, files, base, tmp_path) -> None:
    model = broken(base, tmp_path)
    os.truncate(model / "model.safetensors", 5000)
    fails(capsys, monkeypatch, files, model, 2, "model.safetensors is truncated")


def test_nan_in_weights(capsys, monkeypatch, files, base, tmp_path) -> None:
    model = broken(base, tmp_path)
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    fails(capsys, monkeypatch, files, model, 1, "model.layers.1.mlp.up_proj.weight", "NaN")


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


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (">&-", "stdout is closed: send it to a file"),
        (">/dev/full", "cannot write the output (No space left on device)"),
    ],
)
def test_nowhere_to_write_to(target: str, said: str) -> None:
    done = subprocess.run(
        f"{sys.executable} -m exporter export --help {target}", shell=True, capture_output=True, text=True
    )
    assert done.returncode == 1 and said in done.stderr and len(done.stderr.splitlines()) == 1
