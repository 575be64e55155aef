"""Dropout, weight decay, augmentation and early stopping against overfitting."""

import copy

import torch
from common import COLORS, Lesson, accuracy, digits, figure, fit, main, tidy
from torch import nn

import fastcv.nn
from fastcv.train.loop import Epoch

EPOCHS = 70


def network(dropout: float) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        fastcv.nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), fastcv.nn.MaxPool2d(2), fastcv.nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Dropout(dropout), nn.Linear(64 * 16, 256), nn.ReLU(), nn.Dropout(dropout), nn.Linear(256, 10),
    )  # fmt: skip


def lesson() -> Lesson:
    data, parts = digits()
    generator = torch.Generator().manual_seed(0)
    order = parts.train[torch.randperm(len(parts.train), generator=generator)]
    few, others = order[:200], order[200:]
    labels = data.labels.clone()
    drawn = few[:40]
    labels[drawn] = torch.randint(10, (len(drawn),), generator=generator)
    wrong = int((labels != data.labels).sum())
    remedies = {
        "nothing": {},
        "weight decay": {"weight_decay": 3e-2},
        "dropout 0.5": {"dropout": 0.5},
        "shifts by a pixel": {"shift": 1},
        "shifts and dropout": {"shift": 1, "dropout": 0.5},
    }
    made, ((left, right, ends_at),) = figure(14, 4.2, ncols=3, width_ratios=(1, 1, 0.8))
    tests, stopped, ends = {}, {}, {}
    for (name, options), color in zip(remedies.items(), COLORS, strict=False):
        model = network(options.get("dropout", 0.0))
        weights = sum(p.numel() for p in model.parameters())
        best: list = [float("inf"), 0, None]

        def keep(epoch: Epoch, model: nn.Module = model, best: list = best) -> None:
            if epoch.validation_loss < best[0]:
                best[:] = epoch.validation_loss, epoch.epoch, copy.deepcopy(model.state_dict())

        recipe = {key: value for key, value in options.items() if key != "dropout"}
        history = fit(model, few, keep, labels, others, epochs=EPOCHS, batch_size=25, learning_rate=0.02, **recipe)
        tests[name], ends[name] = 100 * accuracy(model, parts.test), history[-1]
        epochs = [e.epoch for e in history]
        left.plot(epochs, [e.train_loss for e in history], color=color, label=name)
        right.plot(epochs, [e.validation_loss for e in history], color=color)
        right.plot(best[1], best[0], "o", color=color, markersize=10, fillstyle="none")
        model.load_state_dict(best[2])
        stopped[name] = 100 * accuracy(model, parts.test)
        ends_at.plot([tests[name], stopped[name]], [name] * 2, color=color, linewidth=1)
        ends_at.plot(tests[name], name, "s", color=color, markersize=8)
        ends_at.plot(stopped[name], name, "o", color=color, markersize=10, markerfacecolor="white")
        if name == "nothing":
            first = best
    tidy(left, yscale="log", xlabel="epoch", ylabel="training loss (with the remedy on)")
    left.legend(frameon=False)
    tidy(right, xlabel="epoch", ylabel="validation loss; a ring marks where to stop", ylim=(0, 1.6))
    tidy(ends_at, xlabel="test accuracy (%): square at the end, ring at the ring", ylim=(len(remedies) - 0.5, -0.5))
    text = f"""
    {len(few)} training digits, {wrong} of them with a wrong label as hurried annotators leave behind, and a network of {weights:,}
    weights: enough to learn every mistake by heart.
    Without a remedy it does: the training loss falls to {ends["nothing"].train_loss:.3f}, while the loss on {len(others):,} other
    digits is least at epoch {first[1]} ({first[0]:.2f}) and ends at {ends["nothing"].validation_loss:.2f}.
    Early stopping keeps the state at the ring: {stopped["nothing"]:.1f} % of the test digits are right, {tests["nothing"]:.1f} %
    at the end. It costs nothing and serves every remedy (rings).
    Weight decay pulls all weights to zero at each step: {tests["weight decay"]:.1f} % at the end. Dropout silences half of a layer's
    units per image, so that no unit can rely on another: {tests["dropout 0.5"]:.1f} %. Shifts by a pixel are new images for free:
    {tests["shifts by a pixel"]:.1f} %, and with dropout {tests["shifts and dropout"]:.1f} %, at a training loss of
    {ends["shifts and dropout"].train_loss:.2f}: remedies make training harder, and that is the point.
    At test time dropout is off; inverted dropout scales by 1/(1 - p) in training so that nothing changes then.
    The rings are chosen on the validation digits; the test digits are only read.
    """
    return Lesson("Against overfitting", text, made)


if __name__ == "__main__":
    main(lesson)
