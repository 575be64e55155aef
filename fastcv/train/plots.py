"""The pictures of a training run, each a function from numbers to a PNG file (needs matplotlib, opens no window)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from .loop import Epoch

__all__ = ["class_bars", "confusion", "curves", "filters", "misclassified", "neighbours", "pictures", "run_curves", "segmentations"]

BLUE, ORANGE, RED, GREY = "#1f5fa8", "#e07b1f", "#b3261e", "#555555"


def _figure(width: float, height: float, **grid: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    return figure, figure.subplots(squeeze=False, **grid)


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def curves(file: Path, histories: Mapping[str, Sequence[Epoch]], title: str) -> None:
    """Loss and accuracy over the epochs; the runs lie on top of each other, so the first is wide and the second thin."""
    figure, ((loss, accuracy),) = _figure(10, 4, ncols=2)
    styles = [{"linewidth": 4.5, "alpha": 0.45}, {"linewidth": 1.3, "linestyle": "--"}]
    for (name, history), style in zip(histories.items(), styles, strict=True):
        epochs = [e.epoch for e in history]
        for part, color in (("train", BLUE), ("validation", ORANGE)):
            loss.plot(epochs, [getattr(e, f"{part}_loss") for e in history], color=color, label=f"{name}, {part}", **style)
            accuracy.plot(epochs, [100 * getattr(e, f"{part}_accuracy") for e in history], color=color, label=f"{name}, {part}", **style)
    loss.set(yscale="log", ylabel="cross-entropy loss", xlabel="epoch")
    accuracy.set(ylabel="accuracy (%)", xlabel="epoch")
    for axes in (loss, accuracy):
        _tidy(axes)
        axes.xaxis.get_major_locator().set_params(integer=True)
    accuracy.legend(frameon=False, loc="lower right")
    figure.suptitle(_plain(title))
    figure.savefig(file)


def confusion(file: Path, matrix: Tensor, classes: Sequence[str], title: str) -> None:
    """The confusion matrix; the shade is the share of the true class, the numbers are counts (left out above 20 classes)."""
    n = len(classes)
    side = min(12.0, max(5.0, 1.5 + 0.5 * n))
    figure, ((axes,),) = _figure(side + 0.8, side)
    share = matrix.double() / matrix.sum(1, keepdim=True).clamp_min(1)
    image = axes.imshow(share.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
    if n <= 20:
        for i, j in matrix.nonzero().tolist():
            axes.text(j, i, str(int(matrix[i, j])), ha="center", va="center", color="white" if share[i, j] > 0.3 else "black", fontsize=9)
    ticks = range(n) if n <= 40 else range(0, n, math.ceil(n / 40))
    names = [_short(classes[i], 14) for i in ticks]
    upright = max(map(len, names)) > 2
    axes.set_xticks(
        ticks, names, rotation=45 if upright else 0, ha="right" if upright else "center", rotation_mode="anchor" if upright else None
    )
    axes.set_yticks(ticks, names)
    axes.set(xlabel="predicted", ylabel="true", title=_plain(title))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    bar.set_ticks([math.sqrt(s) for s in (0, 0.01, 0.05, 0.2, 0.5, 1)], labels=["0", "1 %", "5 %", "20 %", "50 %", "100 %"])
    bar.outline.set_visible(False)
    figure.savefig(file)


def _plain(text: str) -> str:
    """Text in which a dollar sign does not begin a formula."""
    return text.replace("$", r"\$")


def _short(name: str, length: int) -> str:
    return _plain(name if len(name) <= length else name[: length - 1] + "…")


def _show(axes: Any, image: Tensor, white: int) -> None:
    """Draws one uint8 image [C, H, W]: grey (dark ink on white) for one channel, colour for three."""
    if image.shape[0] == 1:
        axes.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=white)
    else:
        axes.imshow(image.permute(1, 2, 0).float().div(white).clamp(0, 1).numpy())


def misclassified(
    file: Path, images: Tensor, labels: Tensor, logits: Tensor, classes: Sequence[str], white: int, title: str, count: int = 24
) -> None:
    """The wrongly classified images, most confident first, then the right ones of least confidence, ``count`` in all."""
    probabilities = logits.double().softmax(1)
    confidence, predictions = probabilities.max(1)
    wrong = predictions != labels
    order = torch.where(wrong, -1 - confidence, confidence).argsort()[:count].tolist()
    columns = min(8, len(order))
    rows = math.ceil(len(order) / columns)
    figure, grid = _figure(1.35 * columns + 0.3, 1.7 * rows + 0.6, nrows=rows, ncols=columns)
    for axes in grid.flat:
        axes.axis("off")
    for axes, i in zip(grid.flat, order, strict=False):
        _show(axes, images[i], white)
        true, predicted = (_short(classes[int(c[i])], 9) for c in (labels, predictions))
        text = f"{true} → {predicted}" if wrong[i] else true
        newline = "\n" if len(text) > 7 else "  "
        axes.set_title(f"{text}{newline}{100 * confidence[i]:.0f} %", fontsize=9, color=RED if wrong[i] else GREY)
    figure.suptitle(_plain(title))
    figure.savefig(file)


def pictures(file: Path, images: Sequence[Tensor], titles: Sequence[str], white: int) -> None:
    """uint8 images [C, H, W] with a title of two lines each."""
    columns = min(6, len(images))
    rows = math.ceil(len(images) / columns)
    figure, grid = _figure(1.9 * columns + 0.4, 2.3 * rows, nrows=rows, ncols=columns)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, title in zip(grid.flat, images, titles, strict=False):
        _show(axes, image, white)
        axes.set_title("\n".join(_short(line, 22) for line in title.splitlines()), fontsize=9, color=GREY)
    figure.savefig(file)


def neighbours(file: Path, ks: Sequence[int], accuracies: Mapping[str, Tensor], chosen: Mapping[str, int], title: str) -> None:
    """Cross-validated accuracy against k for each distance: mean and standard deviation over the folds [len(ks), folds]."""
    figure, ((axes,),) = _figure(7.5, 4.5)
    offset = 1.012
    for (name, values), color, side in zip(accuracies.items(), (BLUE, ORANGE), (1 / offset, offset), strict=True):
        mean, deviation = 100 * values.mean(1), 100 * values.std(1)
        x = np.asarray(ks) * side  # a little apart, so that the bars of both can be read
        label = f"{name}, chosen k = {chosen[name]} (ring)"
        axes.errorbar(x, mean, deviation, color=color, marker="o", markersize=4, capsize=3, linewidth=1.4, elinewidth=1, label=label)
        best = list(ks).index(chosen[name])
        axes.plot(x[best], mean[best], "o", markersize=11, fillstyle="none", color=color)
    axes.set(xscale="log", xlabel="k, the number of neighbours", ylabel="cross-validated accuracy (%)", title=_plain(title))
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    _tidy(axes)
    axes.legend(frameon=False)
    figure.savefig(file)


def filters(file: Path, weight: Tensor, title: str) -> None:
    """The first layer's filters [C_out, C_in, H, W]: colour for three input channels, else the first channel as red and blue."""
    weight = weight.detach().float().cpu()
    n = len(weight)
    columns = min(8, n)
    rows = math.ceil(n / columns)
    figure, grid = _figure(1.1 * columns + 1.2, 1.0 * rows + 0.6, nrows=rows, ncols=columns)
    for axes in grid.flat:
        axes.axis("off")
    limit = float(weight.abs().max())
    for axes, kernel in zip(grid.flat, weight, strict=False):
        if kernel.shape[0] == 3:
            axes.imshow((0.5 + kernel / (2 * limit)).permute(1, 2, 0).numpy())
        else:
            image = axes.imshow(kernel[0].numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
    if weight.shape[1] != 3:
        bar = figure.colorbar(image, ax=grid, shrink=0.8, label="weight")
        bar.outline.set_visible(False)
    figure.suptitle(_plain(title))
    figure.savefig(file)


def run_curves(file: Path, history: Sequence[Mapping[str, Any]], best_epoch: int, title: str) -> None:
    """Loss, quality, learning rate and throughput over the epochs of one run; a dotted line marks the best epoch."""
    figure, grid = _figure(10, 6.5, nrows=2, ncols=2)
    epochs = [row["epoch"] for row in history]
    quality = "pixel accuracy and mean IoU (%)" if "val_mean_iou" in history[0] else "accuracy (%)"
    panels = [
        ("cross-entropy loss", 1, {"train": "train_loss", "validation": "val_loss"}),
        (quality, 100, {"train": "train_accuracy", "validation": "val_accuracy", "validation, mean IoU": "val_mean_iou"}),
        ("learning rate", 1, {"": "lr"}),
        ("training images per second", 1, {"": "images_per_second"}),
    ]
    for axes, (label, scale, lines) in zip(grid.flat, panels, strict=True):
        for (name, key), color in zip(lines.items(), (BLUE, ORANGE, RED), strict=False):
            if key in history[0]:
                axes.plot(epochs, [scale * row[key] for row in history], color=color, label=name, marker="o" if len(history) < 3 else None)
        axes.axvline(best_epoch, color=GREY, linewidth=0.9, linestyle=":", label=f"best epoch, {best_epoch}" if "loss" in label else None)
        axes.set(ylabel=label, xlabel="epoch")
        if "loss" in label:
            axes.set_yscale("log")
        elif scale == 1:
            axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        _tidy(axes)
        if len(lines) > 1:
            axes.legend(frameon=False)
    figure.suptitle(_plain(title))
    figure.savefig(file)


def class_bars(file: Path, values: Tensor, classes: Sequence[str], label: str, title: str) -> None:
    """One bar per class of a share of 0 to 1, its mean as a line; a class with NaN has no bar."""
    n = len(classes)
    figure, ((axes,),) = _figure(7.5, min(30.0, 1.4 + 0.3 * n))
    shares = 100 * values.double()
    axes.barh(range(n), shares.nan_to_num().numpy(), color=BLUE, height=0.65)
    axes.axvline(float(shares.nanmean()), color=ORANGE, linewidth=1.4)
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    for i, share in enumerate(shares.tolist()):
        there = share == share
        axes.text(share + 0.9 if there else 0.9, i, f"{share:.1f}" if there else "absent", va="center", fontsize=9, bbox=paper)
    axes.set_yticks(range(n), [_short(name, 18) for name in classes])
    axes.set(
        xlim=(0, 108), ylim=(n - 0.4, -0.6), xlabel=f"{label} (%)", title=_plain(f"{title}, mean {float(shares.nanmean()):.1f} % (line)")
    )
    axes.tick_params(axis="y", length=0)
    _tidy(axes)
    figure.savefig(file)


def palette(classes: int) -> np.ndarray:
    """A colour per class, uint8 [classes, 3]: grey for the first, the others around the colour circle."""
    from matplotlib import colormaps
    from matplotlib.colors import hsv_to_rgb

    if classes <= 11:
        colors = np.array([(0.25, 0.25, 0.25), *colormaps["tab10"].colors])[:classes]
        colors[8:9] = (1.0, 0.87, 0.25)  # tab10's grey is too close to that of the first class
    else:
        hues = np.arange(classes) * 0.618034 % 1.0
        colors = hsv_to_rgb(np.stack([hues, 0.65 + 0.35 * (np.arange(classes) % 2), 0.75 + 0.25 * (np.arange(classes) % 3 == 0)], 1))
        colors[0] = 0.25
    return (255 * colors).round().astype(np.uint8)


def painted(mask: Tensor, classes: int) -> np.ndarray:
    """A mask [H, W] as uint8 colours [H, W, 3]; IGNORED is white."""
    colors = np.full((256, 3), 255, np.uint8)
    colors[:classes] = palette(classes)
    return colors[mask.numpy().astype(np.uint8)]


def segmentations(file: Path, images: Tensor, masks: Tensor, predictions: Tensor, classes: Sequence[str], white: int, title: str) -> None:
    """Image, true mask, predicted mask and what is wrong (red), one row of four for each two images."""
    count = len(images)
    rows = math.ceil(count / 2)
    gap = {"width_ratios": [1, 1, 1, 1, 0.12, 1, 1, 1, 1]}
    figure, grid = _figure(12, 1.5 * rows + 1.1, nrows=rows, ncols=9, gridspec_kw=gap)
    for axes in grid.flat:
        axes.axis("off")
    for i in range(count):
        row = grid[i // 2][5 * (i % 2) :][:4]
        wrong = (masks[i] != predictions[i]) & (masks[i] != 255)
        _show(row[0], images[i], white)
        row[1].imshow(painted(masks[i], len(classes)))
        row[2].imshow(painted(predictions[i], len(classes)))
        _show(row[3], images[i], white)
        overlay = np.zeros((*wrong.shape, 4))
        overlay[wrong.numpy()] = (0.9, 0.0, 0.0, 1.0)
        row[3].imshow(0.6 * np.ones_like(overlay), alpha=0.6)
        row[3].imshow(overlay)
        for axes, name in zip(row, ("image", "truth", "answer", f"wrong: {int(wrong.sum()):,} px"), strict=True):
            axes.set_title(name, fontsize=9, color=GREY)
    colors = palette(len(classes)) / 255
    shown = sorted(set(torch.cat([masks.flatten(), predictions.flatten()]).unique().tolist()) - {255})[:24]
    handles = [Rectangle((0, 0), 1, 1, color=colors[int(c)]) for c in shown]
    figure.legend(
        handles, [_short(classes[int(c)], 14) for c in shown], loc="outside lower center", ncols=min(12, len(shown)), frameon=False
    )
    figure.suptitle(_plain(title))
    figure.savefig(file)
