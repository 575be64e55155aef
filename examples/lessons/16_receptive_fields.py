"""Receptive fields, drawn by the gradient."""

import torch
from common import Lesson, figure, main, picture
from torch import Tensor

import fastcv.functional as F

SIZE = 33


def field(layers: str, ones: bool, seed: int = 0) -> Tensor:
    """|gradient| of the centre output by the input, a mean over 30 random networks; "c": 3x3 conv, "d": dilation 2, "p": 2x2 mean pool."""
    total = torch.zeros(SIZE, SIZE)
    for trial in range(1 if ones else 30):
        generator = torch.Generator().manual_seed(seed + trial)
        x = torch.randn(1, 1, SIZE, SIZE, generator=generator, requires_grad=True)
        y, dilation = x, 1
        for layer in layers:
            if layer == "p":
                y = F.avg_pool2d(y, 2)
                continue
            dilation = 2 if layer == "d" else 1
            channels = 1 if ones else 8
            shape = (channels, y.shape[1], 3, 3)
            weight = torch.ones(shape) if ones else torch.randn(shape, generator=generator) * (2 / (9 * y.shape[1])) ** 0.5
            y = F.conv2d(y, weight, padding=dilation, dilation=dilation)
            y = y if ones else torch.relu(y)
        y[0, :, y.shape[2] // 2, y.shape[3] // 2].sum().backward()
        total += x.grad[0, 0].abs()
    return total


def lesson() -> Lesson:
    stacks = {
        "1 conv": "c",
        "3 convs": "ccc",
        "6 convs": "cccccc",
        "conv, pool, conv, pool, conv": "cpcpc",
        "3 convs, dilation 1, 2, 2": "cdd",
    }
    made, axes = figure(12.5, 5.4, nrows=2, ncols=len(stacks))
    sides = {}
    for column, (name, layers) in enumerate(stacks.items()):
        reach, weight = field(layers, ones=True), field(layers, ones=False)
        seen = (reach > 0).nonzero()
        sides[name] = int((seen.amax(0) - seen.amin(0) + 1).max())
        picture(axes[0][column], (reach > 0).float(), f"{name}\n{sides[name]}x{sides[name]} pixels", vmin=0, vmax=1)
        picture(axes[1][column], weight / weight.max(), "how much", cmap="magma")
    one, three, six, pooled, dilated = sides.values()
    text = f"""
    Which input pixels can change one output? Those where its gradient is not zero: the top row.
    A 3x3 convolution sees {one}x{one}, each further one adds 2: three see {three}x{three}, six {six}x{six}.
    Three 3x3 layers have 27 C² weights and two more ReLUs than one 7x7 layer with its 49 C².
    Pooling doubles what every later layer adds: with two pools, three convolutions see {pooled}x{pooled}. Dilation 2 skips pixels
    instead: {dilated}x{dilated}.
    The bottom row is the mean size of the gradient over 30 random ReLU networks: far from even. Paths to the middle are many,
    paths to the corner few, as in a sum of random numbers: the effective field is a blob that grows with the square root of the depth.
    Output size: (N + 2P - F)/S + 1; 7 pixels, a 3x3 filter and stride 3 give 2.33, which torch and fastcv floor to 2.
    """
    return Lesson("Receptive fields", text, made)


if __name__ == "__main__":
    main(lesson)
