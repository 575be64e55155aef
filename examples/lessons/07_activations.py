"""From sigmoid to ELU: values, slopes, gradients through depth, and training."""

import torch
from common import COLORS, Lesson, digits, figure, fit, main, tidy
from torch import nn

import fastcv.functional as F

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "ReLU": nn.ReLU, "leaky ReLU": lambda: nn.LeakyReLU(0.1), "ELU": nn.ELU}


def deep(activation, seed: int = 0) -> nn.Sequential:
    """Ten hidden layers of 64, Xavier's initialisation."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(10):
        layers += [nn.Linear(64, 64), activation()]
        nn.init.xavier_normal_(layers[-2].weight)
        nn.init.zeros_(layers[-2].bias)
    return nn.Sequential(*layers, nn.Linear(64, 10))


def lesson() -> Lesson:
    made, ((value, slope, depth, train),) = figure(14, 3.6, ncols=4)
    x = torch.linspace(-5, 5, 401, requires_grad=True)
    data, parts = digits()
    images, labels = data.images[parts.train][:256].float() / 8 - 1, data.labels[parts.train][:256]
    ratio, accuracy = {}, {}
    for (name, activation), color in zip(ACTIVATIONS.items(), COLORS, strict=False):
        y = activation()(x)
        (dy,) = torch.autograd.grad(y.sum(), x)
        value.plot(x.detach(), y.detach(), color=color, label=name)
        slope.plot(x.detach(), dy, color=color)
        network = deep(activation)
        F.cross_entropy(network(images), labels).backward()
        norms = [float(m.weight.grad.norm()) for m in network if isinstance(m, nn.Linear)][:10]
        ratio[name] = norms[0] / norms[-1]
        depth.plot(range(1, 11), norms, color=color, marker=".")
        history = fit(deep(activation), epochs=8, learning_rate=0.02)
        accuracy[name] = 100 * history[-1].validation_accuracy
        train.plot([e.epoch for e in history], [100 * e.validation_accuracy for e in history], color=color)
    tidy(value, title="value", ylim=(-1.5, 3))
    value.legend(frameon=False, fontsize=9)
    tidy(slope, title="slope")
    tidy(depth, title="gradient before training", yscale="log", xlabel="layer", ylabel="norm of the weights' gradient")
    tidy(train, title="ten layers on digits", xlabel="epoch", ylabel="validation accuracy (%)")
    text = f"""
    Sigmoid's slope is a quarter at best and zero where the unit saturates; ten layers multiply ten of them:
    the first layer's gradient is {ratio["sigmoid"]:.0e} of the last's, and after eight epochs the network answers
    {accuracy["sigmoid"]:.0f} % right (chance is 10 %).
    tanh is centred and has slope one at zero: a ratio of {ratio["tanh"]:.2g}, {accuracy["tanh"]:.1f} %.
    ReLU does not saturate on the right and costs a comparison; on the left it is dead: slope 0. Xavier's scale, made for tanh, is too
    small for it by √2 per layer: {accuracy["ReLU"]:.1f} %.
    Leaky ReLU keeps a slope of 0.1 there ({accuracy["leaky ReLU"]:.1f} %); ELU bends to -1, so that the mean output is nearer to zero
    ({accuracy["ELU"]:.1f} %).
    At ReLU's corner the slope is a choice (0, as torch): a gradient check there compares nothing, and says so.
    Practice: ReLU with He's initialisation; look at dead units when the learning rate is high; sigmoid for gates and outputs only.
    """
    return Lesson("Activations, from sigmoid to ELU", text, made)


if __name__ == "__main__":
    main(lesson)
