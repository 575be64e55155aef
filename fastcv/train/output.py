"""A folder of results that is written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["OutputError", "check_output", "replaced_folder"]


class OutputError(OSError):
    """The output folder cannot be written or must not be replaced; the message is one sentence."""


def check_output(output: str | Path, ours: Collection[str]) -> Path:
    """The absolute path of ``output`` if it can be created or replaced: an existing folder may hold files named in ``ours`` only."""
    path = Path(output).resolve()
    if path.exists() and not path.is_dir():
        raise OutputError(f"{output} is a file, expected a folder to write into")
    if path.exists():
        foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in ours)
        if foreign:
            raise OutputError(f"{output} holds {foreign[0]}, which this program did not write; choose another folder")
    parent = path.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{parent} cannot be created: {error.strerror}") from error
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{parent} is not writable")
    return path


@contextmanager
def replaced_folder(output: str | Path, ours: Collection[str]) -> Iterator[Path]:
    """Yields a new folder beside ``output``; at the end of the block it takes that name, and after an exception it is removed.

    What ``output`` held before stays until the new folder is complete. The names in ``ours`` are as in ``check_output``.
    """
    path = check_output(output, ours)
    fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield fresh
        umask = os.umask(0)
        os.umask(umask)
        fresh.chmod(0o777 & ~umask)
        if not path.exists():
            fresh.rename(path)
            return
        check_output(output, ours)
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            path.rename(old)  # an empty folder is replaced
            fresh.rename(path)
        except BaseException:
            if not path.exists():
                old.rename(path)
            raise
        finally:
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
