"""A process that does tasks for the script, so that a dead or hanging GPU context costs one row: it is killed and started anew.

A request is a line of JSON on its standard input ({"module", "key", "options"}), the answer one on its standard output ({"rows", "more",
"fatal"}). What libraries print goes to its standard error, a file whose last line explains a death.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

START_LIMIT = 180.0  # seconds for Python, torch and fastcv to be loaded


class WorkerLost(Exception):
    """The worker died or was killed; the message says why. late: its time was over."""

    def __init__(self, why: str, late: bool = False) -> None:
        super().__init__(why)
        self.late = late


class Worker:
    def __init__(self, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        self._process = subprocess.Popen(
            [*command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        self._answers: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self._answer(START_LIMIT)
        except WorkerLost:
            self.close()
            raise

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _answer(self, limit: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=max(limit, 0.1))
        except queue.Empty:
            raise WorkerLost(f"not done after {limit:.0f} s", late=True) from None
        if line is None:
            raise WorkerLost(self._epitaph())
        return json.loads(line)

    def _epitaph(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        last = next((text for text in reversed(self._errors.read().decode(errors="replace").splitlines()) if text.strip()), "")
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return f"the process died ({how}){': ' + last.strip() if last else ''}"[:300]

    def ask(self, request: dict[str, Any], limit: float) -> dict[str, Any]:
        """The answer to a request. Raises WorkerLost, after which only close() is left."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerLost(self._epitaph()) from None
        return self._answer(limit)

    def close(self) -> None:
        """Ends the process and all that it started."""
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def serve() -> int:
    """The worker's side: answers requests until its input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content, default=str).encode() + b"\n")
        answers.flush()

    from gpu_parts.device import name_of, one_line, wait

    answer({"ready": True})
    for line in sys.stdin:
        request, start = json.loads(line), time.perf_counter()
        key, options = request["key"], request["options"]
        module = importlib.import_module(request["module"])
        more: list[Any] = []
        try:
            rows = [{**key, **row} for row in module.run(key, options)]
            wait(name_of(options))  # what a kernel did wrong belongs to this task
            more = [k for row in rows for k in module.more(row)] if hasattr(module, "more") else []
        except Exception as error:  # the row says so, the script goes on
            rows = [{"failed": one_line(error)}]
        fatal = False
        try:
            wait(name_of(options))
        except Exception as error:  # nothing will run in this process any more
            rows, more, fatal = [{"failed": one_line(error)}], [], True
        took = round(time.perf_counter() - start, 2)
        answer({"rows": [{**key, **row, "seconds": took} for row in rows], "more": more, "fatal": fatal})
        if fatal:
            return 1
    return 0
