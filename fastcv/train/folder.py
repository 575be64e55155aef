"""Folders of images, one per class: ROOT/CLASS/image.png, or ROOT/train/CLASS/... beside ROOT/val/CLASS/... (needs Pillow).

Images become RGB of a common size: scaled so that they cover it, the middle kept.
"""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .data import DataError, Images

__all__ = ["load"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
VALIDATION = ("val", "valid", "validation")


def load(root: Path, size: int = 32) -> Images:
    """Reads every image under ``root``. With train/ and one of val/ and test/, that one is the test part; with both, each is itself."""
    train = root / "train"
    if not train.is_dir():
        classes = _classes(root)
        files = _files(root, classes)
        return Images(_printable(root.name), *_read_all(files, size), tuple(map(_printable, classes)))
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
    images, labels = _read_all([file for part in parts for file in part], size)
    ends = np.cumsum([len(part) for part in parts]).tolist()
    ranges = [torch.arange(start, end) for start, end in itertools.pairwise(ends)]
    validation_part = ranges[1] if len(ranges) > 1 else None
    return Images(_printable(root.name), images, labels, tuple(map(_printable, classes)), test=ranges[0], validation=validation_part)


def _printable(name: str) -> str:
    """The name of a file as text: bytes that are not UTF-8 become question marks."""
    return name.encode("utf-8", "replace").decode()


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror or error}") from error


def _classes(folder: Path) -> list[str]:
    names = [entry.name for entry in _visible(folder) if entry.is_dir()]
    if not names:
        raise DataError(f"{folder} holds neither CIFAR-10 batches (data_batch_1.bin, test_batch.bin) nor a folder of images for each class")
    if len(names) == 1:
        raise DataError(f"{folder} has one class folder ({names[0]}), at least two are needed")
    return names


def _files(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    found = []
    for label, name in enumerate(classes):
        images = [entry for entry in _visible(folder / name) if entry.suffix.lower() in SUFFIXES] if (folder / name).is_dir() else []
        if not images:
            raise DataError(f"{folder / name} holds no images ({' '.join(SUFFIXES)})")
        found += [(file, label) for file in images]
    return found


def _read_all(files: list[tuple[Path, int]], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"{files[0][0]} needs Pillow to be read: pip install pillow") from error
    pixels = np.empty((len(files), size, size, 3), np.uint8)
    for i, (file, _) in enumerate(files):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(file) as image:
                    pixels[i] = _to_rgb(image, size)
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and their own
            raise DataError(f"{file} cannot be read as an image: {error}") from error
    labels = torch.tensor([label for _, label in files], dtype=torch.long)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels


def _to_rgb(image: Any, size: int) -> np.ndarray:
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey values at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC))
