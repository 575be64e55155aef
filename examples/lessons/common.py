"""What the lessons share: real data, the training loop, the look of the figures."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import fastcv.nn
from fastcv.train.data import Images, Split, Standardiser, load_digits, split
from fastcv.train.loop import Epoch, Recipe, Trainer

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#1f5fa8", "#e07b1f", "#1f7a3a", "#b3261e", "#7a3a9a", "#555555"
COLORS = (BLUE, ORANGE, GREEN, RED, PURPLE, GREY)


@dataclass(frozen=True)
class Lesson:
    """One picture and at most ten lines of text (of 130 characters; where ``text`` is broken does not matter)."""

    title: str
    text: str
    figure: Figure

    def lines(self) -> list[str]:
        return textwrap.wrap(" ".join(self.text.split()), 130, break_on_hyphens=False)


def main(lesson: Callable[[], Lesson]) -> None:
    """Runs a lesson by itself: writes NAME.png into the current folder and prints the text."""
    torch.set_num_threads(1)
    found = lesson()
    file = Path(sys.argv[0]).with_suffix(".png").name
    found.figure.savefig(file)
    print(found.title, *found.lines(), file, sep="\n")


def figure(width: float = 10, height: float = 4, **grid: Any) -> tuple[Figure, Any]:
    """A figure and its axes, [rows, columns]."""
    made = Figure(figsize=(width, height), layout="constrained", dpi=110)
    return made, made.subplots(squeeze=False, **grid)


def tidy(axes: Any, **texts: Any) -> None:
    axes.set(**texts)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def picture(axes: Any, image: Any, title: str = "", **options: Any) -> None:
    """An image (H, W) in grey or (H, W, 3), without axes."""
    image = np.asarray(image)
    axes.imshow(image, **({"cmap": "gray"} if image.ndim == 2 else {}) | options)
    axes.set_title(title, fontsize=10)
    axes.axis("off")


@cache
def digits() -> tuple[Images, Split]:
    """scikit-learn's 1,797 scanned digits, split by class."""
    data = load_digits()
    return data, split(data, seed=0)


@cache
def photo(name: str = "china.jpg") -> np.ndarray:
    """One of scikit-learn's two sample photographs, uint8 (427, 640, 3)."""
    from sklearn.datasets import load_sample_image

    return load_sample_image(name)


def rows(part: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Digits as flat rows of bytes, and their labels."""
    data, _ = digits()
    return data.images[part].flatten(1).numpy(), data.labels[part].numpy()


def convs(widths: Sequence[int | str], norm: Callable[[int], nn.Module] | None = None, classes: int = 10, seed: int = 0) -> nn.Sequential:
    """3x3 convolutions with ReLU; "M" halves the map; the mean of the last map feeds one linear layer. In VGG's spirit."""
    torch.manual_seed(seed)
    layers, before = [], 1
    for width in widths:
        if width == "M":
            layers.append(fastcv.nn.MaxPool2d(2))
            continue
        layers.append(fastcv.nn.Conv2d(before, width, 3, padding=1, bias=norm is None))
        nn.init.kaiming_normal_(layers[-1].weight, nonlinearity="relu")
        layers += [nn.ReLU()] if norm is None else [norm(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, fastcv.nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def fit(
    network: nn.Module,
    train: Tensor | None = None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    labels: Tensor | None = None,
    validation: Tensor | None = None,
    **recipe: Any,
) -> list[Epoch]:
    """Trains on digits with the demo's loop; ``train``, ``validation``: indices of the images (by default the split's).

    labels: those to train on instead of the true ones, one per digit of the set. An epoch whose loss is no longer finite ends the
    training.
    """
    data, parts = digits()
    train = parts.train if train is None else train
    validation = parts.validation if validation is None else validation
    labels = data.labels if labels is None else labels
    options = {"epochs": 6, "batch_size": 64, "learning_rate": 0.1, "warmup_epochs": 0, "shift": 0, "weight_decay": 0.0} | recipe
    prepare = Standardiser(data.images[parts.train])
    trainer = Trainer(network, fastcv.nn.CrossEntropyLoss(), data.images[train], labels[train], prepare, Recipe(**options))
    history: list[Epoch] = []
    for epoch in range(options["epochs"]):
        try:
            history.append(trainer.run_epoch(epoch, data.images[validation], data.labels[validation]))
        except ArithmeticError:
            break
        on_epoch(history[-1])
    return history


def accuracy(network: nn.Module, part: Tensor, training: bool = False, batch_size: int = 512) -> float:
    """Share of right answers on these digits, in evaluation mode or (``training``) with the batch's own statistics."""
    data, parts = digits()
    prepare = Standardiser(data.images[parts.train])
    network.train(training)
    with torch.no_grad():
        batches = [b for b in part.split(batch_size) if not training or len(b) > 1]
        right = sum(int((network(prepare(data.images[b])).argmax(1) == data.labels[b]).sum()) for b in batches)
    return right / sum(map(len, batches))
