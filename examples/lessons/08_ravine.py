"""SGD, momentum and Adam in a ravine: two weights of a logistic regression on real digits."""

import numpy as np
import torch
from common import BLUE, GREEN, ORANGE, Lesson, digits, figure, main, tidy
from matplotlib.colors import LogNorm

import fastcv.functional as F

STEPS = 60


def lesson() -> Lesson:
    data, parts = digits()
    images, labels = data.images[parts.train].float()[:, 0] / 16, data.labels[parts.train]
    chosen = (labels == 3) | (labels == 4)
    # Ink of the left half, and of the whole at a tenth of the size: two unlike scales, as raw features have.
    features = torch.stack([images[chosen][:, :, :4].mean((1, 2)) * 12, images[chosen].mean((1, 2)) * 1.2], 1)
    features = features - features.mean(0)
    target = (labels[chosen] == 4).long()

    def loss(w: torch.Tensor) -> torch.Tensor:
        """w [..., 2] to the mean loss with a small L2 penalty, so that there is one lowest point."""
        scores = (features * w[..., None, :]).sum(-1)
        pair = torch.stack([torch.zeros_like(scores), scores], -1)
        each = F.cross_entropy(pair.reshape(-1, 2), target.expand(scores.shape).reshape(-1), reduction="none")
        return each.reshape(scores.shape).mean(-1) + 3e-4 * w.square().sum(-1)

    best = torch.tensor([0.0, 0.0], requires_grad=True)
    newton = torch.optim.LBFGS([best], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        newton.zero_grad()
        value = loss(best)
        value.backward()
        return value

    newton.step(closure)
    least = float(loss(best.detach()))
    hessian = torch.autograd.functional.hessian(loss, best.detach())
    curvatures = torch.linalg.eigvalsh(hessian)
    steep = float(curvatures[1])  # plain SGD diverges from a rate of 2 / steep
    optimisers = {
        "SGD": lambda p: torch.optim.SGD(p, 1.9 / steep),
        "momentum 0.7": lambda p: torch.optim.SGD(p, 1.2 / steep, momentum=0.7),
        "Adam": lambda p: torch.optim.Adam(p, 0.5),
    }
    paths, losses = {}, {}
    for name, build in optimisers.items():
        w = torch.tensor([-1.5, 7.0], requires_grad=True)
        optimiser, path, values = build([w]), [w.detach().clone()], []
        for _ in range(STEPS):
            value = loss(w)
            values.append(float(value.detach()))
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            path.append(w.detach().clone())
        paths[name], losses[name] = torch.stack(path), values
    everything = torch.cat(list(paths.values()))
    low, high = everything.amin(0), everything.amax(0)
    margin = 0.15 * (high - low)
    a, b = (torch.linspace(float(low[i] - margin[i]), float(high[i] + margin[i]), 90) for i in range(2))
    surface = loss(torch.stack(torch.meshgrid(a, b, indexing="xy"), -1))
    made, ((plane, curve),) = figure(11.5, 4.4, ncols=2, width_ratios=(1.4, 1))
    plane.contour(a, b, surface - least + 1e-4, levels=np.geomspace(1e-3, 3, 15), norm=LogNorm(), cmap="Greys_r", linewidths=0.7)
    for (name, path), color in zip(paths.items(), (BLUE, ORANGE, GREEN), strict=True):
        plane.plot(*path.T, color=color, marker=".", markersize=4, linewidth=1, label=name)
        curve.plot([v - least for v in losses[name]], color=color, label=name)
    plane.plot(*best.detach(), "k*", markersize=12)
    tidy(plane, xlabel="weight of the left half's ink", ylabel="weight of all ink")
    tidy(curve, yscale="log", xlabel="step", ylabel="loss above its minimum")
    curve.legend(frameon=False)
    ends = {name: values[-1] - least for name, values in losses.items()}
    text = f"""
    Is it a 3 or a 4? Logistic regression on two raw features of unlike scale: the loss is a ravine.
    Its curvatures at the minimum (star) are {curvatures[1]:.2g} and {curvatures[0]:.2g}, a ratio of
    {curvatures[1] / curvatures[0]:.0f}: the steep one bounds the learning rate,
    and along the flat one SGD then creeps; {ends["SGD"]:.1g} above the minimum after {STEPS} steps.
    Momentum averages the zigzag away and gathers speed along the floor ({ends["momentum 0.7"]:.1g}); it overshoots, as a ball would.
    Adam divides each weight's step by the size of its own gradients, so both directions move at one speed ({ends["Adam"]:.1g});
    with a constant rate it then circles the minimum, and the rate has to fall.
    Standardising the two features would have made the ravine a bowl: look at the data before the optimiser.
    """
    return Lesson("A ravine: SGD, momentum, Adam", text, made)


if __name__ == "__main__":
    main(lesson)
