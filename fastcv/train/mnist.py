"""The idx files of MNIST and of the sets in its form (http://yann.lecun.com/exdb/mnist): also gzipped, also Fashion- and KMNIST."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import torch
from torch import Tensor

from .data import DataError, Images

__all__ = ["find"]

FILES = ("train-images{}idx3-ubyte", "train-labels{}idx1-ubyte", "t10k-images{}idx3-ubyte", "t10k-labels{}idx1-ubyte")


def find(folder: Path) -> Images | None:
    """The set in ``folder``, or in MNIST/raw or raw within it; None if there is none. Raises DataError."""
    for candidate in (folder, folder / "MNIST" / "raw", folder / "raw"):
        places = [_place(candidate, name) for name in FILES]
        if any(place.exists() for place in places):
            return _load(candidate, places)
    return None


def _place(folder: Path, name: str) -> Path:
    forms = [folder / (name.format(mark) + suffix) for suffix in ("", ".gz") for mark in ("-", ".")]
    return next((form for form in forms if form.exists()), forms[0])


def _load(folder: Path, places: list[Path]) -> Images:
    train_images, train_labels, test_images, test_labels = (_idx(place) for place in places)
    for images, labels, place in ((train_images, train_labels, places[0]), (test_images, test_labels, places[2])):
        if images.dim() != 3 or labels.dim() != 1:
            raise DataError(f"{place} and its labels have {images.dim()} and {labels.dim()} dimensions, expected 3 and 1")
        if len(images) != len(labels):
            raise DataError(f"{place} has {len(images):,} images but {len(labels):,} labels")
    if train_images.shape[1:] != test_images.shape[1:]:
        sizes = " and ".join("x".join(map(str, images.shape[1:])) for images in (train_images, test_images))
        raise DataError(f"{folder}: the images for training and for testing are of different sizes, {sizes}")
    labels = torch.cat([train_labels, test_labels]).long()
    classes = tuple(str(i) for i in range(max(10, int(labels.max()) + 1)))
    test = torch.arange(len(train_labels), len(labels))
    return Images("MNIST", torch.cat([train_images, test_images]).unsqueeze(1), labels, classes, test=test)


def _idx(file: Path) -> Tensor:
    """An idx file of bytes: two zero bytes, type 8, the number of dimensions, each as four bytes big-endian, then the values."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, FileNotFoundError):
            raise DataError(f"{file} is missing") from None
        raise DataError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != 8:
        raise DataError(f"{file} is no idx file of bytes: it begins with {content[:4].hex(' ') or 'nothing'}, expected 00 00 08")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    sizes = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    values = torch.frombuffer(bytearray(content[start:] or b"\0"), dtype=torch.uint8)[: len(content) - start if len(content) > start else 0]
    expected = int(torch.tensor(sizes, dtype=torch.long).prod())
    if not sizes or len(values) != expected or expected == 0:
        shape = "x".join(map(str, sizes)) or "no"
        raise DataError(f"{file} is truncated or damaged: {shape} values announced, {len(values):,} there")
    return values.reshape(sizes)
