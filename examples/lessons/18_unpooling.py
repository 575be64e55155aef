"""Three ways back from a pooled map."""

import torch
from common import Lesson, figure, main, photo, picture

import fastcv.functional as F


def lesson() -> Lesson:
    grey = torch.from_numpy(photo("flower.jpg").mean(-1)).float()[None, None, 120:248, 220:348]
    edge = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])[None, None]
    feature = F.conv2d(grey, edge, padding=1).abs()
    pooled, indices = F.max_pool2d(feature, 2, return_indices=True)
    ways = {
        "nearest": pooled.repeat_interleave(2, 2).repeat_interleave(2, 3),
        "bed of nails": F.upsample_bed_of_nails(pooled, 2),
        "max unpooling": F.max_unpool2d(pooled, indices, 2),
    }
    small = torch.tensor([[[[1.0, 2], [3, 4]]]])
    source = torch.tensor([[[[0.0, 1, 2, 0], [0, 0, 0, 0], [0, 0, 4, 0], [3, 0, 0, 0]]]])
    _, places = F.max_pool2d(source, 2, return_indices=True)
    tiny = {
        "[[1, 2], [3, 4]]": small,
        "nearest": small.repeat_interleave(2, 2).repeat_interleave(2, 3),
        "bed of nails": F.upsample_bed_of_nails(small, 2),
        "max unpooling": F.max_unpool2d(small, places, 2),
    }
    made, axes = figure(13, 5.6, nrows=2, ncols=5)
    limit = float(feature.max()) * 0.6
    for cell, (name, image) in zip(axes[0], {"edges of a flower": feature, "2x2 max pooling": pooled, **ways}.items(), strict=True):
        picture(cell, image[0, 0], name, vmin=0, vmax=limit)
    axes[1][0].axis("off")
    for cell, (name, image) in zip(axes[1][1:], tiny.items(), strict=True):
        picture(cell, image[0, 0], name, cmap="Blues", vmin=0, vmax=6)
        for i in range(image.shape[2]):
            for j in range(image.shape[3]):
                cell.text(j, i, f"{image[0, 0, i, j]:g}", ha="center", va="center")
    errors = {name: float((image - feature).norm() / feature.norm()) for name, image in ways.items()}
    kept = float((F.max_unpool2d(pooled, indices, 2) == feature)[feature > 0].float().mean())
    text = f"""
    Pooling throws three of four values away; a decoder has to put something in their places.
    Nearest: every place gets the value. Bed of nails: the value in the first place, zeros elsewhere.
    Max unpooling remembers where each maximum stood (the indices of max_pool2d) and puts it back there.
    On the edges of a flower: relative error {errors["nearest"]:.2f} (nearest), {errors["bed of nails"]:.2f} (bed of nails),
    {errors["max unpooling"]:.2f} (max unpooling).
    The thin lines come back only with the indices: {100 * kept:.0f} % of the pixels carry their own value again, the others are zero.
    None of the three learns; a transposed convolution does, and a bed of nails followed by a convolution is one.
    Each one's gradient is the matching pooling: sum over the block, pick the first, pick the remembered place.
    """
    return Lesson("Unpooling", text, made)


if __name__ == "__main__":
    main(lesson)
