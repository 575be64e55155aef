"""Progress on a terminal as a bar that redraws itself, elsewhere as plain lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Task", "task"]


class Task(Protocol):
    """What a running piece of work reports to."""

    def advance(self, steps: int = 1) -> None:
        """``steps`` more are done."""

    def say(self, text: str) -> None:
        """The newest numbers: shown beside the bar, or as a line of their own."""

    def show(self, text: str) -> None:
        """Numbers that the next ones replace: shown beside the bar, or not at all."""

    def line(self, text: str) -> None:
        """A line that stays: above the bar, or as ``say`` does."""


class _Bar:
    def __init__(self, progress: Progress, total: int, done: int) -> None:
        self._progress, self._id = progress, progress.add_task("", total=total, completed=done, text="")

    def advance(self, steps: int = 1) -> None:
        self._progress.advance(self._id, steps)

    def say(self, text: str) -> None:
        self._progress.update(self._id, text=text)

    show = say

    def line(self, text: str) -> None:
        self._progress.console.print(f"  {text}", highlight=False, markup=False, soft_wrap=True)


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console

    def advance(self, steps: int = 1) -> None:
        pass

    def say(self, text: str) -> None:
        self._console.print(f"  {text}", highlight=False, markup=False, soft_wrap=True)

    def show(self, text: str) -> None:
        pass

    def line(self, text: str) -> None:
        self._console.print(f"  {text}", highlight=False, markup=False, soft_wrap=True)


@contextmanager
def task(console: Console, title: str, total: int, done: int = 0) -> Iterator[Task]:
    """A piece of work of ``total`` steps, ``done`` of which are behind it."""
    console.print(title, highlight=False, markup=False, style="bold")
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (TextColumn(" "), BarColumn(16), TimeRemainingColumn(), TextColumn("{task.fields[text]}", markup=False))
    with Progress(*columns, console=console) as progress:
        yield _Bar(progress, total, done)
