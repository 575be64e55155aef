"""Segmentation folders in the form of PASCAL VOC (http://host.robots.ox.ac.uk/pascal/VOC): images, masks, and lists of names.

JPEGImages/NAME.jpg (or images/), SegmentationClass/NAME.png (or masks/) with the class of each pixel as its value, 255 for
none; ImageSets/Segmentation/train.txt, val.txt, test.txt name the images of each part. classes.txt names the classes, one a
line; without it they are VOC's.
"""

from __future__ import annotations

from pathlib import Path

import torch

from .data import DataError
from .files import SUFFIXES, ImageFiles, printable, visible

__all__ = ["find"]

CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def find(root: Path, size: int) -> ImageFiles | None:
    """The set in ``root`` or in VOCdevkit/VOC*/ within it; None if there is none. Raises DataError."""
    for candidate in (root, *sorted(root.glob("VOC20*")), *sorted(root.glob("VOCdevkit/VOC20*"))):
        for images, masks in (("JPEGImages", "SegmentationClass"), ("images", "masks")):
            if (candidate / images).is_dir() and (candidate / masks).is_dir():
                return _find(candidate, candidate / images, candidate / masks, size)
    return None


def _find(root: Path, images: Path, masks: Path, size: int) -> ImageFiles:
    pictures = {entry.stem: entry for entry in visible(images) if entry.suffix.lower() in SUFFIXES}
    answers = {entry.stem: entry for entry in visible(masks) if entry.suffix.lower() in (".png", ".bmp", ".tif", ".tiff")}
    lists = root / "ImageSets" / "Segmentation"
    parts = {
        name: _names(lists / f"{name}.txt", pictures, answers) for name in ("train", "val", "test") if (lists / f"{name}.txt").exists()
    }
    if not parts:
        without = [name for name in pictures if name not in answers]
        if without:
            raise DataError(f"{images / pictures[without[0]].name} has no mask in {masks}, and no lists in {lists} say which to use")
        parts = {"train": list(pictures)}
    if not parts.get("train"):
        raise DataError(
            f"{root} has no images to train on: {lists / 'train.txt'} is missing or empty" if lists.exists() else f"{images} is empty"
        )
    if "test" not in parts and "val" in parts:
        parts["test"] = parts.pop("val")
    order = [name for part in parts.values() for name in part]
    if len(set(order)) != len(order):
        raise DataError(f"{lists}: {next(name for name in order if order.count(name) > 1)} is named more than once")
    ranges, start = {}, 0
    for part, names in parts.items():
        ranges[part] = torch.arange(start, start + len(names))
        start += len(names)
    return ImageFiles(
        printable(root.name),
        tuple(pictures[name] for name in order),
        tuple(answers[name] for name in order),
        _classes(root),
        size,
        test=ranges.get("test"),
        validation=ranges.get("val"),
        mirrored=True,
    )


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _names(file: Path, pictures: dict[str, Path], masks: dict[str, Path]) -> list[str]:
    names = _lines(file)
    for name in names:
        for what, there in (("image", pictures), ("mask", masks)):
            if name not in there:
                raise DataError(f"{file} names {name}, which has no {what}")
    return names


def _classes(root: Path) -> tuple[str, ...]:
    file = root / "classes.txt"
    if not file.exists():
        return CLASSES
    names = _lines(file)
    if not 2 <= len(names) <= 255:
        raise DataError(f"{file} names {len(names)} classes, expected 2 to 255")
    return tuple(names)
