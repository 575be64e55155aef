"""Learning rates and schedules."""

import math

import numpy as np
import torch
from common import COLORS, Lesson, accuracy, convs, digits, figure, main, tidy

import fastcv.nn
from fastcv.train.data import Standardiser, augment

T, STEPS, TRIED, PEAK, SEEDS = 100, 1000, 400, 0.1, (0, 1)
RATES, LOST = (0.001, 0.01, 0.03, 0.3, 3.0), 20.0
SCHEDULES = {
    "constant": lambda t: 1.0,
    "step: x 0.1 at 30, 60, 90": lambda t: 0.1 ** sum(t >= mark for mark in (30, 60, 90)),
    "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t / T)),
    "linear": lambda t: 1 - t / T,
    "inverse square root": lambda t: 1 / math.sqrt(max(t, 1)),
    "warm-up 10, then cosine": lambda t: (t + 1) / 10 if t < 10 else 0.5 * (1 + math.cos(math.pi * (t - 10) / (T - 10))),
}


def trained(schedule, peak: float, steps: int, seed: int) -> tuple[list[float], float]:
    """Losses of a small network without batch norm under SGD with momentum, the schedule stretched over the steps; the test error in %.

    A loss above LOST ends the training.
    """
    data, parts = digits()
    network, loss = convs([16, "M", 32, 32], seed=seed), fastcv.nn.CrossEntropyLoss()
    prepare = Standardiser(data.images[parts.train])
    optimiser = torch.optim.SGD(network.parameters(), peak, momentum=0.9)
    rule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule(step * T / steps))
    generator, losses = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        batch = parts.train[torch.randint(len(parts.train), (16,), generator=generator)]
        images = augment(data.images[batch], 1, False, generator)
        value = loss(network(prepare(images)), data.labels[batch])
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        rule.step()
        losses.append(value.item())
        if not losses[-1] < LOST:
            break
    return losses, 100 * (1 - accuracy(network, parts.test))


def smooth(losses: list[float] | np.ndarray, width: int) -> np.ndarray:
    return np.convolve(losses, np.ones(width) / width, "valid")


def lesson() -> Lesson:
    made, ((rates, shapes, result),) = figure(13, 4.6, ncols=3)
    ends = {}
    for rate, color in zip(RATES, COLORS, strict=False):
        losses, _ = trained(SCHEDULES["constant"], rate, TRIED, 0)
        ends[rate] = np.mean(losses[-50:]) if len(losses) == TRIED else math.nan
        if len(losses) == TRIED:
            rates.plot(np.arange(20, TRIED + 1), smooth(losses, 20), color=color, label=f"rate {rate:g}")
        else:
            rates.plot(range(1, len(losses) + 1), np.minimum(losses, LOST), color=color, marker=".", label=f"rate {rate:g}")
    tidy(rates, yscale="log", xlabel="step", ylabel="training loss, mean of 20 steps", title="the rate", ylim=(None, 2 * LOST))
    rates.legend(frameon=False, fontsize=9, loc="lower left")
    final, errors = {}, {}
    for (name, schedule), color in zip(SCHEDULES.items(), COLORS, strict=True):
        shapes.plot(range(T), [schedule(t) for t in range(T)], color=color, label=name)
        runs, wrong = zip(*(trained(schedule, PEAK, STEPS, seed) for seed in SEEDS), strict=True)
        losses = np.mean(runs, 0)
        final[name], errors[name] = losses[-100:].mean(), np.mean(wrong)
        result.plot(np.arange(100, STEPS + 1), smooth(losses, 100), color=color)
    tidy(shapes, xlabel="t (of T = 100)", ylabel="rate / peak rate", title="schedules")
    tidy(result, yscale="log", xlabel="step", ylabel="training loss, mean of 100 steps", title="what they do")
    made.legend(*shapes.get_legend_handles_labels(), loc="outside lower right", ncols=6, frameon=False, fontsize=9)
    none, step, cosine, linear, root, warm = ((final[name], errors[name]) for name in SCHEDULES)
    lost = "diverges at once" if math.isnan(ends[3.0]) else f"ends at {ends[3.0]:.2f}"
    text = f"""
    Left: one network at five constant rates. After {TRIED} steps the loss is {ends[0.001]:.2f} at 0.001, hardly begun; {ends[0.01]:.2f} at
    0.01; {ends[0.03]:.2f} at 0.03; {ends[0.3]:.2f} at 0.3, thrown out to guessing (ln 10 = 2.30) and stuck there; 3 {lost}.
    Search rates on a logarithmic scale, and look at the curve of the loss, not only at its end.
    Middle: step decay, cosine a/2 (1 + cos(πt/T)), linear a(1 - t/T), inverse square root a/√t, and a linear warm-up.
    Right: {STEPS} steps of 16 digits, moved by up to a pixel, peak rate {PEAK}; means of {len(SEEDS)} seeds. At a constant rate the
    noise of the batches keeps the loss up: {none[0]:.3f} over the last 100 steps, {none[1]:.1f} % of the test digits wrong.
    A rate that falls lets it settle: cosine {cosine[0]:.3f} and {cosine[1]:.1f} %, linear {linear[0]:.3f} and {linear[1]:.1f} %.
    Step decay ({step[0]:.3f}, {step[1]:.1f} %) shows its drops; here it and 1/√t ({root[0]:.3f}, {root[1]:.1f} %) fall too early.
    Warm-up, then cosine: {warm[0]:.3f}, {warm[1]:.1f} %; it is for first steps that are dangerous: large batches, high rates, Adam.
    a/√t is infinite at t = 0: the schedule starts at t = 1, or behind a warm-up.
    """
    return Lesson("Learning rates and schedules", text, made)


if __name__ == "__main__":
    main(lesson)
