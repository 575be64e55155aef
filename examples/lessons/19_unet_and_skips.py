"""U-Net with and without skip connections."""

import torch
from common import BLUE, ORANGE, Lesson, figure, main, picture, tidy
from torch import Tensor

import fastcv.functional as F
from fastcv.models.unet import UNet
from fastcv.train import composed
from fastcv.train.data import Standardiser

EPOCHS, IMAGES = 6, 480


def iou(logits: Tensor, masks: Tensor) -> float:
    found = logits.argmax(1).bool()
    return float((found & masks).sum() / (found | masks).sum())


def lesson() -> Lesson:
    data = composed.load()
    masks = data.labels > 0
    images, tests, truth = data.images[:IMAGES], data.images[data.test[:160]], masks[data.test[:160]]
    prepare = Standardiser(images)
    curves, answers = {}, {}
    for name, skips in (("with skips", True), ("without skips", False)):
        torch.manual_seed(0)
        network, curve = UNet(2, 3, width=12, depth=2, skips=skips, batch_norm=True), []
        optimiser = torch.optim.Adam(network.parameters(), 4e-3)
        for epoch in range(EPOCHS):
            network.train()
            for batch in torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch)).split(24):
                logits = network(prepare(images[batch]))["out"]
                target = masks[batch]
                loss = F.cross_entropy(logits, target.long()) + F.soft_iou_loss(F.softmax(logits, dim=1)[:, 1], target.float())
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            network.eval()
            with torch.no_grad():
                answers[name] = network(prepare(tests))["out"]
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
    One or two digits in light ink on dimmed pieces of two photographs, {len(images)} to train on; the network marks the digits' pixels.
    The test images share neither a scan nor a region of a photograph with them.
    Both have the same encoder: two poolings, so the lowest map has a 16th of the pixels and knows what, but not where.
    Without skips the decoder paints from that map alone: IoU {100 * curves["without skips"][-1]:.1f} %, rounded, holes and
    thin strokes lost.
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
