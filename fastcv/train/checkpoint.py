"""Checkpoints: one dict of tensors and plain values, written whole or not at all, read without running code.

Keys: model, model_ema, optimizer, lr_scheduler (their state_dicts), epoch and step (where to go on), args (the options), data
(name, task, classes, shape, white, mean, deviation: what is needed to use the model), history (a dict per epoch), partial
(sums of the running epoch), best, versions. Generators need no state: all that is random is drawn from the seed, the epoch and the step.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..models.weights import UnreadableError, read_tensors

__all__ = ["CheckpointError", "load", "save", "write"]

KEYS = {"model", "args", "data", "epoch", "history"}


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message is one sentence with the file and the reason."""


def write(file: Path, content: bytes) -> None:
    """``content`` as ``file``: after a crash at any moment the old file or the new one is there, whole."""
    _replace(file, lambda stream: stream.write(content))


def save(state: dict[str, Any], file: Path) -> None:
    """A checkpoint as ``file``, as ``write`` does it."""
    _replace(file, lambda stream: torch.save(state, stream))


def _replace(file: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Raises OSError that names ``file``, for a disk that is full and the like."""
    try:
        _fill(file, fill)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save puts an error of its own before the stream's
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror or str(cause), os.fspath(file)) from error


def _fill(file: Path, fill: Callable[[BinaryIO], object]) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    fresh = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            fill(stream)
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        fresh.chmod(0o666 & ~umask)
        fresh.replace(file)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def load(file: str | Path) -> dict[str, Any]:
    """The checkpoint ``file``, its tensors on the CPU. Raises CheckpointError."""
    path = Path(file)
    if not path.is_file():
        raise CheckpointError(f"{file} {'is a folder, expected a checkpoint file' if path.is_dir() else 'does not exist'}")
    try:
        state = read_tensors(path)
    except UnreadableError as error:
        raise CheckpointError(f"{file} is no checkpoint that can be read: {error}") from None
    if not isinstance(state, dict) or not state.keys() >= KEYS:
        lacking = f"it lacks {', '.join(sorted(KEYS - state.keys()))}" if isinstance(state, dict) else f"it holds a {type(state).__name__}"
        raise CheckpointError(f"{file} is no checkpoint of fastcv train: {lacking}")
    return state
