"""Training and evaluating a classifier: SGD with momentum, a cosine schedule with linear warm-up, seeded batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .data import augment

__all__ = ["Diverged", "Epoch", "Recipe", "Trainer", "learning_rate", "logits_of"]


class Diverged(ArithmeticError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Recipe:
    """How to train. shift, mirror: the augmentation (see ``augment``); the rest are SGD's and the schedule's terms."""

    epochs: int
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 1
    shift: int = 1
    mirror: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """One epoch's numbers: means over the training batches, then the validation part, and the seconds spent training."""

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Rises linearly over the first ``warmup`` steps to ``peak``, then follows half a cosine that reaches 0 after the last."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class Trainer:
    """One network and its optimiser.

    loss: a module from (logits, labels) to the mean loss. images uint8 and labels: the training part. prepare: uint8 images
    to the network's input. The order of the images and the augmentation depend on the recipe's seed and the epoch alone,
    so two trainers with one seed see the same batches.
    """

    def __init__(
        self, network: nn.Module, loss: nn.Module, images: Tensor, labels: Tensor, prepare: Callable[[Tensor], Tensor], recipe: Recipe
    ) -> None:
        self.network, self.loss, self.images, self.labels, self.prepare, self.recipe = network, loss, images, labels, prepare, recipe
        self.batch_size = min(recipe.batch_size, len(labels))
        self.steps_per_epoch = len(labels) // self.batch_size
        self.steps = recipe.epochs * self.steps_per_epoch
        self.step_number = 0
        self.optimizer = torch.optim.SGD(
            network.parameters(), recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
        )

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The augmented, prepared batches of one epoch; the last images of the order are left out if they fill no batch."""
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.labels), generator=generator)
        for indices in order[: self.steps_per_epoch * self.batch_size].split(self.batch_size):
            moved = augment(self.images[indices], self.recipe.shift, self.recipe.mirror, generator)
            yield self.prepare(moved), self.labels[indices]

    def step(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One update. Returns the batch's mean loss and its number of right answers before the update."""
        warmup = round(self.recipe.warmup_epochs * self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step_number, self.steps, warmup, self.recipe.learning_rate)
        self.network.train()
        logits = self.network(inputs)
        loss = self.loss(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step_number += 1
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()

    def run_epoch(self, epoch: int, images: Tensor, labels: Tensor, on_step: Callable[[], None] = lambda: None) -> Epoch:
        """Trains over all batches, then evaluates on the given validation images. Raises Diverged."""
        start = time.perf_counter()
        losses, right = [], 0
        for inputs, targets in self.batches(epoch):
            loss, correct = self.step(inputs, targets)
            losses.append(loss.item())
            right += int(correct)
            on_step()
        seconds = time.perf_counter() - start
        mean = sum(losses) / len(losses)
        if not math.isfinite(mean):
            raise Diverged(f"the training loss became {mean} in epoch {epoch + 1}; a smaller learning rate may help")
        logits = logits_of(self.network, images, self.prepare)
        with torch.no_grad():
            validation_loss = float(self.loss(logits, labels))
        accuracy = (logits.argmax(1) == labels).double().mean().item()
        return Epoch(epoch + 1, mean, right / (len(losses) * self.batch_size), validation_loss, accuracy, seconds)


@torch.no_grad()
def logits_of(network: nn.Module, images: Tensor, prepare: Callable[[Tensor], Tensor], batch_size: int = 512) -> Tensor:
    """The network's answers, in evaluation mode, for uint8 images."""
    network.eval()
    return torch.cat([network(prepare(part)) for part in images.split(batch_size)])
