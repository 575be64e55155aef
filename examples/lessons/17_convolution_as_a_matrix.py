"""Convolution and transposed convolution as matrices."""

import torch
from common import Lesson, digits, figure, main, picture
from torch import Tensor

import fastcv.functional as F


def matrix(function, size: tuple[int, ...]) -> Tensor:
    """The matrix of a linear function of images of this size: its values on all images with one pixel set."""
    count = torch.Size(size).numel()
    basis = torch.eye(count).reshape(count, 1, *size)
    return function(basis).reshape(count, -1).T


def shown(axes, m: Tensor, title: str) -> None:
    limit = float(m.abs().max())
    axes.imshow(m, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])


def lesson() -> Lesson:
    kernel = torch.tensor([[[1.0, 2.0, 3.0]]])  # x, y, z
    small = matrix(lambda x: F.conv1d(x, kernel, stride=2, padding=1), (4,))
    back = matrix(lambda x: F.conv_transpose1d(x, kernel, stride=2, padding=1, output_padding=1), (2,))
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])[None, None]
    wide = matrix(lambda x: F.conv2d(x, sobel, padding=1), (8, 8))
    strided = matrix(lambda x: F.conv2d(x, sobel, stride=2, padding=1), (8, 8))
    up = matrix(lambda x: F.conv_transpose2d(x, sobel, stride=2, padding=1, output_padding=1), (4, 4))
    data, _ = digits()
    image = data.images[3:4].float() / 16
    product = (wide @ image.flatten()).reshape(8, 8)
    error = float((product - F.conv2d(image, sobel, padding=1)[0, 0]).abs().max())
    twice = float((back - small.T).abs().max()), float((up - strided.T).abs().max())
    made, axes = figure(13, 6.4, nrows=2, ncols=4)
    shown(axes[0][0], small, "conv1d of (1, 2, 3), 4 to 2")
    shown(axes[1][0], back, "conv_transpose1d, 2 to 4")
    for cell, m in ((axes[0][0], small), (axes[1][0], back)):
        for (i, j), value in zip(((i, j) for i in range(m.shape[0]) for j in range(m.shape[1])), m.flatten().tolist(), strict=True):
            cell.text(j, i, f"{value:g}", ha="center", va="center", color="white" if abs(value) > 2 else "black")
    shown(axes[0][1], wide, "Sobel 3x3 on 8x8: 64x64")
    shown(axes[0][2], strided, "stride 2: 16x64")
    shown(axes[1][2], up, "its conv_transpose2d: 64x16")
    picture(axes[1][1], image[0, 0], "a digit", cmap="gray_r")
    picture(axes[0][3], product, "matrix times digit", cmap="RdBu_r")
    picture(axes[1][3], F.conv2d(image, sobel, padding=1)[0, 0], "conv2d of the digit", cmap="RdBu_r")
    zeros = float((wide == 0).float().mean())
    text = f"""
    Convolution is linear, so it is a matrix: its columns are the answers to images with a single pixel set.
    1-D, kernel (x, y, z), stride 2, padding 1 on (a, b, c, d): (ay + bz, bx + cy + dz); top left with x, y, z = 1, 2, 3.
    Transposed convolution with the same arguments is the transposed matrix, entry for entry (differences {twice[0]:g} and
    {twice[1]:g}).
    It is not the inverse: it undoes the shape, not the values; "deconvolution" is a misnomer. On (a, b) without cropping
    it gives (ax, ay, az + bx, by, bz): the overlaps add, which is where checkerboard patterns come from.
    The gradient of a convolution by its input is the transposed convolution of the output's gradient, for the same reason.
    Of the Sobel matrix {100 * zeros:.0f} % are zeros and the rest are six numbers repeated: few weights, used everywhere.
    Matrix and kernel agree on the digit to {error:.0e}. Deep learning's "convolution" does not flip the kernel: it is correlation.
    """
    return Lesson("Convolution as a matrix, and its transpose", text, made)


if __name__ == "__main__":
    main(lesson)
