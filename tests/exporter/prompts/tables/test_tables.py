"""Tables: every file type and cached datasets, and one clear line for everything that is wrong with them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.common.errors import BadInput
from exporter.prompts.sources import Prompt, Source, fingerprint
from tests.reading import FLAG, error_of, load, texts, write

ROOT = str(Path(__file__).parents[4])

# --- files


def test_jsonl(tmp_path: Path) -> None:
    lines = [
        '{"question": "one", "n": 1}',
        "",
        '{"question": "  "}',
        '{"question": null}',
        '{"question": "zwei\u2028drei"}',
    ]
    path = write(tmp_path, "a [1]*.jsonl", "\ufeff" + "\r\n".join(lines))
    assert load(path) == [Prompt("one", "a [1]*.jsonl", 1), Prompt("zwei\u2028drei", "a [1]*.jsonl", 5)]
    assert load(path)[0].sha256 == hashlib.sha256(b"one").hexdigest()
    assert texts(path, limit=1) == ["one"]


def test_jsonl_columns_of_mixed_types_do_not_matter(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"q": "x", "a": 1}\n\n{"q": "y", "a": "t"}\n{"q": "z", "a": [{"b": 1e99}]}\n')
    assert texts(path, column="q") == ["x", "y", "z"]


def test_json_lists(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "a.json", '\ufeff[\n "one",\n "two"]')) == ["one", "two"]
    rows = [prompt.row for prompt in load(write(tmp_path, "b.json", '[{"q": ""}, {"q": "x"}]'), column="q")]
    assert rows == [2]
    assert texts(write(tmp_path, "c.json", '{"q": "x"}\n{"q": "y"}\n')) == ["x", "y"]


def test_txt_is_one_prompt_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "\ufefffirst, with comma\r\n\r\n  second\u2028still second \n\t\nthird")
    assert [(p.text, p.row) for p in load(path)] == [
        ("first, with comma", 1),
        ("  second\u2028still second ", 3),
        ("third", 5),
    ]
    assert texts(path, limit=2) == ["first, with comma", "  second\u2028still second "]


def test_csv_cells_are_text(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", '\ufeffid,query\r\n01,NA\r\n\r\n02,"two\nlines, ""quoted"""\r\n03,\r\n04,4.50\r\n')
    prompts = load(path)
    assert [(p.text, p.row) for p in prompts] == [("NA", 1), ('two\nlines, "quoted"', 3), ("4.50", 5)]
    assert texts(path, template="{id}: {query}")[0] == "01: NA"


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"q": ["a", None, "c"], "n": [1, 2, 3]}), "a[1].parquet")
    assert [(p.text, p.row) for p in load("a[1].parquet")] == [("a", 1), ("c", 3)]
    assert texts("a[1].parquet", template="{n}{q}", limit=2) == ["1a", "2"]
    pq.write_table(pa.table({"q": pa.array([], pa.string())}), "empty.parquet")
    assert "holds no rows" in error_of("empty.parquet")
    Path("broken.parquet").write_bytes(b"PAR1 and then nothing")
    assert "not a readable parquet file" in error_of("broken.parquet")


def test_of_a_parquet_file_no_more_is_read_than_the_limit(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    rows = [f"prompt {row}" for row in range(4000)]
    pq.write_table(pa.table({"q": rows}), path, row_group_size=2000, compression=None, use_dictionary=False)
    content = path.read_bytes()
    second = content.index(b"prompt 3000")
    path.write_bytes(content[: second - 9000] + b"\xff" * 18000 + content[second + 9000 :])  # its pages
    assert texts(str(path), limit=1500) == rows[:1500]
    assert "not a readable parquet file" in error_of(str(path))


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """In a process of its own: cache and temporary folders are read from the environment when libraries load."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = tmp_path / "data"
    data.mkdir()
    pq.write_table(pa.table({"q": ["a"]}), data / "a.parquet")
    (data / "a.jsonl").write_text('{"q": "a"}\n')
    code = (
        "import sys\n"
        "from exporter.prompts.sources import Source, load_prompts\n"
        "for name in ('a.parquet', 'a.jsonl'):\n"
        "    assert [p.text for p in load_prompts(Source(name), '--forget')] == ['a']\n"
    )
    places = {"HF_HOME": str(tmp_path / "hf"), "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": ROOT}
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=data,
        env={**os.environ, **places},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(left) == ["a.jsonl", "a.parquet"]


# --- what is wrong with a file


def test_missing_and_wrong_files(tmp_path: Path) -> None:
    assert "no such file: " in error_of(str(tmp_path / "missing.jsonl"))
    assert "no such file: nowhere.csv" in error_of("nowhere.csv")
    assert "no such file" in error_of("./nowhere")
    assert "no such file" in error_of("/" + "x" * 5000)
    assert "is a folder" in error_of(str(tmp_path))
    assert "'.xlsx'" in error_of(write(tmp_path, "a.xlsx", "x"))
    assert "split=" in error_of(write(tmp_path, "a.txt", "x"), split="train")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    assert f"{name}: the file is empty" in error_of(write(tmp_path, name, ""))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"q": "x"}\n\n{"q": "y"\n', "line 3 is not valid JSON"),
        ("a.jsonl", '{"q": "x"}\n["y"]\n', "line 2 is not a JSON object"),
        ("a.jsonl", '"x"\n', "line 1 is not a JSON object"),
        ("a.jsonl", b'{"q": "x"}\n{"q": "\xe9"}\n', "line 2 is not UTF-8"),
        ("a.jsonl", "[" * 100_000, "nested too deeply"),
        ("a.json", '{\n"data": [{"q": "x"}', "is not valid JSON (Expecting ',' delimiter, line 2"),
        ("a.json", "3", "neither a JSON list nor an object"),
        ("a.jsonl", '{"q": ' + "7" * 5000 + "}", "line 1 holds a number that is too long"),
        ("a.json", '[{"q": "x"},\n{"q": }]', "is not valid JSON (Expecting value, line 2"),
        ("a.json", '["x", 3]', "element 2"),
        ("a.json", "[]", "holds no rows"),
        ("a.txt", b"caf\xe9\n", "line 1 is not UTF-8"),
        ("a.txt", "x\ny".encode("utf-16"), "is not UTF-8 text (it holds NUL bytes, as UTF-16 does)"),
        ("a.csv", "prompt\nx".encode("utf-16-le"), "is not UTF-8 text (it holds NUL bytes, as UTF-16 does)"),
        ("a.txt", " \n\t\n", "holds no rows"),
        ("a.csv", "q,a\nx,1\nx, y,2\n", "line 3 has 3 fields, the header 2"),
        ("a.csv", 'q,a\nx,1\n"y,2\n', "not valid CSV"),
        ("a.csv", "q,q\nx,1\n", "twice"),
        ("a.csv", "q,a\n", "holds no rows"),
        ("a.csv", b"q,a\ncaf\xe9,1\n", "not UTF-8"),
        ("a.csv", "prompt,n\n,1\n", "holds no prompts: column prompt is empty"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    assert words in error_of(write(tmp_path, name, content))


def test_no_prompts(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"q": " \\n"}\n{"q": null}\n{}')
    assert "holds no prompts: column q is empty" in error_of(path, column="q")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "a.txt", "x")

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Not by chmod: root may read every file.
    monkeypatch.setattr(Path, "open", deny)
    assert "a.txt: cannot be read (Permission denied)" in error_of(path)
    with pytest.raises(BadInput, match="cannot be read"):
        fingerprint(Source(path))


# --- datasets of the Hub, which no test can reach: its errors are put in its place


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("RepositoryNotFoundError", "no such dataset"),
        ("GatedRepoError", "HF_TOKEN"),
        ("RevisionNotFoundError", "no revision 'v9'"),
        ("HfHubHTTPError", "cannot be reached"),
        ("OfflineModeIsEnabled", "cannot be reached"),
    ],
)
def test_hub_errors(monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    kind = getattr(errors, name)

    def fail(*_: object, **__: object) -> None:
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    assert words in error_of("org/sums", revision="v9")
    with pytest.raises(BadInput, match="org/sums"):
        fingerprint(Source("org/sums", revision="v9"), FLAG)


def test_no_id_of_a_dataset() -> None:
    assert "not the id of a dataset" in error_of("what is this")


def test_cached_dataset_offline(tmp_path: Path) -> None:
    """A dataset in the cache is read at the revision that was asked for, with HF_HUB_OFFLINE set."""
    old, new = "0" * 39 + "1", "0" * 39 + "2"
    repo = tmp_path / "hub" / "datasets--org--sums"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(new)
    for commit in (old, new):
        folder = repo / "snapshots" / commit
        folder.mkdir(parents=True)
        for split in ("train", "test"):
            rows = [{"question": f"{split} {row} of {commit[-1]}", "n": row} for row in range(3)]
            (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code = (
        "from exporter.common.errors import BadInput\n"
        "from exporter.prompts.sources import Source, fingerprint, load_prompts\n"
        "def show(**keys):\n"
        "    source = Source('org/sums', **keys)\n"
        "    try:\n"
        "        prompts = load_prompts(source, '--forget')\n"
        "        print(prompts[-1].text, prompts[-1].row, prompts[-1].source, fingerprint(source)[-1])\n"
        "    except BadInput as error:\n"
        "        print(error)\n"
        "show()\n"
        "show(split='test', limit=2)\n"
        f"show(revision='{old}')\n"
        "show(split='dev')\n"
        "show(name='hard')\n"
        "show(column='answer')\n"
        "show(revision='v9')\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ROOT}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[:3] == ["train 2 of 2 3 org/sums 2", "test 1 of 2 2 org/sums 2", "train 2 of 1 3 org/sums 1"]
    assert lines[3] == (
        "--forget org/sums: the dataset cannot be loaded (Unknown split \"dev\". Should be one of ['train', 'test'].)"
    )
    assert "BuilderConfig 'hard' not found" in lines[4]
    assert lines[5] == "--forget org/sums: has no column 'answer'; there are question, n"
    assert "no such dataset in the cache" in lines[6]
