"""Statistics of activations through six layers under five initialisations."""

import math

import numpy as np
import torch
from common import BLUE, Lesson, figure, main, photo

import fastcv.functional as F

WIDTH, LAYERS = 4096, 6


def lesson() -> Lesson:
    rng, grey = np.random.RandomState(0), photo().mean(-1)
    places = [(rng.randint(0, 427 - 64), rng.randint(0, 640 - 64)) for _ in range(16)]
    crops = torch.from_numpy(np.stack([grey[y : y + 64, x : x + 64].ravel() for y, x in places])).float()
    inputs = (crops - crops.mean(1, keepdim=True)) / crops.std(1, keepdim=True)
    settings = {
        "tanh, std 0.01": (torch.tanh, 0.01),
        "tanh, std 0.05": (torch.tanh, 0.05),
        "tanh, 1/√D": (torch.tanh, 1 / math.sqrt(WIDTH)),
        "ReLU, 1/√D": (torch.relu, 1 / math.sqrt(WIDTH)),
        "ReLU, √(2/D)": (torch.relu, math.sqrt(2 / WIDTH)),
    }
    made, axes = figure(12, 7.5, nrows=len(settings), ncols=LAYERS)
    last = {}
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(WIDTH, WIDTH, 1, generator=generator) for _ in range(LAYERS)]
    for row, (name, (activation, std)) in zip(axes, settings.items(), strict=True):
        x = inputs[:, :, None]
        for layer, (cell, weight) in enumerate(zip(row, weights, strict=True), start=1):
            x = activation(F.conv1d(x, weight) * std)  # a linear layer is a convolution of one pixel
            wide = 1 if activation is torch.tanh else 3
            heights, _, _ = cell.hist(x.flatten().numpy(), bins=60, range=(-1 if wide == 1 else 0, wide), color=BLUE)
            if activation is torch.relu:  # half of the values are zero: their bar would hide the others
                cell.set_ylim(0, 1.4 * heights[1:].max())
                cell.text(0.08, 0.86, f"{100 * (x == 0).float().mean():.0f} % zeros", transform=cell.transAxes, fontsize=7)
            cell.set_yticks([])
            cell.tick_params(labelsize=7)
            cell.set_title(f"layer {layer}: std {x.std():.2g}", fontsize=9)
            cell.spines[["top", "right", "left"]].set_visible(False)
        row[0].set_ylabel(name, fontsize=9)
        last[name] = float(x.std())
    small, large, tanh, relu, he = last.values()
    text = f"""
    Sixteen crops of a photograph, standardised, through six layers of {WIDTH:,} units: what is left after each layer?
    Weights of standard deviation 0.01 with tanh: the activations vanish ({small:.1g} after six layers), and with them the gradients.
    0.05: they saturate at -1 and 1 (std {large:.2f}), where tanh is flat: no gradient either.
    1/√D (Xavier): a sum of D products keeps the variance, only tanh itself shrinks it slowly; std {tanh:.2f} after six layers.
    ReLU throws half of the variance away at each layer, so 1/√D shrinks by √2 each time: {relu:.2f} is left.
    √(2/D) (He) pays that back: {he:.2f}. The right factor belongs to the activation.
    The same weights, scaled, are used in every row; only the scale and the activation differ.
    """
    return Lesson("Initialisation: six layers, five scales", text, made)


if __name__ == "__main__":
    main(lesson)
