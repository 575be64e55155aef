"""Labelled images in memory: readers, splits and augmentation.

``load_digits()`` needs scikit-learn and no network. ``load(path)`` recognises a CIFAR-10 folder, binary or Python version
(``cifar.py``), and folders of images, one per class (``folder.py``). What cannot be read raises DataError, whose one
sentence names the file and the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["DataError", "Images", "Split", "Standardiser", "augment", "load", "load_digits", "split"]


class DataError(ValueError):
    """The data cannot be used; the message is one sentence with the file and the reason."""


@dataclass(frozen=True)
class Images:
    """Labelled images. images: uint8 [N, C, H, W], black is 0 and white is ``white``; labels: int64 [N], indices of ``classes``.

    test, validation: the indices that the source itself sets apart, where it does. mirrored: whether a mirrored image
    is known to keep its label.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    white: int = 255
    test: Tensor | None = None
    validation: Tensor | None = None
    mirrored: bool = False

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise DataError(f"{self.name} has {len(self.images)} images but {len(self.labels)} labels")


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
    """Reads a folder: CIFAR-10 binary, CIFAR-10 Python, or one folder of images per class (resized to size x size)."""
    from . import cifar, folder

    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if not path.is_dir():
        raise DataError(f"{path} is a file, expected a folder (unpack an archive first)")
    for candidate in (path, path / "cifar-10-batches-bin", path / "cifar-10-batches-py"):
        if (candidate / "test_batch.bin").exists() or (candidate / "data_batch_1.bin").exists():
            return cifar.load_binary(candidate)
        if (candidate / "test_batch").exists() or (candidate / "data_batch_1").exists():
            return cifar.load_python(candidate)
    return folder.load(path, size)


def split(data: Images, seed: int, test: float = 0.2, validation: float = 0.1) -> Split:
    """Sets apart the source's own test and validation parts, or these fractions of each class, shuffled by the seed.

    Raises DataError if a class has too few images to stand in every part.
    """
    generator = torch.Generator().manual_seed(seed)
    given = torch.cat([part for part in (data.test, data.validation) if part is not None] or [torch.empty(0, dtype=torch.long)])
    free = torch.ones(len(data.labels), dtype=torch.bool)
    free[given] = False
    wanted = [fraction for part, fraction in ((data.test, test), (data.validation, validation)) if part is None]
    drawn: list[list[Tensor]] = [[] for _ in wanted]
    for label, name in enumerate(data.classes):
        members = (free & (data.labels == label)).nonzero().flatten()
        if len(members) <= len(wanted):
            raise DataError(f"{data.name}: class {name!r} has {len(members)} images to train on, at least {len(wanted) + 1} are needed")
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
    """Maps uint8 images to float32 with mean 0 and standard deviation 1 per channel, as measured on ``images`` [N, C, H, W]."""

    def __init__(self, images: Tensor) -> None:
        values = images.transpose(0, 1).flatten(1)
        counts = torch.stack([torch.bincount(channel, minlength=256) for channel in values]).double()
        levels = torch.arange(256, dtype=torch.float64)
        mean = counts @ levels / values.shape[1]
        deviation = ((counts @ levels.square()) / values.shape[1] - mean.square()).clamp_min(0).sqrt()
        self.mean = mean.float().reshape(1, -1, 1, 1)
        self.deviation = deviation.float().clamp_min(1e-3).reshape(1, -1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.deviation


def augment(images: Tensor, shift: int, mirror: bool, generator: torch.Generator) -> Tensor:
    """Moves each image by up to ``shift`` pixels along each axis, black coming in, and mirrors half of them if asked.

    One gather for the whole batch [N, C, H, W]; the draws depend on the generator and N alone.
    """
    n, _, height, width = images.shape
    if shift < 0:
        raise ValueError(f"augment: shift must not be negative, got {shift}")
    down, right = torch.randint(-shift, shift + 1, (2, n, 1), generator=generator)
    flipped = torch.rand(n, 1, generator=generator) < (0.5 if mirror else 0.0)
    rows = torch.arange(height) - down
    columns = torch.arange(width)
    columns = torch.where(flipped, width - 1 - columns, columns) - right
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None, :]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    moved = images[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return moved * inside
