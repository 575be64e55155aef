"""Plain against residual networks as depth grows."""

import torch
from common import BLUE, ORANGE, Lesson, figure, fit, main, tidy
from torch import Tensor

import fastcv.nn
from fastcv.models.resnet_cifar import BasicBlock, ResNetCifar

DEPTHS = {8: (1, 1, 1), 20: (3, 3, 3), 44: (7, 7, 7)}


class PlainBlock(BasicBlock):
    """A basic block without its shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


def network(blocks: tuple[int, int, int], shortcuts: bool) -> ResNetCifar:
    torch.manual_seed(0)
    made = ResNetCifar(blocks, (8, 16, 32), in_chans=1, layers=fastcv.nn)
    if not shortcuts:
        for block in (m for m in made.modules() if isinstance(m, BasicBlock)):
            block.__class__, block.downsample = PlainBlock, None
    return made


def lesson() -> Lesson:
    made, axes = figure(11, 4, ncols=2, sharey=True)
    losses, accuracies = {}, {}
    for cell, (name, shortcuts) in zip(axes[0], {"plain": False, "residual": True}.items(), strict=True):
        for (depth, blocks), style in zip(DEPTHS.items(), (":", "--", "-"), strict=True):
            history = fit(network(blocks, shortcuts), epochs=5, learning_rate=0.05, warmup_epochs=0.5)
            losses[name, depth], accuracies[name, depth] = history[-1].train_loss, history[-1].validation_accuracy
            color = BLUE if shortcuts else ORANGE
            cell.plot([e.epoch for e in history], [e.train_loss for e in history], style, color=color, label=f"{depth} layers")
        tidy(cell, yscale="log", xlabel="epoch", title=name, xticks=range(1, 6))
        cell.legend(frameon=False)
    axes[0][0].set_ylabel("training loss")
    text = f"""
    The same blocks with and without the shortcut x + f(x); batch norm in both, five epochs of digits.
    Plain: 8 layers reach a training loss of {losses["plain", 8]:.3f}, 20 layers {losses["plain", 20]:.3f}, 44 layers
    {losses["plain", 44]:.3f}.
    Residual: {losses["residual", 8]:.3f}, {losses["residual", 20]:.3f} and {losses["residual", 44]:.3f}. It is the training loss:
    overfitting cannot explain the difference.
    A deeper network could copy the shallower one and leave the rest as identity; plain layers find identity hard to learn,
    residual ones have it at f = 0, where they nearly start. The gradient passes the sum unchanged, whatever f does.
    Validation at 44 layers: {100 * accuracies["plain", 44]:.1f} % plain, {100 * accuracies["residual", 44]:.1f} % residual.
    Where the shape changes the shortcut is a 1x1 convolution with stride 2.
    """
    return Lesson("Depth: plain against residual", text, made)


if __name__ == "__main__":
    main(lesson)
