"""Labelled images in memory: what they are, how they are split, moved, mirrored and standardised.

``load_digits()`` needs scikit-learn and no network. ``load(path)`` reads any folder that ``sources.py`` recognises into
memory. What cannot be read raises DataError, whose one sentence names the file and the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .files import ImageFiles

__all__ = ["IGNORED", "DataError", "Images", "Split", "Standardiser", "augment", "load", "load_digits", "split"]

IGNORED = 255  # the value of mask pixels that neither train nor count, as in PASCAL VOC


class DataError(ValueError):
    """The data cannot be used; the message is one sentence with the file and the reason."""


@dataclass(frozen=True)
class Images:
    """Labelled images. images: uint8 [N, C, H, W], black is 0 and white is ``white``.

    labels: indices of ``classes``; int64 [N] for classification, uint8 masks [N, H, W] with IGNORED for segmentation.
    test, validation: the indices that the source itself sets apart, where it does. mirrored: whether a mirrored image
    is known to keep its label. sums: pixels, sum and sum of squares of each image's channels, int64 [N, C, 3], where they
    are not those of ``images`` (padding is not counted). skipped: what was wrong with files that were left out.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    white: int = 255
    test: Tensor | None = None
    validation: Tensor | None = None
    mirrored: bool = False
    sums: Tensor | None = field(default=None, repr=False)
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise DataError(f"{self.name} has {len(self.images)} images but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def task(self) -> str:
        """ "classification" or "segmentation"."""
        return "segmentation" if self.labels.dim() == 3 else "classification"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return tuple(self.images.shape[1:])

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 [B, C, H, W] and their labels as they are stored."""
        return self.images[indices], self.labels[indices]


@dataclass(frozen=True)
class Split:
    """Disjoint, sorted indices into an Images: train fits the network, validation draws its curves, test is read once."""

    train: Tensor
    validation: Tensor
    test: Tensor

    @property
    def development(self) -> Tensor:
        """Everything but the test part."""
        return torch.cat([self.train, self.validation]).sort().values


def load_digits() -> Images:
    """The 1,797 handwritten digits of 8x8 pixels that ship with scikit-learn, 17 grey levels."""
    from sklearn import datasets

    source = datasets.load_digits()
    images = torch.from_numpy(source.images).to(torch.uint8).unsqueeze(1).contiguous()
    labels = torch.from_numpy(source.target).long()
    return Images("scikit-learn digits", images, labels, tuple(str(d) for d in range(10)), white=16)


def load(path: str | Path, size: int = 32) -> Images:
    """Reads a folder into memory, whatever its size: see ``sources.find``. Folders of images are resized to size x size."""
    from . import sources

    found = sources.find(path, size)
    return found if isinstance(found, Images) else found.in_memory()


def split(data: Images | ImageFiles, seed: int, test: float = 0.2, validation: float = 0.1) -> Split:
    """Sets apart the source's own test and validation parts, or these fractions of each class, shuffled by the seed.

    Images with masks are all of one class here. Raises DataError if a class has too few images to stand in every part.
    """
    generator = torch.Generator().manual_seed(seed)
    given = torch.cat([part for part in (data.test, data.validation) if part is not None] or [torch.empty(0, dtype=torch.long)])
    free = torch.ones(len(data), dtype=torch.bool)
    free[given] = False
    whole = data.task == "segmentation"
    labels, classes = (torch.zeros(len(data), dtype=torch.long), ("",)) if whole else (data.labels, data.classes)
    wanted = [fraction for part, fraction in ((data.test, test), (data.validation, validation)) if part is None]
    drawn: list[list[Tensor]] = [[] for _ in wanted]
    for label, name in enumerate(classes):
        members = (free & (labels == label)).nonzero().flatten()
        if len(members) <= len(wanted):
            what = f"{data.name}: class {name!r}" if name else data.name
            raise DataError(f"{what} has {len(members)} images to train on, at least {len(wanted) + 1} are needed")
        members = members[torch.randperm(len(members), generator=generator)]
        start = 0
        for part, fraction in zip(drawn, wanted, strict=True):
            count = max(1, min(round(fraction * len(members)), (len(members) - 1) // len(wanted)))
            part.append(members[start : start + count])
            start += count
    parts = iter(torch.cat(part).sort().values for part in drawn)
    test_part = data.test if data.test is not None else next(parts)
    validation_part = data.validation if data.validation is not None else next(parts)
    free[test_part] = free[validation_part] = False
    return Split(free.nonzero().flatten(), validation_part, test_part)


class Standardiser:
    """Maps images of uint8's range to float32 with mean 0 and standard deviation 1 per channel, as measured on ``images`` [N, C, H, W]."""

    def __init__(self, images: Tensor) -> None:
        values = images.transpose(0, 1).flatten(1)
        counts = torch.stack([torch.bincount(channel, minlength=256) for channel in values])
        levels = torch.arange(256)
        sums = torch.stack([counts.sum(1), counts @ levels, counts @ levels.square()], 1)
        self._set(*_moments(sums))

    def _set(self, mean: Tensor, deviation: Tensor) -> None:
        self.mean = mean.float().reshape(1, -1, 1, 1)
        self.deviation = deviation.float().clamp_min(1e-3).reshape(1, -1, 1, 1)

    @classmethod
    def of(cls, mean: list[float], deviation: list[float]) -> Standardiser:
        """With these means and deviations per channel, in uint8's levels."""
        made = cls.__new__(cls)
        made._set(torch.tensor(mean), torch.tensor(deviation))
        return made

    @classmethod
    def measured_on(cls, data: Images | ImageFiles, indices: Tensor) -> Standardiser:
        """With those of the images ``indices`` of ``data``."""
        if data.sums is None:
            return cls(data.images[indices])
        made = cls.__new__(cls)
        made._set(*_moments(data.sums[indices].sum(0)))
        return made

    def to(self, device: torch.device) -> Standardiser:
        self.mean, self.deviation = self.mean.to(device), self.deviation.to(device)
        return self

    def __call__(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.deviation


def _moments(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [C] from pixels, sum and sum of squares [C, 3]."""
    count, first, second = sums.double().unbind(1)
    mean = first / count
    return mean, (second / count - mean.square()).clamp_min(0).sqrt()


def augment(images: Tensor, shift: int, mirror: float, generator: torch.Generator | None = None, crop: int | None = None) -> Tensor:
    """Moves each image by up to ``shift`` pixels along each axis, black coming in, and mirrors it with probability ``mirror``.

    crop: cut a square of this side out of each image, from anywhere in it (and ``shift`` beyond). True mirrors half of them.
    One gather for the whole batch [N, C, H, W]; the draws depend on the generator and N alone. None is torch's own generator.
    """
    n, _, height, width = images.shape
    if shift < 0:
        raise ValueError(f"augment: shift must not be negative, got {shift}")
    tall, wide = (height, width) if crop is None else (crop, crop)
    if tall > height or wide > width:
        raise ValueError(f"augment: a crop of {crop} pixels does not fit images of {height}x{width}")
    down = torch.randint(tall - height - shift, shift + 1, (n, 1), generator=generator)
    right = torch.randint(wide - width - shift, shift + 1, (n, 1), generator=generator)
    flipped = torch.rand(n, 1, generator=generator) < (0.5 if mirror is True else mirror)
    rows = torch.arange(tall) - down
    columns = torch.arange(wide)
    columns = torch.where(flipped, wide - 1 - columns, columns) - right
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None, :]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    moved = images[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return moved * inside
