"""Dropout, augmentation and early stopping against overfitting."""

import torch
from common import BLUE, COLORS, Lesson, accuracy, digits, figure, fit, main, tidy
from torch import nn

import fastcv.nn


def network(dropout: float) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        fastcv.nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), fastcv.nn.MaxPool2d(2), fastcv.nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Dropout(dropout), nn.Linear(64 * 16, 256), nn.ReLU(), nn.Dropout(dropout), nn.Linear(256, 10),
    )  # fmt: skip


def lesson() -> Lesson:
    _, parts = digits()
    few = parts.train[torch.randperm(len(parts.train), generator=torch.Generator().manual_seed(0))[:150]]
    remedies = {
        "nothing": {},
        "dropout 0.5": {"dropout": 0.5},
        "weight decay": {"weight_decay": 3e-2},
        "shifts by a pixel": {"shift": 1},
        "shifts and dropout": {"shift": 1, "dropout": 0.5},
    }
    made, ((left, right),) = figure(11.5, 4.2, ncols=2)
    tests, gaps, best = {}, {}, None
    for (name, options), color in zip(remedies.items(), COLORS, strict=False):
        model = network(options.get("dropout", 0.0))
        recipe = {key: value for key, value in options.items() if key != "dropout"}
        history = fit(model, few, epochs=40, batch_size=25, learning_rate=0.01, **recipe)
        tests[name] = 100 * accuracy(model, parts.test)
        gaps[name] = history[-1].validation_loss
        epochs = [e.epoch for e in history]
        left.plot(epochs, [e.train_loss for e in history], color=color, label=name)
        right.plot(epochs, [e.validation_loss for e in history], color=color)
        if name == "nothing":
            best = min(history, key=lambda e: e.validation_loss)
            right.plot(best.epoch, best.validation_loss, "o", color=BLUE, markersize=11, fillstyle="none")
    tidy(left, yscale="log", xlabel="epoch", ylabel="training loss (with the remedy on)")
    left.legend(frameon=False)
    tidy(right, yscale="log", xlabel="epoch", ylabel="validation loss; the ring is where to stop")
    text = f"""
    {len(few)} training digits and a network of 284,000 weights, far more than it needs.
    Without a remedy the validation loss is least at epoch {best.epoch} ({best.validation_loss:.3f}) and ends at
    {gaps["nothing"]:.3f}; early stopping keeps the state at the ring. A rate that falls to zero stops by itself, so
    the curve hardly turns here.
    Dropout silences half of the units of a layer per image, so no unit can rely on another; it trains slower, ends at
    {gaps["dropout 0.5"]:.3f}.
    Weight decay pulls all weights to zero at each step: {gaps["weight decay"]:.3f}. Shifts by a pixel are new images for free:
    {gaps["shifts by a pixel"]:.3f}.
    Test accuracy: nothing {tests["nothing"]:.1f} %, dropout {tests["dropout 0.5"]:.1f} %, decay {tests["weight decay"]:.1f} %, shifts
    {tests["shifts by a pixel"]:.1f} %, both {tests["shifts and dropout"]:.1f} %.
    Every remedy makes training harder and slower (the training curves are measured with it on): in 40 epochs at one small rate the
    shifts have not caught up. A remedy is worth it where the gap between the two losses is large, and it wants longer training.
    At test time dropout is off; inverted dropout scales by 1/(1 - p) in training so that nothing changes then.
    """
    return Lesson("Against overfitting", text, made)


if __name__ == "__main__":
    main(lesson)
