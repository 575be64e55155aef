"""The numbers of each epoch on disk: log.csv, log.jsonl, and TensorBoard's event files where asked for."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from .checkpoint import write
from .data import DataError, Images
from .evaluation import Scores
from .files import ImageFiles
from .options import Options

__all__ = ["FILES", "Log"]

FILES = ("log.csv", "log.jsonl")


class Log:
    """The log in ``folder`` from ``epoch`` on. The files hold the whole history each time they are written: a continued run's
    has no gap and no epoch twice. Raises DataError if --tensorboard is asked for and TensorBoard is missing."""

    def __init__(self, folder: Path, options: Options, epoch: int) -> None:
        self.folder = folder
        self.writer: Any = None
        if options.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise DataError(f"--tensorboard needs TensorBoard ({error}): pip install 'fastcv[tensorboard]'") from error
            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=epoch + 1)

    def add(self, history: list[dict[str, Any]], scores: Scores, data: Images | ImageFiles) -> None:
        """The epoch whose row is the last of ``history``."""
        stream = io.StringIO(newline="")
        table = csv.DictWriter(stream, list(history[-1]), lineterminator="\n")
        table.writeheader()
        table.writerows(history)
        write(self.folder / FILES[0], stream.getvalue().encode())
        write(self.folder / FILES[1], "".join(json.dumps(row) + "\n" for row in history).encode())
        if self.writer is not None:
            row = history[-1]
            for name, value in row.items():
                if name != "epoch":
                    self.writer.add_scalar(name.replace("_", "/", 1), value, row["epoch"])
            if data.task == "segmentation":
                for name, iou in zip(data.classes, scores.iou.tolist(), strict=True):
                    self.writer.add_scalar(f"iou/{name}", iou, row["epoch"])
            self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
