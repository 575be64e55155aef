"""Hinge against softmax, the worked example, and the loss before training."""

import math

import torch
from common import BLUE, COLORS, ORANGE, Lesson, convs, digits, figure, main, tidy

import fastcv.functional as F
from fastcv.train.data import Standardiser
from fastcv.vision import hinge_loss, softmax

SCORES = torch.tensor([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]])


def lesson() -> Lesson:
    truth = torch.arange(3)
    hinge, entropy = hinge_loss(SCORES, truth, reduction="none"), F.cross_entropy(SCORES, truth, reduction="none")
    own = torch.linspace(-4, 12, 161)
    swept = torch.stack([own, torch.full_like(own, 5.1), torch.full_like(own, -1.7)], 1)
    zero = torch.zeros(len(own), dtype=torch.int64)
    made, ((left, middle, right),) = figure(12, 3.8, ncols=3)
    left.plot(own, hinge_loss(swept, zero, reduction="none"), color=BLUE, label="hinge")
    left.plot(own, F.cross_entropy(swept, zero, reduction="none"), color=ORANGE, label="cross-entropy")
    left.plot([3.2, 3.2], [hinge[0], entropy[0]], "o", color="black", label="the example, 3.2")
    tidy(left, xlabel="score of the right class; the others are 5.1 and -1.7", ylabel="loss")
    left.legend(frameon=False)
    betas = (0, 0.25, 1, 4, math.inf)
    for i, (beta, color) in enumerate(zip(betas, COLORS, strict=False)):
        middle.bar(torch.arange(3) + 0.16 * (i - 2), softmax(SCORES[:1], beta)[0], 0.15, color=color, label=f"β = {beta:g}")
    tidy(middle, ylabel="probability", title="softmax of (3.2, 5.1, -1.7) at temperature 1/β")
    middle.set_xticks(range(3), ["class 0", "class 1", "class 2"])
    middle.legend(frameon=False)
    data, parts = digits()
    first, counts = [], (2, 3, 5, 10, 30, 100, 300)
    images = Standardiser(data.images[parts.train])(data.images[parts.train][:256])
    for classes in counts:
        network = convs([16, "M", 32], classes=classes)
        with torch.no_grad():
            network[-1].weight.mul_(0.1)  # small scores, as a good initialisation gives
            first.append(float(F.cross_entropy(network(images), torch.arange(256) % classes)))
    right.plot(counts, [math.log(c) for c in counts], color=BLUE, label="ln C")
    right.plot(counts, [1 / c for c in counts], color=ORANGE, linestyle="--", label="1 / C (a slip)")
    right.plot(counts, first, "o", color="black", label="measured")
    tidy(right, xscale="log", xlabel="classes C", ylabel="cross-entropy before training")
    right.legend(frameon=False)
    p = F.softmax(SCORES[:1], dim=1)[0]
    text = f"""
    Scores (3.2, 5.1, -1.7) for an image of class 0. Hinge: max(0, 5.1 - 3.2 + 1) + max(0, -1.7 - 3.2 + 1) = {hinge[0]:.1f}.
    The three images of the example have {hinge[0]:.1f}, {hinge[1]:.1f} and {hinge[2]:.1f}, on average {hinge.mean():.2f}. Softmax
    turns the first row into
    {p[0]:.2f}, {p[1]:.2f}, {p[2]:.2f}, and its cross-entropy is -ln {p[0]:.2f} = {entropy[0]:.2f}.
    Left: the hinge loss is content, exactly 0, once the right score leads by the margin; cross-entropy never is, it only tires.
    For wrong answers both fall with a slope near one per score. Doubling all weights leaves a hinge loss of 0 at 0.
    Middle: scores times β before the softmax; β = 0 knows nothing, β = 1 is the usual softmax, β to infinity the argmax.
    Right: with small random scores every class gets about 1 / C, so cross-entropy starts at -ln(1 / C) = ln C:
    {first[3]:.2f} measured for 10 classes, ln 10 = {math.log(10):.2f}. The course material says 1 / C in one place; that is the
    probability, not the loss.
    A first loss far from ln C is a bug or a bad initialisation, found before the first step.
    """
    return Lesson("Hinge against softmax, and the loss before training", text, made)


if __name__ == "__main__":
    main(lesson)
