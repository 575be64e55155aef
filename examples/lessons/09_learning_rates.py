"""Learning rates and schedules."""

import math

import numpy as np
import torch
from common import COLORS, Lesson, convs, digits, figure, fit, main, tidy

import fastcv.nn
from fastcv.train.data import Standardiser

T = 100
SCHEDULES = {
    "constant": lambda t: 1.0,
    "step: x 0.1 at 30, 60, 90": lambda t: 0.1 ** sum(t >= mark for mark in (30, 60, 90)),
    "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t / T)),
    "linear": lambda t: 1 - t / T,
    "inverse square root": lambda t: 1 / math.sqrt(max(t, 1)),
    "warm-up 10, then cosine": lambda t: (t + 1) / 10 if t < 10 else 0.5 * (1 + math.cos(math.pi * (t - 10) / (T - 10))),
}


def scheduled(schedule, peak: float, steps: int = 200) -> list[float]:
    """Losses of a small network without batch norm under SGD with momentum; the schedule is stretched over the steps."""
    data, parts = digits()
    prepare, network, loss = Standardiser(data.images[parts.train]), convs([16, "M", 32, 32]), fastcv.nn.CrossEntropyLoss()
    optimiser = torch.optim.SGD(network.parameters(), peak, momentum=0.9)
    rule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule(step * T / steps))
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        batch = parts.train[torch.randint(len(parts.train), (64,), generator=generator)]
        value = loss(network(prepare(data.images[batch])), data.labels[batch])
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        rule.step()
        losses.append(value.item())
    return losses


def lesson() -> Lesson:
    made, ((rates, shapes, result),) = figure(13, 4, ncols=3)
    ends = {}
    for rate, color in zip((0.0003, 0.003, 0.03, 0.3, 3.0), COLORS, strict=False):
        history = fit(convs([16, "M", 32, 32]), epochs=6, learning_rate=rate)
        ends[rate] = history[-1].train_loss if len(history) == 6 else math.nan
        if history:
            rates.plot([e.epoch for e in history], [e.train_loss for e in history], color=color, marker=".", label=f"{rate:g}")
    tidy(rates, yscale="log", xlabel="epoch", ylabel="training loss", title="the rate")
    rates.legend(frameon=False, title="peak rate")
    final = {}
    for (name, schedule), color in zip(SCHEDULES.items(), COLORS, strict=True):
        shapes.plot(range(T), [schedule(t) for t in range(T)], color=color, label=name)
        losses = np.array(scheduled(schedule, 0.05))
        final[name] = losses[-20:].mean()
        result.plot(np.convolve(losses, np.ones(20) / 20, "valid"), color=color)
    tidy(shapes, xlabel="t (of T = 100)", ylabel="rate / peak rate", title="schedules")
    shapes.legend(frameon=False, fontsize=8)
    tidy(result, yscale="log", xlabel="step", ylabel="training loss, mean of 20 steps", title="what they do")
    best, none = min(final, key=final.get), final["constant"]
    large = "diverges" if math.isnan(ends[3.0]) else f"ends at {ends[3.0]:.2g} (ln 10 = 2.30 is guessing)"
    text = f"""
    Left: one network, five rates, six epochs. 0.0003 has hardly begun ({ends[0.0003]:.2f}), 0.03 ends at {ends[0.03]:.3f}, 3 {large}.
    Search rates on a logarithmic scale, and look at the curve of the loss, not only at its end.
    Middle: step decay, cosine a/2 (1 + cos(πt/T)), linear a(1 - t/T), inverse square root a/√t, and a linear warm-up.
    In these 200 steps the lowest end is that of "{best}" with {final[best]:.4f}; the constant rate ends at {none:.4f} (means of the
    last 20 steps, one seed). A rate that falls pays once the noise of the batches, and not the way still to go, is what is left:
    step decay and 1/√t fell too early here ({final["step: x 0.1 at 30, 60, 90"]:.2f} and {final["inverse square root"]:.2f}).
    Warm-up helps where the first steps are the most dangerous: large batches, high rates, adaptive optimisers.
    a/√t is infinite at t = 0: the schedule starts at t = 1, or behind a warm-up.
    """
    return Lesson("Learning rates and schedules", text, made)


if __name__ == "__main__":
    main(lesson)
