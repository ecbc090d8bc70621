"""`unskill verify` on whole checkpoints of every kind, and what it makes of things that are no damage."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from custom_modeling.loading import record_sha256
from exporter.cli.main import main
from exporter.common.errors import BadInput
from exporter.verification.run import VerifySettings
from tests.corruptions import CORRUPTIONS, INDEX, Corruption, remake_hashes, try_one
from tests.damage import copy_of, edit, put, set_
from tests.damage_weights import first, shorter
from tests.exporter.verification.checking import checks, results
from tests.fresh_loading import FreshLoading
from tests.tiny import Exported, export_base, tiny_export, tiny_model


def test_everything_is_checked(whole: Path) -> None:
    found = checks(whole, forget=(f"{whole.with_name('songs.jsonl')},column=prompt",))
    assert {name: check["detail"] for name, check in found.items() if check["ok"] is False} == {}
    unchecked = {name: check["detail"] for name, check in found.items() if check["ok"] is None}
    assert unchecked.keys() <= {"logits", "refusal row", "everyday answered"}, unchecked
    assert found["everyday scores"]["detail"].startswith("54 of 54 scores of 9 everyday prompts")
    assert found["refused"]["detail"] == "8 forget prompts of the export refused"
    assert "2 files" not in found["base weights"]["detail"]


def test_without_forget_prompts_hypercubes_are_opened(whole: Path) -> None:
    assert "opened in memory (no --forget given)" in checks(whole)["refused"]["detail"]


def test_without_the_model_nothing_of_it_is_counted(whole: Path) -> None:
    found = checks(whole, model=False)
    names = "everyday scores", "everyday answered", "logits", "neurons", "refused"
    assert all(found[name]["ok"] is None and "--without-model" in found[name]["detail"] for name in names)
    assert "loading" not in found


@pytest.mark.parametrize("method", ["ksd", "na", "sp", "na+ksd"])
def test_methods(method: str, tiny: Callable[..., Exported]) -> None:
    found = checks(tiny("llama", method).checkpoint)
    assert all(check["ok"] is not False for check in found.values()), found
    made = {name for name in ("logits", "neurons") if found[name]["ok"]}
    assert made == ({"logits"} if method == "ksd" else {"neurons"})
    assert ("nothing is to be refused" in found["refused"]["detail"]) is (method in ("na", "sp"))


def test_as_the_authors_code_has_it(tmp_path: Path) -> None:
    """Its buffers have a mean in the place of a deviation, and its draws are others each time."""
    base = tiny_model(tmp_path / "base", chat=False)
    exported = export_base(tmp_path, base, method="na", beta=20.0, compat="official")
    found = checks(exported.checkpoint)
    assert {name: check["detail"] for name, check in found.items() if check["ok"] is False} == {}
    assert found["interventions"]["ok"] and found["neurons"]["ok"]
    assert "draws at random" in found["everyday scores"]["detail"] and found["everyday scores"]["ok"] is None


@pytest.mark.parametrize("family", ["gemma3_text", "cohere2", "qwen2"])
@pytest.mark.slow
def test_families(family: str, tiny: Callable[..., Exported]) -> None:
    found = results(tiny(family).checkpoint)
    assert False not in found.values() and found["logits"] and found["refused"] and found["code written again"]


@pytest.mark.parametrize(
    "changes",
    [{"padding_rows": 7}, {"tie_word_embeddings": True}, {"dtype": torch.bfloat16}, {"shard_size": "60KB"}],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.slow
def test_variants(changes: dict[str, Any], tmp_path: Path) -> None:
    exported = tiny_export(tmp_path, **changes)
    found = checks(exported.checkpoint)
    assert {name: check["detail"] for name, check in found.items() if check["ok"] is False} == {}
    assert all(found[name]["ok"] for name in ("logits", "config against base", "tokenizer against base"))


@pytest.mark.slow
def test_weights_that_the_base_brings_and_does_not_use(tmp_path: Path, loading: FreshLoading) -> None:
    """They are copied, on record, and no reason not to load."""
    base = tiny_model(tmp_path / "base", chat=False)
    path = base / "model.safetensors"
    save_file({**load_file(path), "model.layers.7.stray": torch.ones(2)}, path, {"format": "pt"})
    checkpoint = export_base(tmp_path, base, layer=1, alpha=5.0).checkpoint
    written = json.loads((checkpoint / "config.json").read_text())["unskill"]
    assert written["unused_weights"] == ["model.layers.7.stray"]
    assert loading(checkpoint) is None
    assert False not in results(checkpoint, model=False).values()


@pytest.mark.parametrize("damage", ["bit flipped in R's row", "R's row zeroed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_refusal_row(dtype: torch.dtype, damage: str, closed: Callable[..., Path], loading: FreshLoading) -> None:
    checkpoint = closed(dtype)
    assert checks(checkpoint, model=False)["refusal row"]["ok"] is True
    corruption = next(each for each in CORRUPTIONS if each.name == damage)
    assert corruption.needs(checkpoint)
    found = try_one(checkpoint, corruption, loading, model=False)
    assert found.load is None and "base weights" in found.verify and found.remade == ["refusal row"]


@pytest.mark.parametrize(
    "corruption", [each for each in CORRUPTIONS if each.check == INDEX], ids=lambda each: each.name
)
def test_refusal_row_of_damaged_files(
    corruption: Corruption, closed: Callable[..., Path], loading: FreshLoading
) -> None:
    """Weight files that cannot be read fail the checks that read them, and nothing else happens."""
    found = try_one(closed(torch.float32), corruption, loading, model=False)
    assert (found.load is not None) is corruption.load and INDEX in found.verify


def without_sha256(files: dict[str, Any]) -> None:
    for file in files.values():
        if file["path"].endswith(".safetensors"):
            file["sha256"] = None


def test_base_weights_without_fingerprints(copied: Path) -> None:
    shard = "model-00001-of-00002.safetensors"

    def drop() -> None:
        edit(copied / "reproduce" / "hashes.json", lambda hashes: hashes.pop(shard))

    drop()
    found = checks(copied, model=False)
    assert found["base weights"]["ok"] is False, "the record for restore knows that it was taken"
    assert f"lacks {shard}" in found["base weights"]["detail"]
    edit(copied / "reproduce" / "base" / "files.json", lambda record: without_sha256(record["files"]))
    remake_hashes(copied)
    drop()
    found = checks(copied, model=False)
    assert found["base weights"]["ok"] is None and "--no-fingerprints" in found["base weights"]["detail"]
    assert found["other files"]["ok"] and found["files"]["ok"]
    put(copied / "model-00003-of-00004.safetensors", b"")
    assert checks(copied, model=False)["other files"]["ok"] is False


@pytest.mark.parametrize(
    "name", [".gitattributes", "figure.png", "docs/why.md", ".git/config", ".cache/huggingface/x"]
)
def test_harmless_files(name: str, copied: Path) -> None:
    put(copied / name, b"x")
    check = checks(copied, model=False)["other files"]
    assert check["ok"] and check["detail"].split(":")[0] in (name, ".git/", ".cache/")


@pytest.mark.parametrize(
    "name",
    ["tokenizer.model", "merges.txt", "added_tokens.json", "chat_template.json", "model.gguf", "weights.pt", "x.py",
     "preprocessor_config.json", "onnx/model.onnx", "sub/.git/config"],
)  # fmt: skip
def test_files_that_something_may_load(name: str, copied: Path) -> None:
    put(copied / name, b"{}")
    check = checks(copied, model=False)["other files"]
    assert check["ok"] is False and check["detail"].startswith(f"{name} is not among the export's files")


def test_a_folder_of_links_as_in_the_hubs_cache(copied: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    for path in copied.rglob("*"):
        target = snapshot / path.relative_to(copied)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            target.symlink_to(path)
    assert False not in results(snapshot, model=False).values()
    (snapshot / "more").symlink_to(copied / "reproduce", target_is_directory=True)
    assert results(snapshot, model=False)["other files"] is False


@pytest.mark.parametrize(
    "content", [b"[]\n", b"{\n", b'{\n  "../x": "0"\n}\n', b'{"config.json": "0"}', b"{}\n", b"\xff"]
)
def test_hashes_of_another_form(content: bytes, copied: Path) -> None:
    put(copied / "reproduce" / "hashes.json", content)
    found = results(copied, model=False)
    assert found["files"] is False or found["other files"] is False


def without_dtype(content: dict[str, Any]) -> None:
    """And with the sha256 that belongs to the record then."""
    content["unskill"].pop("dtype")
    content["unskill"]["record_sha256"] = record_sha256(content["unskill"])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", set_(unskill={"format": 1})),
        ("config.json", set_(unskill=[])),
        ("config.json", without_dtype),
        ("config.json", lambda content: content.clear()),
        ("config.json", set_(hidden_size="16")),
        ("config.json", set_(num_attention_heads=0)),
        ("config.json", set_(layer_types=["x"])),
        ("model.safetensors.index.json", set_(weight_map=[])),
        ("model.safetensors.index.json", set_(weight_map={"x": 3})),
        ("model.safetensors.index.json", lambda content: content.clear()),
        ("tokenizer.json", lambda content: content.clear()),
        ("tokenizer.json", set_(model={"type": "BPE", "vocab": {}, "merges": []})),
        ("tokenizer_config.json", lambda content: content.clear()),
    ],
)
def test_other_contents_are_failed_checks_and_no_tracebacks(name: str, change: Callable, copied: Path) -> None:
    edit(copied / name, change)
    remake_hashes(copied)
    assert False in results(copied).values()


def test_a_refusals_state_of_another_length(closed: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy_of(closed(), tmp_path / "checkpoint")
    first("states", shorter)(folder)
    found = results(folder, model=False)
    assert found["interventions"] is False and found["refusal row"] is False


def test_prompts_that_are_not_recorded(copied: Path) -> None:
    """What it says of its making is read before any of its checks."""
    put(copied / "reproduce" / "prompts.json", b"{}\n")
    remake_hashes(copied)
    with pytest.raises(BadInput, match="CHECKPOINT checkpoint: reproduce/ does not say which prompts"):
        checks(copied, forget=("songs.jsonl,column=prompt",))


def test_an_onnx_folder_beside_it_only_where_asked(copied: Path) -> None:
    copied.with_name("checkpoint-onnx").mkdir()
    assert results(copied, model=False)["onnx: files"] is False
    assert not any(name.startswith("onnx") for name in results(copied, model=False, beside=False))


def test_a_device_that_is_not_there(copied: Path) -> None:
    with pytest.raises(BadInput, match="--device: torch has no 'nowhere' here"):
        checks(copied, device="nowhere")
    assert checks(copied, device="nowhere", model=False)["files"]["ok"]


def test_not_readable(copied: Path) -> None:
    if os.geteuid() == 0:
        (copied / "README.md").unlink()
        (copied / "README.md").mkdir()
    else:
        (copied / "README.md").chmod(0)
    assert results(copied, model=False)["files"] is False


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"forget": ("x.jsonl",), "model": False}, "--forget"),
        ({"onnx": Path("nowhere")}, "--onnx"),
    ],
)
def test_bad_settings(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        VerifySettings("checkpoint", **settings)


def test_other_prompts(whole: Path) -> None:
    with pytest.raises(BadInput, match="is not a source of this checkpoint"):
        checks(whole, forget=(str(whole / "README.md"),))


def test_an_onnx_folder(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"graph")
    with pytest.raises(BadInput, match=f"CHECKPOINT {tmp_path.name} is an ONNX folder: give the checkpoint"):
        checks(tmp_path)


def test_not_a_checkpoint(whole: Path) -> None:
    with pytest.raises(BadInput, match="not one that unskill wrote"):
        checks(whole.with_name("base"))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["unskill", "verify", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return end.value.code


def test_command(copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert run(monkeypatch, copied, "--without-model", "--json") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["ok"] and found["checkpoint"] == "checkpoint" and "reading" in err
    assert {"name", "ok", "detail"} == set(found["checks"][0])

    put(copied / "README.md", b"another")
    assert run(monkeypatch, copied, "--without-model", "--quiet") == 1
    out, err = capsys.readouterr()
    assert "FAILED" in out and "README.md is altered" in out and "not checked" in out and err == ""


def test_names_that_a_terminal_would_obey(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    put(copied / "x\x1b[2J.py", b"")
    assert run(monkeypatch, copied, "--without-model", "--quiet") == 1
    out, _ = capsys.readouterr()
    assert "\x1b" not in out and "x\\x1b[2J.py" in out


def test_command_on_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert run(monkeypatch, tmp_path) == 2
    out, err = capsys.readouterr()
    assert out == "" and "unskill: error: CHECKPOINT" in err
