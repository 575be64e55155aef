"""Which data a name or a folder holds: the sets that need no download, CIFAR, MNIST, VOC-style folders, one folder per class."""

from __future__ import annotations

from pathlib import Path

from . import cifar, composed, folder, mnist, voc
from .data import DataError, Images, load_digits
from .files import ImageFiles

__all__ = ["BUNDLED", "find", "open_data"]

BUNDLED = ("digits", "digits-segmentation")


def open_data(source: str, size: int, skip_corrupt: bool = False) -> Images | ImageFiles:
    """ "digits", "digits-segmentation", or a folder (see ``find``), every image of which is decoded once.

    size: the side to which photographs are resized. Raises DataError, for a corrupt image too unless ``skip_corrupt``.
    """
    if source in BUNDLED and not Path(source).exists():
        return load_digits() if source == "digits" else composed.load()
    found = find(source, size)
    return found if isinstance(found, Images) else found.checked(skip_corrupt)


def find(source: str | Path, size: int) -> Images | ImageFiles:
    """CIFAR-10/100 (binary or Python), MNIST's idx files, a VOC-style folder, or one folder of images per class; DataError else."""
    path = Path(source)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if not path.is_dir():
        raise DataError(f"{path} is a file, expected a folder (unpack an archive first)")
    for reader in (cifar.find, mnist.find):
        if (images := reader(path)) is not None:
            return images
    files = voc.find(path, size)
    return folder.find(path, size) if files is None else files
