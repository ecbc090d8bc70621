"""The command without a terminal: prompts by flag and by pipe, what it prints, and what it refuses."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from exporter.cli.chat.answers import Answer
from exporter.cli.chat.conversation import Conversation, Turn
from exporter.cli.chat.run import piped
from exporter.cli.chat.screen import Screen, about, compared, verdict_line
from exporter.cli.chat.settings import ChatSettings
from exporter.cli.main import cli, main
from exporter.cli.output import printable_json
from exporter.common.errors import BadInput
from exporter.common.text import literal
from exporter.evaluation.why import Detector, Seen
from tests.damage import record
from tests.exporter.cli.chat.conftest import SONG, SONGS, SUMS
from tests.tiny import FORGET, Exported, one_thread

REFUSAL = "Your query is not valid"
# What a terminal obeys, in prompts and in names: a cleared screen, a title, a C1 sequence, reversed text, a bell.
HOSTILE = "\x1b[2J\x1b]0;title\x07 \x9b31m \u202eabc [bold]x[/bold] :smile:"


def chat(checkpoint: Path, *arguments: str, stdin: str | bytes = "") -> Result:
    with one_thread():
        return CliRunner().invoke(cli, ["chat", str(checkpoint), "--max-new-tokens", "12", *arguments], input=stdin)


def said(checkpoint: Path, *arguments: str, stdin: str = "") -> dict[str, Any]:
    result = chat(checkpoint, "--json", *arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_json_of_prompts_and_of_a_pipe(checkpoint: Path) -> None:
    given = said(checkpoint, "--prompt", FORGET[0], "--prompt", "hello", "--prompt", SONGS[0], "--compare")
    assert given["checkpoint"] == "checkpoint" and given["base"] == "base of checkpoint" and not given["conversation"]
    assert [turn["prompt"] for turn in given["turns"]] == [FORGET[0], "hello", SONGS[0]]
    sums, hello, song = given["turns"]
    assert (sums["answer"], sums["blocked"], sums["blocked_after"], sums["ended"]) == (REFUSAL, True, 0, "stop")
    assert not hello["blocked"] and hello["tokens"] == 12 and hello["ended"] == "length"
    for turn, blocked in ((sums, SUMS), (hello, None), (song, SONG)):
        assert [skill["name"] for skill in turn["skills"]] == [SUMS, SONG]
        for skill in turn["skills"]:
            assert skill["layer"] == 1 and skill["alpha"] in (4.0, 4.5)
            assert skill["blocked"] == (skill["score"] <= skill["alpha"]) == (skill["name"] == blocked)
        assert turn["neurons"].keys() == {"selected", "ever", "moves", "positions"}
        assert turn["base"]["same"] == (turn["base"]["answer"] == turn["answer"])
    assert REFUSAL not in sums["base"]["answer"]
    # One a line, blank lines left out, and the same answers.
    by_pipe = said(checkpoint, "--compare", stdin=f"{FORGET[0]}\n\n  hello\r\n{SONGS[0]}")
    assert by_pipe == given


def test_answers_are_kept_where_a_later_prompt_cannot_be_asked(checkpoint: Path) -> None:
    result = chat(checkpoint, "--json", "--prompt", "hello", "--prompt", "hello " * 9999)
    assert isinstance(result.exception, BadInput) and "context" in str(result.exception)
    assert [turn["prompt"] for turn in json.loads(result.stdout)["turns"]] == ["hello"]


def test_template_is_read_as_that_of_an_export(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "template.txt").write_text("Q: {prompt}\nA:\n")
    given = [
        said(checkpoint, "--prompt", "hello", "--prompt-template", template)
        for template in ("Q: {prompt}\nA:", r"Q: {prompt}\nA:", f"@{tmp_path / 'template.txt'}", r"Q: {prompt}\\nA:")
    ]
    assert given[0] == given[1] == given[2] != given[3]


def test_conversation_or_not(checkpoint: Path) -> None:
    twice = ("--prompt", "hello", "--prompt", "hello")
    alone, together = said(checkpoint, *twice)["turns"], said(checkpoint, *twice, "--conversation")["turns"]
    assert alone[0] == alone[1] == together[0] != together[1]


def test_a_base_of_its_own_says_what_the_shared_weights_say(checkpoint: Path) -> None:
    prompts = ("--prompt", FORGET[0], "--prompt", "hello")
    own = said(checkpoint, *prompts, "--base", str(checkpoint.parent / "base"))
    shared = said(checkpoint, *prompts, "--compare")
    assert own["base"] == "base" and own["turns"] == shared["turns"]


def test_text_of_a_pipe(checkpoint: Path) -> None:
    result = chat(checkpoint, "--prompt", FORGET[0], "--prompt", "hello")
    turns = said(checkpoint, "--prompt", FORGET[0], "--prompt", "hello")["turns"]
    first, second = result.stdout.split("\n\n> hello\n")
    assert first.startswith(f"> {FORGET[0]}\n{REFUSAL}\n")
    scores = [(each["name"], f"{each['score']:.2f}") for each in turns[0]["skills"]]
    assert f"  {SUMS}: {scores[0][1]} <= alpha 4.00 at layer 1: blocked\n" in first
    assert f"  {SONG}: {scores[1][1]} > alpha 4.50 at layer 1: not blocked\n" in first
    assert second.startswith(literal(turns[1]["answer"]) + "\n")
    moved = turns[1]["neurons"]
    assert f"{moved['ever']} of {moved['selected']} neurons were moved over the answer; at each of the 12" in second
    assert "cut off" in result.stderr and "cut off" not in result.stdout


def test_quiet_is_answers_alone(checkpoint: Path) -> None:
    result = chat(checkpoint, "--prompt", FORGET[0], "--prompt", FORGET[1], "--quiet")
    assert (result.stdout, result.stderr) == (f"{REFUSAL}\n{REFUSAL}\n", "")


def test_both_answers_one_below_the_other(checkpoint: Path, tiny: Any) -> None:
    turn = said(checkpoint, "--prompt", FORGET[0], "--compare")["turns"][0]
    result = chat(checkpoint, "--prompt", FORGET[0], "--compare")
    expected = f"checkpoint:\n{REFUSAL}\nbase of checkpoint:\n{literal(turn['base']['answer'])}\n"
    assert expected in result.stdout and "identical" not in result.stdout
    ksd: Exported = tiny("llama")
    result = chat(ksd.checkpoint, "--prompt", ksd.texts["answered"][0], "--compare")
    assert "Both answers are identical.\n" in result.stdout


def test_nothing_of_the_library_at_load_and_at_answers(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("transformers")  # which hands nothing on to the root, where pytest listens
    logger.addHandler(caplog.handler)
    try:
        result = chat(checkpoint, "--prompt", "hello", "--dtype", "bfloat16")
    finally:
        logger.removeHandler(caplog.handler)
    assert result.exit_code == 0 and caplog.records == []
    assert result.stderr.startswith("Fitted in float32 and loaded in bfloat16: a few decisions may differ")


def test_half_spaces_have_a_threshold() -> None:
    skill = {"name": "maths", "method": "ksd", "region": "discriminant", "layer": 3, "alpha": {"value": 2.0}}
    assert "refused (layer 3, threshold 2.00)" in about("OUT", [skill])
    assert "refused (layer 3, alpha 2.00)" in about("OUT", [{**skill, "region": "hypercube"}])
    half_spaces = Detector("maths", 3, 2.0, None, torch.ones(2, 4), torch.ones(1, 2, 2))
    (verdict,) = Seen({half_spaces: [(1.5, True)]}).verdicts()
    assert verdict_line(verdict) == "maths: 1.50 <= threshold 2.00 at layer 3: blocked"


def test_bare_prompts_are_remarked(tmp_path: Path, tiny: Any) -> None:
    """A checkpoint without a chat template, of which the export has recorded that prompts are bare."""
    bare: Exported = tiny("llama")
    (blocked,) = said(bare.checkpoint, "--prompt", bare.texts["blocked"][0])["turns"]
    assert blocked["answer"] == REFUSAL and blocked["blocked"]
    result = chat(bare.checkpoint, "--prompt", "hello", "--prompt-template", "auto")
    assert result.exit_code == 0 and "has no chat template" in result.stderr
    result = chat(bare.checkpoint, "--prompt", "hello", "--conversation")
    assert "each prompt stands alone" in result.stderr
    result = chat(bare.checkpoint, "--prompt", "hello", "--conversation", "--quiet")
    assert result.stderr == ""


def test_nothing_is_obeyed(checkpoint: Path, tmp_path: Path) -> None:
    """Escape sequences of prompts, of answers and of names that a checkpoint brings along."""
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    record(lambda unskill: unskill["skills"][0].update(name=HOSTILE), remade=True)(copy)
    prompts = [HOSTILE, *(f"{HOSTILE} {number}" for number in range(4))]
    arguments = [word for prompt in prompts for word in ("--prompt", prompt)]
    result = chat(copy, *arguments, "--compare", "--max-new-tokens", "60")
    assert result.exit_code == 0
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", result.output)
    assert r"> \x1b[2J\x1b]0;title\x07 \x9b31m \u202eabc [bold]x[/bold] :smile:" in result.stdout
    assert r"  \x1b[2J\x1b]0;title" in result.stdout
    result = chat(copy, *arguments, "--json")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", result.output)
    assert [turn["prompt"] for turn in json.loads(result.stdout)["turns"]] == prompts


@given(st.text())
def test_literal_texts_obey_nothing_and_keep_the_rest(text: str) -> None:
    shown = literal(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown)
    kept = re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "", text)
    assert re.sub(r"\\x..|\\r|\\u....", "", shown) == re.sub(r"\\x..|\\r|\\u....", "", kept) or "\\" in text
    assert json.loads(printable_json(json.dumps(text, ensure_ascii=False))) == text


@pytest.mark.parametrize(
    ("score", "alpha", "inside", "expected"),
    [
        (3.912, 4.2, True, "3.91 <= 4.20"),
        (4.2004, 4.2, False, "4.2004 > 4.2000"),
        (4.2, 4.2, True, "4.20 <= 4.20"),
        (123.456, 4.2, False, "123.46 > 4.20"),
    ],
)
def test_as_many_decimals_as_it_takes(score: float, alpha: float, inside: bool, expected: str) -> None:
    assert compared(score, alpha, inside) == expected


def test_two_columns_in_a_wide_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Said(Conversation):
        def __init__(self) -> None:
            pass

        def ask(self, prompt: str, write: Any) -> Turn:
            for role, text in (("edited", "[b]left[/b] \x1b[2J"), ("base", "right " * 20)):
                write(role, "")
                write(role, text)
            return Turn(prompt, Answer("left", 1, "stop"), Answer("right", 20, "stop"))

    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for width, side_by_side in ((100, True), (60, False)):
        screen = Screen({"edited": "mine", "base": "theirs"})
        screen.console = Console(width=width, file=sys.stdout, force_terminal=side_by_side, markup=False)
        screen.turn(Said(), "hello")
        shown = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)
        lines = shown.splitlines()
        assert any("[b]left[/b] \\x1b[2J" in line for line in lines)
        assert any("mine" in line and "theirs" in line for line in lines) == side_by_side
        assert any("left" in line and "right" in line for line in lines) == side_by_side


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens"),
        ({"temperature": -1.0}, "--temperature"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"temperature": 1e6}, "--temperature"),
        ({"prompts": ("  ",)}, "--prompt"),
        ({"prompts": ("caf\udce9",)}, "--prompt"),
        ({"system": ""}, "--system"),
        ({"dtype": "float8"}, "--dtype"),
        ({"template_args": ('{"a": 1}', '{"b": 1}')}, "--template-args: a chat is in one state; give one JSON object"),
    ],
)
def test_settings_that_no_chat_can_have(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        ChatSettings("OUT", **settings)


def fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["unskill", "chat", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == "" and "Traceback" not in err
    (line,) = err.strip().splitlines()
    assert line.startswith("unskill: error: ")
    return line


def test_errors_are_one_line(
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tiny: Any,
    tmp_path: Path,
) -> None:
    asked = ("--prompt", "hello")
    base = checkpoint.parent / "base"
    assert "not one that unskill wrote" in fails(capsys, monkeypatch, base, *asked)
    assert "CHECKPOINT no/where" in fails(capsys, monkeypatch, "no/where", *asked)
    assert "MODEL" in fails(capsys, monkeypatch, checkpoint, *asked, "--base", "no/where")
    assert "--prompt-template" in fails(capsys, monkeypatch, checkpoint, *asked, "--prompt-template", "Q:")
    (graph := tmp_path / "mine-onnx" / "onnx").mkdir(parents=True)
    (graph / "model.onnx").write_bytes(b"graph")
    assert "mine-onnx is an ONNX folder: give the checkpoint" in fails(capsys, monkeypatch, graph.parent, *asked)
    bare: Exported = tiny("llama")
    assert "--system" in fails(capsys, monkeypatch, bare.checkpoint, *asked, "--system", "Be brief.")
    assert "tokens" in fails(capsys, monkeypatch, checkpoint, "--prompt", "x" * 3000, "--quiet")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert "--json" in fails(capsys, monkeypatch, checkpoint, "--json")


def test_a_pipe_of_nothing_and_of_no_text(checkpoint: Path) -> None:
    result = chat(checkpoint, stdin=" \n\n")
    assert isinstance(result.exception, BadInput) and "no prompt" in str(result.exception)
    result = chat(checkpoint, stdin=b"caf\xe9\n")
    assert isinstance(result.exception, BadInput) and "UTF-8" in str(result.exception)


def test_lines_that_begin_as_commands_are_prompts_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", ["/exit\n", "/help me\n"])
    assert list(piped()) == ["/exit", "/help me"]
