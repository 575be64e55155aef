"""Images that stay on disk: decoded when they are asked for, and once before, so that a damaged file is named at the start.

Photographs become RGB squares of one size. For classification they are scaled to cover the square and the middle is kept; for
segmentation they are scaled to fit into it, and what is left is black, and IGNORED in the mask. Needs Pillow.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data import IGNORED, DataError, Images

__all__ = ["SUFFIXES", "ImageFiles", "covering", "fitting", "printable", "read_picture", "rgb", "visible"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
NEAREST, BICUBIC = 0, 3  # Pillow's Image.Resampling
IN_MEMORY = 1 << 30  # bytes of decoded images up to which they are all kept


def printable(name: str) -> str:
    """The name of a file as text: bytes that are not UTF-8 become question marks."""
    return name.encode("utf-8", "replace").decode()


def visible(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without hidden files. Raises DataError."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True)
class ImageFiles:
    """Labelled images on disk; the fields of ``Images`` with ``files`` for the pixels.

    labels: int64 [N], or one mask file per image. size: the side of the squares they become.
    """

    name: str
    files: tuple[Path, ...]
    labels: Tensor | tuple[Path, ...]
    classes: tuple[str, ...]
    size: int
    white: int = 255
    test: Tensor | None = None
    validation: Tensor | None = None
    mirrored: bool = False
    sums: Tensor | None = field(default=None, repr=False)
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    @property
    def task(self) -> str:
        return "classification" if isinstance(self.labels, Tensor) else "segmentation"

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, self.size, self.size

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 [B, 3, size, size] and their labels int64 [B] or masks uint8 [B, size, size]. Raises DataError."""
        read = [self._one(i)[:2] for i in indices.tolist()]
        images = torch.stack([image for image, _ in read])
        return images, self.labels[indices] if isinstance(self.labels, Tensor) else torch.stack([mask for _, mask in read])

    def _one(self, index: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """The image, its mask where there is one, and the pixels, sum and sum of squares of its channels [3, 3]."""
        file = self.files[index]
        if isinstance(self.labels, Tensor):
            pixels = read_picture(file, lambda image: covering(image, (self.size, self.size)))
            return _channels_first(pixels), None, _sums(pixels)
        whole = read_picture(file, rgb)
        mask = read_picture(self.labels[index], lambda image: _mask(image, whole.size))
        size = fitting(whole.size, (self.size, self.size))
        pixels, values = np.asarray(whole.resize(size, BICUBIC)), np.asarray(mask.resize(size, NEAREST))
        known = np.unique(values)
        if any(value >= len(self.classes) and value != IGNORED for value in known.tolist()):
            wrong = next(value for value in known.tolist() if value >= len(self.classes))
            raise DataError(f"{self.labels[index]} holds the class {wrong}, there are {len(self.classes)} (and {IGNORED} for no class)")
        image, target = np.zeros((self.size, self.size, 3), np.uint8), np.full((self.size, self.size), IGNORED, np.uint8)
        height, width = values.shape
        image[:height, :width], target[:height, :width] = pixels, values
        return _channels_first(image), torch.from_numpy(target), _sums(pixels)

    def checked(self, skip_corrupt: bool = False, limit: int | None = None) -> Images | ImageFiles:
        """Decodes every file once. Returns Images if they need no more than ``limit`` bytes (by default IN_MEMORY), else these
        files, with their sums.

        A file that cannot be read raises DataError; with ``skip_corrupt`` it is left out and named in ``skipped``.
        """
        keep = len(self) * self.size**2 * (3 if self.task == "classification" else 4) <= (IN_MEMORY if limit is None else limit)

        def one(index: int) -> tuple[Any, ...] | DataError:
            try:
                image, mask, sums = self._one(index)
            except DataError as error:
                return error
            return (image, mask, sums) if keep else (None, None, sums)

        good: list[int] = []
        rows: list[tuple[Any, ...]] = []
        errors: list[str] = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for index, row in enumerate(pool.map(one, range(len(self)))):
                if not isinstance(row, DataError):
                    good.append(index)
                    rows.append(row)
                elif skip_corrupt:
                    errors.append(str(row))
                else:
                    pool.shutdown(cancel_futures=True)
                    raise row
        if not rows:
            raise DataError(f"{self.name} has no image that can be read; the first: {errors[0]}")
        kept = self._without(good, tuple(errors), torch.stack([sums for _, _, sums in rows]))
        if not keep:
            return kept
        labels = kept.labels if isinstance(kept.labels, Tensor) else torch.stack([mask for _, mask, _ in rows])
        images = torch.stack([image for image, _, _ in rows])
        parts = {name: getattr(kept, name) for name in ("test", "validation", "mirrored", "sums", "skipped")}
        return Images(self.name, images, labels, self.classes, **parts)

    def in_memory(self) -> Images:
        """All of them decoded. Raises DataError."""
        found = self.checked(limit=1 << 62)
        assert isinstance(found, Images)
        return found

    def _without(self, good: list[int], errors: tuple[str, ...], sums: Tensor) -> ImageFiles:
        """Only the files ``good``."""
        place = torch.full((len(self),), -1)
        place[good] = torch.arange(len(good))
        parts = {}
        for name in ("test", "validation"):
            part = getattr(self, name)
            parts[name] = None if part is None else place[part][place[part] >= 0]
            if part is not None and not len(parts[name]):
                raise DataError(f"{self.name}: every image of the {name} part is corrupt; the first: {errors[0]}")
        labels = self.labels[good] if isinstance(self.labels, Tensor) else tuple(self.labels[i] for i in good)
        return replace(self, files=tuple(self.files[i] for i in good), labels=labels, sums=sums, skipped=errors, **parts)


def read_picture(file: Path, convert: Callable[[Any], Any]) -> Any:
    """What ``convert`` makes of the opened file. Raises DataError that names the file."""
    name = printable(str(file))
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"{name} needs Pillow to be read: pip install pillow") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file) as image:
                return convert(image)
    except DataError as error:
        raise DataError(f"{name} {error}") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and their own
        raise DataError(f"{name} cannot be read as an image: {error}") from error


def rgb(image: Any) -> Any:
    """An opened picture as RGB, upright. Raises DataError for numbers per pixel of which nobody knows which are white."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey values at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("F", "I"):  # one number of 32 bits per pixel, which it would clip too
        values, white = np.asarray(image), 1 if image.mode == "F" else 65535
        if not (values.min() >= 0 and values.max() <= white):
            raise DataError(f"cannot be read as an image: its pixels go from {values.min():g} to {values.max():g}, expected 0 to {white}")
        image = Image.fromarray(np.round(values * (255 / white)).astype(np.uint8))
    return image.convert("RGB")


def covering(image: Any, size: tuple[int, int]) -> np.ndarray:
    """Its RGB bytes [height, width, 3], scaled to cover ``size`` (width, height), the middle kept."""
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.fit(rgb(image), size, Image.Resampling.BICUBIC))


def _mask(image: Any, size: tuple[int, int]) -> Any:
    if image.mode not in ("P", "L", "1"):
        raise DataError(f"is an image of mode {image.mode}, expected a mask of one byte per pixel (mode P or L)")
    if image.size != size:
        raise DataError("is {}x{} pixels, its image {}x{}".format(*image.size, *size))
    from PIL import Image

    values = np.asarray(image)
    return Image.fromarray(values.astype(np.uint8))


def fitting(size: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """Width and height of a picture of ``size`` scaled to fit into the frame (width, height)."""
    scale = min(frame[0] / size[0], frame[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _channels_first(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()


def _sums(pixels: np.ndarray) -> Tensor:
    values = torch.from_numpy(pixels.reshape(-1, 3).astype(np.int64))
    return torch.stack([torch.full((3,), len(values)), values.sum(0), values.square().sum(0)], 1)
