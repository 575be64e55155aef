"""Files of results: JSON lines, appended as they come. A head with the machine begins a run, its rows follow; a file may hold many runs.

A broken run loses at most the line that was being written. ``Results(path, resume=True)`` goes on with the last run of the
file: what it holds is not measured again.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .rows import Row

SCHEMA = 1
# A run goes on only where these are the same.
SAME = ("processor", "isa", "torch", "fastcv", "commit", "changed", "built_from", "wait_policy", "float32_precision", "device")


@dataclass
class Run:
    """head: the machine, the time it began, the command. rows: by key, a later one replaces an earlier one."""

    head: dict[str, Any]
    rows: dict[tuple[Any, ...], Row] = field(default_factory=dict)

    @property
    def title(self) -> str:
        facts = self.head["machine"]
        return f"{self.head['began']} {facts['commit']}{' changed' if facts['changed'] else ''}"


def read_runs(path: str | Path) -> list[Run]:
    """All runs of a file, the oldest first. An unfinished last line is left out.

    Raises ValueError, one sentence that names the file and the line: no file of results, another schema.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} holds no results of fastcv bench: it is no text") from None
    lines = text.split("\n")
    whole = lines[:-1]  # the last is empty, or was cut off while it was written
    runs: list[Run] = []
    for number, line in enumerate(whole, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            kind = record.pop("kind")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ValueError(f"{path}, line {number}: no line of fastcv bench results") from None
        if kind == "head":
            if record.get("schema") != SCHEMA:
                raise ValueError(f"{path}, line {number}: results of schema {record.get('schema')}, this fastcv reads schema {SCHEMA}")
            if not isinstance(record.get("machine"), dict) or not {"commit", "changed"} <= set(record["machine"]) or "began" not in record:
                raise ValueError(f"{path}, line {number}: a head without the machine or the time")
            runs.append(Run(record))
        elif kind == "row" and runs:
            try:
                row = Row.of_dict(record)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            runs[-1].rows[row.key] = row
        else:
            raise ValueError(f"{path}, line {number}: {'a row before any head' if kind == 'row' else f'unknown kind {kind!r}'}")
    if not runs:
        raise ValueError(f"{path} holds no run of fastcv bench")
    return runs


def last_run(path: str | Path) -> Run:
    """The newest run of a file. Raises as ``read_runs``."""
    return read_runs(path)[-1]


class Results:
    """A run that is being written; without a path it is only kept in memory."""

    def __init__(self, path: str | Path | None, machine: dict[str, Any], resume: bool = False, command: str = "") -> None:
        """resume: go on with the last run of the file if it is of the same machine and code.

        Raises ValueError for a file that is none of results, that cannot be written, or whose last run is another's.
        """
        self.path = None if path is None else Path(path)
        self.run = Run({"schema": SCHEMA, "began": time.strftime("%Y-%m-%dT%H:%M:%S"), "machine": machine, "command": command})
        if self.path is None:
            if resume:
                raise ValueError("--resume needs the file to go on with: --json FILE")
            return
        exists = self.path.exists() and self.path.stat().st_size > 0
        if resume and not exists:
            raise ValueError(f"{self.path} does not exist: there is no run to resume")
        if exists:
            last = last_run(self.path)
            if resume:
                different = [k for k in SAME if last.head["machine"].get(k) != machine.get(k)]
                if different:
                    k = different[0]
                    raise ValueError(
                        f"{self.path} cannot be resumed: its {k} is {last.head['machine'].get(k)!r}, now it is {machine.get(k)!r}"
                    )
                self.run = last
            self._drop_unfinished_line()
        if not (resume and exists):
            self._write({"kind": "head", **self.run.head})

    def _drop_unfinished_line(self) -> None:
        assert self.path is not None
        data = self.path.read_bytes()
        if not data.endswith(b"\n"):
            self._open_for(lambda file: file.truncate(data.rfind(b"\n") + 1))

    def _open_for(self, action: Any, mode: str = "r+b") -> None:
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, mode) as file:
                action(file)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ValueError(f"{self.path} cannot be written: {error.strerror}") from None

    def _write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, allow_nan=False) + "\n"
        self._open_for(lambda file: file.write(line.encode()), "ab")

    def add(self, row: Row) -> None:
        """Keeps a row, on disk when this returns."""
        self.run.rows[row.key] = row
        if self.path is not None:
            self._write({"kind": "row", **row.as_dict()})

    def holds(self, keys: list[tuple[Any, ...]]) -> bool:
        """True if all these rows are there already."""
        return all(key in self.run.rows for key in keys)

    @property
    def rows(self) -> list[Row]:
        return list(self.run.rows.values())
