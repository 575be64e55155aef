"""U-Net with and without skip connections."""

import numpy as np
import torch
from common import BLUE, ORANGE, Lesson, digits, figure, main, photo, picture, tidy
from torch import Tensor, nn

import fastcv.functional as F
import fastcv.nn

SIDE, EPOCHS = 32, 6


def composed(indices: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Digits, three times as large, in a colour of their own on crops of a photograph: images [N, 3, 32, 32], masks [N, 32, 32]."""
    data, _ = digits()
    rng, images, masks = np.random.RandomState(seed), [], []
    background = photo("china.jpg").astype(np.float32) / 255
    for index in indices.tolist():
        mask = np.zeros((SIDE, SIDE), np.float32)
        top, left = rng.randint(0, SIDE - 24 + 1, 2)
        mask[top : top + 24, left : left + 24] = np.kron(data.images[index, 0].numpy() / 16.0, np.ones((3, 3)))
        y, x = rng.randint(0, 427 - SIDE), rng.randint(0, 640 - SIDE)
        crop, color = background[y : y + SIDE, x : x + SIDE], rng.uniform(0, 1, 3).astype(np.float32)
        images.append(crop * (1 - mask[..., None]) + color * mask[..., None])
        masks.append(mask > 0.4)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(np.stack(masks))


class SmallUNet(nn.Module):
    """Two halvings; the decoder's stages see the encoder's maps of their size, or (skips=False) only what comes from below."""

    def __init__(self, skips: bool, width: int = 12) -> None:
        super().__init__()
        self.skips = skips

        def twice(before: int, after: int) -> nn.Sequential:
            stages: list[nn.Module] = []
            for channels in (before, after):
                stages += [fastcv.nn.Conv2d(channels, after, 3, padding=1, bias=False), fastcv.nn.BatchNorm2d(after), nn.ReLU()]
            return nn.Sequential(*stages)

        self.down = nn.ModuleList([twice(3, width), twice(width, 2 * width), twice(2 * width, 4 * width)])
        self.grow = nn.ModuleList(
            [fastcv.nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), fastcv.nn.ConvTranspose2d(2 * width, width, 2, 2)]
        )
        factor = 2 if skips else 1
        self.up = nn.ModuleList([twice(factor * 2 * width, 2 * width), twice(factor * width, width)])
        self.score = fastcv.nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for i, stage in enumerate(self.down):
            x = stage(F.max_pool2d(x, 2) if i else x)
            kept.append(x)
        for grow, stage, skip in zip(self.grow, self.up, (kept[1], kept[0]), strict=True):
            x = grow(x)
            x = stage(torch.cat([x, skip], 1) if self.skips else x)
        return self.score(x)


def iou(logits: Tensor, masks: Tensor) -> float:
    found = logits.argmax(1).bool()
    return float((found & masks).sum() / (found | masks).sum())


def lesson() -> Lesson:
    _, parts = digits()
    images, masks = composed(parts.train[:480], 0)
    tests, truth = composed(parts.test[:160], 1)
    curves, answers, mean = {}, {}, images.mean()
    for name, skips in (("with skips", True), ("without skips", False)):
        torch.manual_seed(0)
        network, curve = SmallUNet(skips), []
        optimiser = torch.optim.Adam(network.parameters(), 4e-3)
        for epoch in range(EPOCHS):
            network.train()
            for batch in torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch)).split(24):
                logits = network((images[batch] - mean) * 4)
                target = masks[batch]
                loss = F.cross_entropy(logits, target.long()) + F.soft_iou_loss(F.softmax(logits, dim=1)[:, 1], target.float())
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            network.eval()
            with torch.no_grad():
                answers[name] = network((tests - mean) * 4)
            curve.append(iou(answers[name], truth))
        curves[name] = curve
    made, axes = figure(12.5, 6.2, nrows=4, ncols=7, width_ratios=(1, 1, 1, 1, 1, 1, 4.5))
    for column in range(6):
        rows = (tests[column].permute(1, 2, 0).numpy(), truth[column], *(a[column].argmax(0) for a in answers.values()))
        for row, (image, name) in enumerate(zip(rows, ("image", "truth", *answers), strict=True)):
            picture(axes[row][column], image, name if column == 0 else "")
    grid = axes[0][6].get_gridspec()
    for cell in axes[:, 6]:
        cell.remove()
    plot = made.add_subplot(grid[:, 6])
    for (name, curve), color in zip(curves.items(), (BLUE, ORANGE), strict=True):
        plot.plot(range(1, EPOCHS + 1), [100 * v for v in curve], color=color, marker="o", label=name)
    tidy(plot, xlabel="epoch", ylabel="test IoU of the digits' pixels (%)", ylim=(0, 100))
    plot.legend(frameon=False)
    found = answers["with skips"].argmax(1).bool()
    pixels = float((found == truth).float().mean())
    nothing = float((~truth).float().mean())
    text = f"""
    Digits in colours of their own on crops of a photograph, {len(images)} to train on; the network marks the digits' pixels.
    Both have the same encoder: two poolings, so the lowest map has a 16th of the pixels and knows what, but not where.
    Without skips the decoder paints from that map alone: IoU {100 * curves["without skips"][-1]:.1f} %, blobs with lost strokes.
    With skips each decoder stage also sees the encoder's map of its size: IoU {100 * curves["with skips"][-1]:.1f} %, borders to the
    pixel.
    IoU is TP / (TP + FP + FN). Pixel accuracy, (TP + TN) / all, flatters: {100 * pixels:.1f} % here, and {100 * nothing:.1f} % for
    marking nothing at all.
    The loss is cross-entropy plus the soft IoU loss 1 - Σ XY / Σ (X + Y - XY), which asks for the IoU itself.
    Upsampling is a transposed convolution with kernel 2 and stride 2: no overlaps, so no checkerboard.
    """
    return Lesson("U-Net with and without skips", text, made)


if __name__ == "__main__":
    main(lesson)
