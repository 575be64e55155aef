"""A segmentation set without a download: scikit-learn's handwritten digits on pieces of its two photographs, with exact masks.

Each image is a dimmed 48x48 piece of a photograph with one or two digits of 20 to 32 pixels in light ink; the mask holds 0
for the photograph and digit + 1 where ink covers at least half of a pixel. The parts share neither a digit's scan nor a
region of a photograph: each photograph is cut into three strips. Needs scikit-learn and Pillow.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .data import DataError, Images, load_digits

__all__ = ["load"]

SIDE = 48
CLASSES = ("photograph", *(str(digit) for digit in range(10)))
SHARPNESS = 3.0  # how steeply ink fades at its edge: scaled up from 8x8, it would fade over four pixels
SHADE, LIGHTEST = 0.6, 255  # photographs are dimmed, so that light ink can be told from them everywhere
PARTS = (("train", 1600, 0.0, 0.6), ("validation", 200, 0.6, 0.8), ("test", 400, 0.8, 1.0))  # images, and the strip of a photograph


def load(seed: int = 0) -> Images:
    """1,600 images to train, 200 to validate and 400 to test; the same ones for the same seed. Raises DataError."""
    try:
        from sklearn.datasets import load_sample_images

        photographs = [np.asarray(photograph) for photograph in load_sample_images().images]
    except ImportError as error:
        raise DataError(f"the composed segmentation set needs scikit-learn and Pillow ({error}): pip install 'fastcv[data]'") from error
    digits = load_digits()
    random = np.random.default_rng(seed)
    scans = random.permutation(len(digits))
    images, masks, ends = [], [], []
    for _, count, start, end in PARTS:
        own = scans[round(start * len(scans)) : round(end * len(scans))]
        for _ in range(count):
            image, mask = _compose(_piece(photographs, start, end, random), digits, own, random)
            images.append(image)
            masks.append(mask)
        ends.append(len(images))
    validation, test = (torch.arange(first, last) for first, last in itertools.pairwise(ends))
    return Images("composed digits", torch.stack(images), torch.stack(masks), CLASSES, test=test, validation=validation)


def _piece(photographs: list[np.ndarray], start: float, end: float, random: np.random.Generator) -> Tensor:
    """A piece of a photograph's strip, float32 [3, SIDE, SIDE] of 0 to 255, mirrored by chance."""
    photograph = photographs[random.integers(len(photographs))]
    height, width = photograph.shape[:2]
    left = random.integers(round(start * width), round(end * width) - SIDE + 1)
    top = random.integers(0, height - SIDE + 1)
    piece = torch.from_numpy(photograph[top : top + SIDE, left : left + SIDE].astype(np.float32)).permute(2, 0, 1)
    piece *= SHADE
    return piece.flip(-1) if random.random() < 0.5 else piece


def _compose(piece: Tensor, digits: Images, scans: np.ndarray, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    taken = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    for _ in range(random.integers(1, 3)):
        scan = int(random.choice(scans))
        place = _free_place(taken, random)
        if place is None:
            continue
        taken[place] = True
        side = place[0].stop - place[0].start
        ink = F.interpolate(digits.images[scan, None].float() / digits.white, (side, side), mode="bilinear", align_corners=False)[0, 0]
        ink = (SHARPNESS * (ink - 0.5) + 0.5).clamp(0, 1)
        colour = torch.from_numpy(random.integers(LIGHTEST - 40, LIGHTEST + 1, 3).astype(np.float32))[:, None, None]
        paper = piece[:, place[0], place[1]]
        paper += ink * (colour - paper)
        mask[place] = torch.where(ink >= 0.5, int(digits.labels[scan]) + 1, 0).to(torch.uint8)
    return piece.round().clamp(0, 255).to(torch.uint8), mask


def _free_place(taken: Tensor, random: np.random.Generator) -> tuple[slice, slice] | None:
    """A square of some size at some place where nothing stands yet; None if chance finds none."""
    for _ in range(20):
        side = int(random.integers(20, 33))
        top, left = random.integers(0, SIDE - side + 1, 2)
        place = (slice(int(top), int(top) + side), slice(int(left), int(left) + side))
        if not taken[place].any():
            return place
    return None
