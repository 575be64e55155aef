"""Long searches in chunks of queries: bounded memory beside the answer, interruptible, with a progress bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import functional

__all__ = ["chunks_of", "knn_chunked"]

_STEPS = 1 << 34  # coordinates compared per chunk: a fraction of a second
_LEAST = 512  # queries per chunk: enough to fill every thread's tiles
_PATIENCE = 2.0  # seconds before "auto" shows a bar


def chunks_of(queries: int, references: int, depth: int, progress: bool | str = "auto", most: int = 1 << 16) -> Iterator[slice]:
    """The queries in consecutive slices; what happens between two of them is shown as progress.

    most: queries per slice at most. progress: True and False mean what they say; "auto" shows a bar where stderr is a
    terminal, once two seconds have passed and there is more to come.
    """
    if progress not in (True, False, "auto"):
        raise ValueError(f'progress must be True, False or "auto", got {progress!r}')
    size = min(max(_STEPS // max(references * depth, 1), _LEAST), most)
    advance: Callable[[int], Any] | None = None
    close: Callable[[], Any] = lambda: None  # noqa: E731
    begin = time.monotonic()
    try:
        for start in range(0, queries, size):
            patient = progress == "auto" and (not sys.stderr.isatty() or time.monotonic() - begin < _PATIENCE)
            if advance is None and progress and not patient:
                advance, close = _bar(queries, start, required=progress is True)
            yield slice(start, min(start + size, queries))
            if advance is not None:
                advance(min(size, queries - start))
    finally:
        close()


def _bar(total: int, done: int, required: bool) -> tuple[Callable[[int], Any], Callable[[], Any]]:
    """Functions that advance and that remove a bar on stderr."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    except ModuleNotFoundError:
        if required:
            raise ModuleNotFoundError("a progress bar needs rich: pip install 'fastcv[cli]'", name="rich") from None
        return (lambda _: None), (lambda: None)
    columns = (TextColumn("neighbours"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    progress.start()
    task = progress.add_task("", total=total, completed=done)
    return (lambda steps: progress.advance(task, steps)), progress.stop


def knn_chunked(
    x: Tensor, y: Tensor, k: int, p: float = 2.0, *, squared: bool = False, progress: bool | str = "auto"
) -> tuple[Tensor, Tensor]:
    """``fastcv.functional.knn`` of many queries x [M, D] among y [N, D], a chunk of queries at a time: the same bits.

    progress: True, False, or "auto": a bar on a terminal once two seconds have passed. Ctrl-C takes effect between chunks.
    Returns (distances, indices), both [M, k]. No gradients. Raises what ``knn`` raises, RuntimeError for batches, ValueError for
    another progress, ModuleNotFoundError where a bar is demanded and rich is missing. Source: csrc/neighbors/knn.h.
    """
    if x.dim() != 2 or y.dim() != 2:
        raise RuntimeError(f"knn_chunked takes matrices, got x {tuple(x.shape)} and y {tuple(y.shape)}")
    with torch.no_grad():
        first = functional.knn(x[:0], y, k, p, squared=squared)  # checks, and the dtypes of the answer
        distances, indices = (t.new_empty((x.shape[0], k)) for t in first)
        for part in chunks_of(x.shape[0], *y.shape, progress=progress):
            distances[part], indices[part] = functional.knn(x[part], y, k, p, squared=squared)
    return distances, indices
