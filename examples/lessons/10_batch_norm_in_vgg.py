"""A small VGG with batch norm and without, at three learning rates."""

import math

from common import COLORS, Lesson, convs, figure, fit, main, tidy

import fastcv.nn

WIDTHS = (16, 16, "M", 32, 32, "M", 64, 64)


def lesson() -> Lesson:
    made, axes = figure(11, 4, ncols=2, sharey=True)
    found = {}
    for cell, (name, norm) in zip(axes[0], {"without": None, "with": fastcv.nn.BatchNorm2d}.items(), strict=True):
        for rate, color in zip((0.01, 0.1, 0.5), COLORS, strict=False):
            history = fit(convs(WIDTHS, norm), epochs=6, learning_rate=rate)
            found[name, rate] = history[-1].validation_accuracy if len(history) == 6 else math.nan
            cell.plot([e.epoch for e in history], [e.train_loss for e in history], color=color, marker=".", label=f"rate {rate:g}")
        tidy(cell, yscale="log", xlabel="epoch", title=f"{name} batch norm")
        cell.legend(frameon=False)
    axes[0][0].set_ylabel("training loss")

    def said(name: str, rate: float) -> str:
        value = found[name, rate]
        return "diverged" if math.isnan(value) else f"{100 * value:.1f} %"

    text = f"""
    Six 3x3 convolutions in three stages on digits, SGD with momentum, six epochs; validation accuracy:
    without batch norm {said("without", 0.01)}, {said("without", 0.1)} and {said("without", 0.5)} at rates 0.01, 0.1 and 0.5; with it
    {said("with", 0.01)}, {said("with", 0.1)} and {said("with", 0.5)}.
    Batch norm makes the answer of a layer independent of the scale of its weights, so a large step cannot blow it up.
    Two 3x3 convolutions see 5x5 pixels with 18 C² weights against 25 C²; three see 7x7 with 27 C² against 49 C².
    VGG16 proper has 138 million parameters, 103 million of them in its first fully connected layer. Its activations for one
    image are 15.2 million numbers (61 MB in float32), counted one tensor per layer; the course material says 24 million, 96 MB.
    In evaluation mode batch norm is a linear map and folds into the convolution before it, exactly up to rounding.
    """
    return Lesson("Batch norm in a VGG", text, made)


if __name__ == "__main__":
    main(lesson)
