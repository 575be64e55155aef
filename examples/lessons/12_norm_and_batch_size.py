"""Batch norm against group norm at batch sizes 2 to 32."""

from common import BLUE, ORANGE, Lesson, accuracy, convs, digits, figure, fit, main, tidy

import fastcv.nn

SIZES = (2, 4, 8, 16, 32)
WIDTHS = (16, "M", 32, 32)


def lesson() -> Lesson:
    _, parts = digits()
    train = parts.train[::3]
    norms = {"batch norm": fastcv.nn.BatchNorm2d, "group norm, 4 groups": lambda width: fastcv.nn.GroupNorm(4, width)}
    found: dict[str, list[list[float]]] = {name: [] for name in norms}
    for size in SIZES:
        for name, norm in norms.items():
            errors = []
            for seed in (0, 1):
                network = convs(WIDTHS, norm, seed=seed)
                fit(network, train, epochs=3, batch_size=size, learning_rate=0.1 * size / 32, seed=seed)
                errors.append(100 * (1 - accuracy(network, parts.test)))
            found[name].append(errors)
    made, ((axes,),) = figure(7.5, 4.2)
    means = {}
    for (name, errors), color in zip(found.items(), (BLUE, ORANGE), strict=True):
        means[name] = [sum(e) / len(e) for e in errors]
        axes.plot(SIZES, means[name], color=color, marker="o", label=name)
        for size, values in zip(SIZES, errors, strict=True):
            axes.plot([size] * len(values), values, "_", color=color, markersize=9)
    tidy(axes, xscale="log", xlabel="images per batch", ylabel="test error (%)", ylim=(0, None))
    axes.set_xticks(SIZES, SIZES)
    axes.minorticks_off()
    axes.legend(frameon=False)
    batch, group = means.values()
    text = f"""
    One network, {len(train)} training digits, three epochs, the rate in proportion to the batch size; two seeds (dashes) and their
    mean.
    Smaller batches mean more steps, which helps both: group norm, which takes mean and variance from groups of channels of one
    image and does not know the batch, goes from {group[4]:.1f} % wrong at 32 images to {group[2]:.1f} % at 8 and {group[0]:.1f} % at 2.
    Batch norm estimates them from the batch: {batch[4]:.1f} % at 32, {batch[2]:.1f} % at 8, and
    {batch[0]:.1f} % at 2, where two images estimate badly.
    Three epochs favour batch norm, which learns faster at first; what counts is which way the curves bend on the left.
    Group norm computes the same in training and evaluation, and an image's answer does not depend on its neighbours.
    Where a large batch fits in memory batch norm's noise is welcome; where images are large, group norm or batch norm synchronised
    over processes. Batch norm of one value per channel cannot train at all: its variance is zero, and torch and fastcv refuse.
    """
    return Lesson("Batch norm and group norm at small batches", text, made)


if __name__ == "__main__":
    main(lesson)
