"""``fastcv predict``: image files in; predictions.csv and .json and one picture out, or a mask and a coloured picture per image.

The output folder must be new or empty; it appears whole or not at all.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .augmentation import center_crop
from .data import DataError, Standardiser
from .evaluation import autocast, inputs_of
from .files import SUFFIXES, covering, fitting, printable, read_picture, rgb, visible
from .network import outputs_of
from .options import OptionError, Options
from .output import OutputError, replaced_folder
from .progress import task
from .run import restored

__all__ = ["predict_files"]

SHOWN = 24  # images on the picture
SPOKEN = 20  # answers on the screen


def predict_files(
    checkpoint: Path, given: list[Path], output: Path, changes: dict[str, Any], top: int, skip_corrupt: bool, console: Any
) -> None:
    """Answers for every image given. Raises DataError, OptionError, CheckpointError, OutputError; nothing is written then."""
    if top < 1:
        raise OptionError(f"--top must be at least 1, got {top}")
    state, options, network, prepare = restored(checkpoint, changes)
    facts = state["data"]
    files = _files(given)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"--output-dir {output} {'is not empty' if output.is_dir() else 'is a file'}; choose a new folder")
    predictor = (Segmenter if facts["task"] == "segmentation" else _Classifier)(facts, options, network, prepare, top)
    rows: list[dict[str, Any]] = []
    skipped: list[str] = []
    with replaced_folder(output, ()) as folder, task(console, f"{len(files):,} images", len(files)) as progress:
        for file in files:
            try:
                rows.append(predictor(file, folder / f"{len(rows):05d}_{file.stem}"))
            except DataError as error:
                if not skip_corrupt:
                    raise
                skipped.append(str(error))
                progress.line(f"left out: {error}")
            else:
                if len(rows) <= SPOKEN:
                    progress.line(f"{printable(str(file))}: {predictor.sentence(rows[-1])}")
            progress.advance()
        if not rows:
            raise DataError(f"none of {len(files)} images can be read; the first: {skipped[0]}")
        found = {"checkpoint": str(checkpoint), "classes": facts["classes"], "images": rows, "left_out": skipped}
        (folder / "predictions.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        with (folder / "predictions.csv").open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows(predictor.table(rows))
        predictor.draw(folder)
    console.print(f"{output}: {len(rows):,} answers", markup=False, highlight=False, soft_wrap=True)


def _files(given: list[Path]) -> list[Path]:
    """The files, and those of the folders, that are given."""
    files = []
    for path in given:
        if path.is_dir():
            found = [entry for entry in visible(path) if entry.suffix.lower() in SUFFIXES]
            if not found:
                raise DataError(f"{path} holds no images ({' '.join(SUFFIXES)})")
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise DataError(f"{path} does not exist")
    return files


class _Predictor:
    """One network and what it needs to know of images. shape: those it was trained on before they were cut."""

    def __init__(self, facts: dict[str, Any], options: Options, network: nn.Module, prepare: Standardiser, top: int) -> None:
        self.classes, self.white, self.top = facts["classes"], facts["white"], min(top, len(facts["classes"]))
        self.channels, self.height, self.width = facts["shape"]
        self.options, self.network, self.prepare = options, network, prepare

    def levels(self, pixels: np.ndarray) -> Tensor:
        """RGB bytes [H, W, 3] as one image uint8 [1, C, H, W] of the data's channels and range."""
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).unsqueeze(0)
        if self.channels == 1:
            image = (image.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True).round()
        return (image.float() * (self.white / 255)).round().to(torch.uint8)

    @torch.no_grad()
    def logits(self, image: Tensor) -> Tensor:
        """float32 [K] or [K, H, W]."""
        device = torch.device("cpu")
        with autocast(self.options, device):
            return outputs_of(self.network, inputs_of(image, self.prepare, self.options, device))[0][0].float()


class _Classifier(_Predictor):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.shown: list[tuple[Tensor, dict[str, Any]]] = []

    def __call__(self, file: Path, _stem: Path) -> dict[str, Any]:
        image = self.levels(read_picture(file, lambda picture: covering(picture, (self.width, self.height))))
        image = center_crop(image, self.options.val_crop_size or self.options.train_crop_size)
        shares, labels = self.logits(image).double().softmax(0).topk(self.top)
        answers = [{"class": self.classes[i], "probability": p} for p, i in zip(shares.tolist(), labels.tolist(), strict=True)]
        row = {"file": str(file), "answers": answers}
        if len(self.shown) < SHOWN:
            self.shown.append((image[0], row))
        return row

    def sentence(self, row: dict[str, Any]) -> str:
        return ", ".join(f"{answer['class']} {100 * answer['probability']:.1f} %" for answer in row["answers"])

    def table(self, rows: list[dict[str, Any]]) -> list[list[Any]]:
        head = [f"{what}{i + 1}" for i in range(self.top) for what in ("class", "probability")]
        return [["file", *head], *([row["file"], *(v for answer in row["answers"] for v in answer.values())] for row in rows)]

    def draw(self, folder: Path) -> None:
        try:
            from . import plots
        except ImportError:
            return  # the answers stand in the files; only the picture needs matplotlib
        titles = [
            f"{printable(Path(row['file']).name)}\n{row['answers'][0]['class']} {100 * row['answers'][0]['probability']:.0f} %"
            for _, row in self.shown
        ]
        plots.pictures(folder / "predictions.png", [image for image, _ in self.shown], titles, self.white)


class Segmenter(_Predictor):
    def __call__(self, file: Path, stem: Path) -> dict[str, Any]:
        from PIL import Image

        picture = read_picture(file, rgb)
        # As the training images were made: scaled to fit, the rest black. Sets that come as arrays have a size of their own.
        size = fitting(picture.size, (self.width, self.height))
        canvas = np.zeros((self.height, self.width, 3), np.uint8)
        canvas[: size[1], : size[0]] = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
        mask = self.logits(self.levels(canvas)).argmax(0)[: size[1], : size[0]].to(torch.uint8)
        answer = Image.fromarray(mask.numpy()).resize(picture.size, Image.Resampling.NEAREST)
        values = np.asarray(answer)
        counts = np.bincount(values.ravel(), minlength=len(self.classes))
        answer.putpalette(palette(len(self.classes)).ravel().tolist())
        answer.save(f"{stem}_mask.png")
        mixed = np.where(values[..., None] == 0, np.asarray(picture), (np.asarray(picture) // 2 + palette(len(self.classes))[values] // 2))
        Image.fromarray(mixed.astype(np.uint8)).save(f"{stem}_overlay.png")
        shares = {name: int(count) / values.size for name, count in zip(self.classes, counts, strict=True) if count}
        return {"file": str(file), "mask": f"{stem.name}_mask.png", "overlay": f"{stem.name}_overlay.png", "shares": shares}

    def sentence(self, row: dict[str, Any]) -> str:
        ordered = sorted(row["shares"].items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {100 * share:.1f} %" for name, share in ordered[: self.top])

    def table(self, rows: list[dict[str, Any]]) -> list[list[Any]]:
        body = [[row["file"], row["mask"], row["overlay"], *(row["shares"].get(name, 0.0) for name in self.classes)] for row in rows]
        return [["file", "mask", "overlay", *self.classes], *body]

    def draw(self, folder: Path) -> None:
        """Each image has its pictures already."""


def palette(classes: int) -> np.ndarray:
    """PASCAL VOC's colour map, uint8 [classes, 3]: the bits of the class spread over the channels' highest bits."""
    classes_ = np.arange(classes)
    colors = np.zeros((classes, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (((classes_ >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colors
