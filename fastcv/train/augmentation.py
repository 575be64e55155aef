"""What happens to a training batch before the network sees it: shifts and flips of our own, the rest by kornia, mixup and cutmix.

Everything random is drawn from torch's generator, which the engine seeds before each batch; nothing is kept between batches.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .data import DataError, augment
from .options import Options

__all__ = ["Augmentation", "center_crop", "cutmix", "mixup"]


class Augmentation:
    """uint8 images [B, C, H, W] and their labels [B] or masks [B, H, W] to images in the same range and labels or masks int64.

    shape: the data's (C, H, W); mirrored: whether the data is known to keep its labels when mirrored. Raises DataError if
    kornia is missing, or if an option does not go with the task.
    """

    def __init__(self, options: Options, task: str, shape: tuple[int, int, int], white: int, mirrored: bool) -> None:
        _, height, width = shape
        self.crop = options.train_crop_size or None
        if self.crop and self.crop > min(height, width):
            raise DataError(f"--train-crop-size {self.crop} is larger than the images, which are {height}x{width}")
        self.shift = (0 if self.crop else min(height, width) // 8) if options.shift < 0 else options.shift
        self.mirror = (0.5 if mirrored else 0.0) if options.hflip_prob < 0 else options.hflip_prob
        self.white = white
        side = (self.crop, self.crop) if self.crop else (height, width)
        self.kornia = _kornia(options, task, side, shape[0])

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        masks = labels.dim() == 3
        if masks:
            # The mask moves as one more channel. Shifted by one, IGNORED is 0: what comes in from outside is ignored.
            images = torch.cat([images, (labels + 1).unsqueeze(1)], 1)
        images = augment(images, self.shift, self.mirror, crop=self.crop)
        if masks:
            images, labels = images[:, :-1], images[:, -1]
        if self.kornia is not None:
            scaled = images.float().div(self.white)
            if masks:
                scaled, moved = self.kornia(scaled, labels.unsqueeze(1).float())
                labels = moved.squeeze(1).round().to(torch.uint8)
            else:
                scaled = self.kornia(scaled)
            images = scaled.clamp(0, 1).mul(self.white)
        return images, (labels - 1 if masks else labels).long()


def _kornia(options: Options, task: str, side: tuple[int, int], channels: int) -> Any:
    """The pipeline that the options ask of kornia; None if they ask nothing."""
    wanted = {
        "--random-resized-crop": options.random_resized_crop,
        "--rotate": options.rotate,
        "--color-jitter": options.color_jitter,
        "--auto-augment": options.auto_augment,
        "--random-erase": options.random_erase,
    }
    asked = [name for name, value in wanted.items() if value]
    if not asked:
        return None
    try:
        import kornia.augmentation as K
    except ImportError as error:
        raise DataError(f"{asked[0]} needs kornia ({error}): pip install 'fastcv[augment]'") from error
    for name in ("--auto-augment", "--random-erase"):
        if name in asked and task == "segmentation":
            raise DataError(f"{name} is for classification: the data has masks, which it would not change along")
    for name in ("--auto-augment", "--color-jitter"):
        if name in asked and channels != 3:
            raise DataError(f"{name} is for colour images, the data has {channels} channel{'s' * (channels > 1)}")
    steps: list[Any] = []
    if options.random_resized_crop:
        steps.append(K.RandomResizedCrop(side, scale=(options.random_resized_crop, 1.0)))
    if options.rotate:
        steps.append(K.RandomRotation(options.rotate, p=1.0))
    if options.color_jitter:
        steps.append(K.ColorJiggle(options.color_jitter, options.color_jitter, options.color_jitter, 0.0, p=1.0))
    if options.auto_augment == "ra":
        steps.append(K.auto.RandAugment(2, options.ra_magnitude))
    elif options.auto_augment == "ta_wide":
        steps.append(K.auto.TrivialAugment())
    elif options.auto_augment:
        steps.append(K.auto.AutoAugment(options.auto_augment))
    if options.random_erase:
        steps.append(K.RandomErasing(p=options.random_erase))
    return K.AugmentationSequential(*steps, data_keys=["input", "mask"] if task == "segmentation" else ["input"])


def mixup(images: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Each image mixed with its neighbour in the batch by one weight from Beta(alpha, alpha) (Zhang et al. 2018); so are
    the targets, probabilities [B, K]."""
    weight = _beta(alpha)
    return torch.lerp(images.roll(1, 0), images, weight), torch.lerp(targets.roll(1, 0), targets, weight)


def cutmix(images: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """A rectangle of each image replaced by its neighbour's (Yun et al. 2019), its area from Beta(alpha, alpha); the targets,
    probabilities [B, K], are mixed by the area that was replaced."""
    height, width = images.shape[-2:]
    reach = 0.5 * (1.0 - _beta(alpha)) ** 0.5
    row, column = (float(torch.rand(())) * side for side in (height, width))
    top, bottom = (min(max(round(row + sign * reach * height), 0), height) for sign in (-1, 1))
    left, right = (min(max(round(column + sign * reach * width), 0), width) for sign in (-1, 1))
    images = images.clone()
    images[..., top:bottom, left:right] = images.roll(1, 0)[..., top:bottom, left:right]
    weight = 1.0 - (bottom - top) * (right - left) / (height * width)
    return images, torch.lerp(targets.roll(1, 0), targets, weight)


def _beta(alpha: float) -> float:
    return float(torch.distributions.Beta(alpha, alpha).sample())


def mixed(images: Tensor, labels: Tensor, classes: int, options: Options) -> tuple[Tensor, Tensor]:
    """The batch under --mixup-alpha and --cutmix-alpha, one of them by chance where both are on; unchanged where none is."""
    ways = [(mix, alpha) for mix, alpha in ((mixup, options.mixup_alpha), (cutmix, options.cutmix_alpha)) if alpha > 0]
    if not ways:
        return images, labels
    mix, alpha = ways[int(torch.randint(len(ways), ()))]
    return mix(images, F.one_hot(labels, classes).to(images.dtype), alpha)


def center_crop(images: Tensor, size: int) -> Tensor:
    """The middle size x size of images or masks [..., H, W]; all of them for 0."""
    height, width = images.shape[-2:]
    if not size:
        return images
    if size > min(height, width):
        raise DataError(f"--val-crop-size {size} is larger than the images, which are {height}x{width}")
    top, left = (height - size) // 2, (width - size) // 2
    return images[..., top : top + size, left : left + size]
