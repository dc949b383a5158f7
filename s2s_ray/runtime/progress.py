"""Progress of long operations: a bar in a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

LINE_EVERY_S = 10.0
Advance: TypeAlias = Callable[[int], None]
ProgressFactory: TypeAlias = Callable[[int, str, str], AbstractContextManager[Advance]]


@contextmanager
def progress(total: int, label: str, unit: str = "items") -> Iterator[Advance]:
    """Show the progress of a loop: `with progress(n, "prepare", "pairs") as advance: ... advance(1)`.

    If standard error is a terminal, show a bar with the time left. Otherwise log a line every ten seconds and one at
    the end, with count, rate and time left.
    """
    if sys.stderr.isatty():
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total, rate="")

            def draw(count: int) -> None:
                bar.advance(task, count)
                speed = bar.tasks[0].speed
                bar.update(task, rate=f"{speed:.1f}/s" if speed else "")

            yield draw
    else:
        lines = ProgressLogger(total, label, unit)
        yield lines.advance
        lines.write()


class ProgressLogger:
    """Progress as log lines: one every `LINE_EVERY_S` seconds."""

    def __init__(self, total: int, label: str, unit: str) -> None:
        self.total, self.label, self.unit = total, label, unit
        self.done = 0
        self.started = self.written = time.monotonic()

    def advance(self, count: int) -> None:
        """Count finished items, and log a line if it is time."""
        self.done += count
        if time.monotonic() - self.written >= LINE_EVERY_S:
            self.write()

    def write(self) -> None:
        """Log the count, the rate and the time left."""
        self.written = time.monotonic()
        seconds = self.written - self.started
        rate = self.done / seconds if seconds > 0 else 0.0
        left = f", {(self.total - self.done) / rate:.0f} s left" if self.done < self.total and rate > 0 else ""
        log.info("%s: %d of %d %s, %.1f/s%s", self.label, self.done, self.total, self.unit, rate, left)
