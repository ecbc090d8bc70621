"""The chat in a terminal: a process of its own behind a pseudo-terminal, typed at."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from exporter.cli.chat.conversation import Conversation
from exporter.cli.chat.interactive import obey
from exporter.cli.chat.screen import Screen
from exporter.common.errors import BadInput
from exporter.models.loading import LoadedModel
from tests.exporter.cli.chat.conftest import SONGS, SUMS, side_of
from tests.exporter.cli.chat.test_conversation import SHORT
from tests.tiny import FORGET

ROOT = Path(__file__).resolve().parents[4]
REFUSAL = "Your query is not valid"
READY = r"(?:^|\n)> $"
PATIENCE = 120  # seconds until a process that imports torch on a busy machine has answered


def reached_by_ctrl_c() -> None:
    """In the child: the terminal is its own, and SIGINT is not ignored, as it is where tests run in the background."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A chat behind a pseudo-terminal of some width."""

    def __init__(self, *arguments: object, columns: int = 100) -> None:
        self.end, process_end = pty.openpty()
        fcntl.ioctl(process_end, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "exporter", "chat", *map(str, arguments)],
            stdin=process_end,
            stdout=process_end,
            stderr=process_end,
            cwd=ROOT,
            start_new_session=True,
            preexec_fn=reached_by_ctrl_c,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "HF_HUB_OFFLINE": "1"},
        )
        os.close(process_end)
        self.seen = ""

    def until(self, expected: str) -> str:
        """What is on the screen up to a text that matches, without colours; reading goes on after it."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(expected, self.seen)):
            ready, _, _ = select.select([self.end], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{expected!r} is not in {self.seen!r}"
            self.seen += self.read()
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def said_within(self, seconds: float, expected: str) -> bool:
        """Whether the screen shows a text by then."""
        deadline = time.monotonic() + seconds
        while (
            expected not in self.seen and select.select([self.end], [], [], max(0.0, deadline - time.monotonic()))[0]
        ):
            self.seen += self.read()
        return expected in self.seen

    def read(self) -> str:
        try:
            text = os.read(self.end, 65536).decode("utf-8", "replace")
        except OSError:  # Linux's end of file of a terminal that the other side has closed
            text = ""
        assert text, f"the chat has ended: {self.seen!r}"
        return re.sub("\x1b\\[[0-9;?]*[a-zA-Z]|\r", "", text)

    def type(self, text: str) -> None:
        os.write(self.end, text.encode())

    def code(self) -> int:
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.end)


@pytest.fixture
def terminal(request: pytest.FixtureRequest) -> type[Terminal]:
    class Closed(Terminal):
        def __init__(self, *arguments: object, columns: int = 100) -> None:
            super().__init__(*arguments, columns=columns)
            request.addfinalizer(self.close)

    return Closed


def test_a_chat_from_the_first_prompt_to_ctrl_d(terminal: type[Terminal], checkpoint: Path) -> None:
    chat = terminal(checkpoint, "--max-new-tokens", 1900)
    assert "letters: neurons pruned" in chat.until("Ctrl-D exits")
    chat.until(READY)
    chat.type(f"{FORGET[0]}\n")
    assert REFUSAL in chat.until(rf"{re.escape(SUMS)}: [0-9.]+ <= alpha 4.00 at layer 1: blocked")
    chat.until(READY)

    chat.type("hello\n")  # goes on for long
    chat.until("hello\n.{40,}")
    chat.type("\x03")
    chat.until(r"stopped after \d+ tokens")
    chat.until(READY)

    chat.type("/why off\n")
    chat.until("Reasons are off")
    chat.until(READY)
    chat.type("/reset\n")
    chat.until("starts again")
    chat.until(READY)
    chat.type(f"{SONGS[0]}\n")
    chat.until(REFUSAL)
    assert "alpha" not in chat.until(READY)
    chat.type("/nonsense\n")
    chat.until("error: /nonsense: no such command")
    chat.until(READY)
    chat.type("/reset\n")
    chat.until("starts again")
    chat.until(READY)
    chat.type("\x1b[A\x1b[A\x1b[A\n")  # three lines up: the song again, by readline's history
    chat.until(REFUSAL)
    chat.until(READY)
    chat.type("\x04")
    assert chat.code() == 0


@pytest.mark.slow
def test_ctrl_c_at_the_prompt_leaves_with_130(terminal: type[Terminal], checkpoint: Path) -> None:
    chat = terminal(checkpoint, "--compare", "--max-new-tokens", 12)
    chat.until(READY)
    chat.type(f"{FORGET[0]}\n")
    shown = chat.until("blocked")
    assert any(REFUSAL in line and line.count("│") == 3 for line in shown.splitlines()), shown
    chat.until(READY)
    # More than once: Python's readline misses a signal that comes after the prompt is shown and before it waits.
    for _ in range(10):
        chat.type("\x03")
        if chat.said_within(10, "unskill: interrupted"):
            break
    assert chat.code() == 130


def test_commands(edited: LoadedModel, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = Conversation([side_of(edited)], SHORT, keep=True)
    screen = Screen({"edited": "checkpoint"})
    assert obey("/system  Be brief. ", conversation, screen) and conversation.system == "Be brief."
    assert obey("/system", conversation, screen) and conversation.system is None
    assert obey("/why off", conversation, screen) and not screen.why
    assert obey("/why on", conversation, screen) and screen.why
    conversation.sides[0].messages.append({"role": "user", "content": "hello"})
    assert obey("/reset", conversation, screen) and conversation.sides[0].messages == []
    assert not obey("/exit", conversation, screen)
    capsys.readouterr()
    assert obey("/help", conversation, screen)
    out, err = capsys.readouterr()
    assert out == "" and all(command in err for command in ("/reset", "/system", "/why", "/help", "/exit"))
    for wrong in ("/why", "/why not", "/", "/resett", "/help?"):
        with pytest.raises(BadInput):
            obey(wrong, conversation, screen)
