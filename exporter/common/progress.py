"""Progress over a whole run: one bar on a terminal, else a line for each stage and every half minute."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

EVERY = 30.0
"""Seconds between two lines where there is no terminal."""
LEAST_DONE = 0.02
"""Share of the work from which the time left is told."""

Advance = Callable[[float], None]


@dataclass
class Progress:
    """What is done of a run, in tokens that go through a model.

    quiet: shows nothing; console: where to, by default stderr. Stages that are expected make the total; where none
    are, only the stage's own share is shown.
    """

    quiet: bool = True
    console: Console = field(default_factory=lambda: Console(stderr=True))
    _expected: list[tuple[str, float]] = field(default_factory=list)
    _done: float = 0.0
    _stage: tuple[str, float, float] | None = None  # name, work, done
    _begun: float | None = None
    _working: float | None = None  # since when tokens go through the model
    _planned: bool = False
    _told: bool = False
    _shown: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _bar: Bar | None = None

    def __enter__(self) -> Progress:
        """Show it until the block ends; a stage alone shows itself."""
        self._shown += 1
        if self.quiet or self._shown > 1:
            return self
        self._stop = threading.Event()
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(24),
                TaskProgressColumn(),
                TextColumn("{task.fields[times]}"),
            )
            self._bar = Bar(*columns, console=self.console, transient=True)
            self._bar.add_task("", total=1.0, times="")
            self._bar.start()
        threading.Thread(target=self._tell, args=(self._stop,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shown -= 1
        if self._shown:
            return
        self._stop.set()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def expect(self, stages: Sequence[tuple[str, float]]) -> None:
        """Stages that will come, with their work."""
        self._expected += stages
        self._planned = True

    @contextmanager
    def stage(self, name: str, work: float, what: str = "") -> Iterator[Advance]:
        """One stage of the run; gives what tells that so much of its work is done. what: it in numbers, for people."""
        self._expected = without(self._expected, name)
        begun = time.monotonic()
        self._begun = self._begun or begun
        if work and self._working is None:
            self._working = begun
        self._stage = name, work, 0.0

        def advance(done: float) -> None:
            self._stage = name, work, min(work, (self._stage or (name, work, 0.0))[2] + done)
            self._show()
            if self._planned and not self._told and self.share >= LEAST_DONE:
                self._told = True
                self._say(f"{self.total:,.0f} tokens go through the model in all, {self.times()}")

        with self:
            try:
                yield advance
            finally:
                self._stage, self._done = None, self._done + work
            self._say(f"{name}{what and ', '}{what}: {duration(time.monotonic() - begun)}")

    @property
    def total(self) -> float:
        """All work: done, of the stage that runs, and expected."""
        return self._done + (self._stage[1] if self._stage else 0.0) + sum(work for _, work in self._expected)

    @property
    def share(self) -> float:
        """What is done of it."""
        return (self._done + (self._stage[2] if self._stage else 0.0)) / (self.total or 1.0)

    def times(self) -> str:
        """How long the run has taken, and is still expected to take."""
        now = time.monotonic()
        left = ""
        if self._planned and self.share >= LEAST_DONE:
            left = f", about {duration((now - (self._working or now)) * (1 - self.share) / self.share)} left"
        return f"{duration(now - (self._begun or now))}{left}"

    def _tell(self, stop: threading.Event) -> None:
        while not stop.wait(1.0 if self._bar is not None else EVERY):
            if self._bar is not None:
                self._show()
            elif (stage := self._stage) is not None:
                self._say(f"{stage[0]}: {self.share:.0%}{self._planned * ' of all'}, {self.times()}")

    def _show(self) -> None:
        if self._bar is not None and self._stage is not None:
            self._bar.update(
                self._bar.task_ids[0], completed=self.share, description=self._stage[0], times=self.times()
            )

    def _say(self, line: str) -> None:
        if not self.quiet:
            (self._bar.console if self._bar is not None else self.console).print(
                line, markup=False, highlight=False, soft_wrap=True
            )


def without(stages: Sequence[tuple[str, float]], name: str) -> list[tuple[str, float]]:
    """The stages but for the first of that name."""
    place = next((place for place, (each, _) in enumerate(stages) if each == name), None)
    return [each for number, each in enumerate(stages) if number != place]


def duration(seconds: float) -> str:
    """As 0:07, 12:30 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
