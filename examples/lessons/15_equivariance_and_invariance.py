"""Convolution moves with the image; pooling hardly notices."""

import numpy as np
import torch
from common import BLUE, GREEN, ORANGE, Lesson, figure, main, photo, picture, tidy

import fastcv.functional as F


def lesson() -> Lesson:
    grey = torch.from_numpy(photo().mean(-1)).float() / 255
    window = lambda dx: grey[None, None, 80:208, 180 + dx : 308 + dx]  # noqa: E731
    edge = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])[None, None]
    here, moved = F.conv2d(window(0), edge), F.conv2d(window(16), edge)
    same = float((here[..., 16:] - moved[..., :-16]).abs().max())
    shifts, change = np.arange(0, 9), {"pixels": [], "2x2 max": [], "8x8 max": []}
    features = [F.conv2d(window(int(s)), edge).abs() for s in shifts]
    pooled = {"pixels": features, "2x2 max": [F.max_pool2d(f, 2) for f in features], "8x8 max": [F.max_pool2d(f, 8) for f in features]}
    for name, maps in pooled.items():
        change[name] = [float((m - maps[0]).norm() / maps[0].norm()) for m in maps]
    stride = [F.conv2d(window(s), edge, stride=2) for s in (0, 1, 2)]
    odd = float((stride[0][..., 1:] - stride[1][..., :-1]).abs().max())
    even = float((stride[0][..., 1:] - stride[2][..., :-1]).abs().max())
    made, axes = figure(13, 3.6, ncols=5, width_ratios=(1, 1, 1, 1, 1.5))
    pairs = ((window(0), "image"), (here.abs(), "its edges"), (window(16), "moved by 16"), (moved.abs(), "its edges"))
    for cell, (image, name) in zip(axes[0], pairs, strict=False):
        picture(cell, image[0, 0], name)
    for (name, values), color in zip(change.items(), (BLUE, ORANGE, GREEN), strict=True):
        axes[0][4].plot(shifts, values, color=color, marker="o", label=name)
    tidy(axes[0][4], xlabel="image moved by (pixels)", ylabel="relative change of the feature map", ylim=(0, None))
    axes[0][4].legend(frameon=False)
    text = f"""
    Equivariance: filter and move, or move and filter: the maps differ by {same:g} where both exist. The same weights act everywhere.
    At the border the two do differ, for zeros come in: padding is what breaks it first.
    Stride breaks it next: with stride 2 a shift by 2 gives the same map moved by one ({even:g}), a shift by 1 another map ({odd:.2f}).
    Invariance is something else: the answer should not change at all. Right: how much the edge map changes when the image moves.
    After one pixel the map itself has changed by {100 * change["pixels"][1]:.0f} %, its 2x2 maxima by
    {100 * change["2x2 max"][1]:.0f} %, its 8x8 maxima by {100 * change["8x8 max"][1]:.0f} %.
    Max pooling asks whether an edge is there, not where; many small pools give much invariance, and lose the place.
    A classifier wants that; a segmentation wants the place back, which is what skip connections are for.
    """
    return Lesson("Equivariance of convolution, invariance of pooling", text, made)


if __name__ == "__main__":
    main(lesson)
