"""Every command's --help ends with an example; here they are run, as they stand, with stdout piped and with --json."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from exporter.cli.main import cli
from exporter.models.families import FAMILIES, MIXTURE, MLX_FAMILIES
from tests.tiny import FORGET, RETAIN, one_thread, tiny_model

# What a tiny random model needs, which cannot keep everyday prompts apart, and what would reach out of the machine.
MORE = {
    "export": ["--force", "--no-everyday", "--no-figures"],
    "probe": ["--no-everyday"],
    "evaluate": ["--limit", "4"],
    "build-ops": ["--no-cuda"],
    "push": ["--dry-run"],
    "chat": ["--max-new-tokens", "4"],
}
# In this order each finds what it needs.
COMMANDS = ("skills", "families", "probe", "export", "inspect", "verify", "evaluate", "report", "chat", "restore")
COMMANDS += ("push", "cache")
ONNX = ("onnx", "build-ops")
AGAIN = ("export", "probe", "report", "restore", "onnx")
"""Commands that write what the first run has written already."""


def examples(name: str) -> list[list[str]]:
    """The arguments of the examples at the end of a command's help, without `unskill`."""
    text = (cli.commands[name].help or "").rpartition("\b\n")[2].replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in text.splitlines() if line.strip().startswith("unskill ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where every file that the examples name is there."""
    folder = tmp_path_factory.mktemp("commands")
    tiny_model(folder / "MODEL", max_position_embeddings=4096)  # packaged formats are long byte by byte
    choices = {"subject": "spelling", "choices": ["a", "b", "c", "d"], "answer": 1}
    tables: dict[str, list[dict[str, Any]]] = {
        "maths": [{"question": text, "answer": f"That makes {len(text)}."} for text in FORGET],
        "code": [{"prompt": text} for text in RETAIN],
        "mmlu": [{"question": text, **choices} for text in RETAIN[:4]],
    }
    for name, rows in tables.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("UNSKILL_CACHE", str(folder / "kept"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder


def run(arguments: list[str], *more: str) -> str:
    """What a command prints on stdout."""
    fitted_anew = ["--force", "--no-answers"] if "--quantize" in arguments else []
    with one_thread():
        done = CliRunner().invoke(
            cli, [*arguments, *MORE.get(arguments[0], ()), *fitted_anew, *more], input="What is 3 + 4?\n"
        )
    assert done.exit_code == 0, f"{arguments}: {done.output} {done.exception}"
    return done.stdout


def run_all(names: tuple[str, ...]) -> None:
    for name in names:
        found = examples(name)
        assert found and found[0][0] == name
        for arguments in found:
            text = run(arguments)
            assert text.strip() and "\x1b" not in text, arguments
        again = ["--overwrite"] if name in AGAIN else []
        printed = json.loads(run(found[0], "--json", *again))
        assert isinstance(printed, dict) and printed


def test_every_command_is_here() -> None:
    assert set(cli.commands) == {*COMMANDS, *ONNX}
    for name, command in cli.commands.items():
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert "--json" in flags and isinstance(command, click.Command), name


@pytest.mark.slow
def test_examples_run(folder: Path) -> None:
    run_all(COMMANDS)
    assert (folder / "OUT" / "config.json").read_text() == (folder / "AGAIN" / "config.json").read_text()


@pytest.mark.slow
def test_examples_of_onnx_run(folder: Path) -> None:
    if not (folder / "OUT").is_dir():
        for arguments in examples("export"):
            run(arguments)
    run_all(ONNX)


HELP = """
import contextlib, io, json, sys
from exporter.cli.main import main
found = {}
for name in sys.argv[1:]:
    sys.argv = ["unskill", *([name] if name else []), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as text:
        try:
            main()
        except SystemExit as stopped:
            status = stopped.code
    found[name] = [status, text.getvalue(), sorted({module.partition(".")[0] for module in sys.modules})]
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[int, str, list[str]]]:
    """For `unskill` ("") and each command, one after the other in one process: exit status of --help, what it prints,
    the packages imported by then."""
    command = [sys.executable, "-c", HELP, "", *sorted(cli.commands)]
    found: dict[str, tuple[int, str, list[str]]] = json.loads(subprocess.check_output(command, text=True))
    return found


@pytest.mark.parametrize("name", ["", *sorted(cli.commands)])
def test_help_imports_nothing_heavy(name: str, helps: dict[str, tuple[int, str, list[str]]]) -> None:
    """Help in a blink: an import of torch alone takes more than a second."""
    status, text, imported = helps[name]
    assert status == 0 and re.search(r"^Usage: ", text)
    heavy = {"torch", "transformers", "datasets", "numpy", "scipy", "huggingface_hub", "onnx", "rich"}
    assert not heavy & set(imported)


def test_families_are_those_that_are_exported() -> None:
    rows = {each["family"]: each for each in json.loads(run(["families", "--json"]))["families"]}
    assert rows.keys() == FAMILIES.keys()
    assert rows["llama"] == {
        "family": "llama",
        "computes": "down(act(gate x) * up x)",
        "transformers": "4.48",
        "methods": ["ksd", "na", "sp"],
        "mlx_lm": True,
    }
    assert {name for name, each in rows.items() if each["methods"] == ["ksd"]} == {
        name for name, family in FAMILIES.items() if family.form is MIXTURE
    }
    assert {name for name, each in rows.items() if each["mlx_lm"]} == MLX_FAMILIES.keys()
    table = [re.split(r"\s*│\s*", line)[1:-1] for line in run(["families"]).splitlines() if line.startswith("│")]
    assert table == [
        [name, row["computes"], row["transformers"], ", ".join(row["methods"]), "yes" if row["mlx_lm"] else "no"]
        for name, row in rows.items()
    ]


def test_families_need_no_torch() -> None:
    code = "import sys; sys.argv = ['unskill', 'families']\nfrom exporter.cli.main import main\n"
    code += "try: main()\nfinally: print({'torch', 'transformers', 'numpy'} & sys.modules.keys(), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "set()\n")


def test_help_of_export_fits_a_screen_and_has_five_flags(helps: dict[str, tuple[int, str, list[str]]]) -> None:
    text = helps["export"][1]
    assert len(text.splitlines()) <= 40
    flags = re.findall(r"^  (?:-\w, )?(--[a-z-]+)", text, re.MULTILINE)
    assert flags == ["--skill", "--forget", "--retain", "--describe", "--recipe", "--help-all", "--help"]


def test_help_all_of_export_has_every_flag_once() -> None:
    done = CliRunner().invoke(cli, ["export", "--help-all"])
    shown = re.findall(r"^  (?:-\w, )?(--[a-z-]+)", done.stdout, re.MULTILINE)
    options = [each for each in cli.commands["export"].params if isinstance(each, click.Option)]
    assert done.exit_code == 0 and sorted(shown) == sorted([*(each.opts[0] for each in options), "--help"])


@pytest.mark.parametrize("arguments", [(), ("--help",), ("--version",), ("inspect", "MODEL")])
def test_windows_is_refused_in_one_line(arguments: tuple[str, ...]) -> None:
    """As on Windows, where there is no fcntl; before anything that needs it is imported."""
    code = f"""
import runpy, sys
sys.modules["fcntl"] = None
sys.platform = "win32"
sys.argv = ["unskill", *{arguments}]
runpy.run_module("exporter", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = "unskill: error: Windows is not supported: run unskill on Linux or macOS, or in WSL\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


def test_help_takes_less_than_three_tenths_of_a_second_of_cpu() -> None:
    """CPU time and the best of five, because other processes may keep the cores busy."""
    import resource

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "exporter", "--help"], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(5)) < 0.3
