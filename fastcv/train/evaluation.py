"""A network's answers on a part of the data, and what they are worth: loss, top-1 and top-k, pixel accuracy, IoU, confusion."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .. import functional
from .augmentation import center_crop
from .data import IGNORED, Images, Standardiser
from .files import ImageFiles
from .network import outputs_of
from .options import Options
from .processes import World

__all__ = [
    "Scores",
    "autocast",
    "batches_of",
    "confusion_matrix",
    "counted_of",
    "cross_entropy",
    "evaluate",
    "ignored_of",
    "inputs_of",
    "loader_of",
]


class Indexed(Dataset[Any]):
    """Images as torch's DataLoader asks for them: a list of indices at a time."""

    def __init__(self, data: Images | ImageFiles) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.data.read(torch.as_tensor(indices))


def _whole(batch: Any) -> Any:
    return batch


def loader_of(data: Images | ImageFiles, batches: list[list[int]], options: Options) -> DataLoader[Any]:
    """These batches of indices, in order. Decoding is not random: the result is the same for any number of workers."""
    workers = options.workers if isinstance(data, ImageFiles) else 0
    return DataLoader(
        Indexed(data), batch_sampler=batches, num_workers=workers, collate_fn=_whole, pin_memory=options.device.startswith("cuda")
    )


def autocast(options: Options, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16, enabled=options.amp)


def inputs_of(images: Tensor, prepare: Standardiser, options: Options, device: torch.device) -> Tensor:
    """Images to the network's input."""
    inputs = prepare(images.to(device, non_blocking=True))
    return inputs.contiguous(memory_format=torch.channels_last) if options.channels_last else inputs


def cross_entropy(options: Options) -> Callable[..., Tensor]:
    """torch's function or fastcv's, as --fastcv says."""
    return F.cross_entropy if options.fastcv == "off" else functional.cross_entropy


def ignored_of(labels: Tensor) -> int:
    """The label that does not count: IGNORED in masks; none in labels of images, where it is a class like any other."""
    return IGNORED if labels.dim() == 3 else -1


def counted_of(labels: Tensor) -> Tensor:
    """Whether each label counts."""
    return labels != ignored_of(labels)


def confusion_matrix(predictions: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Counts [classes, classes]: row true, column predicted."""
    return torch.bincount(labels * classes + predictions, minlength=classes * classes).reshape(classes, classes)


@dataclass(frozen=True)
class Scores:
    """matrix: counts [K, K], row true, column predicted, of images or of pixels that are not IGNORED; loss: their mean cross-entropy;
    top: {k: share of images whose label is among the k best}."""

    matrix: Tensor
    loss: float
    top: dict[int, float]

    @property
    def accuracy(self) -> float:
        """The share that is right."""
        return float(self.matrix.diagonal().sum()) / max(1.0, float(self.matrix.sum()))

    @property
    def iou(self) -> Tensor:
        """Intersection over union of each class, float64 [K]; NaN for a class that occurs neither in truth nor in answers."""
        both = self.matrix.diagonal().double()
        return both / (self.matrix.sum(0) + self.matrix.sum(1) - both)

    @property
    def mean_iou(self) -> float:
        return float(self.iou.nanmean())

    def metric(self, task: str) -> float:
        """The number by which the best epoch is chosen."""
        return self.mean_iou if task == "segmentation" else self.accuracy

    def as_dict(self, task: str, classes: tuple[str, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {"loss": self.loss}
        if task == "segmentation":
            iou = {name: None if value != value else value for name, value in zip(classes, self.iou.tolist(), strict=True)}
            return found | {"pixel_accuracy": self.accuracy, "mean_iou": self.mean_iou, "iou": iou}
        return found | {"accuracy": self.accuracy} | {f"top{k}": share for k, share in self.top.items() if k > 1}


def batches_of(data: Images | ImageFiles, indices: Tensor, options: Options) -> Iterator[tuple[Tensor, Tensor]]:
    """Images uint8 and labels int64 of ``indices``, in order, cut as --val-crop-size says."""
    crop = options.val_crop_size or options.train_crop_size
    for images, labels in loader_of(data, [part.tolist() for part in indices.split(options.batch_size) if len(part)], options):
        yield center_crop(images, crop), (center_crop(labels, crop) if labels.dim() == 3 else labels).long()


@torch.no_grad()
def evaluate(
    network: nn.Module,
    data: Images | ImageFiles,
    indices: Tensor,
    prepare: Standardiser,
    options: Options,
    device: torch.device,
    world: World,
    on_batch: Callable[[Tensor, Tensor, Tensor], None] = lambda images, labels, logits: None,
) -> Scores:
    """The network's scores over ``indices``, each process taking its share; it is left in evaluation mode.

    on_batch sees the images, labels and logits of this process. The network is called equally often in each process, as one
    whose parameters are spread over them must be."""
    classes = len(data.classes)
    ks = [k for k in (1, 5) if k < classes]
    matrix = torch.zeros(classes, classes, dtype=torch.long, device=device)
    hits = torch.zeros(len(ks), dtype=torch.long, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    network.eval()
    own = indices[world.rank :: world.size]
    most, mine = (math.ceil(count / options.batch_size) for count in (math.ceil(len(indices) / world.size), len(own)))

    def logits_of(images: Tensor) -> Tensor:
        with autocast(options, device):
            return outputs_of(network, inputs_of(images, prepare, options, device))[0].float()

    for images, labels in batches_of(data, own, options):
        logits = logits_of(images)
        labels = labels.to(device)
        loss += cross_entropy(options)(logits, labels, ignore_index=ignored_of(labels), reduction="sum")
        counted = counted_of(labels)
        matrix += confusion_matrix(logits.argmax(1)[counted], labels[counted], classes)
        if labels.dim() == 1:
            best = logits.topk(max(ks), 1).indices == labels[:, None]
            hits += torch.stack([best[:, :k].sum() for k in ks])
        on_batch(images, labels, logits)
    for images, _ in batches_of(data, indices[: most - mine], options):
        logits_of(images)
    matrix, hits, loss = (world.total(value) for value in (matrix, hits, loss))
    count = max(1, int(matrix.sum()))
    top = {k: int(hit) / count for k, hit in zip(ks, hits, strict=True)} if data.task == "classification" else {}
    return Scores(matrix.cpu(), float(loss) / count, top)
