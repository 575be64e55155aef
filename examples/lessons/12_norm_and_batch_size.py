"""Batch norm against group norm where 2 to 32 images are normalised together."""

import torch
from common import BLUE, ORANGE, Lesson, accuracy, convs, digits, figure, fit, main, tidy
from torch import Tensor, nn

import fastcv.nn

SIZES = (2, 4, 8, 16, 32)
WIDTHS = (16, "M", 32, "M", 64, "M", 64)
BATCH, SEEDS = 32, (0, 1, 2)


class Apart(nn.Module):
    """In training the network sees ``size`` images at a time, as on BATCH / size devices that do not exchange statistics."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.network(part) for part in x.split(self.size)]) if self.training else self.network(x)


def trained(norm, size: int, seed: int, test: Tensor) -> tuple[float, float]:
    """(training loss of the last epoch, test error in %)."""
    network = Apart(convs(WIDTHS, norm, seed=seed), size)
    history = fit(network, epochs=6, batch_size=BATCH, learning_rate=0.1, warmup_epochs=1, seed=seed)
    return history[-1].train_loss, 100 * (1 - accuracy(network, test))


def lesson() -> Lesson:
    _, parts = digits()
    batch = torch.tensor([[trained(fastcv.nn.BatchNorm2d, size, seed, parts.test) for seed in SEEDS] for size in SIZES])
    group = torch.tensor([trained(lambda width: fastcv.nn.GroupNorm(4, width), BATCH, seed, parts.test) for seed in SEEDS])
    made, axes = figure(11, 4, ncols=2)
    for i, (cell, name) in enumerate(zip(axes[0], ("training loss, last epoch", "test error (%)"), strict=True)):
        cell.plot(SIZES, batch[..., i].mean(1), color=BLUE, marker="o", label="batch norm")
        for size, values in zip(SIZES, batch[..., i], strict=True):
            cell.plot([size] * len(values), values, "_", color=BLUE, markersize=9)
        cell.axhline(group[:, i].mean(), color=ORANGE, label="group norm, 4 groups")
        cell.axhspan(group[:, i].min(), group[:, i].max(), color=ORANGE, alpha=0.15, linewidth=0)
        tidy(cell, xscale="log", yscale="log", xlabel="images normalised together", ylabel=name)
        cell.set_xticks(SIZES, SIZES)
        cell.xaxis.minorticks_off()
    axes[0][1].set_yticks([0.5, 1, 2, 5, 10, 20, 50], [0.5, 1, 2, 5, 10, 20, 50])
    axes[0][1].yaxis.minorticks_off()
    axes[0][0].legend(frameon=False)
    losses, errors = batch.mean(1).T.tolist()
    text = f"""
    One network, {len(parts.train):,} digits, six epochs in batches of {BATCH}; every batch is normalised in parts of 2 to {BATCH}
    images, as on devices that do not exchange statistics. All else is equal; three seeds (dashes, band) and their mean.
    Batch norm estimates mean and variance from the images normalised together. The last map here is one pixel, so with two images a
    channel is normalised by two numbers, and two numbers become +1 and -1 whatever they were: {errors[0]:.0f} % of the test digits
    are wrong. With 4 images it is {errors[1]:.1f} %, with 8 {errors[2]:.1f} % (a little noise regularises), with 32 {errors[4]:.1f} %;
    the training loss falls from {losses[1]:.2f} at 4 to {losses[4]:.3f} at 32.
    Group norm takes both from groups of channels of one image: it does not know the batch, so one line serves all sizes
    ({group[:, 1].mean():.1f} %); it is the same function in training and evaluation.
    Where a large batch fits in memory batch norm is at least as good; where it does not, group norm, or batch norm synchronised over
    processes (nn.SyncBatchNorm). Batch norm of one value per channel has variance zero: torch and fastcv refuse to train on it.
    """
    return Lesson("Batch norm and group norm at small batches", text, made)


if __name__ == "__main__":
    main(lesson)
