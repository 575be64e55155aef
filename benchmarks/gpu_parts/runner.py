"""Runs the tasks of a part: in workers, until they are done or the time is over, every row on disk as soon as it is known."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from .results import Key, Row, Table
from .worker import Worker, WorkerLost

LEAST = 3.0  # seconds: no task is begun with less left


@dataclass
class Outcome:
    """Of one part: tasks done now, done before, left for want of time; and why it was given up."""

    done: int = 0
    before: int = 0
    left: int = 0
    given_up: str = ""
    rows: list[Row] = field(default_factory=list)


class _Tasks:
    """What is still to do, shared by the threads of a part; a task under way may still ask for more."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._waiting, self._under_way, self._changed = deque(keys), 0, threading.Condition()

    def take(self) -> Key | None:
        with self._changed:
            while not self._waiting and self._under_way:
                self._changed.wait()
            if not self._waiting:
                return None
            self._under_way += 1
            return self._waiting.popleft()

    def done(self, more: Sequence[Key]) -> None:
        with self._changed:
            self._waiting.extendleft(reversed(more))
            self._under_way -= 1
            self._changed.notify_all()

    def __len__(self) -> int:
        return len(self._waiting)


def run_part(
    part: ModuleType,
    table: Table,
    options: dict[str, Any],
    command: Sequence[str],
    deadline: float,
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Every task of the part that the table does not have, with part.JOBS workers at a time, until clock() reaches the deadline."""
    outcome = Outcome()
    more_of = getattr(part, "more", lambda row: [])
    planned = part.plan(options)
    asked = {tuple(sorted(key.items())) for key in planned}
    for row in table.rows:  # what earlier rows asked for
        for key in more_of(row):
            if tuple(sorted(key.items())) not in asked:
                planned.append(key)
    keys = [key for key in planned if not table.has(key)]
    outcome.before = len(planned) - len(keys)
    tasks, lock = _Tasks(keys), threading.Lock()

    def work() -> None:
        worker, deaths = None, 0
        try:
            while not outcome.given_up and (key := tasks.take()) is not None:
                more: list[Key] = []
                try:
                    if deadline - clock() < LEAST:
                        with lock:
                            outcome.left += 1
                        continue
                    try:
                        worker = worker or Worker(command, getattr(part, "ENVIRONMENT", None))
                        deaths = 0
                    except WorkerLost as lost:
                        deaths += 1
                        with lock:
                            outcome.left += 1
                            if deaths > 1:
                                outcome.given_up = f"no worker starts: {lost}"
                        continue
                    limit = min(part.LIMIT, deadline - clock())
                    try:
                        answer = worker.ask({"module": part.__name__, "key": key, "options": options}, limit)
                    except WorkerLost as lost:
                        worker.close()
                        worker = None
                        if lost.late and limit < part.LIMIT:  # the script's time was over, not the task's
                            with lock:
                                outcome.left += 1
                            continue
                        answer = {"rows": [{**key, "failed": str(lost), "seconds": ""}], "more": []}
                    if answer.get("fatal") and worker is not None:
                        worker.close()
                        worker = None
                    table.add(answer["rows"])
                    more = [k for k in answer["more"] if not table.has(k)]
                    with lock:
                        outcome.done += 1
                        outcome.rows += answer["rows"]
                    for row in answer["rows"]:
                        if row.get("failed") or row.get("wrong"):
                            name = " ".join(str(row[k]) for k in part.KEY)
                            say(f"{'FAILED' if row.get('failed') else 'WRONG'} {name}: {row.get('failed') or row.get('wrong')}")
                finally:
                    tasks.done(more)
        finally:
            if worker is not None:
                worker.close()

    threads = [threading.Thread(target=work) for _ in range(max(1, min(part.JOBS, len(keys), os.cpu_count() or 1)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcome.left += len(tasks)
    return outcome
