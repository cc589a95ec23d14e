"""Progress for people: bars with time left on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from slimdpm.system.amounts import duration
from slimdpm.system.text import one_line

LOG_SECONDS = 15.0  # between two lines of one task in a log
_LINE = 2000  # characters of a line at most


class Task:
    """One piece of work of known length. `advance` moves it and shows the latest numbers beside it."""

    def __init__(self, display: Display, label: str, total: int, done: int, unit: str):
        self.display, self.label, self.total, self.done, self.unit = display, one_line(label), total, done, unit
        self.started = self.last_line = time.monotonic()
        self.recent = deque([(self.started, done)], maxlen=5)  # the last lines: the speed of now, not of the average
        self.bar: TaskID | None = None
        if display.progress is not None:
            self.bar = display.progress.add_task(self.label, total=total, completed=done, numbers="")

    def advance(self, amount: int = 1, numbers: str = "") -> None:
        self.done += amount
        if self.bar is not None and self.display.progress is not None:
            self.display.progress.update(self.bar, advance=amount)
            if numbers:
                self.display.progress.update(self.bar, numbers=numbers)
        elif self.display.console is not None:
            now = time.monotonic()
            if now - self.last_line >= LOG_SECONDS or self.done >= self.total:
                self.last_line = now
                self.recent.append((now, self.done))
                self.display.say(
                    f"{self.label}: {self.done}/{self.total} {self.unit}{self._left(now)}  {numbers}".rstrip()
                )

    def _left(self, now: float) -> str:
        since, done = self.recent[0]
        if self.done >= self.total or self.done == done:
            return f", {duration(now - self.started)} taken"
        seconds = (now - since) / (self.done - done) * (self.total - self.done)
        return f", {duration(seconds)} left"


class Display:
    """Where a run speaks. On a terminal it draws bars, in a log it prints a line now and then.

    Args:
        console: rich's console; None keeps silent.
    """

    def __init__(self, console: Console | None = None):
        self.console = console
        self.progress: Progress | None = None

    def say(self, text: str) -> None:
        """A line."""
        if self.console is not None:
            # Not a terminal: a long line is a line, wrapping would break it for whoever searches the log.
            line = one_line(text, _LINE)
            self.console.print(line, highlight=False, markup=False, soft_wrap=not self.console.is_terminal)

    @contextmanager
    def task(self, label: str, total: int, *, done: int = 0, unit: str = "") -> Iterator[Task]:
        """Show a piece of work while the context is open."""
        outermost = self.progress is None
        if outermost and self.console is not None and self.console.is_terminal:
            self.progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}", style="dim", markup=False),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.progress.start()
        task = Task(self, label, total, done, unit)
        try:
            yield task
        finally:
            if self.progress is not None:
                if outermost:
                    self.progress.stop()
                    self.progress = None
                elif task.bar is not None:
                    self.progress.remove_task(task.bar)

    def track(self, items: Iterable, total: int, label: str, unit: str = "") -> Iterator:
        """The items, with a task around them."""
        with self.task(label, total, unit=unit) as task:
            for item in items:
                yield item
                task.advance()


def loss_line(values: Mapping[str, float], names: Iterable[str]) -> str:
    """Those of the values that have these names, in one short line."""
    return "  ".join(f"{name} {values[name]:.4f}" for name in names if name in values)


def figures_table(headings: Sequence[str], rows: Iterable[Sequence[str]], texts: Sequence[int] = (0,)) -> Table:
    """A table of figures, flush right; the columns of these numbers hold text and may be folded."""
    table = Table(box=None, pad_edge=False)
    for number, heading in enumerate(headings):
        text = number in texts
        table.add_column(
            Text(one_line(heading)), justify="left" if text else "right", no_wrap=not text, overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    return table
