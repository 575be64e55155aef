"""Folders of images, one per class: ROOT/CLASS/image.png, or ROOT/train/CLASS/... beside ROOT/val/CLASS/... (needs Pillow)."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch

from .data import DataError
from .files import SUFFIXES, ImageFiles, printable, visible

__all__ = ["find"]

VALIDATION = ("val", "valid", "validation")


def find(root: Path, size: int) -> ImageFiles:
    """Every image under ``root``. With train/ and one of val/ and test/, that one is the test part; with both, each is itself."""
    train = root / "train"
    if not train.is_dir():
        classes = _classes(root)
        return _image_files(root, [_files(root, classes)], classes, size)
    classes = _classes(train)
    validation = next((root / name for name in VALIDATION if (root / name).is_dir()), None)
    test = root / "test" if (root / "test").is_dir() else None
    if test is None:
        test, validation = validation, None
    if test is None:
        raise DataError(f"{root} has train/ but neither val/ nor test/ beside it")
    parts = [_files(part, classes) for part in (train, test, validation) if part is not None]
    for part in (test, validation):
        if part is not None and (extra := [name for name in _classes(part) if name not in classes]):
            raise DataError(f"{part / extra[0]} is a class that {train} does not have")
    return _image_files(root, parts, classes, size)


def _image_files(root: Path, parts: list[list[tuple[Path, int]]], classes: list[str], size: int) -> ImageFiles:
    """parts: the training part, the test part and the validation part, as far as they exist."""
    ends = np.cumsum([len(part) for part in parts]).tolist()
    ranges = [torch.arange(start, end) for start, end in itertools.pairwise(ends)]
    files = [file for part in parts for file in part]
    return ImageFiles(
        printable(root.name),
        tuple(file for file, _ in files),
        torch.tensor([label for _, label in files], dtype=torch.long),
        tuple(map(printable, classes)),
        size,
        test=ranges[0] if ranges else None,
        validation=ranges[1] if len(ranges) > 1 else None,
    )


def _classes(folder: Path) -> list[str]:
    names = [entry.name for entry in visible(folder) if entry.is_dir()]
    if not names:
        raise DataError(f"{folder} holds neither CIFAR-10 batches (data_batch_1.bin, test_batch.bin) nor a folder of images for each class")
    if len(names) == 1:
        raise DataError(f"{folder} has one class folder ({names[0]}), at least two are needed")
    return names


def _files(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    found = []
    for label, name in enumerate(classes):
        images = [entry for entry in visible(folder / name) if entry.suffix.lower() in SUFFIXES] if (folder / name).is_dir() else []
        if not images:
            raise DataError(f"{folder / name} holds no images ({' '.join(SUFFIXES)})")
        found += [(file, label) for file in images]
    return found
